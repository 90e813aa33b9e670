"""Evaluation: accuracy of a model at a number of tokens."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Batch, Loader
from quadpipe.model.distributed import World
from quadpipe.model.precision import autocast
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.model.run_manifest import DATASET_PARTS, RunManifest
from quadpipe.shards.manifest import Manifest

_NOT_SEEN = ("tokenizer.tokens", "tokenizer.seed")


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Result on one split. samples: scored samples. skipped: damaged samples, not scored.

    tokens: tokens per image, the mean over the scored samples; an integer where it is whole.
    multiply_adds: per image, their mean, rounded. top1, top5: shares of the scored samples. loss:
    their mean cross entropy. by_dataset: of several datasets, top1 of each by its folder.
    """

    split: str
    tokens: int | float
    samples: int
    skipped: int
    top1: float
    top5: float
    loss: float
    multiply_adds: int
    images_per_second: float
    by_dataset: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def evaluate(
    model: Quadformer,
    loader: Loader,
    device: torch.device,
    world: World | None = None,
    amp: str = "auto",
) -> EvalResult:
    """Score the loader's split, with the tokens that it gives; amp: see `precision.autocast`.

    With a world, each process scores its slice of every batch. Raises ShardError if all samples
    were skipped.
    """
    world = world or World()
    started = time.perf_counter()
    # top1, top5, loss and scored samples of each dataset.
    sums = torch.zeros((len(loader.datasets), 4), dtype=torch.float64, device=device)
    seen = skipped = tokens = multiply_adds = 0.0
    was_training = model.training
    model.eval()
    for batch, _ in world.in_step(loader.epoch(0)):
        label = batch.label.to(device, non_blocking=True)
        seen += float(batch.weight.sum())
        skipped += batch.skipped
        for length, scored in zip(_lengths(batch), batch.weight.tolist(), strict=True):
            tokens += scored * length
            multiply_adds += scored * model.config.multiply_adds(length)
        weight = batch.weight.to(device, non_blocking=True)
        inputs = (x.to(device, non_blocking=True) for x in (batch.tokens, batch.boxes))
        with autocast(device, amp):
            logits, _ = model(*inputs, batch.lengths)
        rows = _scores(logits, label) * weight[:, None]
        if batch.dataset is None:
            sums += rows.sum(dim=0)
        else:
            sums.index_add_(0, batch.dataset.to(device, non_blocking=True), rows)
    model.train(was_training)
    seen, skipped, tokens, multiply_adds, *each = world.total(
        seen, skipped, tokens, multiply_adds, *sums.flatten().tolist()
    )
    by_dataset = np.reshape(each, sums.shape)
    top1, top5, loss, _ = by_dataset.sum(axis=0).tolist()
    if not seen:
        raise ShardError(
            f"all {int(skipped)} samples of {loader.name} in {loader.where} are damaged, "
            f"so there is nothing to score; run quadpipe verify, then fetch the dataset again"
        )
    seconds = time.perf_counter() - started
    return EvalResult(
        split=loader.name,
        tokens=int(mean) if (mean := tokens / seen).is_integer() else mean,
        samples=int(seen),
        skipped=int(skipped),
        top1=top1 / seen,
        top5=top5 / seen,
        loss=loss / seen,
        multiply_adds=round(multiply_adds / seen),
        images_per_second=seen / seconds,
        by_dataset={
            str(dataset.folder): float(right / scored)
            for dataset, (right, _, _, scored) in zip(loader.datasets, by_dataset, strict=True)
            if len(by_dataset) > 1 and scored
        },
    )


def _scores(logits: Tensor, label: Tensor) -> Tensor:
    """float64 `[b, 4]`: top1, top5, loss and 1 of each image."""
    best = logits.topk(min(5, logits.shape[1])).indices == label[:, None]
    losses = F.cross_entropy(logits.float(), label, reduction="none")
    scores = (best[:, 0], best.any(dim=1), losses, torch.ones_like(losses))
    return torch.stack([score.double() for score in scores], dim=1)


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each image."""
    if batch.lengths is None:
        return [batch.tokens.shape[1]] * len(batch.label)
    lengths: list[int] = batch.lengths.tolist()
    return lengths


def check_fits(
    config: QuadformerConfig, manifest: Manifest, classes: list[str], where: str
) -> None:
    """Raise ConfigError unless a dataset has a model's geometry, and only classes of the run."""
    geometry = manifest.geometry
    if manifest.classes is None:
        raise ConfigError(
            f"{where} has no labels; a classifier needs them: tokenize a folder of class folders"
        )
    if geometry.patch_size != config.patch_size or geometry.max_scale > config.max_scale:
        raise ConfigError(
            f"{where} has patches of {geometry.patch_size} to {geometry.max_patch_size} pixels, "
            f"the model was made for {config.patch_size} to "
            f"{config.patch_size << config.max_scale}; tokenize with those"
        )
    is_of_grid = config.positions == "learned" or config.rope != "none"
    if is_of_grid and geometry.grid(0) != config.grid:
        raise ConfigError(
            f"{where} has {geometry.grid(0)} patches, the model's positions are for "
            f"{config.grid}; tokenize with that image size"
        )
    strange = [name for name in manifest.classes if name not in set(classes)]
    if strange:
        raise ConfigError(
            f"{len(strange)} of the {len(manifest.classes)} classes of {where} are not among the "
            f"run's {len(classes)}, such as {strange[0]!r}; use a dataset of "
            f"the run's classes, or a part of it: quadpipe copy --classes"
        )


def find_differences(config: RunManifest, manifest: Manifest) -> list[str]:
    """Differences between how a dataset and the dataset of a run were made: "x was .., now ..".

    The stored budget and the seed are ignored: they do not change the tokens of an image. A run on
    several datasets was made as each of them was.
    """
    if manifest.fingerprint in [dataset["fingerprint"] for dataset in config.datasets]:
        return []
    found = config.differences(
        RunManifest.of(config.train, manifest, config.model.architecture()),
        *DATASET_PARTS,
    )
    return [text for name, text in found.items() if name not in _NOT_SEEN]
