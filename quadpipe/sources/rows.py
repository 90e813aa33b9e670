"""Text files of `path` or `path,label` rows, and of one name per line."""

import csv
import os
from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from quadpipe.errors import SourceError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Place(NamedTuple):
    """Where a row is in its file: its number from 1, without the header; first byte and size."""

    number: int
    offset: int
    size: int


class Row(NamedTuple):
    path: bytes
    label: bytes | None
    place: Place


def read_lines(file: Path) -> list[bytes]:
    """The lines of a file without their ends; SourceError when it cannot be read."""
    return _read(file).removeprefix(_BYTE_ORDER_MARK).split(b"\n")


def read_rows(file: Path, *, blanks: bool = False) -> Iterator[Row]:
    """(path, label) rows of a text file: a comma or tab between them, the label optional.

    With `blanks` a blank does as well. A first row that starts with `path` is a header. Bytes that
    are not UTF-8 stay as they are. SourceError when the file cannot be read.
    """
    data = _read(file)
    lines = data.split(b"\n")
    ends = array("Q", accumulate(len(line) + 1 for line in lines))
    lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
    first = next((line for line in lines if line.strip()), b"")
    parsed: Iterator[tuple[list[str], int]]
    if blanks and b"," not in first and b"\t" not in first:
        parsed = ((_decode(line).rsplit(None, 1), n) for n, line in enumerate(lines, start=1))
    else:
        parsed = _parse(lines, first)
    number, offset, header = 0, 0, True
    try:
        for cells, stop in parsed:
            begin, offset = offset, ends[stop - 1]
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
            yield Row(path, label[0] if label else None, Place(number, begin, offset - begin))
    except csv.Error as error:
        raise SourceError(f"{file} is no CSV: {error}; check its quotes") from error


def read_path(file: Path, place: Place) -> bytes | None:
    """The path in one row of a file that `read_rows` has read; None when no row is there any more.

    OSError when the file cannot be read.
    """
    with file.open("rb") as opened:
        first = next((line for line in opened if line.strip()), b"")
        opened.seek(max(place.offset - 1, 0))
        data = opened.read(place.size + min(place.offset, 1))
    if place.offset and data[:1] != b"\n":
        return None
    lines = data[min(place.offset, 1) :].removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    try:
        cells = next((cells for cells, _ in _parse(lines, first) if cells), None)
    except csv.Error:
        return None
    return os.fsencode(cells[0].strip()) if cells else None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(
            f"cannot read {file}: {error.strerror}; give a file that can be read"
        ) from error


def _parse(lines: Iterable[bytes], first: bytes) -> Iterator[tuple[list[str], int]]:
    """The cells of each row of a CSV, and how many lines were taken up to its end."""
    delimiter = "\t" if b"\t" in first else ","
    reader = csv.reader((_decode(line) + "\n" for line in lines), delimiter=delimiter)
    for cells in reader:
        yield cells, reader.line_num


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")
