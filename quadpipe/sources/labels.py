"""Class names and indices, from folders or from files people have."""

import csv
import os
from pathlib import Path

import numpy as np

from quadpipe.errors import SourceError
from quadpipe.sources.listing import Listing


class ClassTable:
    """Gives each class name an id in the order met, and at the end an index."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}

    def id(self, name: bytes) -> int:
        return self._ids.setdefault(name, len(self._ids))

    def settle(self, listings: list[Listing], *, numbers_are_indices: bool) -> list[bytes]:
        """Turn ids into indices in all listings; returns the names in index order.

        Names are sorted by their bytes. With `numbers_are_indices`, labels that are all decimal
        numbers are taken as the indices themselves.
        """
        names = sorted(self._ids)
        if numbers_are_indices and all(name.isdigit() and len(name) < 7 for name in names):
            indices = {name: int(name) for name in names}
            names = [str(index).encode() for index in range(max(indices.values(), default=-1) + 1)]
        else:
            indices = {name: index for index, name in enumerate(names)}
        new_ids = np.array([indices[name] for name in self._ids], np.int32)
        for listing in listings:
            listing.relabel(new_ids)
        return names


def read_rows(path: Path, *, blanks: bool = False) -> list[tuple[bytes, bytes | None]]:
    """(path, label) rows of a text file: a comma or tab between them, the label optional.

    With `blanks` a blank does as well. A first row that starts with `path` is a header. Bytes that
    are not UTF-8 stay as they are. SourceError when the file cannot be read.
    """
    try:
        text = path.read_text("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}; give a file that can be read"
        ) from error
    lines = [line for line in text.split("\n") if line.strip()]
    first = lines[0] if lines else ""
    if blanks and "," not in first and "\t" not in first:
        rows = [line.rsplit(None, 1) for line in lines]
    else:
        try:
            rows = list(csv.reader(lines, delimiter="\t" if "\t" in first else ","))
        except csv.Error as error:
            raise SourceError(f"{path} is no CSV: {error}; check its quotes") from error
    if rows and rows[0][0].strip().lower() == "path":
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) > 2:
            raise SourceError(
                f"{path}, row {number}: {len(row)} columns; expected a path and at most a label"
            )
    return [
        (os.fsencode(row[0].strip()), os.fsencode(row[1].strip()) if len(row) == 2 else None)
        for row in rows
    ]


def read_labels(path: Path) -> dict[bytes, bytes]:
    """Label by path or file name; SourceError when a row has none or two rows disagree."""
    labels: dict[bytes, bytes] = {}
    for name, label in read_rows(path, blanks=True):
        if not label:
            raise SourceError(f"{path}: {os.fsdecode(name)!r} has no label; write `path,label`")
        if labels.setdefault(name, label) != label:
            raise SourceError(f"{path}: {os.fsdecode(name)!r} has two labels; keep one of them")
    if not labels:
        raise SourceError(f"{path}: holds no `path,label` rows; write one for each image")
    return labels
