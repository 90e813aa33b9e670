"""Prediction: classes of an image, tokenized as the run's dataset was."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from quadpipe.counts import check_given
from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.run_manifest import RunManifest
from quadpipe.mosaic import Mosaic
from quadpipe.render import Exhibit
from quadpipe.scorers import scorer_type
from quadpipe.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """classes: the most likely ones with their probabilities. tokens: number of the image's tokens.
    exhibit: these tokens, to be drawn."""

    path: Path
    classes: list[tuple[str, float]]
    tokens: int
    exhibit: Exhibit


class Predictor:
    """A trained model with its tokenizer.

    tokens: of each image. mean_tokens: instead, each image has as many as it needs, within
    `min_tokens` and `max_tokens`, and the images of the split train would have this mean. By
    default as in training, at the largest budget or mean. unseen: numbers of tokens that an image
    can have here and that none had in training.

    scorer, backbone, scorer_weights: the run's scorer and its network, if the user names them; a
    `module:callable` is never taken from the run. Raises ConfigError if the scorer needs more than
    pixels, or its network is not the one that the shards were made with.
    """

    def __init__(
        self,
        run: RunFolder,
        device: torch.device,
        tokens: int | None = None,
        *,
        mean_tokens: int | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        scorer: str | None = None,
        backbone: str | None = None,
        scorer_weights: Path | None = None,
    ) -> None:
        config: RunManifest = run.config()
        hint = scorer_type(config.tokenizer.scorer).hint
        if config.label_aware or hint:
            needs = "labels" if config.label_aware else f"{hint} of each image"
            raise ConfigError(
                f"{run} was trained on shards whose scorer, {config.tokenizer.scorer}, looks at "
                f"{needs}, which new images do not have; train on shards of another scorer"
            )
        if tokens is not None and mean_tokens is not None:
            raise ConfigError("give tokens or mean_tokens, not both")
        self._limits = None
        if mean_tokens is not None or (tokens is None and config.is_adaptive):
            mean = config.budgets[-1] if mean_tokens is None else mean_tokens
            self._limits = config.limits(min_tokens, max_tokens)
            self._threshold = run.threshold(mean, self._limits)
            largest = self._limits.most
            self.unseen = config.unseen(self._limits.counts)
        else:
            check_given(mean_tokens, min_tokens, max_tokens)
            largest = config.budgets[-1] if tokens is None else tokens
            self.unseen = config.unseen([largest])
        code = config.tokenizer.same_code(
            config.scorer_sha256, scorer=scorer, backbone=backbone, weights=scorer_weights
        )
        self._tokenizer = Tokenizer(
            replace(config.tokenizer, tokens=largest),
            scorer=config.tokenizer.make_scorer(code),
        )
        self._codec = config.make_codec()
        self._classes = config.classes
        self._device = device
        self._model: Quadformer = run.model(device)

    @torch.inference_mode()
    def __call__(self, path: Path, *, top: int = 5) -> Prediction:
        """The `top` classes of an image file; SourceError if it cannot be decoded."""
        try:
            image = self._tokenizer.prepare_file(path.read_bytes())
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        except RejectError as error:
            raise SourceError(f"{path} cannot be used as an image: {error}") from error
        mosaic = self._as_stored(self._tokenizer.tokenize(image[None])[0])
        leaves = mosaic.leaves(self._count(mosaic))
        tokens = torch.from_numpy(leaves.tokens)[None].to(self._device)
        boxes = torch.from_numpy(leaves.boxes)[None].to(self._device)
        logits, _ = self._model(tokens, boxes)
        best = logits[0].float().softmax(dim=0).topk(min(top, len(self._classes)))
        return Prediction(
            path=path,
            classes=[
                (self._classes[index], share)
                for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ],
            tokens=len(leaves),
            exhibit=Exhibit(mosaic=mosaic, title=str(path), image=image, tokens=len(leaves)),
        )

    def _count(self, mosaic: Mosaic) -> int | None:
        """The number of tokens of an image; None for all of the mosaic."""
        if self._limits is None:
            return None
        (splits,) = self._limits.at_threshold(mosaic.gains[None], self._threshold)
        return mosaic.geometry.roots + 3 * int(splits)

    def _as_stored(self, mosaic: Mosaic) -> Mosaic:
        """The mosaic after the codec of the shards: JPEG changes tokens."""
        if self._codec is None:
            return mosaic
        encoded = self._codec.encode(mosaic.tokens)
        return replace(mosaic, tokens=self._codec.decode(encoded, len(mosaic.tokens)))
