"""The inputs of a split in little memory, and how one input is read.

A list of a hundred million Python strings takes tens of gigabytes; one blob of bytes with offsets
takes what the paths take.
"""

import os
import stat
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe import faults
from quadpipe.errors import RejectError, SourceError
from quadpipe.patience import patiently
from quadpipe.sources.names import path_to_text, text_to_path

MAX_FILE_BYTES = 1 << 30
_NO_LABEL = -1


@dataclass(frozen=True)
class Span:
    """Where an input lies inside a tar: the tar's path, first byte and size."""

    tar: str
    offset: int
    size: int


@dataclass(frozen=True)
class Input:
    """One image to read: printable path relative to the source, class index, place in a tar."""

    path: str
    label: int | None
    span: Span | None = None

    def as_row(self) -> list[Any]:
        """As a line of the stored listing."""
        row: list[Any] = [self.path, self.label]
        return [*row, self.span.tar, self.span.offset, self.span.size] if self.span else row

    @classmethod
    def from_row(cls, row: list[Any]) -> "Input":
        path, label, *span = row
        return cls(path, label, Span(*span) if span else None)


class Listing:
    """The inputs of one split in the order found; labels are ids until `relabel`."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._ends = array("Q")
        self._labels = array("i")
        self._tars: list[str] = []
        self._spans = array("Q")

    def append(self, path: bytes, label: int | None, span: Span | None = None) -> None:
        self._blob += path
        self._ends.append(len(self._blob))
        self._labels.append(_NO_LABEL if label is None else label)
        if span:
            if not self._tars or self._tars[-1] != span.tar:
                self._tars.append(span.tar)
            self._spans.extend((len(self._tars) - 1, span.offset, span.size))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Input:
        label = self._labels[index]
        span = None
        if self._spans:
            tar, offset, size = self._spans[3 * index : 3 * index + 3]
            span = Span(self._tars[tar], offset, size)
        text = path_to_text(self.path(index))
        return Input(text, None if label == _NO_LABEL else label, span)

    def path(self, index: int) -> bytes:
        return bytes(self._blob[self._ends[index - 1] if index else 0 : self._ends[index]])

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
    """All that a source found.

    splits: inputs by split. classes: names in index order, None without labels. ordered: shards
    are cut in this order. skipped: what was passed over and why, with counts.
    """

    splits: dict[str, Listing]
    classes: list[str] | None
    ordered: bool = False
    skipped: dict[str, int] = field(default_factory=dict)


def read_input(root: Path, entry: Input) -> bytes:
    """The bytes of one input.

    I/O errors are tried again with back-off, also that it is not there: a network's folders come
    and go. SourceError when they persist, RejectError on a
    file that is too large to be an image.
    """
    try:
        return patiently(lambda: _read(root, entry), final=())
    except OSError as error:
        raise SourceError(
            f"cannot read {entry.path} in {root}: {error.strerror or error}; mend it and run the "
            f"same command again"
        ) from error


def _read(root: Path, entry: Input) -> bytes:
    faults.point("reading", entry.path)
    relative = entry.span.tar if entry.span else entry.path
    path = os.path.join(os.fsencode(root), text_to_path(relative))
    # A pipe under an image's name must not block the worker.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a plain file")
        if entry.span is None:
            offset, size = 0, status.st_size
        else:
            offset, size = entry.span.offset, entry.span.size
        if size > MAX_FILE_BYTES:
            raise RejectError("too_many_bytes", f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise OSError(f"{len(data)} of {size} bytes could be read")
        return data
    finally:
        os.close(descriptor)
