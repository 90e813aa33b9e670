"""A dataset on a disk: files are written under a temporary name, synced, renamed, folder synced."""

import errno
import fcntl
import hashlib
import mmap
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from uuid import uuid4

import numpy as np

from quadpipe import faults
from quadpipe.errors import ConfigError, MissingError, OutputError, ShardError, UnreadableError
from quadpipe.files.folder import (
    STAGING,
    Contents,
    Folder,
    RangeReader,
    StagedFile,
    checked_name,
)
from quadpipe.files.lock import check_held, held, in_use, read_holder

# What to do when the process or the machine has run out of something.
_EXHAUSTED = {
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "close other programs, or raise the limit of the machine",
    errno.ENOMEM: "free some memory, or use fewer workers",
}


class LocalFolder(Folder):
    """A local folder that holds one dataset; created on first write."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        if "://" in text:
            raise ConfigError(f"{text} is a URL; give a local folder here")
        self._shown = text
        self.root = Path(text).absolute()  # workers may have another working folder

    def __str__(self) -> str:
        return self._shown

    def path(self, name: str) -> Path:
        return self.root / checked_name(self.root, name)

    def where(self, name: str) -> str:
        return str(self.path(name))

    def size(self, name: str) -> int | None:
        path = self.path(name)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise _unreadable(path, error) from error

    def open(self, name: str) -> BufferedReader:
        path = self.path(name)
        try:
            if not path.is_file():
                raise MissingError(f"cannot read {path}: no such file")
            return path.open("rb")
        except OSError as error:
            raise _unreadable(path, error) from error

    def read(self, name: str) -> bytes:
        with self.open(name) as file:
            try:
                return file.read()
            except OSError as error:
                raise _unreadable(self.path(name), error) from error

    def contents(self, name: str) -> Contents:
        return _FileContents(self.path(name), self.open(name))

    def open_ranges(self, name: str) -> RangeReader:
        """Maps the file, which stays open as long. Reading past the end of a mapped file that was
        truncated kills the process (SIGBUS), so its size is checked before each read."""
        with self.open(name) as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise _unreadable(self.path(name), error) from error
            except ValueError as error:  # it is empty
                raise ShardError(f"cannot read {self.path(name)}: {error}") from error
        whole = np.frombuffer(mapped, np.uint8)

        def read(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if mapped.size() < len(whole):
                raise ShardError(
                    f"was cut from {len(whole)} to {mapped.size()} bytes while it was read"
                )
            return whole, starts

        return read

    def sha256(self, name: str) -> str:
        with self.open(name) as file:
            try:
                return hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise _unreadable(self.path(name), error) from error

    def names(self) -> list[str]:
        if self.root.is_file():
            raise OutputError(f"{self} is a file; choose a new or empty folder")
        found = []
        for folder, folders, files in os.walk(self.root):
            if Path(folder) == self.root:
                folders[:] = [name for name in folders if not name.startswith(".")]
                files = [name for name in files if not name.startswith(".")]
            found += [Path(folder, name).relative_to(self.root).as_posix() for name in files]
        return sorted(found)

    def write(self, name: str, data: bytes) -> None:
        with self.staged(name) as file:
            file.write(data)

    @contextmanager
    def staged(self, name: str) -> Iterator[StagedFile]:
        target = self.path(name)
        temporary = self.path(f"{STAGING}/{target.name}.{os.getpid()}-{uuid4().hex}")
        try:
            make_folder(temporary.parent)
            make_folder(target.parent)
            try:
                with temporary.open("xb") as file:
                    yield StagedFile(name, file.write)
                    file.flush()
                    faults.point("before sync", name)
                    os.fsync(file.fileno())
                faults.point("before rename", name)
                check_held(self)
                temporary.rename(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            faults.point("after rename", name)
            sync_folder(target.parent)
            faults.point("after commit", name)
        except OSError as error:
            raise _unwritable(target, error) from error

    def overwrite(self, name: str, data: bytes) -> None:
        path = self.path(name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(descriptor, data, 0)
                os.ftruncate(descriptor, len(data))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unwritable(path, error) from error

    def remove(self, name: str) -> None:
        path = self.path(name)
        try:
            check_held(self)
            faults.point("before removal", name)
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                sync_folder(path.parent)
            faults.point("after removal", name)
        except OSError as error:
            raise _unwritable(path, error) from error

    def remove_folder(self, name: str) -> None:
        check_held(self)
        shutil.rmtree(self.path(name), ignore_errors=True)

    def clear_staging(self) -> None:
        self.remove_folder(STAGING)

    def sizes(self) -> Callable[[str], int | None]:
        return self.size

    def free_bytes(self) -> int:
        place = self.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def check_writable(self) -> None:
        """Local file systems have atomic renames."""

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        path, record = self.path(name), f"{name}.json"
        try:
            make_folder(path.parent)
            file = path.open("a+b")
        except OSError as error:
            raise _unwritable(path, error) from error
        with file:
            try:
                # The kernel frees it when its holder on this machine dies.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = None
                with suppress(OutputError):
                    holder = read_holder(self, record)
                raise in_use(self, holder) from error
            except OSError as error:
                raise OutputError(
                    f"{path} cannot be locked ({error.strerror}); choose a folder on a file system "
                    f"with locks"
                ) from error
            with held(self, record, alone_here=True):
                yield


class _FileContents:
    """A file that is read, not mapped: if it is truncated meanwhile, slices are shorter."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> memoryview:
        start, stop, _ = part.indices(self._size)
        try:
            return memoryview(os.pread(self._file.fileno(), max(stop - start, 0), start))
        except OSError as error:
            raise _unreadable(self._path, error) from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents durably."""
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


def most_open(wanted: int) -> int:
    """How many of `wanted` files to keep open: at most a quarter of what the process may open."""
    return max(min(wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4), 1)


def exhausted(where: object, error: BaseException) -> UnreadableError | None:
    """The error for a file that may be intact: it cannot be read since the process or the machine
    has run out of open files or memory; None for other causes.
    """
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.errno in _EXHAUSTED:
            return UnreadableError(f"cannot read {where}: {_reason(cause)}")
    return None


def _unreadable(path: Path, error: OSError) -> ShardError:
    return exhausted(path, error) or ShardError(f"cannot read {path}: {_reason(error)}")


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {_reason(error)}")


def _reason(error: OSError) -> str:
    advice = {
        errno.ENOSPC: "free some space and rerun the same command",
        errno.EDQUOT: "free some space and rerun the same command",
        errno.EROFS: "choose a folder that can be written",
        errno.EACCES: "choose a path that you have access to",
        **_EXHAUSTED,
    }
    return "; ".join(filter(None, (error.strerror or str(error), advice.get(error.errno or 0))))
