"""Which samples of its sources a copy has, in which order, and with which classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.job.plan import PlannedSplit
from quadpipe.names import SPLITS, text_to_path
from quadpipe.seeds import permutation
from quadpipe.shards.joined import join_classes
from quadpipe.shards.members import decode_info, sample_contents
from quadpipe.shards.reader import Dataset
from quadpipe.shards.statistics import labels_of
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.remake import Drawn
from quadpipe.sharing.samples import location_of, open_cached, open_track, read_track
from quadpipe.sources.labels import ClassTable, GivenLabels, settle_listings
from quadpipe.sources.listing import Listing
from quadpipe.sources.names import split_of_word
from quadpipe.text import counted


@dataclass(frozen=True, kw_only=True)
class Selection:
    """splits: what the job makes of each split. notes: what the user should know. The other fields
    are those of a `Recipe`.
    """

    splits: dict[str, PlannedSplit]
    classes: list[str] | None
    indices: list[np.ndarray | None]
    drawn: dict[str, Drawn] | None = None
    labels: dict[str, np.ndarray] | None = None
    notes: tuple[str, ...] = ()


def select(datasets: Sequence[Dataset], config: CopyConfig, labels: Path | None) -> Selection:
    """ConfigError when the datasets cannot be joined, or a class or all samples are missing.

    labels: a file; SourceError when it cannot be used, or an image has no label in it.
    """
    if labels is not None:
        return _relabelled(datasets, config, labels)
    names = config.class_names()
    if file := config.classes_file:
        for dataset in datasets:
            if file in (dataset.manifest.classes or ()):
                raise ConfigError(
                    f"{file!r} is a file here, and a class of {dataset.folder}; give "
                    f"./{file} for the file, or rename it for the class"
                )
    classes, indices = join_classes(datasets, names)
    if len(datasets) == 1 and not config.draws:
        return Selection(splits=_whole(datasets[0], config), classes=classes, indices=indices)
    drawn = {}
    splits = {}
    notes = []
    size = datasets[0].manifest.samples_per_shard
    for split in [name for name in SPLITS if any(name in d.manifest.splits for d in datasets)]:
        chosen = _draw(datasets, split, config, indices)
        count = len(chosen.numbers)
        if count:
            drawn[split] = chosen
            views = config.views if split == "train" and config.views else _views(datasets, split)
            shards = -(-count // size)
            splits[split] = PlannedSplit(inputs=count, views=views, shards=shards, listing=[])
        elif any(d.manifest.splits[split].inputs for d in datasets if split in d.manifest.splits):
            notes.append(f"{split} has no image of these classes; the copy has no {split}")
        if config.samples is not None and 0 < count < config.samples:
            notes.append(
                f"{split} has {counted(count, 'image')}, fewer than --samples {config.samples:,}; "
                f"all are copied"
            )
    if not splits:
        raise ConfigError(f"no image is left; {datasets[0].folder} has none of --classes")
    return Selection(
        splits=splits, classes=classes, indices=indices, drawn=drawn, notes=tuple(notes)
    )


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
        splits[name] = PlannedSplit(
            inputs=inputs,
            views=min(info.views, config.views or info.views),
            shards=shards,
            listing=[],
        )
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
            chosen = chosen[new[labels_of(dataset, split)] >= 0]
        sources.append(np.full(len(chosen), source, np.int32))
        numbers.append(chosen)
        places.append((np.arange(len(chosen)) + 0.5) / max(len(chosen), 1))
    order = np.argsort(np.concatenate(places), kind="stable")
    if config.samples is not None:
        lots = permutation(len(order), "copy/samples", split, config.seed)
        order = order[np.sort(lots[: config.samples])]
    return Drawn(sources=np.concatenate(sources)[order], numbers=np.concatenate(numbers)[order])


def _views(datasets: Sequence[Dataset], split: str) -> int:
    views = {
        dataset.split(split).views: dataset
        for dataset in datasets
        if split in dataset.manifest.splits
    }
    if len(views) > 1:
        (one, first), (other, second) = list(views.items())[:2]
        raise ConfigError(
            f"{first.folder} has {counted(one, 'view')} of {split}, {second.folder} has {other}; "
            f"give --views {min(views)}"
        )
    return next(iter(views))


def _relabelled(datasets: Sequence[Dataset], config: CopyConfig, file: Path) -> Selection:
    if len(datasets) > 1 or config.classes is not None:
        raise ConfigError(
            "--labels is for one source and all of its classes; give it in a copy of its own"
        )
    dataset, given, table = datasets[0], GivenLabels(file), ClassTable()
    rest = select(datasets, config, None)
    listings, numbers = {}, {}
    for split, planned in rest.splits.items():
        every = np.arange(planned.inputs)
        numbers[split] = every if rest.drawn is None else rest.drawn[split].numbers
        listing = listings[split] = Listing()
        for path in _paths(dataset, split, numbers[split]):
            folder, _, inside = path.partition(b"/")
            is_split = split_of_word(folder) == split
            label = given.label(path, inside if is_split else path)
            listing.append(path, None if label is None else table.id(label))
    classes = settle_listings(dataset.folder, listings, table, file)
    assert classes is not None
    labels = {}
    for split, listing in listings.items():
        labels[split] = np.full(numbers[split].max(initial=-1) + 1, -1, np.int32)
        labels[split][numbers[split]] = listing.labels
    takes_all = config.samples is None and config.shards is None
    notes = [*rest.notes, *(given.notes if takes_all else [])]
    if table.unused:
        notes.append(f"{table.unused:,} of {len(classes):,} classes have no image")
    if len(classes) == 1:
        notes.append(f"all images are of one class, {classes[0]!r}")
    return replace(rest, classes=classes, indices=[None], labels=labels, notes=tuple(notes))


def _paths(dataset: Dataset, split: str, numbers: np.ndarray) -> Iterator[bytes]:
    """The paths of samples of a split, given by ascending numbers."""
    place = location_of(dataset.folder), dataset.manifest.fingerprint
    for part in read_track(open_cached(*place), open_track(*place, split, 0), numbers):
        _, contents = sample_contents(part)
        yield text_to_path(decode_info(contents, dataset.manifest)["path"])
