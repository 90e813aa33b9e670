"""A list of paths in a file: `path` or `path,label` rows."""

import os
from pathlib import Path

from quadpipe.errors import SourceError
from quadpipe.sources.labels import ClassTable, read_rows
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.names import path_to_text


def list_paths(file: Path, *, split: str | None = None, use_labels: bool = True) -> Inputs:
    """The images that a CSV names, in its order of bytes; paths are relative to its folder.

    SourceError when a file is missing, or some rows have a label and some have not.
    """
    root = os.fsencode(file.parent)
    rows = []
    for path, label in read_rows(file):
        if os.path.isabs(path):
            path = os.path.relpath(path, os.path.realpath(root))
        if not os.path.isfile(os.path.join(root, path)):
            raise SourceError(
                f"{file}: {os.fsdecode(path)!r} is not a file below {file.parent}; mend the list"
            )
        rows.append((path, label if use_labels else None))
    rows.sort(key=lambda row: row[0])
    listing, table = Listing(), ClassTable()
    split = split or "train"
    for path, label in rows:
        listing.append(path, table.id(label) if label else None)
    if listing.unlabelled == len(listing):
        return Inputs(splits={split: listing}, classes=None)
    if listing.unlabelled:
        raise SourceError(
            f"{file}: {listing.unlabelled} of {len(listing)} rows have no label; label all rows, "
            f"or give --no-labels"
        )
    names = table.settle([listing], numbers_are_indices=True)
    return Inputs(splits={split: listing}, classes=[path_to_text(name) for name in names])
