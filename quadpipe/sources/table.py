"""A table of images: a file of `path` or `path,label` rows, or with more columns below a header."""

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text
from quadpipe.sources.base import ListOptions, Source
from quadpipe.sources.kept import Keeper, Place
from quadpipe.sources.labels import ClassTable
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.roots import LocalRoot, Root
from quadpipe.sources.rows import LABEL_COLUMNS, PathList, Row, read_rows


class TableSource(Source):
    """The images that a CSV or text file names, sorted by the bytes of their paths.

    Paths are relative to the table's folder and never lead upward. An image outside of it is listed
    under its file name and the number of its row, where its path can be read again. Rows that name
    one file, also through links, are one input.

    Listing raises SourceError when a file is missing, when rows give one file two labels or two
    values of a kept column, or when only some rows have a label.
    """

    def __init__(self, root: LocalRoot, file: bytes) -> None:
        """SourceError when the table cannot be read."""
        super().__init__(root, file)
        self._table = PathList.at(root.folder / os.fsdecode(file))

    @classmethod
    def matches(cls, root: Root, file: bytes) -> bool:
        return isinstance(root, LocalRoot) and file.lower().endswith((b".csv", b".txt"))

    def _path_in_row(self, row: int) -> bytes | None:
        return self._table.path(row)

    def _list(self, options: ListOptions) -> Inputs:
        file = self._table.file
        places = _Places(file.parent)
        keeper = Keeper(options.wanted, columns=True)
        rows: list[_TableRow] = []
        found: set[bytes] = set()
        warnings: list[str] = []
        for row in read_rows(file):
            if not os.path.isfile(os.path.join(places.root, row.path)):
                raise SourceError(
                    f"{file}: {os.fsdecode(row.path)!r} is not a file below {file.parent} or "
                    f"elsewhere; correct or remove its row"
                )
            inside, real = places.locate(row.path)
            label, cells = _label_and_cells(row, keeper, file)
            if label and options.use_labels and not warnings:
                warnings = _unsure_labels(row, file)
            rows.append(
                _TableRow(
                    path=os.path.basename(row.path) if inside is None else inside,
                    number=row.number if inside is None else None,
                    real=real,
                    label=(label or None) if options.use_labels else None,
                    kept=keeper.take(cells, f"{file}, row {row.number}", again=real in found),
                )
            )
            found.add(real)
        rows.sort(key=lambda row: row.path)
        skipped: Counter[str] = Counter()
        listing, table = Listing(), ClassTable(options.classes)
        row_of: dict[bytes, _TableRow] = {}  # by real path
        for entry in rows:
            if entry.real in row_of:
                _check_same(row_of[entry.real], entry, file)
                skipped["a row of an image that is listed already"] += 1
                continue
            row_of[entry.real] = entry
            label_id = None if entry.label is None else table.id(entry.label)
            kept = entry.kept if keeper.wanted else None
            listing.append(entry.path, label_id, row=entry.number, kept=kept)
        if 0 < listing.unlabelled < len(listing):
            raise SourceError(
                f"{file}: {listing.unlabelled} of {len(listing)} rows have no label; label all "
                f"rows, or give --no-labels"
            )
        names = None
        if not listing.unlabelled and len(listing):
            names = table.settle([listing], numbers_are_indices=True)
        return Inputs(
            splits={options.split or "train": listing},
            classes=names,
            unused_classes=table.unused,
            skipped=dict(skipped),
            kept=keeper.result(str(file)),
            warnings=warnings + table.warnings,
        )


class _TableRow(NamedTuple):
    """An image of a table. number: of its row, if it is outside the folder. real: its real path."""

    path: bytes
    number: int | None
    real: bytes
    label: bytes | None
    kept: dict[str, Place]


def _label_and_cells(row: Row, keeper: Keeper, file: Path) -> tuple[bytes | None, dict[str, Place]]:
    """The label of a row, and its other cells; a cell that is to be kept is not just a label."""
    label, cells = row.label, dict(row.others)
    if row.label_column in keeper.wanted and label:
        cells[row.label_column] = os.fsdecode(label)
        if row.label_column not in LABEL_COLUMNS:
            label = None
    for name in keeper.wanted.keys() & cells.keys():
        if not cells[name].isascii() and any("\ud800" <= c <= "\udfff" for c in cells[name]):
            raise SourceError(
                f"{file}, row {row.number}: {name} is not text in UTF-8; save the file as UTF-8"
            )
    return label, {**cells}


def _unsure_labels(row: Row, file: Path) -> list[str]:
    """A warning about labels in a column whose name does not say so."""
    name = row.label_column
    if not name or name in LABEL_COLUMNS:
        return []
    return [
        f"{file}: the classes are the values of column {name!r}, the only one beside path; name it "
        f"label if that is meant, else give --no-labels, or --keep to keep it"
    ]


def _check_same(one: _TableRow, other: _TableRow, file: Path) -> None:
    """Raise SourceError unless two rows of one image say the same."""
    name = path_to_text(other.path)
    if one.label != other.label:
        both = " and ".join(repr(path_to_text(row.label or b"")) for row in (one, other))
        raise SourceError(f"{file}: {name!r} has two labels, {both}; keep one of them")
    for column in sorted(one.kept.keys() | other.kept.keys()):
        if one.kept.get(column) != other.kept.get(column):
            raise SourceError(
                f"{file}: {name!r} is in two rows with another {column}; write one row per image, "
                f"with a JSON list in the cell if it has several"
            )


class _Places:
    """Places of files, seen from the folder of their table."""

    def __init__(self, folder: Path) -> None:
        self.root = os.fsencode(folder)
        self._real_root = os.path.realpath(self.root)
        roots = (os.path.abspath(self.root), self._real_root)
        self._prefixes = tuple(os.path.join(root, b"") for root in roots)
        # Images of one folder are mostly neighbors.
        self._folder = lru_cache(maxsize=1024)(self._locate_folder)

    def locate(self, given: bytes) -> tuple[bytes | None, bytes]:
        """A file's path below the folder, or None when it is outside; and its real path."""
        if given.startswith(b"/"):
            given = b"/" + given.lstrip(b"/")
        for prefix in self._prefixes:
            if given.startswith(prefix):
                given = given[len(prefix) :].lstrip(b"/")
        folder, name = os.path.split(given)
        inside, real_folder = self._folder(folder)
        real = real_folder + name
        if os.path.islink(real):
            real = os.path.realpath(real)
        return None if inside is None else inside + name, real

    def _locate_folder(self, folder: bytes) -> tuple[bytes | None, bytes]:
        """The same for a folder; both paths end with a slash."""
        real = os.path.realpath(os.path.join(self._real_root, folder))
        if os.path.isabs(folder) or b".." in folder.split(b"/"):
            inside = os.path.relpath(real, self._real_root)
        else:
            inside = os.path.normpath(folder)
        outside = inside == b".." or inside.startswith(b"../")
        below = b"" if inside == b"." else os.path.join(inside, b"")
        return None if outside else below, os.path.join(real, b"")
