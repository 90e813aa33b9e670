"""Samples of a shard by number, checked against the manifest, gathered into a batch.

A local shard is mapped into memory, a remote one is read in ranges; the same bytes go the same way.

Letters: b samples of the batch; N tokens; T = P * P * 3 bytes of a token.
"""

import json
from functools import lru_cache
from itertools import groupby

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import CachedFolder, RangeReader
from quadpipe.shards.format import marker_name, npy_header
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset
from quadpipe.shards.tar import read_members

KEY_BYTES = 20
"""Longer keys, which quadpipe does not write, take a slower way."""

OPEN_SHARDS = 128
"""So many shards are known at once: their offsets, and local ones mapped without an open file."""


class Rows:
    """A batch of b rows to be filled, at a budget of N tokens.

    tokens: uint8 `[b, N, T]`, to be written into. boxes: int16 `[b, N, 3]`. labels: int64 `[b]`,
    -1 without labels.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        size, self.budget = tokens.shape[:2]
        self.tokens = tokens
        self.boxes = np.empty((size, self.budget, 3), np.int16)
        self.labels = np.empty(size, np.int64)
        self.key_bytes = np.zeros((size, KEY_BYTES), np.uint8)
        self.long_keys: dict[int, str] = {}

    def keys(self) -> list[str]:
        """Of the samples in the rows."""
        keys: list[str] = self.key_bytes.view(f"S{KEY_BYTES}")[:, 0].astype(str).tolist()
        for place, key in self.long_keys.items():
            keys[place] = key
        return keys


class SampleReader:
    """Random access to the samples of one view of a split. Threads may share it."""

    def __init__(self, dataset: Dataset, split: str, view: int) -> None:
        self._dataset = dataset
        self._split = split
        self.shards = [shard for shard in dataset.shards(split) if shard.view == view]
        self._ranges = lru_cache(maxsize=OPEN_SHARDS)(self._open_ranges)
        self._offsets = lru_cache(maxsize=OPEN_SHARDS)(self._find_offsets)

        manifest, geometry = dataset.manifest, dataset.manifest.geometry
        stored, side = manifest.tokenizer.tokens, geometry.patch_size
        nodes, self._stored_splits = geometry.nodes(stored), geometry.splits(stored)
        self._is_raw = manifest.make_codec().name == "raw"
        self._headers = (
            np.frombuffer(npy_header("|u1", (nodes, side, side, 3)), np.uint8),
            np.frombuffer(npy_header("<i4", (nodes, 4)), np.uint8),
            np.frombuffer(npy_header("<f4", (self._stored_splits,)), np.uint8),
        )
        self._root_boxes = geometry.boxes[: geometry.roots]
        self._classes = -1 if manifest.classes is None else len(manifest.classes)

    def gather(self, shards: np.ndarray, numbers: np.ndarray, rows: Rows) -> None:
        """Fill the rows with samples given by shard and number in the shard, int64 `[b]`.

        ShardError names shard and key of what is wrong.
        """
        addresses, lengths = np.empty_like(shards), np.empty_like(shards)
        by_shard = np.argsort(shards, kind="stable")
        groups = []
        self._fetch(shards)
        for places in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            shard, chosen = int(shards[places[0]]), numbers[places]
            offsets = self._offsets(shard)
            starts, stops = offsets[chosen], offsets[chosen + 1]
            contents, begins = self._ranges(shard)(starts, stops)
            lengths[places] = sizes = stops - starts
            if len(contents) < (begins + sizes).max():
                raise ShardError(f"{self._where(shard)}: cut short")
            addresses[places] = contents.__array_interface__["data"][0] + begins
            groups.append((shard, places, contents, begins))
        unusual = ~self._gather_usual(addresses, lengths, rows)
        if not unusual.any():
            return
        for shard, places, contents, begins in groups:
            for place, begin in zip(places.tolist(), begins.tolist(), strict=True):
                if unusual[place]:
                    part = contents.data[begin : begin + lengths[place]]
                    try:
                        self._parse(part, place, rows)
                    except ShardError as error:
                        raise ShardError(f"{self._where(shard)}: {error}") from error

    def _gather_usual(self, addresses: np.ndarray, lengths: np.ndarray, rows: Rows) -> np.ndarray:
        """Fill the rows of samples that are as quadpipe writes them; bool `[b]`, which ones.

        addresses, lengths: int64 `[b]`, where the samples lie in memory.
        """
        if not self._is_raw:
            return np.zeros(len(addresses), np.bool_)
        from quadpipe.loader.gather import gather

        done: np.ndarray = gather(
            addresses,
            lengths,
            self._headers,
            self._root_boxes,
            self._stored_splits,
            (rows.budget - len(self._root_boxes)) // 3,
            self._classes,
            rows.tokens,
            rows.boxes,
            rows.labels,
            rows.key_bytes,
        )
        return done

    def _parse(self, part: memoryview, place: int, rows: Rows) -> None:
        """Fill one row from the bytes of any sample that the manifest allows."""
        sample = self._dataset.parse_sample(part)
        leaves = sample.mosaic.leaves(rows.budget)
        rows.tokens[place] = leaves.tokens.reshape(len(leaves), -1)
        rows.boxes[place] = leaves.boxes
        rows.labels[place] = -1 if sample.label is None else sample.label
        rows.long_keys[place] = sample.key

    def _fetch(self, shards: np.ndarray) -> None:
        """Have the shards of a batch near, several at a time."""
        if isinstance(self._dataset.folder, CachedFolder):
            names = [self.shards[shard].name for shard in np.unique(shards).tolist()]
            self._dataset.folder.fetch(names)

    def _where(self, shard: int) -> str:
        return self._dataset.folder.where(self.shards[shard].name)

    def _open_ranges(self, shard: int) -> RangeReader:
        return self._dataset.folder.open_ranges(self.shards[shard].name)

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
