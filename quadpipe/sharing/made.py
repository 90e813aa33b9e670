"""Copies with other shards than their sources: made from these alone, shard by shard."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Folder
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.config import TEXTS, DatasetConfig, JobConfig
from quadpipe.job.engines import make_all, open_engine
from quadpipe.job.log import RunLog
from quadpipe.job.merge import merge_split, read_markers
from quadpipe.job.plan import Plan, ShardId
from quadpipe.job.run_config import RunConfig
from quadpipe.job.shard import ShardReport
from quadpipe.shards.card import card
from quadpipe.shards.croissant import read_croissant
from quadpipe.shards.format import LOGS
from quadpipe.shards.joined import how_made, told_apart
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset
from quadpipe.shards.shard_list import read_shard_list
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.destination import Destination, LastFiles, check_room, edited_card
from quadpipe.sharing.progress import CopyPreview, CopyProgress
from quadpipe.sharing.remake import Recipe, keeps_tokens, remake_shard
from quadpipe.sharing.samples import location_of
from quadpipe.sharing.selection import select
from quadpipe.sharing.transfer import CheckedFile, Transfer
from quadpipe.text import counted


class MadeCopy:
    """A copy with shards of its own. Raises ConfigError as `copy` does."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        out: Folder,
        config: CopyConfig,
        run: RunConfig,
        labels: Path | None,
    ) -> None:
        out.check_shared()
        self._config, self._out, self._labels = config, out, labels
        self._cards = edited_card(datasets)
        self._manifests = [dataset.manifest for dataset in datasets]
        self._places = [location_of(dataset.folder) for dataset in datasets]
        self._check_counts(datasets)
        check_alike(datasets, config)
        self._selection = select(datasets, config, labels)
        self._plan = self._make_plan(run)
        recoded = {
            manifest.codec["name"]
            for manifest in self._manifests
            if not keeps_tokens(self._plan, manifest)
        }
        self._decodes_jpeg = "jpg" in recoded
        uses_library = self._decodes_jpeg or (bool(recoded) and self._codec != "raw")
        self._recipe = Recipe(
            plan=self._plan,
            out=out,
            sources=[
                (place, manifest.fingerprint)
                for place, manifest in zip(self._places, self._manifests, strict=True)
            ],
            drawn=self._selection.drawn,
            indices=self._selection.indices,
            labels=self._selection.labels,
            library=imaging_library() if uses_library else None,
        )

    def run(self, progress: CopyProgress, *, replace: bool) -> None:
        there = Destination(self._out, self._document())
        there.check(None, replace=replace)
        self._out.check_writable()
        # Not in the copy, which is there to be shared.
        with self._out.lock(f"{LOGS}/lock"), RunLog(None).session() as log:
            there.check(None, replace=replace)
            self._out.clear_staging()
            pending = self._pending() if there.is_begun else list(self._plan.shards())
            left = sum(map(self._share, pending))
            check_room(self._out, left)
            progress.planned(self._preview(there))
            progress.advanced(self._bytes - left)
            changes = bool(pending) or not self._is_whole(there)
            there.begin(changes=changes)
            if changes:

                def note(shard: ShardId, outcome: Any) -> None:
                    log.outcome(shard, outcome)
                    if isinstance(outcome, ShardReport):
                        progress.advanced(self._share(shard))

                if pending:
                    with open_engine(self._plan.config.run, remake_shard, self._recipe) as make:
                        make_all(make, pending, note)
                self._publish(there)
            self._out.clear_staging()

    def _check_counts(self, datasets: Sequence[Dataset]) -> None:
        for dataset in datasets:
            most = dataset.manifest.most_views
            if self._config.views is not None and self._config.views > most:
                raise ConfigError(
                    f"{dataset.folder} holds {counted(most, 'view')} per image, not "
                    f"{self._config.views}; give at most these, or tokenize the images again"
                )
            stored, tokens = dataset.manifest.tokenizer.tokens, self._config.tokens
            if tokens is not None and tokens > stored:
                raise ConfigError(
                    f"{dataset.folder} holds {stored} tokens per image, not {tokens}; give at most "
                    f"these, or tokenize the images again"
                )

    def _make_plan(self, run: RunConfig) -> Plan:
        first, config = self._manifests[0], self._config
        tokens = config.tokens or first.tokenizer.tokens
        codec = config.codec_of(first)
        texts: dict[str, Any] = {key: self._text(key) for key in TEXTS}
        return Plan(
            config=JobConfig(
                tokenizer=replace(first.tokenizer, tokens=tokens),
                dataset=DatasetConfig(
                    codec=codec["name"],
                    quality=codec.get("quality"),
                    samples_per_shard=first.samples_per_shard,
                    preview=self._preview_side(),
                    **texts,
                ),
                run=run,
            ),
            scorer=first.scorer,
            classes=self._selection.classes,
            splits=self._selection.splits,
            imaging_library=first.imaging_library,
            members=self._members(),
        )

    def _members(self) -> dict[str, str]:
        """The kept members of all sources; ConfigError when one has two kinds."""
        members: dict[str, str] = {}
        for place, manifest in zip(self._places, self._manifests, strict=True):
            for name, kind in (manifest.members or {}).items():
                if members.setdefault(name, kind) != kind:
                    raise ConfigError(
                        f"{place} holds {name} as {kind}, another source as {members[name]}; "
                        f"tokenize one of them again like the other"
                    )
        return members

    def _text(self, key: str) -> str | None:
        """Name, license or source: as given, or what all sources have."""
        found = {getattr(manifest, key) for manifest in self._manifests}
        given: str | None = self._config.texts.get(key)
        return given or (found.pop() if len(found) == 1 else None) or None

    def _preview_side(self) -> int | None:
        """The size of the previews; None unless all sources have the same."""
        found = {manifest.preview for manifest in self._manifests}
        return found.pop() if len(found) == 1 else None

    @property
    def _codec(self) -> str:
        return self._plan.config.dataset.codec

    def _document(self) -> dict[str, Any]:
        labels = self._labels and hashlib.sha256(self._labels.read_bytes()).hexdigest()
        return {
            "parents": [manifest.fingerprint for manifest in self._manifests],
            "options": self._config.given | {"classes": self._config.class_names()},
            "labels_sha256": labels,
            "imaging_library": self._recipe.library,
        }

    def _pending(self) -> list[ShardId]:
        """Shards without a done-marker, or with other bytes than it names; every byte is read."""
        shards = list(self._plan.shards())
        pending, made = [], {}
        for shard, marker in zip(shards, read_markers(self._out, shards), strict=True):
            if marker is None:
                pending.append(shard)
                continue
            for tar in marker.tars or ():
                made[tar.info.name] = shard, tar.info
        files = [
            CheckedFile(name=name, bytes=info.bytes, sha256=info.sha256)
            for name, (_, info) in made.items()
        ]
        changed = Transfer(self._out, self._out, CopyProgress()).missing(files)
        return list(dict.fromkeys([*pending, *(made[file.name][0] for file in changed)]))

    def _is_whole(self, there: Destination) -> bool:
        """Whether the dataset is published already, with parents as they are; its tars were
        checked.
        """
        try:
            dataset = Dataset(self._out)
            names = {name for split in dataset.manifest.splits for name in self._files(split)}
        except ShardError:
            return False
        parents = [manifest.as_parent() for manifest in self._manifests]
        return list(dataset.manifest.parents) == parents and not there.stale(names)

    def _files(self, split: str) -> list[str]:
        """Names of all files of a finished split of the copy; ShardError when one is damaged."""
        dataset = Dataset(self._out)
        dataset.index(split)
        if dataset.split(split).gains_sha256 is None:
            raise ShardError(f"{split} has no file of gains")
        dataset.gains(split)
        return [*dataset.split(split).files(split), *dataset.shards(split).names()]

    @property
    def _bytes(self) -> int:
        return self._plan.samples * self._plan.bytes_per_sample

    def _share(self, shard: ShardId) -> int:
        """The part of a shard in the bytes of the copy, which are an estimate."""
        inputs = len(self._plan.inputs_of(shard))
        return inputs * self._plan.splits[shard.split].views * self._plan.bytes_per_sample

    def _preview(self, there: Destination) -> CopyPreview:
        texts = {key: self._text(key) for key in TEXTS}
        return CopyPreview(
            samples=self._plan.samples,
            shards=sum(split.shards * split.views for split in self._plan.splits.values()),
            bytes=self._bytes,
            free_bytes=self._out.free_bytes(),
            notes=(*self._notes(), *there.notes(None, texts)),
        )

    def _notes(self) -> list[str]:
        notes = [*self._cards, *self._selection.notes]
        if self._decodes_jpeg:
            again = "their pixels are encoded again, and lose a little"
            pixels = "the copy has their pixels, not those of the images"
            notes.append(f"the source holds JPEGs: {again if self._codec == 'jpg' else pixels}")
        if self._preview_side() is None and any(manifest.preview for manifest in self._manifests):
            notes.append("not all sources have previews of one size; the copy has none")
        libraries = [describe(manifest.imaging_library) for manifest in self._manifests]
        if len(set(libraries)) > 1:
            notes.append(f"the sources were made with {', '.join(dict.fromkeys(libraries))}")
        library, made_with = self._recipe.library, self._manifests[0].imaging_library
        if library not in (None, made_with):
            notes.append(
                f"copied with {describe(library)}, the source was made with "
                f"{describe(made_with)}: tokenizing the images may give other bytes"
            )
        return notes

    def _publish(self, there: Destination) -> None:
        """Write shard lists, indexes, card and manifest; remove what another dataset has left."""
        splits = {}
        names: set[str] = set()
        for name in self._plan.splits:
            info = merge_split(self._out, self._plan, name, io.BytesIO(), Counter())
            if self._selection.drawn is None and self._config.shards is None:
                before = self._manifests[0].splits[name]
                info = replace(info, inputs=before.inputs, rejected=before.rejected)
            splits[name] = info
            names |= info.files(name).keys()
            names |= set(read_shard_list(self._out, name, info).names())
        for name in there.stale(names):
            self._out.remove(name)
        manifest = self._plan.manifest(
            splits=splits,
            tokenizer_version=self._manifests[0].tokenizer_version,
            parents=tuple(manifest.as_parent() for manifest in self._manifests),
        )
        if any(source.members is None for source in self._manifests):
            manifest = replace(manifest, members=None)
        there.publish(
            LastFiles(
                fingerprint=manifest.fingerprint,
                manifest=manifest.to_bytes(),
                card=card(manifest).encode(),
                croissant=read_croissant(self._out, manifest),
            )
        )


def check_alike(datasets: Sequence[Dataset], config: CopyConfig) -> None:
    """Raise ConfigError when datasets cannot be joined, naming what differs."""
    first = datasets[0]
    for other in datasets[1:]:
        parts = [_compared(dataset.manifest, config) for dataset in (first, other)]
        if differing := told_apart(*parts):
            raise ConfigError(
                f"{first.folder} and {other.folder} were made differently: {differing}; tokenize "
                f"one of them again like the other"
            )


def _compared(manifest: Manifest, config: CopyConfig) -> dict[str, Any]:
    """What two datasets must have in common to be joined."""
    made = how_made(replace(manifest, codec=config.codec_of(manifest)))
    del made["imaging_library"]  # tokens of any two can be joined
    return made | ({} if config.tokens is None else {"tokens": config.tokens})
