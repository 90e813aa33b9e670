"""Some samples of a split, by reads that are bounded whatever its size."""

from collections.abc import Iterator
from itertools import islice, pairwise

import numpy as np

from quadpipe.errors import ShardError, UnreadableError
from quadpipe.files import Contents
from quadpipe.names import MAX_KEPT_BYTES
from quadpipe.shards.index import checksum, mismatch
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.shards.tar import read_members
from quadpipe.text import counted

_MOST_SHARDS = 16

# Upper bounds of the bytes of a sample beside its pixels.
_BYTES_PER_NODE = 64
_BYTES_PER_SAMPLE = 2**16


def spread_samples(
    dataset: Dataset, split: str, count: int, size: int | None = None
) -> Iterator[Sample]:
    """At most `count` samples at equal distances, in the order of the split.

    They come from at most 16 shards, which are at equal distances too. Only they and the index are
    read. From a web server, which may not serve parts of files, and of a dataset without an index,
    the first samples are given, of at most `size` bytes. ShardError when one is damaged.
    """
    info = dataset.split(split)
    if info.index_sha256 is None or not dataset.folder.serves_parts:
        most = count * _largest_sample(dataset)
        first = first_samples(dataset, split, most if size is None else min(most, size))
        yield from islice(first, count)
        return
    index = dataset.index(split)
    assert index is not None
    shards = dataset.shards(split)
    chosen = _spread(info.shards, _MOST_SHARDS)
    starts = shards.firsts[chosen]
    within = np.concatenate(
        [np.arange(0), *map(np.arange, starts, starts + shards.samples[chosen])]
    )
    rows = index[within[_spread(len(within), count)]]
    for shard in np.unique(rows["shard"]).tolist():
        yield from _samples_at(dataset, shards[shard], rows[rows["shard"] == shard])


def first_samples(dataset: Dataset, split: str, size: int) -> Iterator[Sample]:
    """The complete samples in the first `size` bytes of a split, at least one."""
    largest = _largest_sample(dataset)
    left = size
    for shard in dataset.first_shards(split):
        if left < size and left < min(shard.bytes, largest):
            return
        part = min(shard.bytes, max(left, largest))
        left -= part
        yield from _samples_in_beginning(dataset, shard, part)


def _spread(total: int, count: int) -> np.ndarray:
    """At most `count` of the numbers below `total`, at equal distances."""
    chosen = min(total, count)
    return np.arange(chosen, dtype=np.int64) * total // max(chosen, 1)


def _largest_sample(dataset: Dataset) -> int:
    geometry, tokens = dataset.manifest.geometry, dataset.manifest.tokenizer.tokens
    per_node = 3 * geometry.patch_size**2 + _BYTES_PER_NODE
    return geometry.num_nodes(tokens) * per_node + _BYTES_PER_SAMPLE


def _samples_at(dataset: Dataset, shard: ShardInfo, rows: np.ndarray) -> Iterator[Sample]:
    """The samples of some rows of the index, all of one shard."""
    try:
        size = dataset.folder.size(shard.name)
        if size is not None and size != shard.bytes:
            raise ShardError(f"{size} bytes, expected {shard.bytes}")
        sizes = rows["size"].astype(np.int64)
        ranges = dataset.folder.open_ranges(shard.name)
        data, begins = ranges(rows["offset"], rows["offset"] + sizes)
        for row, begin, length in zip(rows, begins.tolist(), sizes.tolist(), strict=True):
            part = data[begin : begin + length].data
            if row["checksum"] and checksum(part) != row["checksum"]:
                raise mismatch(part, int(row["offset"]))
            yield dataset.parse_sample(part, int(row["offset"]))
    except UnreadableError:
        raise
    except ShardError as error:
        raise dataset.located(shard, error) from error


def _samples_in_beginning(dataset: Dataset, shard: ShardInfo, size: int) -> Iterator[Sample]:
    kept = len(dataset.manifest.members or ()) * MAX_KEPT_BYTES
    try:
        data = dataset.folder.beginning(shard.name, size)
        starts, cut = _starts(data)
        if cut and len(starts) < 2 and kept:  # kept members may be larger than mosaics
            size = min(size + kept, shard.bytes)
            data = dataset.folder.beginning(shard.name, size)
            starts, cut = _starts(data)
        if len(data) < size:
            raise ShardError(f"{len(data)} bytes, expected {shard.bytes}")
        if cut and (len(starts) < 2 or size == shard.bytes):
            raise cut
        if size == shard.bytes:
            if len(starts) != shard.samples:
                raise ShardError(f"{counted(len(starts), 'sample')}, expected {shard.samples}")
            starts.append(size)
        for start, stop in pairwise(starts):
            yield dataset.parse_sample(data[start:stop])
    except UnreadableError:
        raise
    except ShardError as error:
        raise dataset.located(shard, error) from error


def _starts(data: Contents) -> tuple[list[int], ShardError | None]:
    """Where samples start in the beginning of a shard, and why the last one is not whole."""
    starts: list[int] = []
    key = ""
    try:
        for name, offset, _ in read_members(data):
            if name.partition(".")[0] != key:
                key = name.partition(".")[0]
                starts.append(offset)
    except ShardError as error:
        return starts, error
    return starts, None
