"""Samples of a shard by number, checked against the manifest, gathered into a batch.

A local shard is mapped into memory, a remote one is read in ranges. By default the checksum of
a remote sample is verified at each read, that of a local sample at the first read.

Letters: b samples of the batch; N tokens; T = P * P * 3 bytes of a token.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from quadpipe.errors import ConfigError, ShardError, UnreadableError
from quadpipe.files import CachedFolder, RangeReader, RemoteFolder, most_open
from quadpipe.quadtree import grow, leaf_indices
from quadpipe.shards.format import npy_header
from quadpipe.shards.index import ROW, checksum, mismatch, scan
from quadpipe.shards.members import sample_members
from quadpipe.shards.reader import Dataset
from quadpipe.shards.tar import read_checked

KEY_BYTES = 20
"""Longer keys, which quadpipe does not write, are read by the slow path."""

OPEN_SHARDS = 128
"""Shards of each dataset that are kept open, if the process may open as many files (`most_open`);
local ones are mapped."""

VERIFY = ("first", "always", "never")
"""When checksums of samples are verified. first: of local samples at the first read by this
process, of remote ones at each read. always: at each read. never: trust the files."""


def check_verify(verify: str) -> None:
    """Raise ConfigError unless it is one of `VERIFY`."""
    if verify not in VERIFY:
        raise ConfigError(f"verify {verify!r} is not one of {', '.join(VERIFY)}")


class Rows:
    """The b rows of a batch: N tokens, row after row.

    splits: int64 `[b]`, number of splits of each row. tokens: uint8 `[N, T]`, the output. boxes:
    int16 `[N, 3]`. labels: int64 `[b]`, -1 without labels. skipped: path of the shard and error by
    row, of the rows that hold no sample. members: contents of the named members, None for a row
    without.
    """

    def __init__(
        self, tokens: np.ndarray, splits: np.ndarray, roots: int, members: tuple[str, ...] = ()
    ) -> None:
        size = len(splits)
        self.tokens, self.splits = tokens, splits
        self._stops = np.cumsum(roots + 3 * splits)
        self.boxes = np.empty((len(tokens), 3), np.int16)
        self.labels = np.empty(size, np.int64)
        self.key_bytes = np.zeros((size, KEY_BYTES), np.uint8)
        self.long_keys: dict[int, str] = {}
        self.skipped: dict[int, tuple[str, ShardError]] = {}
        self.members: dict[str, list[bytes | None]] = {name: [None] * size for name in members}

    def place(self, row: int) -> slice:
        """The tokens of a row."""
        return slice(self._stops[row - 1] if row else 0, self._stops[row])

    def keys(self) -> list[str]:
        """Keys of the samples in the rows, empty where one was skipped."""
        keys: list[str] = self.key_bytes.view(f"S{KEY_BYTES}")[:, 0].astype(str).tolist()
        for place, key in self.long_keys.items():
            keys[place] = key
        return keys


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """An open shard. offsets: int64, start of each sample, and end of the last one.

    checksums: uint64, of the samples, 0 if unknown. damage: the reason why some samples have no
    offset, empty when all have one.
    """

    offsets: np.ndarray
    checksums: np.ndarray
    read: RangeReader
    damage: str = ""


class SampleReader:
    """Random access to the samples of one view of a split. Threads may share it.

    skip: whether damaged samples leave their rows blank instead of raising. verify: see `VERIFY`.
    opened: keeps shards open; readers that are used together share one, see `shared_shards`.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        view: int,
        *,
        skip: bool = False,
        verify: str = "first",
        opened: "SharedShards | None" = None,
    ) -> None:
        self._dataset, self._split = dataset, split
        self._skip = skip
        self._index = dataset.index(split)
        self.shards = dataset.shards(split).of_view(view)
        self._first = np.concatenate([[0], np.cumsum(self.shards.samples, dtype=np.int64)])
        self._verifies = verify != "never" and self._index is not None
        # Per sample, whether its checksum has been verified.
        self._trusted: np.ndarray | None = None
        if verify == "first" and not isinstance(dataset.folder, RemoteFolder):
            self._trusted = np.zeros(self._first[-1], np.bool_)
        self._opened = partial(opened or shared_shards(1), self)
        self._blank_boxes = lru_cache(maxsize=256)(self._make_blank_boxes)

        manifest, geometry = dataset.manifest, dataset.manifest.geometry
        stored, side = manifest.tokenizer.tokens, geometry.patch_size
        nodes, self._stored_splits = geometry.num_nodes(stored), manifest.tokenizer.num_splits
        codec = manifest.make_codec()
        self._is_raw = codec.name == "raw"
        table = sample_members(codec, labels=manifest.classes is not None)
        required = [name.encode() for name, member in table.items() if not member.optional]
        self._names = np.array(required, "S100").view(np.uint8).reshape(-1, 100)
        self._headers = (
            np.frombuffer(npy_header("|u1", (nodes, side, side, 3)), np.uint8),
            np.frombuffer(npy_header("<i4", (nodes, 4)), np.uint8),
            np.frombuffer(npy_header("<f4", (self._stored_splits,)), np.uint8),
        )
        self._root_boxes = geometry.boxes[: geometry.roots]
        self._classes = -1 if manifest.classes is None else len(manifest.classes)

    def gains(self, shards: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """float32 `[b, K]`, of samples given by shard and number in the shard, int64 `[b]`."""
        rows: np.ndarray = self._dataset.gains(self._split)[self.shards.firsts[shards] + numbers]
        return rows

    def gather(
        self,
        shards: np.ndarray,
        numbers: np.ndarray,
        rows: Rows,
        mine: np.ndarray | None = None,
    ) -> None:
        """Fill the rows with samples given by shard and number in the shard, int64 `[b]`.

        mine: the rows whose samples are this reader's, by default all. ShardError names shard and
        key of a damaged sample; with skip, its row is blank.
        """
        addresses, lengths = np.zeros_like(shards), np.zeros_like(shards)
        mine = np.arange(len(shards)) if mine is None else mine
        by_shard = mine[np.argsort(shards[mine], kind="stable")]
        groups = []
        unseen = self._unseen(shards, numbers, mine)
        self._fetch(shards[mine])
        for places in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            shard = int(shards[places[0]])
            try:
                places = self._without_lost(shard, places, numbers, rows)
                if not len(places):
                    continue
                contents, begins, sizes = self._read(shard, numbers[places])
            except UnreadableError:  # its samples may be intact
                raise
            except ShardError as error:
                self._blank(shard, places, error, rows)
                continue
            if unseen is not None:
                good = np.ones(len(places), np.bool_)
                for at in np.flatnonzero(unseen[places]):
                    part = contents.data[begins[at] : begins[at] + sizes[at]]
                    good[at] = self._verify(shard, places[at], numbers[places[at]], part, rows)
                places, begins, sizes = places[good], begins[good], sizes[good]
            addresses[places] = contents.__array_interface__["data"][0] + begins
            lengths[places] = sizes
            groups.append((shard, places, contents, begins))
        unusual = ~self._gather_usual(addresses, lengths, rows)
        if not unusual[mine].any() and not rows.members:
            return
        for shard, places, contents, begins in groups:
            for at, begin in zip(places, begins.tolist(), strict=True):
                place = int(at)
                part = contents.data[begin : begin + lengths[place]]
                try:
                    if unusual[place]:
                        self._parse(part, place, rows)
                    if rows.members:
                        self._take_members(part, place, rows)
                except ShardError as error:
                    self._blank(shard, [place], error, rows)

    def _without_lost(
        self, shard: int, places: np.ndarray, numbers: np.ndarray, rows: Rows
    ) -> np.ndarray:
        """The places whose samples have an offset in the shard; the others become blank."""
        opened = self._opened(shard)
        if not opened.damage:
            return places
        lost = numbers[places] >= len(opened.offsets) - 1
        self._blank(shard, places[lost], ShardError(opened.damage), rows)
        kept: np.ndarray = places[~lost]
        return kept

    def _read(self, shard: int, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bytes that hold samples of a shard; start of each sample in them, and its size."""
        opened = self._opened(shard)
        starts, stops = opened.offsets[numbers], opened.offsets[numbers + 1]
        contents, begins = opened.read(starts, stops)
        sizes = stops - starts
        if len(contents) < (begins + sizes).max(initial=0):
            raise ShardError("cut short")
        return contents, begins, sizes

    def _unseen(
        self, shards: np.ndarray, numbers: np.ndarray, mine: np.ndarray
    ) -> np.ndarray | None:
        """bool `[b]`: the samples whose checksums must be verified; None if there are none."""
        if not self._verifies:
            return None
        if self._trusted is None:
            return np.ones(len(shards), np.bool_)
        unseen = np.zeros(len(shards), np.bool_)
        unseen[mine] = ~self._trusted[self._first[shards[mine]] + numbers[mine]]
        return unseen if unseen.any() else None

    def _verify(self, shard: int, place: int, number: int, part: memoryview, rows: Rows) -> bool:
        """Whether a sample has the checksum of the index; its row becomes blank if not."""
        opened = self._opened(shard)
        if opened.checksums[number] in (0, checksum(part)):  # 0: unknown
            if self._trusted is not None:
                self._trusted[self._first[shard] + number] = True
            return True
        self._blank(shard, [place], mismatch(part, int(opened.offsets[number])), rows)
        return False

    def _blank(
        self, shard: int, places: np.ndarray | list[int], error: ShardError, rows: Rows
    ) -> None:
        """Fill rows with a valid, blank input; without skip, raise the error.

        Tokens are black, the boxes are those of a valid tree, the label is 0, or -1 without labels.
        """
        where = self._dataset.folder.where(self.shards[shard].name)
        located = ShardError(f"{where}: {error}")
        if not self._skip:
            raise located from error
        for row in map(int, places):
            rows.tokens[rows.place(row)] = 0
            rows.boxes[rows.place(row)] = self._blank_boxes(int(rows.splits[row]))
        rows.labels[places] = -1 if self._classes < 0 else 0
        rows.key_bytes[places] = 0
        rows.skipped |= {int(place): (where, located) for place in places}

    def _make_blank_boxes(self, splits: int) -> np.ndarray:
        geometry = self._dataset.manifest.geometry
        flat = np.zeros((1, geometry.splittable), np.float32)
        nodes = grow(flat, geometry, geometry.roots + 3 * splits).nodes[0]
        boxes: np.ndarray = nodes[leaf_indices(nodes, geometry.roots, splits), :3]
        return boxes

    def _gather_usual(self, addresses: np.ndarray, lengths: np.ndarray, rows: Rows) -> np.ndarray:
        """Fill rows with the compiled reader; returns bool `[b]`, which samples it could read.

        addresses, lengths: int64 `[b]`, of the samples in memory.
        """
        if not self._is_raw:
            return np.zeros(len(addresses), np.bool_)
        from quadpipe.loader.gather import gather

        done: np.ndarray = gather(
            addresses,
            lengths,
            self._names,
            self._headers,
            self._root_boxes,
            self._stored_splits,
            rows.splits,
            self._classes,
            rows.tokens,
            rows.boxes,
            rows.labels,
            rows.key_bytes,
        )
        return done

    def _parse(self, part: memoryview, place: int, rows: Rows) -> None:
        """Fill one row with the slow reader, which reads every valid sample."""
        sample = self._dataset.parse_sample(part)
        where = rows.place(place)
        leaves = sample.mosaic.leaves(where.stop - where.start)
        rows.tokens[where] = leaves.tokens.reshape(len(leaves), -1)
        rows.boxes[where] = leaves.boxes
        rows.labels[place] = -1 if sample.label is None else sample.label
        rows.long_keys[place] = sample.key

    def _take_members(self, part: memoryview, place: int, rows: Rows) -> None:
        """Copy the members that were asked for, of a sample that was read and so checked."""
        for member, content in read_checked(part):
            name = member.partition(".")[2]
            if name in rows.members:
                rows.members[name][place] = bytes(content)

    def _fetch(self, shards: np.ndarray) -> None:
        """Prefetch the shards of a batch into the cache; errors are raised when they are read."""
        if isinstance(self._dataset.folder, CachedFolder):
            names = [self.shards[shard].name for shard in np.unique(shards).tolist()]
            with suppress(ShardError):
                self._dataset.folder.fetch(names)

    def open(self, shard: int) -> _Shard:
        """Open a shard; raises ShardError when it is damaged, unless damage is skipped."""
        info, folder = self.shards[shard], self._dataset.folder
        try:
            self._dataset.check_size(info)
            read = folder.open_ranges(info.name)
            if self._index is not None:
                first = int(self.shards.firsts[shard])
                rows, damage = self._index[first : first + info.samples], ""
            else:
                rows, damage = scan(folder.contents(info.name), info)
        except UnreadableError:
            raise
        except ShardError as error:
            rows, read, damage = np.zeros(0, ROW), _read_nothing, str(error)
        if damage and not self._skip:
            raise ShardError(damage)
        ends = np.concatenate([[0], rows["offset"] + rows["size"]])
        return _Shard(offsets=ends, checksums=rows["checksum"].copy(), read=read, damage=damage)


SharedShards = Callable[[SampleReader, int], _Shard]


def shared_shards(datasets: int) -> SharedShards:
    """Opens shards for the readers of a number of datasets, and keeps those used last open."""
    return lru_cache(maxsize=most_open(OPEN_SHARDS * datasets))(SampleReader.open)


def _read_nothing(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.uint8), np.zeros_like(starts)
