"""`quadpipe copy`: datasets to another folder or URL."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quadpipe.errors import ConfigError, MissingError, OutputError, ShardError
from quadpipe.files import Folder, LocalFolder, open_folder
from quadpipe.shards.format import (
    CARD,
    LOGS,
    MANIFEST,
    PLAN,
    REJECTED,
    json_bytes,
    listing_name,
    marker_name,
)
from quadpipe.shards.reader import Dataset
from quadpipe.sharing.destination import Destination
from quadpipe.sharing.progress import CopyPreview, CopyProgress
from quadpipe.sharing.transfer import CheckedFile, Transfer

_THREADS = 8

Location = str | os.PathLike[str]


def copy(
    source: Location,
    out: Location,
    /,
    *,
    expect: str | None = None,
    provenance: bool = False,
    replace: bool = False,
    workers: int | None = None,
    progress: CopyProgress | None = None,
) -> Dataset:
    """Copy a dataset to a folder or any fsspec URL.

        dataset = quadpipe.copy("shards/", "s3://bucket/shards")

    Each file is compared with its checksum on the way; what the destination has already is kept.
    A copy that was interrupted is continued by the same call. expect: the fingerprint of the
    source. provenance: also copy plan, listing, done-markers and rejects, never logs. replace:
    another dataset at the destination is replaced. workers: files to copy at a time.

    Raises ShardError when the source is damaged, incomplete or not the expected one, OutputError
    when the destination cannot be written or holds something else.
    """
    opened = Dataset(source, expect=expect)
    folder = open_folder(out)
    check_apart(opened.folder, folder)
    progress = progress or CopyProgress()
    try:
        WholeCopy(opened, folder, provenance=provenance).run(
            progress, threads=workers or _THREADS, replace=replace
        )
    finally:
        progress.close()
    return Dataset(folder)


@dataclass(frozen=True)
class WholeCopy:
    """A copy of all files of a dataset as they are."""

    dataset: Dataset
    out: Folder
    provenance: bool = False

    def run(self, progress: CopyProgress, *, threads: int, replace: bool) -> None:
        manifest = self.dataset.manifest
        document = {"parents": [manifest.fingerprint], "provenance": self.provenance}
        there = Destination(self.out, json_bytes(document, indent=2))
        there.check(manifest.fingerprint, replace=replace)
        self.out.check_writable()
        files = list(self._files())
        provenance = self._provenance_names() if self.provenance else []
        with self.out.lock(f"{LOGS}/lock"):
            there.check(manifest.fingerprint, replace=replace)
            self.out.clear_staging()
            progress.planned(self._preview(files))
            transfer = Transfer(self.dataset.folder, self.out, progress, threads)
            missing = transfer.missing(files)
            check_room(self.out, missing)
            there.begin()
            stale = there.stale({file.name for file in files})
            for name, data in zip(
                provenance, self.dataset.folder.read_many(provenance), strict=True
            ):
                if data is not None and self.out.get(name) != data:
                    self.out.write(name, data)
            last = [self.dataset.folder.read(MANIFEST), self.dataset.folder.get(CARD)]
            if missing or stale or [self.out.get(name) for name in (MANIFEST, CARD)] != last:
                there.withdraw()
                self._copy(transfer, missing)
                for name in stale:
                    self.out.remove(name)
                there.publish(*last)
            self.out.clear_staging()

    def _files(self) -> Iterator[CheckedFile]:
        folder = self.dataset.folder
        for split, info in self.dataset.manifest.splits.items():
            for name, sha256 in info.files(split).items():
                size = folder.size(name)
                if size is None:
                    raise ShardError(f"{folder.where(name)}: {self.dataset.missing}")
                yield CheckedFile(name=name, bytes=size, sha256=sha256)
            for shard in self.dataset.shards(split):
                yield CheckedFile(name=shard.name, bytes=shard.bytes, sha256=shard.sha256)

    def _preview(self, files: list[CheckedFile]) -> CopyPreview:
        splits = self.dataset.manifest.splits.values()
        return CopyPreview(
            samples=sum(split.samples for split in splits),
            shards=sum(split.shards for split in splits),
            bytes=sum(file.bytes for file in files),
            free_bytes=self.out.free_bytes(),
        )

    def _copy(self, transfer: Transfer, missing: list[CheckedFile]) -> None:
        try:
            transfer.copy(missing)
        except MissingError as error:
            raise ShardError(f"{error}: {self.dataset.missing}") from error

    def _provenance_names(self) -> list[str]:
        """Names of the rejects, the listing, the markers and, last, the plan."""
        folder = self.dataset.folder
        plan = folder.get(PLAN)
        if plan is None:
            raise ConfigError(
                f"{folder} has no {PLAN}: it records how a dataset was made; omit --provenance"
            )
        names = [REJECTED]
        try:
            for split, planned in json.loads(plan)["splits"].items():
                names += [listing_name(split, n) for n in range(len(planned["listing"]))]
                names += [marker_name(split, n) for n in range(planned["shards"])]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ShardError(f"{folder.where(PLAN)} cannot be used: {error}") from error
        return [*names, PLAN]


def check_room(out: Folder, files: Sequence[CheckedFile]) -> None:
    """Raise OutputError when the destination has too little free space for the files."""
    needed, free = sum(file.bytes for file in files), out.free_bytes()
    if free is not None and needed > free:
        raise OutputError(
            f"{out} has {free:,} bytes free, the copy needs {needed:,}; free some space, or copy "
            f"to another place"
        )


def check_apart(source: object, out: Folder) -> None:
    """Raise ConfigError when one place is, or is inside, the other."""
    one, other = f"{_place(source)}/", f"{_place(out)}/"
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(f"{source} and {out} are not apart; copy to a folder beside the dataset")


def _place(folder: object) -> str:
    if isinstance(folder, LocalFolder):
        return os.path.realpath(folder.root)
    return str(folder).rstrip("/")
