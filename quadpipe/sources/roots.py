"""The folder that a source reads its files from: on a disk, or at a URL through fsspec."""

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from quadpipe.errors import RejectError, SourceError
from quadpipe.files import storage

T = TypeVar("T")

MAX_FILE_BYTES = 1 << 30
_BLOCK_BYTES = 4 << 20  # of a remote tar that is listed: its members' headers, images between them


class Entry(NamedTuple):
    """A name in a folder. kind: `file` or `folder`, also behind a link; None for anything else."""

    name: bytes
    kind: str | None
    is_link: bool


class Root(ABC):
    """A folder of a source's files. Paths are bytes, relative to it, with slashes between parts.

    Every method raises OSError when a file or folder cannot be read.
    """

    @abstractmethod
    def __str__(self) -> str: ...

    def where(self, path: bytes) -> str:
        """A path for a message."""
        return f"{self}/{os.fsdecode(path)}"

    @abstractmethod
    def scan(self, folder: bytes) -> Iterator[Entry]:
        """The entries of a folder in any order."""

    @abstractmethod
    def identity(self, folder: bytes) -> object:
        """A value that is equal only for the same folder, also through links."""

    @abstractmethod
    def link_target(self, path: bytes) -> bytes | None:
        """The path that a link leads to, None for what is not a link."""

    @abstractmethod
    def exists(self, path: bytes) -> bool: ...

    @abstractmethod
    def open(self, path: bytes) -> BinaryIO: ...

    @abstractmethod
    def read(self, path: bytes, offset: int = 0, size: int | None = None) -> bytes:
        """`size` bytes of a file, by default all; RejectError above MAX_FILE_BYTES."""


@dataclass(frozen=True)
class LocalRoot(Root):
    """A folder on a disk."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def scan(self, folder: bytes) -> Iterator[Entry]:
        with os.scandir(self._absolute(folder)) as entries:
            for entry in entries:
                yield Entry(entry.name, _kind(entry), entry.is_symlink())

    def identity(self, folder: bytes) -> object:
        status = os.stat(self._absolute(folder))
        return status.st_dev, status.st_ino

    def link_target(self, path: bytes) -> bytes | None:
        absolute = self._absolute(path)
        if not os.path.islink(absolute):
            return None
        return os.path.relpath(os.path.realpath(absolute), self._real)

    def exists(self, path: bytes) -> bool:
        return os.path.exists(self._absolute(path))

    def open(self, path: bytes) -> BinaryIO:
        return open(self._absolute(path), "rb")

    def read(self, path: bytes, offset: int = 0, size: int | None = None) -> bytes:
        # A pipe under an image's name must not block the worker.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._absolute(path), flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a plain file")
            size = _checked_size(status.st_size if size is None else size)
            return _whole(os.pread(descriptor, size, offset), size)
        finally:
            os.close(descriptor)

    @cached_property
    def _real(self) -> bytes:
        return os.path.realpath(os.fsencode(self.folder))

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.folder), path)


@dataclass(frozen=True)
class RemoteRoot(Root):
    """A folder at any URL that fsspec knows. It has no links."""

    url: str

    def __str__(self) -> str:
        return self.url

    def scan(self, folder: bytes) -> Iterator[Entry]:
        target = self._target(folder).rstrip("/")
        for info in self._call(lambda system: system.ls(target, detail=True)):
            path = info["name"].rstrip("/")
            if path != target:  # an object that stands for the folder
                kind = {"file": "file", "directory": "folder"}.get(info["type"])
                yield Entry(os.fsencode(path.rpartition("/")[2]), kind, is_link=False)

    def identity(self, folder: bytes) -> object:
        return folder

    def link_target(self, path: bytes) -> bytes | None:
        return None

    def kind(self) -> str | None:
        """Whether the URL is a `file` or a `directory`; None when there is nothing."""
        target = self._target(b"")
        try:
            kind: str = self._call(lambda system: system.info(target))["type"]
        except FileNotFoundError:
            return None
        return kind

    def exists(self, path: bytes) -> bool:
        try:
            self._size(path)
        except FileNotFoundError:
            return False
        return True

    def open(self, path: bytes) -> BinaryIO:
        return io.BufferedReader(_RemoteFile(self, path, self._size(path) or 0), _BLOCK_BYTES)

    def read(self, path: bytes, offset: int = 0, size: int | None = None) -> bytes:
        target = self._target(path)
        if size is not None:
            stop = offset + _checked_size(size)
            part = self._call(lambda system: system.cat_file(target, start=offset, end=stop))
            return _whole(bytes(part), size)
        size = _checked_size(self._size(path) or 0)
        # Without a range, which servers refuse of an empty file.
        return _whole(bytes(self._call(lambda system: system.cat_file(target))), size)

    def _size(self, path: bytes) -> int | None:
        target = self._target(path)
        return self._call(lambda system: storage.size_of(system, target))

    def _target(self, path: bytes) -> str:
        root = _connect(self.url, os.getpid())[1]
        return f"{root}/{os.fsdecode(path)}" if path else root

    def _call(self, operation: Callable[[Any], T]) -> T:
        """Retried with back-off; OSError whatever the file system raises."""
        system, _ = _connect(self.url, os.getpid())
        try:
            return storage.retry(lambda: operation(system))
        except OSError:
            raise
        except Exception as error:  # file systems raise many kinds
            raise OSError(storage.reason_of(error)) from error


class _RemoteFile(io.RawIOBase):
    """A file that is read in parts, for a buffer around it."""

    def __init__(self, root: RemoteRoot, path: bytes, size: int) -> None:
        self._root, self._path, self._size, self._at = root, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        buffer[:size] = self._root.read(self._path, self._at, size)
        self._at += size
        return size


def locate(location: str | os.PathLike[str]) -> tuple[Root, bytes]:
    """The folder of a source, and for a single file its name there.

    SourceError when nothing is there, or it cannot be reached.
    """
    text = os.fspath(location).removeprefix("file://")
    if "://" not in text:
        path = Path(text).absolute()
        if not os.path.exists(path):
            raise _missing(text)
        if path.is_dir():
            return LocalRoot(path), b""
        return LocalRoot(path.parent), os.fsencode(path.name)
    root = RemoteRoot(text.rstrip("/"))
    try:
        kind = root.kind()
    except OSError as error:
        raise SourceError(
            f"cannot read {text}: {storage.reason_of(error)}; check the URL and its credentials"
        ) from error
    if kind is None:
        raise _missing(text)
    if kind == "directory":
        return root, b""
    folder, _, name = root.url.rpartition("/")
    return RemoteRoot(folder), os.fsencode(name)


def _missing(location: str) -> SourceError:
    return SourceError(f"{location} does not exist; give a folder, a .csv list or a .tar")


@lru_cache(maxsize=8)
def _connect(url: str, process: int) -> tuple[Any, str]:
    """A file system and the path of the URL in it; forked processes share no connections."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{url} cannot be opened: {error}; give another --in") from error
    return system, path.rstrip("/")


def _checked_size(size: int) -> int:
    if size > MAX_FILE_BYTES:
        raise RejectError("too_many_bytes", f"{size:,} bytes, more than {MAX_FILE_BYTES:,}")
    return size


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise OSError(f"{len(data)} of {size} bytes could be read")
    return data


def _kind(entry: "os.DirEntry[bytes]") -> str | None:
    try:
        if entry.is_file():
            return "file"
        return "folder" if entry.is_dir() else None
    except OSError:  # a link to itself
        return None
