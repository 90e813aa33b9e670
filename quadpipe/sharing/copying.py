"""`quadpipe copy`: datasets to another folder or URL."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from quadpipe.errors import ConfigError, MissingError, ShardError
from quadpipe.fields import check_known
from quadpipe.files import Folder, HubFolder, LocalFolder, open_folder
from quadpipe.job.config import TEXTS
from quadpipe.job.run_config import RunConfig
from quadpipe.shards.card import card
from quadpipe.shards.croissant import read_croissant
from quadpipe.shards.format import (
    CARD,
    LOGS,
    MANIFEST,
    PLAN,
    REJECTED,
    json_bytes,
    listing_name,
    marker_name,
    shard_gains_name,
)
from quadpipe.shards.joined import Location, open_datasets
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.destination import Destination, LastFiles, check_room, edited_card
from quadpipe.sharing.made import MadeCopy
from quadpipe.sharing.progress import CopyPreview, CopyProgress
from quadpipe.sharing.transfer import CheckedFile, Transfer


def copy(
    sources: Location | Sequence[Location],
    out: str | os.PathLike[str],
    /,
    *,
    labels: str | os.PathLike[str] | None = None,
    expect: str | None = None,
    provenance: bool = False,
    replace: bool = False,
    public: bool = False,
    workers: int | None = None,
    address: str | None = None,
    in_process: bool = False,
    progress: CopyProgress | None = None,
    **options: Any,
) -> Dataset:
    """Copy a dataset, or a part of it, or several as one, to a folder or any fsspec URL.

        dataset = quadpipe.copy("shards/", "s3://bucket/shards", tokens=64)

    Everything is compared with its checksum on the way; what the destination has already is kept.
    A copy that was interrupted is continued by the same call. options: fields of CopyConfig.
    labels: a file of `path,label` rows. expect: the fingerprint of the source, of several one each,
    separated by commas. provenance: also copy plan, listing, done-markers and rejects, never logs.
    replace: another dataset at the destination is replaced. public: a new repository on the Hub is
    visible to all. workers: files to copy, or shards to make, at a time. address, in_process: as
    for `tokenize`, where shards are made.

    Raises ConfigError when options do not fit the sources, or these each other, ShardError when a
    source is damaged, incomplete or not the expected one, OutputError when the destination cannot
    be written or holds something else, JobError when shards could not be made.
    """
    check_known(options, CopyConfig)
    config = CopyConfig(**options)
    run = RunConfig(workers=workers, address=address, in_process=in_process)
    datasets = open_datasets(sources, expect=expect)
    fingerprints = [dataset.manifest.fingerprint for dataset in datasets]
    if len(set(fingerprints)) < len(datasets):
        places = " and ".join(str(dataset.folder) for dataset in datasets)
        raise ConfigError(f"{places} hold a dataset twice; give it once")
    folder = open_folder(out)
    if isinstance(folder, HubFolder):
        folder.prepare(public=public)
    elif public:
        raise ConfigError(f"--public is for a repository on the Hub, not for {folder}; omit it")
    for dataset in datasets:
        check_apart(dataset.folder, folder)
    progress = progress or CopyProgress()
    keeps = len(datasets) == 1 and labels is None and config.keeps_shards(datasets[0].manifest)
    if keeps and address:
        raise ConfigError("a copy of whole files is made by this process; omit address")
    if not keeps and provenance:
        raise ConfigError("provenance is that of the source; omit it where shards are changed")
    try:
        if keeps:
            whole = WholeCopy(datasets[0], folder, config, provenance=provenance)
            whole.run(progress, threads=workers, replace=replace)
        else:
            made = MadeCopy(datasets, folder, config, run, None if labels is None else Path(labels))
            made.run(progress, replace=replace)
    finally:
        progress.close()
    return Dataset(folder)


@dataclass(frozen=True)
class WholeCopy:
    """A copy of all files of a dataset as they are."""

    dataset: Dataset
    out: Folder
    config: CopyConfig
    provenance: bool = False

    def run(self, progress: CopyProgress, *, threads: int | None, replace: bool) -> None:
        manifest = self.dataset.manifest
        document = {
            "parents": [manifest.fingerprint],
            "options": self.config.given,
            "provenance": self.provenance,
        }
        there = Destination(self.out, document)
        there.check(manifest.fingerprint, replace=replace)
        self.out.check_writable()
        files = list(self._files())
        provenance = self._provenance_names() if self.provenance else []
        with self.out.lock(f"{LOGS}/lock"):
            there.check(manifest.fingerprint, replace=replace)
            self.out.clear_staging()
            progress.planned(self._preview(files, there))
            transfer = Transfer(self.dataset.folder, self.out, progress, threads)
            missing = transfer.missing(files)
            check_room(self.out, sum(file.bytes for file in missing))
            stale = there.stale({file.name for file in files})
            last = self._last()
            changes = bool(missing or stale) or not there.holds(last)
            there.begin(changes=changes)
            for name, data in zip(
                provenance, self.dataset.folder.read_many(provenance), strict=True
            ):
                if data is not None and self.out.get(name) != data:
                    self.out.write(name, data)
            if changes:
                self._copy(transfer, missing)
                for name in stale:
                    self.out.remove(name)
                there.publish(last)
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

    def _last(self) -> LastFiles:
        """Manifest and cards: as they are, or with another name, license or source. A copy with
        another license names its source as parent.

        ShardError if the source was changed since it was opened.
        """
        folder, manifest, texts = self.dataset.folder, self.dataset.manifest, self.config.texts
        data = folder.read(MANIFEST)
        if Manifest.parse(data, folder.where(MANIFEST)).fingerprint != manifest.fingerprint:
            raise ShardError(f"{folder} was changed while it was copied; rerun the same command")
        edited = None if texts else folder.get(CARD)
        if texts:  # the fields as they are, also those that this version does not know
            changed: dict[str, Any] = {**texts}
            if texts.get("license", manifest.license) != manifest.license:
                changed["parents"] = (manifest.as_parent(),)
            data = json_bytes(json.loads(data) | changed, indent=2)
            manifest = replaced(manifest, **changed)
        return LastFiles(
            fingerprint=manifest.fingerprint,
            manifest=data,
            card=edited or card(manifest).encode(),
            croissant=read_croissant(folder, manifest),
        )

    def _preview(self, files: list[CheckedFile], there: Destination) -> CopyPreview:
        manifest = self.dataset.manifest
        splits = manifest.splits.values()
        texts = {key: getattr(manifest, key) for key in TEXTS} | self.config.texts
        notes = self.out.notes + there.notes(manifest.fingerprint, texts)
        return CopyPreview(
            samples=sum(split.samples for split in splits),
            shards=sum(split.shards for split in splits),
            bytes=sum(file.bytes for file in files),
            free_bytes=self.out.free_bytes(),
            notes=notes + (edited_card([self.dataset]) if self.config.texts else ()),
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
        manifest = self.dataset.manifest
        names = [REJECTED]
        try:
            for split, planned in json.loads(plan)["splits"].items():
                shards = -(-manifest.splits[split].inputs // manifest.samples_per_shard)
                names += [listing_name(split, n) for n in range(len(planned["listing"]))]
                for name in (shard_gains_name, marker_name):
                    names += [name(split, shard) for shard in range(shards)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ShardError(f"{folder.where(PLAN)} cannot be used: {error}") from error
        return [*names, PLAN]


def check_apart(source: object, out: Folder) -> None:
    """Raise ConfigError when one place is, or is inside, the other."""
    one, other = f"{_place(source)}/", f"{_place(out)}/"
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(f"{source} and {out} are not apart; copy to a folder beside the dataset")


def _place(folder: object) -> str:
    if isinstance(folder, LocalFolder):
        return os.path.realpath(folder.root)
    if isinstance(folder, HubFolder):
        return folder.place
    return str(folder).rstrip("/")
