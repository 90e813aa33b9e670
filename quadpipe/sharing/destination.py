"""The folder that a copy is written into: the old dataset, no dataset, or the new one.

`.quadpipe/copy.json` names the copy that is being made, or was made, there. Once it is stored, the
manifest of an earlier dataset is removed before the first of its files is changed; that of the new
one is written last.
"""

import re
from collections.abc import Sequence

from quadpipe.errors import OutputError, ShardError
from quadpipe.files import Folder
from quadpipe.shards.card import card
from quadpipe.shards.format import CARD, COPY, CROISSANT, LISTING, MANIFEST, MARKERS, PLAN, REJECTED
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset

# Names that only files of a dataset have, beside its manifest and its card.
_OURS = re.compile(
    r"(train|val|test)(-(v\d\d-)?\d{6,10}\.tar|\.(shards\.jsonl|index\.npy|gains\.npy))", re.ASCII
)


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


class Destination:
    """document: the content of `.quadpipe/copy.json`."""

    def __init__(self, out: Folder, document: bytes) -> None:
        self.out = out
        self._document = document

    @property
    def is_begun(self) -> bool:
        """Whether this same copy was begun, or made, here."""
        return self.out.get(COPY) == self._document

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
            strangers = out.names() or []
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

    def begin(self) -> None:
        """Store what is being made, without the card of an earlier dataset and how it was made."""
        if self.is_begun:
            return
        for name in (PLAN, REJECTED, CARD, CROISSANT):
            self.out.remove(name)
        for folder in (LISTING, MARKERS):
            self.out.remove_folder(folder)
        self.out.write(COPY, self._document)

    def withdraw(self) -> None:
        """Remove the manifest, so that what is there is not a finished dataset."""
        if self.out.exists(MANIFEST):
            self.out.remove(MANIFEST)

    def stale(self, names: set[str]) -> list[str]:
        """Files of an earlier dataset; names: those of the new one."""
        found = self.out.names() or []
        return [name for name in found if _OURS.fullmatch(name) and name not in names]

    def publish(self, manifest: bytes, card: bytes, croissant: bytes) -> None:
        """Write the cards, for people if they have not edited one here, and, last, the manifest."""
        if not self.out.exists(CARD):
            self.out.write(CARD, card)
        if self.out.get(CROISSANT) != croissant:
            self.out.write(CROISSANT, croissant)
        self.out.write(MANIFEST, manifest)
