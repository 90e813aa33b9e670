"""The folder that a copy is written into: the old dataset, no dataset, or the new one.

`.quadpipe/copy.json` names the copy that is being made, or was made, there. Once it is stored, the
manifest of an earlier dataset is removed before the first of its files is changed, also of those
that tell how it was made; that of the new one is written last.

It also records the sha256 of the card that was written there, and the fingerprint of its dataset: a
card with another sha256 was edited by people, and stays as long as the dataset does.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quadpipe.errors import OutputError, ShardError
from quadpipe.files import Folder
from quadpipe.shards.card import card
from quadpipe.shards.format import (
    CARD,
    COPY,
    CROISSANT,
    LISTING,
    MANIFEST,
    MARKERS,
    PLAN,
    REJECTED,
    json_bytes,
)
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset

# Names that only files of a dataset have, beside its manifest and its card.
_OURS = re.compile(
    r"(train|val|test)(-(v\d\d-)?\d{6,10}\.tar|\.(shards\.jsonl|index\.npy|gains\.npy))", re.ASCII
)

# What a repository on the Hub has when it was created on the web page.
_WITHOUT_DATASET = (CARD, "LICENSE")


def check_room(out: Folder, needed: int) -> None:
    """Raise OutputError when the destination has less free space than this."""
    free = out.free_bytes()
    if free is not None and needed > free:
        raise OutputError(
            f"{out} has {free:,} bytes free, the copy needs about {needed:,}; free some space, or "
            f"copy to another place"
        )


def edited_card(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """A note for each source whose card was edited, where the copy gets a card of its own."""
    return tuple(
        f"{dataset.folder.where(CARD)} was edited by hand; the copy gets a new card without it"
        for dataset in datasets
        if dataset.folder.get(CARD) not in (None, card(dataset.manifest).encode())
    )


@dataclass(frozen=True, kw_only=True)
class LastFiles:
    """What makes a copy a dataset; written last."""

    fingerprint: str
    manifest: bytes
    card: bytes
    croissant: bytes


class Destination:
    """document: what `.quadpipe/copy.json` records of the copy."""

    def __init__(self, out: Folder, document: dict[str, Any]) -> None:
        self.out = out
        self._document = document

    @property
    def is_begun(self) -> bool:
        """Whether this same copy was begun, or made, here."""
        return {**self._stored(), "card": None} == {**self._document, "card": None}

    def check(self, fingerprint: str | None, *, replace: bool) -> None:
        """Raise OutputError when the folder holds something that the copy must not replace.

        fingerprint: of the dataset that is copied, if that is known. replace: another dataset that
        is not the output of a job may be replaced.
        """
        out = self.out
        if not out.exists(COPY):
            if out.exists(PLAN):
                raise OutputError(
                    f"{out} is the output of quadpipe tokenize; copy to another place"
                )
            strangers = [name for name in out.names() or [] if name not in _WITHOUT_DATASET]
            if strangers and MANIFEST not in strangers:
                raise OutputError(
                    f"{out} is not empty ({strangers[0]}) and holds no dataset; copy to a new or "
                    f"empty place"
                )
        if not out.exists(MANIFEST) or replace:
            return
        try:
            there = Manifest.read(out).fingerprint
        except ShardError:
            there = "that cannot be read"
        if there != fingerprint and not (self.is_begun and fingerprint is None):
            raise OutputError(
                f"{out} holds another dataset, fingerprint {there}; copy to another place, or give "
                f"--replace"
            )

    def begin(self, *, changes: bool) -> None:
        """Store what is being made, and remove how an earlier dataset was made.

        changes: files of the dataset will change. Its manifest is removed first, so that what is
        there is not a finished dataset.
        """
        is_begun = self.is_begun
        if not is_begun:  # without the document: after an interruption the next run removes again
            self._store({}, self._card_there)
        if changes:
            self.out.remove(MANIFEST)
        if not is_begun:
            for name in (PLAN, REJECTED):
                self.out.remove(name)
            for folder in (LISTING, MARKERS):
                self.out.remove_folder(folder)
        self._store(self._document, self._card_there)

    def stale(self, names: set[str]) -> list[str]:
        """Files of an earlier dataset; names: those of the new one."""
        found = self.out.names() or []
        return [name for name in found if _OURS.fullmatch(name) and name not in names]

    def holds(self, last: LastFiles) -> bool:
        """Whether manifest and cards are these; people may have edited theirs."""
        return (
            self.out.get(MANIFEST) == last.manifest
            and self.out.get(CROISSANT) == last.croissant
            and (self._keeps_card(last.fingerprint) or self.out.get(CARD) == last.card)
        )

    def publish(self, last: LastFiles) -> None:
        """Write the cards, for people if they have not edited one here, and, last, the manifest."""
        if not self._keeps_card(last.fingerprint):
            differs = self.out.get(CARD) != last.card
            if differs:  # first: with the new checksum stored, it would look edited
                self.out.remove(CARD)
            written = {"fingerprint": last.fingerprint, "sha256": _sha256(last.card)}
            self._store(self._document, written)
            if differs:
                self.out.write(CARD, last.card)
        if self.out.get(CROISSANT) != last.croissant:
            self.out.write(CROISSANT, last.croissant)
        self.out.write(MANIFEST, last.manifest)

    def notes(self, fingerprint: str | None, texts: dict[str, Any]) -> tuple[str, ...]:
        """What the user should know of an edited card that stays.

        fingerprint: of the copy, if that is known. texts: its name, license and source.
        """
        if not self._keeps_card(fingerprint or self._card_there.get("fingerprint")):
            return ()
        there = self._manifest_there()
        if there is None:
            return self._unready_card()
        changed = [key for key, text in texts.items() if text != getattr(there, key)]
        if not changed:
            return ()
        same = "" if fingerprint else " if the shards stay the same"
        return (
            f"{self.out.where(CARD)} was edited and is kept{same}: correct {', '.join(changed)} "
            f"in it",
        )

    def _unready_card(self) -> tuple[str, ...]:
        """A note when a card that was there before the dataset does not describe its files."""
        if re.search(rb"^configs:", self.out.read(CARD), re.MULTILINE):
            return ()
        return (
            f"{self.out.where(CARD)} is kept, and names no `configs` for the Hub's viewer and "
            f"`datasets`; delete it and rerun the same command to get a card that does",
        )

    def _keeps_card(self, fingerprint: str | None) -> bool:
        """Whether people edited the card there, and it is of the dataset with this fingerprint."""
        found, known = self.out.get(CARD), self._card_there
        return (
            found is not None
            and _sha256(found) != known.get("sha256")
            and known.get("fingerprint") in (None, fingerprint)
        )

    @cached_property
    def _card_there(self) -> dict[str, Any]:
        """As found before anything was changed: fingerprint of the dataset, sha256 of its card
        before people edited it. Empty if neither a manifest nor `copy.json` is there.
        """
        found = self._stored().get("card")
        stored: dict[str, Any] = found if isinstance(found, dict) else {}
        there = self._manifest_there()
        if there is None or there.fingerprint == stored.get("fingerprint"):
            return stored
        return {"fingerprint": there.fingerprint, "sha256": _sha256(card(there).encode())}

    def _manifest_there(self) -> Manifest | None:
        try:
            return Manifest.read(self.out)
        except ShardError:
            return None

    def _stored(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.out.get(COPY) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def _store(self, document: dict[str, Any], card: dict[str, Any]) -> None:
        data = json_bytes({**document, "card": card}, indent=2)
        if self.out.get(COPY) != data:
            self.out.write(COPY, data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
