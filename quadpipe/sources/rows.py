"""Text files of `path` or `path,label` rows."""

import csv
import hashlib
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from quadpipe.errors import SourceError

_BYTE_ORDER_MARK = "\ufeff"
_ROWS_PER_OFFSET = 64


class Row(NamedTuple):
    """A row of a file: its number from 1, without the header, and where it begins."""

    path: bytes
    label: bytes | None
    number: int
    offset: int


def read_rows(file: Path, *, blanks: bool = False) -> Iterator[Row]:
    """(path, label) rows of a text file: a comma or tab between them, the label optional.

    With `blanks`, also a blank. A first row that starts with `path` is a header. Bytes that
    are not UTF-8 stay as they are. SourceError when the file cannot be read.
    """
    try:
        with file.open("rb") as opened:
            yield from _rows(opened, file, blanks)
    except OSError as error:
        raise _unreadable(file, error) from error


@dataclass(frozen=True)
class PathList:
    """A table as it was when it was listed, whose single rows can be read again."""

    file: Path
    sha256: str

    @classmethod
    def at(cls, file: Path) -> "PathList":
        """SourceError when it cannot be read."""
        try:
            return cls(file, _sha256(file))
        except OSError as error:
            raise _unreadable(file, error) from error

    def path(self, number: int) -> bytes | None:
        """The path in a row; None when there are fewer rows.

        The first call in a process reads the whole file, later calls a few lines. OSError when
        it cannot be read, SourceError when it has changed.
        """
        status = self.file.stat()
        offsets = _offsets(self, (status.st_ino, status.st_size, status.st_mtime_ns))
        block, place = divmod(number - 1, _ROWS_PER_OFFSET)
        if not 0 <= block < len(offsets):
            return None
        with self.file.open("rb") as opened:
            rows = _rows(opened, self.file, False, offsets[block])
            row = next(islice(rows, place, None), None)
        return row.path if row else None


@lru_cache(maxsize=1)
def _offsets(path_list: PathList, version: tuple[int, ...]) -> "array[int]":
    """Where each 64th row begins; `version` changes with the file. SourceError when it has."""
    file = path_list.file
    if _sha256(file) != path_list.sha256:
        raise SourceError(
            f"{file} was changed while the job ran; rerun the same command with the list that "
            f"it was planned with"
        )
    with file.open("rb") as opened:
        rows = _rows(opened, file, False)
        return array("Q", (row.offset for row in rows if (row.number - 1) % _ROWS_PER_OFFSET == 0))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _unreadable(file: Path, error: OSError) -> SourceError:
    return SourceError(f"cannot read {file}: {error.strerror}; give a file that can be read")


def _rows(opened: BinaryIO, file: Path, blanks: bool, start: int = 0) -> Iterator[Row]:
    """The rows from byte `start` on, which begins one; they are counted from there."""
    first = next((line for line in opened if line.strip()), b"")
    delimiter = "\t" if b"\t" in first else ","
    opened.seek(start)
    lines = _Lines(opened)
    if blanks and b"," not in first and b"\t" not in first:
        parsed: Iterator[list[str]] = (line.rsplit(None, 1) for line in lines)
    else:
        parsed = csv.reader(lines, delimiter=delimiter)
    number, offset, header = 0, start, start == 0
    try:
        for cells in parsed:
            begin, offset = offset, start + lines.bytes
            if not any(cell.strip() for cell in cells):
                continue
            if header and cells[0].strip().lower() == "path":
                header = False
                continue
            header, number = False, number + 1
            if len(cells) > 2:
                raise SourceError(
                    f"{file}, row {number}: {len(cells)} columns; expected a path and at most a "
                    f"label"
                )
            path, *label = (os.fsencode(cell.strip()) for cell in cells)
            yield Row(path, label[0] if label else None, number, begin)
    except csv.Error as error:
        raise SourceError(f"{file} is not a CSV file: {error}; check its quotes") from error


class _Lines:
    """The lines of a file as text; `bytes` is the size of those that were read."""

    def __init__(self, opened: BinaryIO) -> None:
        self._opened = opened
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._opened:
            self.bytes += len(line)
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix(_BYTE_ORDER_MARK) if self.bytes == len(line) else text
