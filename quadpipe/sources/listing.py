"""The inputs of a source in little memory.

A list of a hundred million Python strings takes tens of gigabytes; one blob of bytes with offsets
takes what the paths take.
"""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quadpipe.names import is_member_name, path_to_text
from quadpipe.sources.kept import KeptMembers, Place

_NO_LABEL = -1


@dataclass(frozen=True)
class Span:
    """The place of an input in a tar: the tar's path, first byte and size."""

    tar: str
    offset: int
    size: int


@dataclass(frozen=True)
class Input:
    """One image to read: printable path relative to the source, class index, place in a tar.

    row: for a file outside the folder of its table, the number of its row. Only the table holds its
    location: `path` is its file name. kept: other members of the sample, by the name that they get.
    """

    path: str
    label: int | None
    span: Span | None = None
    row: int | None = None
    kept: Mapping[str, Place] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, int | None]:
        """Unique in a source: files outside the folder of a table may share a name."""
        return self.path, self.row

    def as_row(self) -> list[Any]:
        """As a line of the stored listing, which `from_row` reads."""
        row: list[Any] = [self.path, self.label]
        if self.span:
            row += [self.span.tar, self.span.offset, self.span.size]
        elif self.row is not None:
            row.append(self.row)
        return [*row, dict(self.kept)] if self.kept else row

    @classmethod
    def from_row(cls, row: list[Any]) -> "Input":
        """TypeError or ValueError when it is not such a line."""
        path, label, *place = row
        kept = _kept(place.pop()) if place and isinstance(place[-1], dict) else {}
        kinds = [type(value) for value in place]
        if not isinstance(path, str) or type(label) not in (int, type(None)):
            raise TypeError(row)
        if kinds == [str, int, int]:
            return cls(path, label, span=Span(*place), kept=kept)
        if kinds not in ([], [int]) or any(not isinstance(place, str) for place in kept.values()):
            raise TypeError(row)
        return cls(path, label, row=place[0] if place else None, kept=kept)


def _kept(document: dict[str, Any]) -> dict[str, Place]:
    """The places of kept members, of JSON; TypeError when they are not."""
    kept: dict[str, Place] = {}
    for name, place in document.items():
        if isinstance(place, list) and [type(number) for number in place] == [int, int]:
            kept[name] = (place[0], place[1])
        elif isinstance(place, str):
            kept[name] = place
        if name not in kept or not is_member_name(name):
            raise TypeError(document)
    return kept


class Listing:
    """The inputs of one split in the order found; labels are ids until `relabel`."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._ends = array("Q")
        self._labels = array("i")
        self._tars: list[str] = []
        self._spans = array("Q")
        self._rows = array("Q")  # up to the last input that has one; 0 for others
        self._kept = bytearray()  # JSON of all inputs, or of none
        self._kept_ends = array("Q")

    def append(
        self,
        path: bytes,
        label: int | None,
        span: Span | None = None,
        row: int | None = None,
        kept: Mapping[str, Place] | None = None,
    ) -> None:
        self._blob += path
        self._ends.append(len(self._blob))
        self._labels.append(_NO_LABEL if label is None else label)
        if span:
            if not self._tars or self._tars[-1] != span.tar:
                self._tars.append(span.tar)
            self._spans.extend((len(self._tars) - 1, span.offset, span.size))
        if row is not None:
            self._rows.extend(array("Q", [0]) * (len(self) - 1 - len(self._rows)))
            self._rows.append(row)
        if kept is not None:
            self._kept += json.dumps(kept, ensure_ascii=False).encode()
            self._kept_ends.append(len(self._kept))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Input:
        label = self._labels[index]
        span = None
        if self._spans:
            tar, offset, size = self._spans[3 * index : 3 * index + 3]
            span = Span(self._tars[tar], offset, size)
        return Input(
            path_to_text(self.path(index)),
            None if label == _NO_LABEL else label,
            span,
            (index < len(self._rows) and self._rows[index]) or None,
            self._kept_of(index),
        )

    def _kept_of(self, index: int) -> dict[str, Place]:
        if not self._kept_ends:
            return {}
        start = self._kept_ends[index - 1] if index else 0
        return _kept(json.loads(self._kept[start : self._kept_ends[index]]))

    def path(self, index: int) -> bytes:
        return bytes(self._blob[self._ends[index - 1] if index else 0 : self._ends[index]])

    @property
    def labels(self) -> np.ndarray:
        """int32 `[inputs]`: class indices, before `relabel` ids; -1 without a label."""
        return np.array(self._labels, np.int32)

    @property
    def unlabelled(self) -> int:
        """How many inputs have no label."""
        return self._labels.count(_NO_LABEL)

    def relabel(self, new_ids: np.ndarray) -> None:
        """Replace each label id by `new_ids[id]`."""
        labels = np.asarray(self._labels)
        self._labels = array("i", np.where(labels < 0, labels, new_ids[labels]).astype("i"))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a source lists.

    splits: inputs by split. classes: names in index order, None without labels. unused_classes:
    how many of them have no input. ordered: shards are cut in this order. read_twice: number of
    inputs that are read through links to files that are inputs themselves. skipped: number of
    skipped files by reason. kept: what is kept beside the images. warnings: lines for the user.
    """

    splits: dict[str, Listing]
    classes: list[str] | None
    unused_classes: int = 0
    ordered: bool = False
    read_twice: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    kept: KeptMembers = field(default_factory=KeptMembers)
    warnings: list[str] = field(default_factory=list)
