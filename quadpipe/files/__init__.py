"""The folder of a dataset, on a disk or at a URL: reading, atomic writes, the write lock, and a
cache of remote shards."""

from quadpipe.files.cache import Cache, CachedFolder
from quadpipe.files.folder import (
    BLOCK_BYTES,
    Contents,
    Folder,
    RangeReader,
    Ranges,
    ReadableFolder,
)
from quadpipe.files.hub import HubFolder
from quadpipe.files.local import LocalFolder, most_open
from quadpipe.files.opening import open_folder
from quadpipe.files.remote import RemoteFolder

__all__ = [
    "BLOCK_BYTES",
    "Cache",
    "CachedFolder",
    "Contents",
    "Folder",
    "HubFolder",
    "LocalFolder",
    "RangeReader",
    "Ranges",
    "ReadableFolder",
    "RemoteFolder",
    "most_open",
    "open_folder",
]
