"""A list of paths in a file: `path` or `path,label` rows."""

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text
from quadpipe.sources.labels import ClassNames, ClassTable
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.rows import read_rows


def list_paths(
    file: Path,
    *,
    split: str | None = None,
    use_labels: bool = True,
    classes: ClassNames | None = None,
) -> Inputs:
    """The images that a CSV names, sorted by the bytes of their paths.

    Paths are relative to the list's folder and never lead upward. An image that lies outside of it
    is listed under its file name and the number of its row, where its path can be read again.
    Rows that name one file, also through links, are one input.

    SourceError when a file is missing, when rows give one file two labels, or when some rows have
    a label and some have not.
    """
    places = _Places(file.parent)
    rows: list[tuple[bytes, bytes | None, int | None, bytes]] = []
    for given, label, number, _ in read_rows(file):
        if not os.path.isfile(os.path.join(places.root, given)):
            raise SourceError(
                f"{file}: {os.fsdecode(given)!r} is not a file below {file.parent} or elsewhere; "
                f"correct or remove its row"
            )
        inside, real = places.locate(given)
        path, row = (os.path.basename(given), number) if inside is None else (inside, None)
        rows.append((path, (label or None) if use_labels else None, row, real))
    rows.sort(key=lambda row: row[0])
    skipped: Counter[str] = Counter()
    listing, table = Listing(), ClassTable(classes)
    labels: dict[bytes, bytes | None] = {}  # by real path
    for path, label, row, real in rows:
        if real in labels:
            if labels[real] != label:
                both = " and ".join(repr(path_to_text(x or b"")) for x in (labels[real], label))
                raise SourceError(
                    f"{file}: {path_to_text(path)!r} has two labels, {both}; keep one of them"
                )
            skipped["a row of an image that is listed already"] += 1
            continue
        labels[real] = label
        listing.append(path, None if label is None else table.id(label), row=row)
    if 0 < listing.unlabelled < len(listing):
        raise SourceError(
            f"{file}: {listing.unlabelled} of {len(listing)} rows have no label; label all rows, "
            f"or give --no-labels"
        )
    names = None
    if not listing.unlabelled and len(listing):
        names = table.settle([listing], numbers_are_indices=True)
    return Inputs(
        splits={split or "train": listing},
        classes=names,
        unused_classes=table.unused,
        skipped=dict(skipped),
        warnings=table.warnings,
    )


class _Places:
    """Where the files of a list are, seen from its folder."""

    def __init__(self, folder: Path) -> None:
        self.root = os.fsencode(folder)
        self._real_root = os.path.realpath(self.root)
        roots = (os.path.abspath(self.root), self._real_root)
        self._prefixes = tuple(os.path.join(root, b"") for root in roots)
        # Images of one folder mostly stand together.
        self._folder = lru_cache(maxsize=1024)(self._locate_folder)

    def locate(self, given: bytes) -> tuple[bytes | None, bytes]:
        """A file's path below the folder, or None when it lies outside; and its real path."""
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
        """The same of a folder, with slashes at their ends."""
        real = os.path.realpath(os.path.join(self._real_root, folder))
        if os.path.isabs(folder) or b".." in folder.split(b"/"):
            inside = os.path.relpath(real, self._real_root)
        else:
            inside = os.path.normpath(folder)
        outside = inside == b".." or inside.startswith(b"../")
        below = b"" if inside == b"." else os.path.join(inside, b"")
        return None if outside else below, os.path.join(real, b"")
