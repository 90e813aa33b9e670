"""One shard of a copy, made from the shards of its sources alone."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadpipe.errors import JobError, ShardError
from quadpipe.files import Folder
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.plan import Plan, ShardId
from quadpipe.job.shard import ShardReport, finished_tar, write_gains, write_marker
from quadpipe.mosaic import Mosaic
from quadpipe.shards.format import PREVIEW, sample_key, shard_name
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.marker import Marker
from quadpipe.shards.members import decode_members, sample_contents
from quadpipe.shards.writer import ShardWriter
from quadpipe.sharing.samples import open_cached, open_track, read_track


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of a split of a copy, in its order: number of the source of each, and its number
    there in each view."""

    sources: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the bytes of the shards; every worker gets a copy.

    plan: of the copy, with its tokenizer, codec and classes. sources: location and fingerprint of
    each. drawn: by split; without it the shards are those of the one source, with its keys.
    indices: for each source, the class of the copy by that of the source. labels: by split, the
    class of each sample of the one source by its number, instead of the stored ones. library:
    encodes tokens or decodes JPEGs, or None.
    """

    plan: Plan
    out: Folder
    sources: list[tuple[str, str]]
    drawn: dict[str, Drawn] | None = None
    indices: list[np.ndarray | None]
    labels: dict[str, np.ndarray] | None = None
    library: dict[str, str | None] | None = None

    def samples(self, shard: ShardId) -> Drawn:
        if self.drawn is not None:
            drawn, rows = self.drawn[shard.split], self.plan.inputs_of(shard)
            part = slice(rows.start, rows.stop)
            return Drawn(sources=drawn.sources[part], numbers=drawn.numbers[part])
        numbers = open_track(*self.sources[0], shard.split, 0).of_tar(shard.index)
        return Drawn(sources=np.zeros(len(numbers), np.int32), numbers=numbers)


def keeps_tokens(plan: Plan, manifest: Manifest) -> bool:
    """Whether a copy has the encoded tokens of a source; otherwise they are decoded and encoded."""
    codec, tokens = plan.config.dataset.codec_parameters(), plan.config.tokenizer.tokens
    return codec == manifest.codec and tokens == manifest.tokenizer.tokens


def remake_shard(recipe: Recipe, shard: ShardId) -> ShardReport:
    """Write the tars of all views of a shard of the copy, then its done-marker.

    Raises ShardError when a sample is damaged, JobError when this machine would write other bytes,
    OutputError when the destination cannot be written.
    """
    started = time.monotonic()
    if recipe.library not in (None, imaging_library()):
        raise JobError(
            f"{socket.gethostname()} has {describe(imaging_library())}, the copy is made with "
            f"{describe(recipe.library)}; install the same library on all machines"
        )
    tars, writers = [], []
    with ExitStack() as staged:
        for view in range(recipe.plan.splits[shard.split].views):
            name = shard_name(shard.split, view, shard.index)
            writer: ShardWriter | None = None
            for sample in _samples(recipe, shard, view):
                if writer is None:
                    file = staged.enter_context(recipe.out.staged(name))
                    writer = ShardWriter(file, recipe.plan.config.make_codec())
                _add(recipe, writer, sample)
            if writer is not None:
                writer.close()
                tars.append(finished_tar(name, view, writer))
                writers.append(writer)
    write_gains(recipe.out, shard, writers)
    samples = tars[0].info.samples if tars else 0
    write_marker(recipe.out, shard, Marker(inputs=samples, rejected=[], tars=tars))
    return ShardReport(
        shard=shard,
        inputs=samples,
        rejected=0,
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
        process=os.getpid(),
    )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A sample of a source. key, label: those of the copy where it has others."""

    source: int
    key: str | None
    label: int | None
    part: memoryview


def _samples(recipe: Recipe, shard: ShardId, view: int) -> Iterator[_Stored]:
    """The samples of a view of a shard, in the order of the copy."""
    drawn = recipe.samples(shard)
    first = recipe.plan.inputs_of(shard).start
    readers = {}
    for source in np.unique(drawn.sources).tolist():
        place = recipe.sources[source]
        numbers = drawn.numbers[drawn.sources == source]
        track = open_track(*place, shard.split, view)
        readers[source] = read_track(open_cached(*place), track, numbers)
    labels = None if recipe.labels is None else recipe.labels[shard.split][drawn.numbers]
    for number, source in enumerate(drawn.sources.tolist()):
        yield _Stored(
            source=source,
            key=None if recipe.drawn is None else sample_key(first + number, view),
            label=None if labels is None else int(labels[number]),
            part=next(readers[source]),
        )


def _add(recipe: Recipe, writer: ShardWriter, sample: _Stored) -> None:
    """Add a sample to a shard of the copy."""
    dataset = open_cached(*recipe.sources[sample.source])
    manifest, config = dataset.manifest, recipe.plan.config
    member = manifest.make_codec().member
    same = keeps_tokens(recipe.plan, manifest)
    try:
        key, contents = sample_contents(sample.part)
        values = decode_members(contents, manifest, encoded=(member,) if same else ())
        stored = None if manifest.classes is None else values.pop("cls")
        label, info = _labelled(recipe, sample, stored, values.pop("json"))
    except ShardError as error:
        raise ShardError(f"{dataset.folder}: {error}; run quadpipe verify on it") from error
    tokens: Any = values.pop(member)
    if config.dataset.preview is None:
        values.pop(PREVIEW, None)
    mosaic = Mosaic(
        geometry=manifest.geometry,
        tokens=np.empty(0, np.uint8) if same else tokens,
        nodes=values.pop("nodes.npy"),
        importance=values.pop("importance.npy"),
    )
    reduced = mosaic.reduced(config.tokenizer.tokens)
    writer.add(sample.key or key, reduced, label, info, values, encoded=tokens if same else None)


def _labelled(
    recipe: Recipe, sample: _Stored, label: int | None, info: dict[str, Any]
) -> tuple[int | None, dict[str, Any]]:
    """The label of a sample in the copy, and its `json`, which names the class."""
    if sample.label is not None:
        assert recipe.plan.classes is not None
        return sample.label, info | {"class": recipe.plan.classes[sample.label]}
    indices = recipe.indices[sample.source]
    if label is None or indices is None:
        return label, info
    if indices[label] < 0:  # it was chosen by the label in the index
        raise ShardError(f"{info['path']} has another label in the index")
    return int(indices[label]), info
