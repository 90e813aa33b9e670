"""Where images come from: a folder, WebDataset tars, or a table of paths."""

import os

from quadpipe.errors import SourceError
from quadpipe.sources.base import Source
from quadpipe.sources.folder import FolderSource
from quadpipe.sources.labels import ClassNames, read_class_names
from quadpipe.sources.listing import Input, Inputs, Listing
from quadpipe.sources.roots import LocalRoot, locate
from quadpipe.sources.table import TableSource
from quadpipe.sources.tars import TarSource

__all__ = ["ClassNames", "Input", "Inputs", "Listing", "Source", "open_source", "read_class_names"]

SOURCES: tuple[type[Source], ...] = (TableSource, TarSource, FolderSource)
"""The kinds of sources; a location is of the first kind that matches."""


def open_source(location: str | os.PathLike[str]) -> Source:
    """The source at a path or at a URL that fsspec knows.

    SourceError when nothing is there, it cannot be read, or it is not a source.
    """
    root, file = locate(location)
    for kind in SOURCES:
        if kind.matches(root, file):
            return kind(root, file)
    tables = "" if isinstance(root, LocalRoot) else " on a local disk"
    raise SourceError(
        f"{os.fspath(location)} is not a folder, a .csv list{tables} or a .tar; give one of these"
    )
