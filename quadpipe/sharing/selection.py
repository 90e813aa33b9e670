"""Which samples of its sources a copy has, in which order, and with which classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError, ShardError
from quadpipe.job.plan import PlannedSplit
from quadpipe.names import SPLITS, path_to_text
from quadpipe.seeds import permutation
from quadpipe.shards.reader import Dataset
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.remake import Drawn
from quadpipe.sharing.samples import location_of, open_track
from quadpipe.sources.labels import ClassTable, read_labels


@dataclass(frozen=True, kw_only=True)
class Selection:
    """splits: what the job makes of each split. The other fields are those of a `Recipe`."""

    splits: dict[str, PlannedSplit]
    classes: list[str] | None
    indices: list[np.ndarray | None]
    drawn: dict[str, Drawn] | None = None
    labels: dict[bytes, int] | None = None


def select(datasets: Sequence[Dataset], config: CopyConfig, labels: Path | None) -> Selection:
    """ConfigError when the datasets cannot be joined, or a class or all samples are missing."""
    if labels is not None:
        return _relabelled(datasets, config, labels)
    classes, indices = join_classes(datasets, config.class_names())
    if len(datasets) == 1 and not config.draws:
        return Selection(splits=_whole(datasets[0], config), classes=classes, indices=indices)
    drawn = {}
    splits = {}
    size = datasets[0].manifest.samples_per_shard
    for split in [name for name in SPLITS if any(name in d.manifest.splits for d in datasets)]:
        chosen = _draw(datasets, split, config, indices)
        count = len(chosen.numbers)
        if count:
            drawn[split] = chosen
            views = _views(datasets, split)
            shards = -(-count // size)
            splits[split] = PlannedSplit(inputs=count, views=views, shards=shards, listing=[])
    if not splits:
        raise ConfigError(f"no image is left; {datasets[0].folder} has none of --classes")
    return Selection(splits=splits, classes=classes, indices=indices, drawn=drawn)


def join_classes(
    datasets: Sequence[Dataset], wanted: list[str] | None
) -> tuple[list[str] | None, list[np.ndarray | None]]:
    """Classes by name, those of the first dataset first; and for each dataset the new indices of
    its classes, -1 for those that are left out."""
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
            )
        names = wanted
    place = {name: index for index, name in enumerate(names)}
    indices = [np.array([place.get(n, -1) for n in classes], np.int32) for classes in labelled]
    return names, list(indices)


def _whole(dataset: Dataset, config: CopyConfig) -> dict[str, PlannedSplit]:
    """All shards of each split, or the first ones, with their numbers."""
    splits = {}
    size = dataset.manifest.samples_per_shard
    for name, info in dataset.manifest.splits.items():
        shards = -(-info.inputs // size)
        inputs = info.inputs - info.rejected
        if config.shards is not None:
            track = open_track(location_of(dataset.folder), dataset.manifest.fingerprint, name, 0)
            tars = track.tars[: config.shards]
            inputs = sum(tar.samples for tar in tars)
            shards = tars[-1].index + 1 if tars else 0
        splits[name] = PlannedSplit(inputs=inputs, views=info.views, shards=shards, listing=[])
    return splits


def _draw(
    datasets: Sequence[Dataset], split: str, config: CopyConfig, indices: list[np.ndarray | None]
) -> Drawn:
    """The samples of one split. Those of several datasets are spread evenly among each other."""
    sources, numbers, places = [], [], []
    for source, dataset in enumerate(datasets):
        if split not in dataset.manifest.splits:
            continue
        info = dataset.split(split)
        chosen = np.arange(info.inputs - info.rejected)
        if config.classes is not None:
            new = indices[source]
            assert new is not None
            chosen = chosen[new[_labels(dataset, split)] >= 0]
        sources.append(np.full(len(chosen), source, np.int32))
        numbers.append(chosen)
        places.append((np.arange(len(chosen)) + 0.5) / max(len(chosen), 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    if config.samples is not None:
        lots = permutation(len(order), "copy/samples", split, config.seed)
        order = order[np.sort(lots[: config.samples])]
    return Drawn(sources=np.concatenate(sources)[order], numbers=np.concatenate(numbers)[order])


def _labels(dataset: Dataset, split: str) -> np.ndarray:
    """int32 `[inputs]`: the class index of each sample of view 0."""
    if dataset.split(split).index_sha256 is None:  # of an earlier version: all shards are read
        found = [sample.label for sample in dataset.samples(split, view=0)]
        return np.array(found, np.int32)
    views = dataset.shards(split).views
    index = dataset.index(split)
    assert index is not None
    labels: np.ndarray = index["label"][views[index["shard"]] == 0]
    classes = len(dataset.manifest.classes or ())
    if ((labels < 0) | (labels >= classes)).any():
        raise ShardError(
            f"{dataset.folder}: the index of {split} has labels above its number of classes"
        )
    return labels


def _views(datasets: Sequence[Dataset], split: str) -> int:
    views = {
        dataset.split(split).views: dataset
        for dataset in datasets
        if split in dataset.manifest.splits
    }
    if len(views) > 1:
        (one, first), (other, second) = list(views.items())[:2]
        raise ConfigError(
            f"{first.folder} has {one} views of {split}, {second.folder} has {other}; join "
            f"datasets with the same number"
        )
    return next(iter(views))


def _relabelled(datasets: Sequence[Dataset], config: CopyConfig, file: Path) -> Selection:
    if len(datasets) > 1 or config.classes is not None:
        raise ConfigError(
            "--labels is for one source and all of its classes; give it in a copy of its own"
        )
    by_path = read_labels(file)
    table = ClassTable()
    for name in by_path.values():
        table.id(name)
    classes = table.settle([], numbers_are_indices=True)
    place = {name: index for index, name in enumerate(classes)}
    labels = {}
    for path, name in by_path.items():
        text = path_to_text(name)
        labels[path] = place[text] if text in place else int(name)
    rest = select(datasets, config, None)
    return Selection(
        splits=rest.splits, classes=classes, indices=[None], drawn=rest.drawn, labels=labels
    )
