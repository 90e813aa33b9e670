"""A table of images: a file of `path` or `path,label` rows."""

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text
from quadpipe.sources.base import ListOptions, Source
from quadpipe.sources.labels import ClassTable
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.roots import LocalRoot, Root
from quadpipe.sources.rows import PathList, read_rows


class TableSource(Source):
    """The images that a CSV or text file names, sorted by the bytes of their paths.

    Paths are relative to the table's folder and never lead upward. An image outside of it is listed
    under its file name and the number of its row, where its path can be read again. Rows that name
    one file, also through links, are one input.

    Listing raises SourceError when a file is missing, when rows give one file two labels, or when
    only some rows have a label.
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
        rows: list[tuple[bytes, bytes | None, int | None, bytes]] = []
        for given, label, number, _ in read_rows(file):
            if not os.path.isfile(os.path.join(places.root, given)):
                raise SourceError(
                    f"{file}: {os.fsdecode(given)!r} is not a file below {file.parent} or "
                    f"elsewhere; correct or remove its row"
                )
            inside, real = places.locate(given)
            path, row = (os.path.basename(given), number) if inside is None else (inside, None)
            rows.append((path, (label or None) if options.use_labels else None, row, real))
        rows.sort(key=lambda row: row[0])
        skipped: Counter[str] = Counter()
        listing, table = Listing(), ClassTable(options.classes)
        label_of: dict[bytes, bytes | None] = {}  # by real path
        for path, label, row, real in rows:
            if real in label_of:
                if label_of[real] != label:
                    both = " and ".join(
                        repr(path_to_text(x or b"")) for x in (label_of[real], label)
                    )
                    raise SourceError(
                        f"{file}: {path_to_text(path)!r} has two labels, {both}; keep one of them"
                    )
                skipped["a row of an image that is listed already"] += 1
                continue
            label_of[real] = label
            listing.append(path, None if label is None else table.id(label), row=row)
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
            warnings=table.warnings,
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
