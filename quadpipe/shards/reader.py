"""Shards -> mosaics, checked against the manifest before use. The mirror image of `writer`."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import index
from os import PathLike
from typing import Any, SupportsIndex

import numpy as np

from quadpipe.errors import ConfigError, MissingError, ShardError, UnreadableError
from quadpipe.files import (
    Cache,
    CachedFolder,
    Contents,
    Folder,
    Ranges,
    ReadableFolder,
    RemoteFolder,
    most_open,
    open_folder,
)
from quadpipe.mosaic import Mosaic
from quadpipe.shards.gains import read_gains, sample_gains
from quadpipe.shards.index import part_of, parts, read_index, scan
from quadpipe.shards.manifest import Manifest, ShardInfo, SplitInfo
from quadpipe.shards.members import Content, decode_members, sample_contents
from quadpipe.shards.presence import shards_here
from quadpipe.shards.shard_list import ShardList, read_first_shards, read_shard_list
from quadpipe.shards.skipped import Skipped, check_on_error
from quadpipe.text import counted

_OPEN_SHARDS = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One mosaic with its label.

    key: the index of its input in the plan, and its view. label: class index, None without labels.
    info: path, width, height, class, view and box of the input. extra: its other members by name
    after the key, as bytes (`{"caption.txt": b".."}`). offset: where its first member begins in its
    shard.
    """

    key: str
    mosaic: Mosaic
    label: int | None
    info: dict[str, Any]
    extra: dict[str, Any]
    offset: int

    def __repr__(self) -> str:
        extra = f", extra {', '.join(self.extra)}" if self.extra else ""
        return f"<Sample {self.key}: label {self.label}, {self.info}, {self.mosaic}{extra}>"


class Dataset:
    """A finished dataset for reading.

        dataset = quadpipe.Dataset("shards/")
        for sample in dataset.samples("train"): ...
        sample = dataset["train"][5]

    cache: keeps shards of a dataset at a URL in a local folder. expect: the fingerprint that the
    dataset must have, or its first 12 hex digits or more. skipped: the damaged samples that
    were skipped with on_error="skip". Raises ShardError when the folder is not a dataset, or has
    another format version or another fingerprint.
    """

    def __init__(
        self,
        location: str | PathLike[str] | Folder,
        *,
        cache: Cache | None = None,
        expect: str | None = None,
    ) -> None:
        self.folder: ReadableFolder = open_folder(location)
        if cache is not None:
            self.folder = _cached(self.folder, cache)
        self.manifest = Manifest.read(self.folder)
        self.manifest.check_expected(expect, str(self.folder))
        self.skipped = Skipped()
        self._shards: dict[str, ShardList] = {}
        self._indexes: dict[str, np.ndarray] = {}
        self._gains: dict[str, np.ndarray] = {}
        self._indexes_missing = False

    def __repr__(self) -> str:
        counts = (f"{counted(s.samples, 'sample')} of {n}" for n, s in self.manifest.splits.items())
        tokens = self.manifest.tokenizer.tokens
        return f"<Dataset {self.folder}: {', '.join(counts)}; {counted(tokens, 'token')} per image>"

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which reads lists and indexes itself."""
        return {**vars(self), "_shards": {}, "_indexes": {}, "_gains": {}}

    def __getitem__(self, split: str) -> "SplitSamples":
        """The samples of a split by number; ConfigError when the split does not exist."""
        return SplitSamples(self, split)

    def split(self, name: str) -> SplitInfo:
        """Counts of a split; ConfigError when the split does not exist."""
        if name not in self.manifest.splits:
            raise ConfigError(
                f"{self.folder} has no split {name!r}; it has {', '.join(self.manifest.splits)}"
            )
        return self.manifest.splits[name]

    def shards(self, split: str) -> ShardList:
        """The shards of a split, in the order of the plan, views interleaved."""
        if split not in self._shards:
            info, most = self.split(split), self.manifest.samples_per_shard
            shards = read_shard_list(self.folder, split, info, most)
            if isinstance(self.folder, CachedFolder):
                self.folder.know(shards.checksum)
            self._shards[split] = shards
        return self._shards[split]

    def first_shards(self, split: str) -> ShardList:
        """The first shards of a split; see `shard_list.read_first_shards`."""
        info, most = self.split(split), self.manifest.samples_per_shard
        return self._shards.get(split) or read_first_shards(self.folder, split, info, most)

    def place(self, split: str, shard: ShardInfo) -> slice:
        """The rows of a shard in the index and the gains of its split."""
        shards = self.shards(split)
        first = int(shards.firsts[shards.position(shard.name)])
        return slice(first, first + shard.samples)

    def index(self, split: str) -> np.ndarray | None:
        """Offsets, sizes, checksums and labels of the samples of a split, as `index.ROW`.

        None in a dataset that was written before indexes existed. ShardError when it is not the one
        that the manifest names.
        """
        info = self.split(split)
        if info.index_sha256 is None:
            if not self._indexes_missing:
                self._indexes_missing = True
                _log.warning(
                    "%s has no checksums of samples, so changed bytes are not detected; rerun the "
                    "quadpipe tokenize command that wrote it to add them",
                    self.folder,
                )
            return None
        if split not in self._indexes:
            self._indexes[split] = read_index(self.folder, split, info, self.shards(split))
        return self._indexes[split]

    def gains(self, split: str) -> np.ndarray:
        """float32 `[samples, K]`: the gains of each sample, in the order of the index.

        Of a local dataset that was written before they had a file, they are read from the shards.
        ShardError when the file is not the one that the manifest names, or a shard is damaged.
        """
        if split not in self._gains:
            info, splits = self.split(split), self.manifest.tokenizer.num_splits
            if info.gains_sha256 is not None:
                rows = read_gains(self.folder, split, info, splits)
            elif isinstance(self.folder, RemoteFolder | CachedFolder):
                raise ConfigError(
                    f"{self.folder} has no file of gains, which numbers of tokens per image need; "
                    f"rerun the quadpipe tokenize command that wrote it, or copy it to this machine"
                )
            else:
                _log.warning("%s has no file of gains; reading all its shards", self.folder)
                each = [self._shard_gains(shard, splits) for shard in self.shards(split)]
                rows = np.concatenate([np.empty((0, splits), np.float32), *each])
            self._gains[split] = rows
        return self._gains[split]

    def _shard_gains(self, shard: ShardInfo, splits: int) -> np.ndarray:
        try:
            contents = self.folder.contents(shard.name)
            rows, damage = self.rows(shard, contents)
            if damage:
                raise ShardError(damage)
            return np.array([sample_gains(part, splits) for _, part in parts(rows, contents)])
        except UnreadableError:
            raise
        except ShardError as error:
            raise ShardError(
                f"{self.located(shard, error)} (numbers of tokens per image need every sample, "
                f'also with on_error="skip", since the dataset has no file of gains)'
            ) from error

    def samples(
        self, split: str, view: int | None = None, on_error: str = "raise"
    ) -> Iterator[Sample]:
        """The samples of a split in the order of the plan, of one view or of all.

        on_error: see `read_shard`.
        """
        for shard in self.shards(split):
            if view is None or shard.view == view:
                yield from self.read_shard(shard, on_error)

    @cached_property
    def missing(self) -> str:
        """The message about a shard that does not exist."""
        return f"missing: {shards_here(self.folder, self.manifest)}"

    def read_shard(
        self, shard: ShardInfo, on_error: str = "raise", contents: Contents | None = None
    ) -> Iterator[Sample]:
        """The samples of one shard; ShardError names shard and key of a damaged sample.

        contents: of the shard, if they have been read already.

        With on_error="skip", a sample that is damaged or does not fit the manifest is skipped. A
        shard that is missing or has another size is skipped as a whole, and so is the rest of an
        archive after a damaged header. Each sample of the shard list is either yielded or counted
        in `skipped`.
        """
        check_on_error(on_error)
        left = shard.samples
        keys: set[str] = set()
        try:
            if contents is None:
                contents = self.folder.contents(shard.name)
            rows, damage = self.rows(shard, contents)
            for number, row in enumerate(rows, start=1):
                try:
                    sample = self._read_sample(contents, row)
                    if sample.key in keys:
                        raise ShardError(f"{sample.key}: two samples have this key")
                    keys.add(sample.key)
                except ShardError as error:
                    if damage and number == len(rows):
                        break
                    if on_error == "raise":
                        raise
                    left -= 1
                    self.skipped.add(shard.name, self.located(shard, error), 1)
                    continue
                left -= 1
                yield sample
            if damage:
                raise ShardError(damage)
        except UnreadableError:
            raise
        except ShardError as error:
            if on_error == "raise":
                raise self.located(shard, error) from error
            self.skipped.add(shard.name, self.located(shard, error), left)

    def located(self, shard: ShardInfo, error: ShardError) -> ShardError:
        """The error, with the place of the shard; a missing one is reported with the next step."""
        what = self.missing if isinstance(error, MissingError) else error
        return ShardError(f"{self.folder.where(shard.name)}: {what}")

    def check_size(self, shard: ShardInfo) -> None:
        """Raise ShardError if a shard is missing or has another size."""
        size = self.folder.size(shard.name)
        if size != shard.bytes:
            raise ShardError(
                self.missing if size is None else f"{size} bytes, expected {shard.bytes}"
            )

    def rows(self, shard: ShardInfo, contents: Contents) -> tuple[np.ndarray, str]:
        """The index's rows of a shard; without an index, rows from the headers in its contents.

        Also the reason why some samples of the shard list have no row, empty when all have one.
        """
        if len(contents) != shard.bytes:
            raise ShardError(f"{len(contents)} bytes, expected {shard.bytes}")
        split = shard.name.partition("-")[0]
        index = self.index(split)
        if index is None:
            return scan(contents, shard)
        return index[self.place(split, shard)], ""

    def _read_sample(self, contents: Contents, row: np.void) -> Sample:
        return self.parse_sample(part_of(row, contents), int(row["offset"]))

    def parse_sample(self, data: memoryview, offset: int = 0) -> Sample:
        """The sample whose members are `data`, a part of a shard; ShardError when it is not one."""
        key, contents = sample_contents(data)
        return self.make_sample(key, contents, offset=offset)

    def make_sample(self, key: str, contents: Mapping[str, Content], *, offset: int = 0) -> Sample:
        """The sample with these members by name after the key; ShardError when they do not fit."""
        try:
            values = decode_members(contents, self.manifest)
        except ShardError as error:
            raise ShardError(f"{key}.{error}") from error
        return Sample(
            key=key,
            mosaic=Mosaic(
                geometry=self.manifest.geometry,
                tokens=values.pop(self.manifest.make_codec().member),
                nodes=values.pop("nodes.npy"),
                importance=values.pop("importance.npy"),
            ),
            label=None if self.manifest.classes is None else values.pop("cls"),
            info=values.pop("json"),
            extra=values,
            offset=offset,
        )


class SplitSamples:
    """The samples of a split by number, or those of one view, in the order of the plan.

        samples = quadpipe.Dataset("shards/")["train"]
        samples[0], samples[-1], len(samples), samples.of_view(0)[5]

    A map-style dataset as torch has them, for the workers of a DataLoader too, forked or spawned.
    Each sample is read alone, and compared with its checksum at each read. Raises IndexError on a
    number out of range, ShardError when the sample is damaged.
    """

    def __init__(self, dataset: Dataset, split: str, view: int | None = None) -> None:
        view = None if view is None else index(view)
        self.dataset, self.split, self.view = dataset, split, view
        views = dataset.split(split).views
        if view is not None and not 0 <= view < views:
            raise ConfigError(
                f"{dataset.folder} has no view {view} of {split}; it has {views}, from 0"
            )
        dataset.shards(split)  # list and index are checked now
        dataset.index(split)

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "split": self.split, "view": self.view}

    def __repr__(self) -> str:
        view = "" if self.view is None else f", view {self.view}"
        name = f"{self.dataset.folder}, {self.split}{view}"
        return f"<SplitSamples {name}: {counted(len(self), 'sample')}>"

    def of_view(self, view: int) -> "SplitSamples":
        """The samples of one view, of which each input has one."""
        return SplitSamples(self.dataset, self.split, view)

    def __len__(self) -> int:
        info = self.dataset.split(self.split)
        return info.samples if self.view is None else info.inputs - info.rejected

    def __iter__(self) -> Iterator[Sample]:
        return self.dataset.samples(self.split, self.view)

    def __getitem__(self, number: SupportsIndex) -> Sample:
        given, count = index(number), len(self)
        if not -count <= given < count:
            raise IndexError(f"sample {given} of {count:,} of {self.split}")
        place = int(np.searchsorted(self._stops, given % count, side="right"))
        shard = self._shards[place]
        try:
            rows, contents = self._opened(place)
            row = rows[given % count - int(self._stops[place]) + shard.samples]
            # A copy: local shards are mapped, and a mapped file may be cut short later.
            part = memoryview(bytes(part_of(row, contents)))
            return self.dataset.parse_sample(part, int(row["offset"]))
        except UnreadableError:
            raise
        except ShardError as error:
            raise self.dataset.located(shard, error) from error

    @cached_property
    def _shards(self) -> ShardList:
        return self.dataset.shards(self.split).of_view(self.view)

    @cached_property
    def _stops(self) -> np.ndarray:
        """int64 `[shards]`: the number after that of the last sample of each shard."""
        return np.cumsum(self._shards.samples, dtype=np.int64)

    @cached_property
    def _opened(self) -> Callable[[int], tuple[np.ndarray, Contents]]:
        return lru_cache(maxsize=most_open(_OPEN_SHARDS))(self._open)

    def _open(self, place: int) -> tuple[np.ndarray, Contents]:
        """The rows of a shard in the index, and its contents, of which samples are read.

        Without an index, its samples are found by their headers; a remote shard is read whole once.
        """
        shard, folder = self._shards[place], self.dataset.folder
        self.dataset.check_size(shard)
        contents = Ranges(folder.open_ranges(shard.name), shard.bytes)
        found = self.dataset.index(self.split)
        if found is not None:
            first = int(self._shards.firsts[place])
            return found[first : first + shard.samples], contents
        rows, damage = scan(folder.contents(shard.name), shard)
        if damage:
            raise ShardError(damage)
        return rows, contents


def _cached(folder: ReadableFolder, cache: Cache) -> ReadableFolder:
    if not isinstance(folder, RemoteFolder):
        raise ConfigError(f"{folder} is local, and a cache is for URLs; omit --cache")
    return CachedFolder(folder, cache)
