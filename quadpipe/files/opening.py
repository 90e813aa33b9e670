"""A location -> a local or remote folder."""

import os

from quadpipe.files.folder import Folder
from quadpipe.files.hub import SCHEME, HubFolder
from quadpipe.files.local import LocalFolder
from quadpipe.files.remote import RemoteFolder

_LOCAL = "file://"


def open_folder(location: str | os.PathLike[str] | Folder) -> Folder:
    """A dataset's folder: a local path, or any URL that fsspec knows."""
    if isinstance(location, Folder):
        return location
    text = os.fspath(location)
    if text.startswith(_LOCAL):
        return LocalFolder(text.removeprefix(_LOCAL))
    if text.startswith(SCHEME):
        return HubFolder(text)
    return RemoteFolder(text) if "://" in text else LocalFolder(text)
