"""Samples of a shard by number, checked against the manifest.

A local shard is mapped into memory, a remote one is read in ranges; the same bytes go to the same
parser.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import RemoteFolder
from quadpipe.shards.format import marker_name
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.shards.tar import read_members

OPEN_SHARDS = 128
"""So many shards are known at once: their offsets, and local ones mapped without an open file."""


class SampleReader:
    """Random access to the samples of one view of a split."""

    def __init__(self, dataset: Dataset, split: str, view: int) -> None:
        self._dataset = dataset
        self._split = split
        self.shards = [shard for shard in dataset.shards(split) if shard.view == view]
        self._contents = lru_cache(maxsize=OPEN_SHARDS)(self._map)
        self._offsets = lru_cache(maxsize=OPEN_SHARDS)(self._find_offsets)

    def read(self, shard: int, numbers: Sequence[int]) -> list[Sample]:
        """Samples of one shard by number; ShardError names shard and key of what is wrong."""
        info = self.shards[shard]
        offsets = self._offsets(shard)
        ranges = [(int(offsets[number]), int(offsets[number + 1])) for number in numbers]
        folder = self._dataset.folder
        if isinstance(folder, RemoteFolder):
            parts = folder.read_ranges(info.name, ranges)
        else:
            contents = self._contents(shard)
            parts = [contents[start:stop] for start, stop in ranges]
        try:
            return [self._dataset.parse_sample(part) for part in parts]
        except ShardError as error:
            raise ShardError(f"{folder.where(info.name)}: {error}") from error

    def _map(self, shard: int) -> memoryview:
        return self._dataset.folder.map(self.shards[shard].name)

    def _find_offsets(self, shard: int) -> np.ndarray:
        """Where each sample begins, and where the last one ends, int64."""
        info = self.shards[shard]
        stored = self._stored_offsets(info)
        if stored is None:
            folder = self._dataset.folder
            try:
                stored = _scan_offsets(folder.map(info.name), info)
            except ShardError as error:
                raise ShardError(f"{folder.where(info.name)}: {error}") from error
        return np.array([*stored, info.bytes], np.int64)

    def _stored_offsets(self, info: ShardInfo) -> list[int] | None:
        """Those of the done-marker; whether they fit the tar shows when a sample is parsed."""
        folder = self._dataset.folder
        name = marker_name(self._split, info.index)
        if not folder.exists(name):
            return None
        try:
            views = json.loads(folder.read(name))["views"]
            offsets = next(v["offsets"] for v in views if v["name"] == info.name)
            ordered = all(
                isinstance(a, int) and a < b
                for a, b in zip(offsets, [*offsets[1:], info.bytes], strict=True)
            )
        except (ValueError, TypeError, KeyError, StopIteration):
            return None
        return offsets if ordered and len(offsets) == info.samples and offsets[0] == 0 else None


def _scan_offsets(contents: memoryview, info: ShardInfo) -> list[int]:
    """Offsets of the samples from the headers of all members."""
    if len(contents) != info.bytes:
        raise ShardError(f"{len(contents)} bytes, expected {info.bytes}")
    keys = groupby(read_members(contents), key=lambda member: member[0].partition(".")[0])
    offsets = [next(group)[1] for _, group in keys]
    if len(offsets) != info.samples:
        raise ShardError(f"{len(offsets)} samples, expected {info.samples}")
    return offsets
