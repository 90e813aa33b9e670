"""The interface of a dataset's folder, local or remote.

Names inside a dataset are relative, with forward slashes, and never lead out of it.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np

from quadpipe import faults
from quadpipe.errors import ShardError

if TYPE_CHECKING:
    from typing_extensions import Buffer

STAGING = ".quadpipe/tmp"
BLOCK_BYTES = 16 * 2**20
"""Bytes of a file that are read, or of an upload that are kept in memory, at a time."""

RangeReader = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Starts and stops of ranges in a file -> their bytes, uint8, and the start of each range in these.

Ranges past the end of the file are shorter."""


class Contents(Protocol):
    """The bytes of a file; slices are read when they are taken. A memoryview is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> memoryview: ...


class Ranges:
    """The contents of a file of `length` bytes; slices are read as ranges when they are taken."""

    def __init__(self, read: RangeReader, length: int) -> None:
        self._read, self._length = read, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> memoryview:
        start, stop, _ = part.indices(self._length)
        contents, begins = self._read(np.array([start]), np.array([stop]))
        return contents[int(begins[0]) :][: stop - start].data


class ReadableFolder(ABC):
    """The interface for readers.

    All methods raise ShardError on names that lead out of the folder, and if a file cannot be read.
    """

    @abstractmethod
    def where(self, name: str) -> str:
        """The file's path or URL."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Size of a file in bytes, None if it does not exist."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def contents(self, name: str) -> Contents:
        """The content of a file, to be read in parts; a remote file is read at once."""

    @abstractmethod
    def open_ranges(self, name: str) -> RangeReader:
        """A function that reads parts of a file."""

    @property
    def serves_parts(self) -> bool:
        """Whether parts of files can be read; some web servers only serve whole ones."""
        return True

    def beginning(self, name: str, size: int) -> memoryview:
        """The first `size` bytes of a file, or all of a shorter file; no more is read."""
        start, stop = np.array([0]), np.array([size])
        contents, begins = self.open_ranges(name)(start, stop)
        return contents[int(begins[0]) :][:size].data

    def blocks(self, name: str) -> Iterator[memoryview]:
        """The content of a file from its beginning, in parts of some megabytes."""
        contents = self.contents(name)
        for start in range(0, len(contents), BLOCK_BYTES):
            yield contents[start : start + BLOCK_BYTES]

    @abstractmethod
    def sha256(self, name: str) -> str: ...

    def stored_sha256(self, name: str) -> str | None:
        """The checksum of a file as its storage knows it, without reading it; None if unknown."""
        return None

    @abstractmethod
    def names(self) -> list[str] | None:
        """Names of all files of the dataset, sorted, without those that are hidden at the top.

        None if files cannot be listed, as on a web server.
        """

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def get(self, name: str) -> bytes | None:
        """The content of a file, None if it does not exist."""
        return self.read(name) if self.exists(name) else None

    def fetch(self, names: list[str]) -> None:  # noqa: B027  optional
        """Prefetch files that will be read; only a cache does."""

    def check_room(self, sizes: list[int]) -> None:  # noqa: B027
        """Raise ConfigError when a cache cannot hold files of these sizes together."""

    def read_many(self, names: list[str]) -> Iterator[bytes | None]:
        """The contents of small files, None for missing ones."""
        for name in names:
            yield self.get(name)


class Folder(ReadableFolder):
    """The interface for writers. Methods that write raise OutputError when they cannot.

    holder: file and token of the lock that is held. Other processes get them with the folder; a
    writer that has lost the lock commits nothing.
    """

    holder: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()
    """What users should know before they write here."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Commit a small file."""

    @abstractmethod
    def staged(self, name: str) -> AbstractContextManager["StagedFile"]:
        """A file that appears under its name when the block ends, and is discarded if it raises."""

    @abstractmethod
    def overwrite(self, name: str, data: bytes) -> None:
        """Write a small file in place; it may not survive a crash."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file durably, if it exists."""

    @abstractmethod
    def remove_folder(self, name: str) -> None:
        """Remove a folder of the dataset with its contents, if it exists."""

    @abstractmethod
    def clear_staging(self) -> None:
        """Remove leftovers of interrupted writers."""

    @abstractmethod
    def sizes(self) -> Callable[[str], int | None]:
        """A function from the name of a file at the top of the folder to its size, None without it.

        It may list all files once and not see later changes.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Free space for the folder in bytes; None if unknown."""

    def check_shared(self) -> None:
        """Raise OutputError unless several processes can write here together."""

    @abstractmethod
    def check_writable(self) -> None:
        """Raise OutputError unless the storage has atomic writes.

        Leaves nothing behind. Called before the folder is locked.
        """

    @abstractmethod
    def lock(self, name: str) -> AbstractContextManager[None]:
        """Be the only writer until the block ends; the lock of a dead writer is taken over.

        OutputError when another process holds the lock, on this machine or on another one.
        """


class StagedFile(io.RawIOBase):
    """A file that is being written and is not visible yet. bytes: number written so far."""

    def __init__(self, name: str, write: "Callable[[Buffer], object]") -> None:
        self.bytes = 0
        self._name = name
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: "Buffer") -> int:
        faults.point("before write", self._name)
        self._write(data)
        written = memoryview(data).nbytes
        self.bytes += written
        faults.point("after write", self._name)
        return written


def checked_name(root: object, name: str) -> str:
    """The name, if it is one of a file inside; ShardError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ShardError(f"{root}: {name!r} is not the name of a file in a dataset")
    return "/".join(parts)
