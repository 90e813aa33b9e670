"""Prediction: classes of an image, tokenized as the run's dataset was."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

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
    """classes: the most likely ones with their probabilities. exhibit: the tokens, to be drawn."""

    path: Path
    classes: list[tuple[str, float]]
    exhibit: Exhibit


class Predictor:
    """A trained model with its tokenizer.

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
        self.tokens = config.budgets[-1] if tokens is None else tokens
        code = config.tokenizer.same_code(
            config.scorer_sha256, scorer=scorer, backbone=backbone, weights=scorer_weights
        )
        self._tokenizer = Tokenizer(
            replace(config.tokenizer, tokens=self.tokens),
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
        leaves = mosaic.leaves()
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
            exhibit=Exhibit(mosaic=mosaic, title=str(path), image=image),
        )

    def _as_stored(self, mosaic: Mosaic) -> Mosaic:
        """The mosaic after the codec of the shards: JPEG changes tokens."""
        if self._codec is None:
            return mosaic
        encoded = self._codec.encode(mosaic.tokens)
        return replace(mosaic, tokens=self._codec.decode(encoded, len(mosaic.tokens)))
