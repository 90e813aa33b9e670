"""The shards of a split, as one row of an array per shard."""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import overload

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import ReadableFolder
from quadpipe.shards.format import MANIFEST, MAX_SAMPLES_PER_SHARD, MAX_VIEWS, shard_name
from quadpipe.shards.manifest import ShardInfo, SplitInfo
from quadpipe.shards.shard_lines import LineParser, parts_of
from quadpipe.text import counted

FIRST_BYTES = 2**20
_LARGEST_LINE = 4096  # on average
_NAME = re.compile(r"[a-z]+-(v(?P<view>\d{2})-)?(?P<number>\d{6,10})\.tar", re.ASCII)


class ShardList(Sequence[ShardInfo]):
    """The shards of a split, or some of them, in the order of the plan, views interleaved.

    An item is made when it is taken; the arrays are for work on all of them. A slice is a list too.
    rows: `shard_lines.ROW` `[shards]`.
    """

    def __init__(self, split: str, rows: np.ndarray) -> None:
        self.split = split
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> ShardInfo: ...
    @overload
    def __getitem__(self, place: slice) -> "ShardList": ...
    def __getitem__(self, place: int | slice) -> "ShardInfo | ShardList":
        if isinstance(place, slice):
            return ShardList(self.split, self._rows[place])
        row = self._rows[place]
        view = int(row["view"])
        return ShardInfo(
            name=shard_name(self.split, view, int(row["number"])),
            view=view,
            samples=int(row["samples"]),
            bytes=int(row["bytes"]),
            sha256=row["sha256"].tobytes().hex(),
        )

    @property
    def numbers(self) -> np.ndarray:
        """int64 `[shards]`: number of each shard in the plan."""
        return self._rows["number"]

    @property
    def views(self) -> np.ndarray:
        """uint8 `[shards]`."""
        return self._rows["view"]

    @property
    def samples(self) -> np.ndarray:
        """int32 `[shards]`: samples of each shard."""
        return self._rows["samples"]

    @property
    def firsts(self) -> np.ndarray:
        """int64 `[shards]`: number of the first sample of each shard in the index of the split."""
        return self._rows["first"]

    @property
    def bytes(self) -> np.ndarray:
        """int64 `[shards]`: bytes of each shard."""
        return self._rows["bytes"]

    def names(self) -> Iterator[str]:
        """The name of each shard."""
        for view, number in zip(self.views.tolist(), self.numbers.tolist(), strict=True):
            yield shard_name(self.split, view, number)

    def of_view(self, view: int | None) -> "ShardList":
        """The shards of one view; of all without one."""
        chosen = self.views == view
        if view is None or chosen.all():
            return self
        return ShardList(self.split, self._rows[chosen])

    def position(self, name: str) -> int:
        """The place of the shard with this name in the list; ShardError if it is not there."""
        place = self._find(name)
        if place is None:
            raise ShardError(f"{name} is not in the shard list of {self.split}")
        return place

    def checksum(self, name: str) -> tuple[str, int] | None:
        """The sha256 and the bytes of the shard with this name, None if it is not in the list."""
        place = self._find(name)
        return None if place is None else (self[place].sha256, self[place].bytes)

    def _find(self, name: str) -> int | None:
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        key = int(match["number"]), int(match["view"] or 0)
        if self._is_sorted:
            places = [bisect_left(range(len(self)), key, key=self._key)]
        else:
            places = np.flatnonzero((self.numbers == key[0]) & (self.views == key[1])).tolist()
        found = [place for place in places if place < len(self) and self[place].name == name]
        return found[0] if found else None

    def has_duplicates(self) -> bool:
        """Whether a shard is listed twice."""
        return not self._is_sorted and len(np.unique(self._keys())) < len(self)

    @cached_property
    def _is_sorted(self) -> bool:
        """Whether the list is in the order of the plan, views interleaved."""
        keys = self._keys()
        return bool((keys[1:] > keys[:-1]).all())

    def _keys(self) -> np.ndarray:
        keys: np.ndarray = self.numbers * MAX_VIEWS + self.views
        return keys

    def _key(self, place: int) -> tuple[int, int]:
        row = self._rows[place]
        return int(row["number"]), int(row["view"])


def read_shard_list(
    folder: ReadableFolder,
    split: str,
    info: SplitInfo,
    samples_per_shard: int = MAX_SAMPLES_PER_SHARD,
) -> ShardList:
    """The shards of a split; ShardError when the list is not the one the manifest names."""
    where = folder.where(info.shard_list)
    _check_size(where, folder.size(info.shard_list), info)
    contents = folder.contents(info.shard_list)
    digest = hashlib.sha256()
    for part in parts_of(contents):
        digest.update(part)
    if digest.hexdigest() != info.shard_list_sha256:
        raise ShardError(
            f"{where} was changed: its checksum is not the one in {MANIFEST}; fetch both again"
        )
    parser = LineParser(where, split, info.views, samples_per_shard)
    shards = ShardList(split, parser.parse(contents))
    _check_totals(where, shards, info)
    return shards


def read_first_shards(
    folder: ReadableFolder, split: str, info: SplitInfo, samples_per_shard: int
) -> ShardList:
    """The shards in the first megabyte of a list; no more is read of a longer one.

    The checksum of a longer one is not verified. ShardError otherwise as of `read_shard_list`.
    """
    where = folder.where(info.shard_list)
    size = folder.size(info.shard_list)
    if size is None or size <= FIRST_BYTES:
        return read_shard_list(folder, split, info, samples_per_shard)
    _check_size(where, size, info)
    lines, _, _ = folder.beginning(info.shard_list, FIRST_BYTES).tobytes().rpartition(b"\n")
    parser = LineParser(where, split, info.views, samples_per_shard)
    return ShardList(split, parser.parse(memoryview(lines)))


def _check_size(where: str, size: int | None, info: SplitInfo) -> None:
    if size is not None and size > _LARGEST_LINE * info.shards:
        raise ShardError(f"{where} has {size} bytes, too many for {counted(info.shards, 'shard')}")


def _check_totals(where: str, shards: ShardList, info: SplitInfo) -> None:
    totals = (len(shards), int(shards.samples.sum()), _sum(shards.bytes))
    if totals != (info.shards, info.samples, info.bytes):
        raise ShardError(
            f"{where} holds {counted(totals[0], 'shard')}, {counted(totals[1], 'sample')}, "
            f"{totals[2]} bytes; {MANIFEST} has {info.shards}, {info.samples}, {info.bytes}; fetch "
            f"both again"
        )
    per_view = [int(shards.samples[shards.views == view].sum()) for view in range(info.views)]
    if set(per_view) != {info.inputs - info.rejected}:
        raise ShardError(
            f"{where}: the views have different numbers of samples, {per_view}; fetch it again"
        )
    if shards.has_duplicates():
        raise ShardError(f"{where} names a shard twice; fetch it again")


def _sum(values: np.ndarray) -> int:
    """The sum of int64 values, which may be larger than an int64."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())
