"""Text files of rows: `path`, `path,label`, or below a header also other columns."""

import csv
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from quadpipe.errors import SourceError
from quadpipe.names import MAX_KEPT_BYTES
from quadpipe.text import counted

_BYTE_ORDER_MARK = "\ufeff"
# A cell in quotes, or the part of it that is on one line.
_QUOTED = re.compile(rb'(?:^|(?<=[,\t]))"(?:[^"]|"")*"?')
_ROWS_LOOKED_AT = 1000  # for the delimiter, if the first rows do not decide
_ROWS_PER_OFFSET = 64
_MOST_CHARACTERS = 2 * MAX_KEPT_BYTES  # of a cell: those that are too large to keep are named
LABEL_COLUMNS = ("label", "cls", "class")


class Row(NamedTuple):
    """A row of a file: its number from 1, without the header, and where it begins.

    others: cells of the columns beside path and label that a header names in lower case, without
    the empty ones. label_column: the name of the column of the label, empty without a header.
    """

    path: bytes
    label: bytes | None
    number: int
    offset: int
    others: Mapping[str, str] = {}
    label_column: str = ""


def read_rows(file: Path, *, blanks: bool = False) -> Iterator[Row]:
    """(path, label) rows of a text file: a comma or tab between them, the label optional.

    The first row that has only one of both, outside of quotes, decides which one it is. With
    `blanks`, also a blank. A first row that starts with `path` is a header; below it there may
    be other columns, and the label is in the one named label, cls or class, of two columns in the
    second. Bytes that are not UTF-8 stay as they are. SourceError when the file cannot be read.
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
    delimiter = _delimiter(opened, file)
    opened.seek(start)
    lines = _Lines(opened, begins=start == 0)
    if blanks and not delimiter:
        parsed: Iterator[list[str]] = (line.rsplit(None, 1) for line in lines)
    else:
        csv.field_size_limit(max(csv.field_size_limit(), _MOST_CHARACTERS))
        # Strict: an open quote would take all further rows into one cell.
        parsed = csv.reader(lines, delimiter=delimiter or ",", strict=True)
    number, offset, header = 0, start, start == 0
    columns: list[str] = []
    try:
        for cells in parsed:
            begin, offset = offset, start + lines.bytes
            if not any(cell.strip() for cell in cells):
                continue
            if header and cells[0].strip().lower() == "path":
                header, columns = False, _columns(cells, file)
                continue
            header, number = False, number + 1
            if start:  # only the path is wanted
                yield Row(os.fsencode(cells[0].strip()), None, number, begin)
            else:
                yield _row(cells, columns, number, begin, file)
    except csv.Error as error:
        raise SourceError(f"{file} is not a CSV file: {error}; check its quotes") from error


def _delimiter(opened: BinaryIO, file: Path) -> str:
    """The one of comma and tab in the first row that has only one of them outside of quotes.

    Empty if the first row has none of them. SourceError when rows have both.
    """
    both = False
    for line in islice(filter(bytes.strip, opened), _ROWS_LOOKED_AT):
        bare = _QUOTED.sub(b"", line.removeprefix(_BYTE_ORDER_MARK.encode()))
        if bare.lower().startswith(b"path;"):
            raise SourceError(f"{file} has semicolons between its columns; save it with commas")
        found = [delimiter for delimiter in ",\t" if delimiter.encode() in bare]
        if len(found) == 1 or not (found or both):
            return "".join(found)
        both = True
    if both:
        raise SourceError(
            f"{file} has commas and tabs in its rows, and both could be between the columns; add "
            f"a first row with the names of the columns, such as path,label"
        )
    return ""


def _columns(cells: list[str], file: Path) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    name, count = Counter(filter(None, names)).most_common(1)[0]
    if count > 1:
        raise SourceError(f"{file} has two columns {name!r}; rename one of them")
    return names


def _row(cells: list[str], columns: list[str], number: int, begin: int, file: Path) -> Row:
    """A row under a header with these columns, or without one."""
    if len(cells) > 2 and not columns:
        raise SourceError(
            f"{file}, row {number}: {counted(len(cells), 'column')}; expected a path and at most a "
            f"label, or a first row that names the columns, such as path,label,caption"
        )
    if len(cells) > max(2, len(columns)) or (len(columns) > 2 and len(cells) < len(columns)):
        raise SourceError(
            f"{file}, row {number}: {counted(len(cells), 'column')}, the first row names "
            f"{len(columns)}; correct the row, or put quotes around cells with a comma"
        )
    path, *rest = (cell.strip() for cell in cells)
    named = dict(zip(columns[1:], rest, strict=False))
    column = next((name for name in LABEL_COLUMNS if name in named), "")
    if len(columns) == 2:
        column = columns[1]
    label = (named.get(column) if len(columns) > 2 else rest[0]) if rest else None
    others = {name: cell for name, cell in named.items() if name and name != column and cell}
    return Row(
        os.fsencode(path),
        None if label is None else os.fsencode(label),
        number,
        begin,
        others,
        column,
    )


class _Lines:
    """The lines of a file as text; `bytes` is the size of those that were read.

    begins: whether the first one begins the file, where a byte order mark may be.
    """

    def __init__(self, opened: BinaryIO, *, begins: bool) -> None:
        self._opened, self._begins = opened, begins
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._opened:
            self.bytes += len(line)
            text = line.decode("utf-8", "surrogateescape")
            first = self._begins and self.bytes == len(line)
            yield text.removeprefix(_BYTE_ORDER_MARK) if first else text
