"""The folder of a dataset: safe names, files that appear whole or not at all, one writer's lock.

A file is written under a unique temporary name, synced, renamed, and its folder synced. Names
inside a dataset are relative, with forward slashes, and never lead out of it.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, Any
from uuid import uuid4

import numpy as np

from quadpipe.errors import ConfigError, OutputError, ShardError

STAGING = ".quadpipe/tmp"

RangeReader = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Takes where ranges start and stop in a file; gives bytes, uint8, and where each begins in them.

What a file is too short for comes out shorter."""


def open_folder(location: str | os.PathLike[str]) -> "ReadableFolder":
    """A dataset's folder for reading: a local path or any URL that fsspec knows."""
    text = os.fspath(location)
    return RemoteFolder(text) if "://" in text else Folder(text)


class ReadableFolder(ABC):
    """What readers need of a folder. Names are relative, with forward slashes.

    All methods raise ShardError on names that lead out of the folder, and where a file cannot be
    read.
    """

    @abstractmethod
    def where(self, name: str) -> str:
        """The file's path or URL."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file, None when there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def map(self, name: str) -> memoryview:
        """The whole content; of a local file without reading it."""

    @abstractmethod
    def open_ranges(self, name: str) -> "RangeReader":
        """A function that reads parts of a file, again and again."""

    @abstractmethod
    def sha256(self, name: str) -> str: ...

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all files of the dataset, sorted; what is hidden at the top is left out."""

    def exists(self, name: str) -> bool:
        return self.size(name) is not None


def _checked(root: object, name: str) -> str:
    """The name, if it is one of a file inside; ShardError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ShardError(f"{root}: {name!r} is not the name of a file in a dataset")
    return "/".join(parts)


class RemoteFolder(ReadableFolder):
    """A dataset at a URL, through fsspec. Reading only."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def _open(self) -> tuple[Any, str]:
        """The file system and the root in it; made anew in a forked process, which must not share
        connections with its parent."""
        import fsspec

        if self._opened is None or self._opened[0] != os.getpid():
            try:
                system, root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise ConfigError(f"{self.url} cannot be opened: {error}") from error
            self._opened = os.getpid(), system, root
        return self._opened[1:]

    @property
    def _system(self) -> Any:
        return self._open()[0]

    @property
    def _root(self) -> str:
        return self._open()[1]

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        return f"{self.url}/{_checked(self.url, name)}"

    def size(self, name: str) -> int | None:
        try:
            return int(self._system.size(self._path(name)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._system.cat_file(self._path(name)))
        except OSError as error:
            raise self._unreadable(name, error) from error

    def map(self, name: str) -> memoryview:
        return memoryview(self.read(name))

    def open_ranges(self, name: str) -> "RangeReader":
        path = self._path(name)

        def read(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            paths = [path] * len(starts)
            try:
                parts = self._system.cat_ranges(
                    paths, starts.tolist(), stops.tolist(), on_error="raise"
                )
            except OSError as error:
                raise self._unreadable(name, error) from error
            begins = np.fromiter(accumulate(map(len, parts), initial=0), np.int64)
            return np.frombuffer(b"".join(parts), np.uint8), begins[:-1]

        return read

    def sha256(self, name: str) -> str:
        try:
            with self._system.open(self._path(name), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise self._unreadable(name, error) from error

    def names(self) -> list[str]:
        try:
            found = self._system.find(self._root)
        except OSError as error:
            raise self._unreadable("", error) from error
        names = (path.removeprefix(self._root).lstrip("/") for path in found)
        return sorted(name for name in names if not name.startswith("."))

    def _path(self, name: str) -> str:
        return f"{self._root}/{_checked(self.url, name)}"

    def _unreadable(self, name: str, error: OSError) -> ShardError:
        return ShardError(f"cannot read {self.url}/{name}: {error.strerror or error}")


class Folder(ReadableFolder):
    """A local folder that holds one dataset; made on first write."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        if "://" in text:
            raise ConfigError(
                f"{text} is a URL; this version writes to local folders only: write there, then "
                f"copy the finished dataset"
            )
        self.root = Path(text)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        return self.root / _checked(self.root, name)

    def where(self, name: str) -> str:
        return str(self.path(name))

    def size(self, name: str) -> int | None:
        path = self.path(name)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise ShardError(f"cannot read {path}: {_reason(error)}") from error

    def open(self, name: str) -> BufferedReader:
        path = self.path(name)
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "no such file")
            return path.open("rb")
        except OSError as error:
            raise ShardError(f"cannot read {path}: {_reason(error)}") from error

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            return file.read()

    def map(self, name: str) -> memoryview:
        with self.open(name) as file:
            if not os.fstat(file.fileno()).st_size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def open_ranges(self, name: str) -> "RangeReader":
        contents = np.frombuffer(self.map(name), np.uint8)
        return lambda starts, stops: (contents, starts)

    def sha256(self, name: str) -> str:
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def names(self) -> list[str]:
        found = []
        for folder, folders, files in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if not name.startswith(".")]
                files = [name for name in files if not name.startswith(".")]
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in files]
        return sorted(found)

    def write(self, name: str, data: bytes) -> None:
        """Commit a small file; OutputError when it cannot be written."""
        with self.staged(name) as file:
            file.write(data)

    @contextmanager
    def staged(self, name: str) -> Iterator[IO[bytes]]:
        """A file that appears under its name when the block ends, and is discarded if it raises.

        OutputError when it cannot be written.
        """
        target = self.path(name)
        temporary = self.path(f"{STAGING}/{target.name}.{os.getpid()}-{uuid4().hex}")
        try:
            make_folder(temporary.parent)
            make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {_reason(error)}") from error

    def remove(self, name: str) -> None:
        """Remove a folder of the dataset with all that is in it, if it is there."""
        shutil.rmtree(self.path(name), ignore_errors=True)

    def clear_staging(self) -> None:
        """Remove what interrupted writers left."""
        self.remove(STAGING)

    def free_bytes(self) -> int:
        """Bytes that can be written where the folder is or will be."""
        place = self.root.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Be the only one that holds the lock file `name`; the kernel frees it when we die.

        OutputError when another process on this machine holds it.
        """
        path = self.path(name)
        try:
            make_folder(path.parent)
            file = path.open("a+b")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {_reason(error)}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"another quadpipe is writing to {self.root} now; wait for it to end, or "
                    f"choose another --out"
                ) from error
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be locked ({error.strerror}); choose an --out on a file system "
                    f"with locks"
                ) from error
            yield


def make_folder(path: Path) -> None:
    """Make a folder and its parents so that they survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "; free some space and run the same command again",
        errno.EROFS: "; choose an --out that can be written",
        errno.EACCES: "; choose a path that you may use",
    }
    return f"{error.strerror or error}{advice.get(error.errno or 0, '')}"
