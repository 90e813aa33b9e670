"""Several datasets as one: what they must have in common, their classes, and a joint manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.files import Cache, Folder, RemoteFolder, open_folder
from quadpipe.names import SPLITS
from quadpipe.shards.format import shard_list_name
from quadpipe.shards.manifest import Manifest, SplitInfo
from quadpipe.shards.reader import Dataset
from quadpipe.text import counted

# Options of tokenizers that do not change what a token means.
_WITHOUT_MEANING = ("seed", "max_pixels")
# Differences that leave the gains of two datasets comparable.
_WITHOUT_GAINS = (
    "tokens",
    "resample",
    "resize",
    "crop_pct",
    "codec.name",
    "codec.quality",
    "tokenizer_version",
    "scorer.label_aware",
    "scorer.device",
    "scorer.torch",
    "imaging_library",
)

_MOST_TOLD = 8


Location = Dataset | str | PathLike[str]


def open_datasets(
    given: Location | Sequence[Location], cache: Cache | None = None, expect: str | None = None
) -> list[Dataset]:
    """One or several datasets; those that are open already stay as they are.

    cache: for those at URLs, see `Dataset`. expect: fingerprints separated by commas, one for each.
    ConfigError without a dataset, on a cache for none of them, and on another number of
    fingerprints.
    """
    places = [given] if isinstance(given, Dataset | str | PathLike) else list(given)
    if not places:
        raise ConfigError("no dataset is given; give one or more")
    expected = [None] * len(places) if expect is None else expect.split(",")
    if len(expected) != len(places):
        raise ConfigError(
            f"expect names {counted(len(expected), 'fingerprint')} for "
            f"{counted(len(places), 'dataset')}; give one for each, in their order, "
            f"separated by commas"
        )
    found = [place if isinstance(place, Dataset) else open_folder(place) for place in places]
    if cache and not any(isinstance(one, RemoteFolder) for one in found):
        raise ConfigError("a cache is for datasets at URLs, and none is given; omit --cache")
    return [_opened(one, cache, prefix) for one, prefix in zip(found, expected, strict=True)]


def _opened(found: Dataset | Folder, cache: Cache | None, expect: str | None) -> Dataset:
    if isinstance(found, Dataset):
        found.manifest.check_expected(expect, str(found.folder))
        return found
    return Dataset(found, cache=cache if isinstance(found, RemoteFolder) else None, expect=expect)


def how_made(manifest: Manifest) -> dict[str, Any]:
    """What decides the tokens of a dataset, by name."""
    tokenizer = asdict(manifest.tokenizer)
    return (
        {name: value for name, value in tokenizer.items() if name not in _WITHOUT_MEANING}
        | {f"scorer.{name}": value for name, value in manifest.scorer.items()}
        | {f"codec.{name}": value for name, value in manifest.codec.items()}
        | {"tokenizer_version": manifest.tokenizer_version}
        | {"imaging_library": " ".join(filter(None, manifest.imaging_library.values()))}
    )


def told_apart(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The differences between two `how_made`, "resize crop and squash; ..", empty without any."""
    differing = [
        f"{name} {one.get(name)} and {other.get(name)}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    ]
    return "; ".join(differing[:_MOST_TOLD] + [".."] * (len(differing) > _MOST_TOLD))


def why_not_comparable(datasets: Sequence[Dataset]) -> str:
    """Why the gains of datasets cannot be compared; empty if they can."""
    scored = [
        {name: v for name, v in how_made(dataset.manifest).items() if name not in _WITHOUT_GAINS}
        for dataset in datasets
    ]
    for dataset, made in zip(datasets, scored, strict=True):
        if differing := told_apart(scored[0], made):
            return (
                f"the gains of {datasets[0].folder} and {dataset.folder} cannot be compared, since "
                f"their images were scored differently: {differing}"
            )
    return ""


def join_classes(
    datasets: Sequence[Dataset], wanted: list[str] | None
) -> tuple[list[str] | None, list[np.ndarray | None]]:
    """Classes by name, those of the first dataset first; and for each dataset the new indices of
    its classes, -1 for those that are left out.

    wanted: the classes, instead. ConfigError when one of them is in no dataset, or when only some
    datasets have labels.
    """
    given = [dataset.manifest.classes for dataset in datasets]
    labelled = [classes for classes in given if classes is not None]
    if not labelled and wanted is None:
        return None, [None] * len(given)
    if len(labelled) < len(given):
        bare = datasets[given.index(None)].folder
        raise ConfigError(f"{bare} has no labels; give it some with --labels, in a copy of its own")
    names = list(dict.fromkeys(name for classes in labelled for name in classes))
    if wanted is not None:
        unknown = [name for name in wanted if name not in names]
        if unknown or len(set(wanted)) < len(wanted):
            problem = f"has no class {unknown[0]!r}" if unknown else "is asked for a class twice"
            raise ConfigError(
                f"{datasets[0].folder} {problem}; its {len(names):,} classes are "
                f"{', '.join(names[:8])}{', ..' if len(names) > 8 else ''}"
                + ("; give a file for names with commas" if any("," in n for n in names) else "")
            )
        names = wanted
    return names, [class_indices(classes, names) for classes in labelled]


def class_indices(classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """int32 `[classes]`: the index in `names` of each class, -1 where it has none."""
    place = {name: index for index, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in classes], np.int32)


def joint_manifest(datasets: Sequence[Dataset]) -> Manifest:
    """The manifest of several datasets that are read as one; of a single one, its own.

    Each split counts the samples of one view. Classes are joined by name. Tokens are the fewest
    that one of them stores; how they were made otherwise is that of the first. The fingerprint is a
    function of theirs. ConfigError when they cannot be read together.
    """
    first = datasets[0].manifest
    if len(datasets) == 1:
        return first
    for number, dataset in enumerate(datasets):
        for before in datasets[:number]:
            if before.manifest.fingerprint == dataset.manifest.fingerprint:
                raise ConfigError(
                    f"{before.folder} and {dataset.folder} are the same dataset; give it once"
                )
        if dataset.manifest.geometry != first.geometry:
            differing = told_apart(asdict(first.geometry), asdict(dataset.manifest.geometry))
            raise ConfigError(
                f"{datasets[0].folder} and {dataset.folder} have images or patches of other sizes, "
                f"which one model cannot read: {differing}; tokenize one of them again like the "
                f"other"
            )
    manifests = [dataset.manifest for dataset in datasets]
    names = [name for name in SPLITS if any(name in manifest.splits for manifest in manifests)]
    return Manifest(
        splits={name: _joint_split(name, manifests) for name in names},
        classes=join_classes(datasets, None)[0],
        tokenizer=replace(first.tokenizer, tokens=min(m.tokenizer.tokens for m in manifests)),
        scorer=first.scorer | {"label_aware": any(m.scorer["label_aware"] for m in manifests)},
        codec=first.codec,
        imaging_library=first.imaging_library,
        samples_per_shard=max(manifest.samples_per_shard for manifest in manifests),
        tokenizer_version=first.tokenizer_version,
        parents=tuple(manifest.as_parent() for manifest in manifests),
    )


def _joint_split(name: str, manifests: Sequence[Manifest]) -> SplitInfo:
    having = [manifest for manifest in manifests if name in manifest.splits]
    infos = [manifest.splits[name] for manifest in having]
    lists = "".join(f"{manifest.fingerprint}\n" for manifest in having)
    return SplitInfo(
        inputs=sum(info.inputs for info in infos),
        rejected=sum(info.rejected for info in infos),
        samples=sum(info.inputs - info.rejected for info in infos),
        views=1,
        shards=sum(info.shards for info in infos),
        bytes=sum(info.bytes for info in infos),
        shard_list=shard_list_name(name),
        shard_list_sha256=hashlib.sha256(lists.encode()).hexdigest(),
    )
