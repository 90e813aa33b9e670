"""Samples of a shard by number, checked against the manifest, gathered into a batch.

A local shard is mapped into memory, a remote one is read in ranges; the same bytes go the same way.

Letters: b samples of the batch; N tokens; T = P * P * 3 bytes of a token.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from quadpipe.errors import ShardError, UnreadableError
from quadpipe.files import CachedFolder, RangeReader
from quadpipe.quadtree import grow, leaf_indices
from quadpipe.shards.format import marker_name, npy_header
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset
from quadpipe.shards.tar import BLOCK, read_members

KEY_BYTES = 20
"""Longer keys, which quadpipe does not write, take a slower way."""

OPEN_SHARDS = 128
"""So many shards are known at once: their offsets, and local ones mapped without an open file."""


class Rows:
    """A batch of b rows to be filled, at a budget of N tokens.

    tokens: uint8 `[b, N, T]`, to be written into. boxes: int16 `[b, N, 3]`. labels: int64 `[b]`,
    -1 without labels. skipped: shard and error by row, of the rows that hold no sample.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        size, self.budget = tokens.shape[:2]
        self.tokens = tokens
        self.boxes = np.empty((size, self.budget, 3), np.int16)
        self.labels = np.empty(size, np.int64)
        self.key_bytes = np.zeros((size, KEY_BYTES), np.uint8)
        self.long_keys: dict[int, str] = {}
        self.skipped: dict[int, tuple[str, ShardError]] = {}

    def keys(self) -> list[str]:
        """Of the samples in the rows, empty where one was skipped."""
        keys: list[str] = self.key_bytes.view(f"S{KEY_BYTES}")[:, 0].astype(str).tolist()
        for place, key in self.long_keys.items():
            keys[place] = key
        return keys


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """An open shard. offsets: int64, where each sample begins, and where the last one ends.

    damage: why there are fewer of them than samples, empty when there are not.
    """

    offsets: np.ndarray
    read: RangeReader
    damage: str = ""


class SampleReader:
    """Random access to the samples of one view of a split. Threads may share it.

    skip: whether damaged samples leave their rows blank instead of raising.
    """

    def __init__(self, dataset: Dataset, split: str, view: int, *, skip: bool = False) -> None:
        self._dataset = dataset
        self._split = split
        self._skip = skip
        self.shards = [shard for shard in dataset.shards(split) if shard.view == view]
        self._opened = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._blank_boxes = lru_cache(maxsize=1)(self._make_blank_boxes)

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

        ShardError names shard and key of what is wrong; a reader that skips leaves a blank row.
        """
        addresses, lengths = np.zeros_like(shards), np.zeros_like(shards)
        by_shard = np.argsort(shards, kind="stable")
        groups = []
        self._fetch(shards)
        for places in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            shard = int(shards[places[0]])
            try:
                places = self._without_lost(shard, places, numbers, rows)
                if not len(places):
                    continue
                contents, begins, sizes = self._read(shard, numbers[places])
            except UnreadableError:  # nothing is known of its samples
                raise
            except ShardError as error:
                self._blank(shard, places, error, rows)
                continue
            addresses[places] = contents.__array_interface__["data"][0] + begins
            lengths[places] = sizes
            groups.append((shard, places, contents, begins))
        unusual = ~self._gather_usual(addresses, lengths, rows)
        if not unusual.any():
            return
        for shard, places, contents, begins in groups:
            for at, begin in zip(places, begins.tolist(), strict=True):
                place = int(at)
                if unusual[place]:
                    try:
                        self._parse(contents.data[begin : begin + lengths[place]], place, rows)
                    except ShardError as error:
                        self._blank(shard, [place], error, rows)

    def _without_lost(
        self, shard: int, places: np.ndarray, numbers: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """The places whose samples have a known place in the shard; the others become blank."""
        opened = self._opened(shard)
        if not opened.damage:
            return places
        lost = numbers[places] >= len(opened.offsets) - 1
        self._blank(shard, places[lost], ShardError(opened.damage), rows)
        kept: np.ndarray = places[~lost]
        return kept

    def _read(self, shard: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bytes that hold samples of a shard; where each begins in them, and its size."""
        opened = self._opened(shard)
        starts, stops = opened.offsets[numbers], opened.offsets[numbers + 1]
        contents, begins = opened.read(starts, stops)
        sizes = stops - starts
        if len(contents) < (begins + sizes).max(initial=0):
            raise ShardError("cut short")
        return contents, begins, sizes

    def _blank(
        self, shard: int, places: np.ndarray | list[int], error: ShardError, rows: Rows
    ) -> None:
        """Fill rows with a valid input that shows nothing, or raise the error if none are skipped.

        Tokens are black, the boxes those of some tree, the label is 0 where there are labels.
        """
        name = self.shards[shard].name
        located = ShardError(f"{self._dataset.folder.where(name)}: {error}")
        if not self._skip:
            raise located from error
        rows.tokens[places] = 0
        rows.boxes[places] = self._blank_boxes(rows.budget)
        rows.labels[places] = -1 if self._classes < 0 else 0
        rows.key_bytes[places] = 0
        rows.skipped |= {int(place): (name, located) for place in places}

    def _make_blank_boxes(self, budget: int) -> np.ndarray:
        geometry = self._dataset.manifest.geometry
        flat = np.zeros((1, geometry.splittable), np.float32)
        nodes = grow(flat, geometry, budget).nodes[0]
        boxes: np.ndarray = nodes[leaf_indices(nodes, geometry.roots, geometry.splits(budget)), :3]
        return boxes

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
        """Have the shards of a batch near, several at a time; what fails shows when it is read."""
        if isinstance(self._dataset.folder, CachedFolder):
            names = [self.shards[shard].name for shard in np.unique(shards).tolist()]
            with suppress(ShardError):
                self._dataset.folder.fetch(names)

    def _open(self, shard: int) -> _Shard:
        """Raises ShardError when it is damaged, unless damage is skipped."""
        info, folder = self.shards[shard], self._dataset.folder
        try:
            size = folder.size(info.name)
            if size != info.bytes:
                raise ShardError(
                    self._dataset.missing
                    if size is None
                    else f"{size} bytes, expected {info.bytes}"
                )
            read = folder.open_ranges(info.name)
            stored = self._stored_offsets(info)
            offsets, damage = (
                _scan_offsets(folder.map(info.name), info) if stored is None else (stored, "")
            )
        except UnreadableError:
            raise
        except ShardError as error:
            offsets, read, damage = [0], _read_nothing, str(error)
        if damage and not self._skip:
            raise ShardError(damage)
        return _Shard(offsets=np.array(offsets, np.int64), read=read, damage=damage)

    def _stored_offsets(self, info: ShardInfo) -> list[int] | None:
        """Those of the done-marker; whether they fit the tar shows when a sample is parsed.

        None where there is no marker that could be right.
        """
        folder = self._dataset.folder
        name = marker_name(self._split, info.index)
        try:
            data = folder.get(name)
            if data is None:
                return None
            views = json.loads(data)["views"]
            offsets = next(v["offsets"] for v in views if v["name"] == info.name)
            ends = [*offsets[1:], info.bytes]
            ordered = all(type(a) is int and a < b for a, b in zip(offsets, ends, strict=True))
        except (ShardError, ValueError, TypeError, KeyError, StopIteration, RecursionError):
            return None
        whole = ordered and len(offsets) == info.samples and offsets[0] == 0
        return [*offsets, info.bytes] if whole else None


def _read_nothing(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.uint8), np.zeros_like(starts)


def _scan_offsets(contents: memoryview, info: ShardInfo) -> tuple[list[int], str]:
    """Offsets of the samples, and the end of the last, from the headers of all members.

    And what is wrong where the archive cannot be followed any further, or holds another number of
    samples; empty when nothing is.
    """
    offsets: list[int] = []
    keys: set[str] = set()
    last, end = "", 0
    try:
        if len(contents) != info.bytes:
            raise ShardError(f"{len(contents)} bytes, expected {info.bytes}")
        for name, offset, content in read_members(contents):
            key = name.partition(".")[0]
            if key != last or not offsets:
                if key in keys:
                    raise ShardError(f"{key}: two samples have this key")
                keys.add(key)
                offsets.append(offset)
            last, end = key, offset + BLOCK + -(-len(content) // BLOCK) * BLOCK
    except ShardError as error:
        return [*offsets, end], str(error)
    ends = [*offsets, info.bytes][: info.samples + 1]
    same = len(offsets) == info.samples
    return ends, "" if same else f"{len(offsets)} samples, expected {info.samples}"
