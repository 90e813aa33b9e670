"""Shards -> mosaics, checked against the manifest before use. The mirror image of `writer`."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from os import PathLike
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, MissingError, ShardError, UnreadableError
from quadpipe.files import (
    Cache,
    CachedFolder,
    Contents,
    Folder,
    ReadableFolder,
    RemoteFolder,
    open_folder,
)
from quadpipe.mosaic import Mosaic
from quadpipe.shards.gains import read_gains, sample_gains
from quadpipe.shards.index import part_of, parts, read_index, scan
from quadpipe.shards.manifest import Manifest, ShardInfo, SplitInfo, read_shard_list
from quadpipe.shards.members import Content, decode_members, sample_contents
from quadpipe.shards.presence import shards_here
from quadpipe.shards.skipped import Skipped, check_on_error

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


class Dataset:
    """A finished dataset for reading.

        dataset = quadpipe.Dataset("shards/")
        for sample in dataset.samples("train"): ...

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
        self._shards: dict[str, list[ShardInfo]] = {}
        self._indexes: dict[str, np.ndarray] = {}
        self._gains: dict[str, np.ndarray] = {}
        self._places: dict[str, dict[str, slice]] = {}
        self._indexes_missing = False

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, which reads lists and indexes itself."""
        return {**vars(self), "_shards": {}, "_indexes": {}, "_gains": {}, "_places": {}}

    def split(self, name: str) -> SplitInfo:
        """Counts of a split; ConfigError when the split does not exist."""
        if name not in self.manifest.splits:
            raise ConfigError(
                f"{self.folder} has no split {name!r}; it has {', '.join(self.manifest.splits)}"
            )
        return self.manifest.splits[name]

    def shards(self, split: str) -> list[ShardInfo]:
        """The shards of a split, in the order of the plan, views interleaved."""
        if split in self._shards:
            return self._shards[split]
        shards = read_shard_list(self.folder, split, self.split(split))
        for shard in shards:
            if shard.samples > self.manifest.samples_per_shard:
                raise ShardError(
                    f"{self.folder.where(shard.name)}: {shard.samples} samples, more than the "
                    f"{self.manifest.samples_per_shard} of a shard"
                )
        if isinstance(self.folder, CachedFolder):
            self.folder.know({shard.name: (shard.sha256, shard.bytes) for shard in shards})
        self._shards[split] = shards
        return shards

    def place(self, split: str, shard: ShardInfo) -> slice:
        """The rows of a shard in the index and the gains of its split."""
        if split not in self._places:
            stops = accumulate(s.samples for s in self.shards(split))
            self._places[split] = {
                s.name: slice(stop - s.samples, stop)
                for s, stop in zip(self.shards(split), stops, strict=True)
            }
        return self._places[split][shard.name]

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
            raise self._located(shard, error) from error

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
                    self.skipped.add(shard.name, self._located(shard, error), 1)
                    continue
                left -= 1
                yield sample
            if damage:
                raise ShardError(damage)
        except UnreadableError:
            raise
        except ShardError as error:
            if on_error == "raise":
                raise self._located(shard, error) from error
            self.skipped.add(shard.name, self._located(shard, error), left)

    def _located(self, shard: ShardInfo, error: ShardError) -> ShardError:
        what = self.missing if isinstance(error, MissingError) else error
        return ShardError(f"{self.folder.where(shard.name)}: {what}")

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


def _cached(folder: ReadableFolder, cache: Cache) -> ReadableFolder:
    if not isinstance(folder, RemoteFolder):
        raise ConfigError(f"{folder} is local, and a cache is for URLs; omit --cache")
    return CachedFolder(folder, cache)
