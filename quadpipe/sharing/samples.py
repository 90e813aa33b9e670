"""Samples of a dataset by number, read in few requests and compared with their checksums."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import BLOCK_BYTES, LocalFolder, Ranges, ReadableFolder
from quadpipe.shards.index import checksum, mismatch
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset
from quadpipe.shards.shard_list import ShardList


@lru_cache(maxsize=16)
def open_cached(location: str, fingerprint: str) -> Dataset:
    """A dataset that a process opens once, however many of its shards it reads."""
    return Dataset(location, expect=fingerprint)


def location_of(folder: ReadableFolder) -> str:
    """Where workers, which may have another working folder, find the folder."""
    return str(folder.root) if isinstance(folder, LocalFolder) else str(folder)


@dataclass(frozen=True)
class Track:
    """The tars of one view of a split, in the order of the plan. firsts: number of the first sample
    of each in the view, and last the number of all. indices: of the tars in the plan."""

    tars: ShardList
    firsts: np.ndarray
    indices: np.ndarray

    def of_tar(self, index: int) -> np.ndarray:
        """Numbers of the samples of the tar with this index in the plan."""
        place = int(np.searchsorted(self.indices, index))
        if place == len(self.tars) or self.indices[place] != index:
            return np.arange(0)
        return np.arange(self.firsts[place], self.firsts[place + 1])


@lru_cache(maxsize=256)
def open_track(location: str, fingerprint: str, split: str, view: int) -> Track:
    """ShardError when the shards are not in the order of the plan."""
    dataset = open_cached(location, fingerprint)
    tars = dataset.shards(split).of_view(view)
    if (np.diff(tars.numbers) <= 0).any():
        raise ShardError(f"{location}: the shards of {split} are not in order; fetch it again")
    firsts = np.concatenate([[0], np.cumsum(tars.samples, dtype=np.int64)])
    return Track(tars=tars, firsts=firsts, indices=tars.numbers)


def read_track(dataset: Dataset, track: Track, numbers: np.ndarray) -> Iterator[memoryview]:
    """The members of samples of a view, given by ascending numbers."""
    places = np.searchsorted(track.firsts, numbers, side="right") - 1
    for group in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(places)) + 1):
        if len(group):
            place = int(places[group[0]])
            yield from read_samples(
                dataset, track.tars[place], numbers[group] - track.firsts[place]
            )


def read_samples(dataset: Dataset, shard: ShardInfo, numbers: np.ndarray) -> Iterator[memoryview]:
    """The members of some samples of a shard, given by ascending numbers, from 0.

    ShardError names the shard when one of them is damaged.
    """
    try:
        split = shard.name.partition("-")[0]
        if dataset.index(split) is None:
            yield from _read_whole(dataset, shard, numbers)
        else:
            yield from _read_parts(dataset, shard, numbers)
    except ShardError as error:
        where = dataset.folder.where(shard.name)
        raise error if where in str(error) else ShardError(f"{where}: {error}") from error


def _read_whole(dataset: Dataset, shard: ShardInfo, numbers: np.ndarray) -> Iterator[memoryview]:
    """Of a dataset without an index: the checksum of the shard is compared."""
    contents = memoryview(dataset.folder.read(shard.name))
    if hashlib.sha256(contents).hexdigest() != shard.sha256:
        raise ShardError("its checksum is not the one in the shard list; fetch it again")
    rows, damage = dataset.rows(shard, contents)
    if damage:
        raise ShardError(damage)
    for row in rows[numbers]:
        yield contents[row["offset"] : row["offset"] + row["size"]]


def _read_parts(dataset: Dataset, shard: ShardInfo, numbers: np.ndarray) -> Iterator[memoryview]:
    contents = Ranges(dataset.folder.open_ranges(shard.name), shard.bytes)
    rows, _ = dataset.rows(shard, contents)
    for block in _blocks(rows[numbers]):
        start, stop = int(block[0]["offset"]), int(block[-1]["offset"] + block[-1]["size"])
        data = contents[start:stop]
        for row in block:
            offset = int(row["offset"])
            part = data[offset - start :][: int(row["size"])]
            if row["checksum"] and checksum(part) != row["checksum"]:
                raise mismatch(part, offset)
            yield part


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of samples that follow each other, of about `BLOCK_BYTES` together."""
    stops = rows["offset"] + rows["size"]
    apart = rows["offset"][1:] != stops[:-1]
    for run in np.split(rows, np.flatnonzero(apart) + 1):
        if len(run):
            numbers = (run["offset"] - run["offset"][0]) // BLOCK_BYTES
            yield from np.split(run, np.flatnonzero(np.diff(numbers)) + 1)
