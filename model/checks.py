"""Checks before training: the warm-up, the dataset, and the options of a resumed run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.model.config import BACKBONE, TrainConfig
from quadpipe.model.evaluate import check_fits
from quadpipe.model.run_manifest import DATASET_PARTS, RunManifest
from quadpipe.shards.joined import how_made, told_apart
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset
from quadpipe.text import counted

Warn = Callable[[str], None]

# Options that may change when a run is resumed: without an effect on the result, or with one.
_WITHOUT_EFFECT = {
    "workers",
    "device",
    "log_interval",
    "checkpoint_interval",
    "tensorboard",
    "compile",
    "profile",
}
_WITH_EFFECT = {"lr", "min_lr", "warmup_epochs", "clip_grad", "amp", "on_error", "verify"}

# A longer warm-up is shortened to this part of a run: one tenth.
_RUN_BY_WARMUP = 10


def shorten_warmup(config: TrainConfig, stored: RunManifest | None, warn: Warn) -> TrainConfig:
    """Limit the warm-up to a tenth of the run, so that short runs learn too; with a note, unless it
    is the default.

    stored: of the run that is resumed. Older versions did not shorten the warm-up, and their runs
    keep it.
    """
    given, longest = config.warmup_epochs, config.epochs / _RUN_BY_WARMUP
    if given <= longest or (stored and stored.train.warmup_epochs == given):
        return config
    if given != TrainConfig.warmup_epochs:
        warn(f"the warm-up of {given:g} epochs is shortened to {longest:g}, a tenth of the run")
    return replace(config, warmup_epochs=longest)


def check_same_run(
    stored: RunManifest, given: RunManifest, manifest: Manifest, run: str, dataset: str, warn: Warn
) -> None:
    """Raise ConfigError if options or shards that decide the result are not those of the run."""
    before, now = ([d["fingerprint"][:12] for d in r.datasets] for r in (stored, given))
    if before != now:
        raise ConfigError(
            f"{run} was started on other datasets: they were {before or 'one'}, now "
            f"{now or 'one'}; resume with the same ones in their order"
        )
    check_fits(stored.model, manifest, stored.classes, dataset)
    if manifest.classes != stored.classes:
        raise ConfigError(
            f"{dataset} has {counted(len(manifest.classes or ()), 'class')}, not the run's "
            f"{len(stored.classes)}; resume with the same dataset"
        )
    differences: list[str] = []
    changes: list[str] = []
    found = stored.differences(given, "train", *DATASET_PARTS, "shard_lists")
    for name, text in found.items():
        part, _, option = name.partition(".")
        if part == "train" and option in _WITHOUT_EFFECT:
            continue
        # The checksums of the shards are compared, so another imaging library is harmless.
        changeable = part == "imaging_library" or (part == "train" and option in _WITH_EFFECT)
        (changes if changeable else differences).append(text)
    if stored.ignored:
        warn(f"{run} {stored.says_ignored()}")
    if differences:
        raise ConfigError(
            f"{run} was started differently: {'; '.join(differences[:8])}; resume with the same "
            f"options and dataset, or start another run, from these weights with --init {run}"
        )
    if changes:
        warn(f"resumed with other options: {'; '.join(changes)}")


def warn_of_options(config: TrainConfig, budgets: int, warn: Warn) -> None:
    """Warn of options that have no effect, or take their time. budgets: how many there are."""
    if config.compile and budgets > 1:
        warn(
            f"--compile compiles the model for each of {budgets} numbers of tokens, in the "
            f"first steps that have them"
        )
    if config.freeze == BACKBONE and config.layer_decay != 1:
        warn(
            f"--layer-decay has no effect with --freeze {BACKBONE}, which trains only the head, at "
            f"the full rate"
        )


def warn_of_differences(datasets: Sequence[Dataset], warn: Warn) -> None:
    """Say how datasets that train together were made differently, which are copies from others of
    them, and which have no split val."""
    first = datasets[0]
    for other in datasets[1:]:
        if differing := told_apart(how_made(first.manifest), how_made(other.manifest)):
            warn(f"{first.folder} and {other.folder} were made differently: {differing}")
    for copied, source in permutations(datasets, 2):
        if source.manifest.fingerprint in _ancestors(copied.manifest.parents):
            warn(
                f"{copied.folder} was copied from {source.folder}, so samples that both have come "
                f"more than once in an epoch"
            )
    bare = [str(d.folder) for d in datasets if not has_samples(d, "val")]
    if 0 < len(bare) < len(datasets):
        warn(f"no split val in {' and '.join(bare)}: accuracies are of the others")


def _ancestors(parents: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Fingerprints of a manifest's parents, and of theirs."""
    for parent in parents:
        yield parent["fingerprint"]
        yield from _ancestors(parent.get("parents", ()))


def has_samples(dataset: Dataset, split: str) -> bool:
    """Whether a dataset has a split that is not empty."""
    return split in dataset.manifest.splits and dataset.split(split).samples > 0


def warn_of_dataset(manifest: Manifest, *, validated: bool, warn: Warn) -> None:
    """Warn of what makes an accuracy on this dataset meaningless."""
    if manifest.classes is not None and len(manifest.classes) == 1:
        warn(
            f"the dataset has one class, {manifest.classes[0]!r}, so there is nothing to learn; if "
            f"that folder holds the folders of the real classes, tokenize it instead of the folder "
            f"around it"
        )
    if manifest.scorer["label_aware"]:
        warn(
            "the scorer of these shards used the labels: accuracies mean nothing for images "
            "without labels"
        )
    if not validated:
        warn("no split val: no accuracy on unseen images, and no best checkpoint")
