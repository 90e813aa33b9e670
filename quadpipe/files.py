"""The folder of a dataset: safe names, files that appear whole or not at all, one writer's lock.

A file is written under a unique temporary name, synced, renamed, and its folder synced. Names
inside a dataset are relative, with forward slashes, and never lead out of it.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO
from uuid import uuid4

from quadpipe.errors import ConfigError, OutputError, ShardError

STAGING = ".quadpipe/tmp"


class Folder:
    """A local folder that holds one dataset; made on first write."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        text = os.fspath(location)
        if "://" in text:
            raise ConfigError(
                f"{text} is a URL; this version reads and writes local folders only, so copy the "
                f"dataset to a mounted path"
            )
        self.root = Path(text)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, name: str) -> Path:
        """Where the file `name` is; ShardError when the name leads out of the folder."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise ShardError(f"{self.root}: {name!r} is not the name of a file in a dataset")
        return self.root.joinpath(*parts)

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def size(self, name: str) -> int | None:
        """Bytes of a file, None when there is none."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def open(self, name: str) -> BufferedReader:
        """A file for reading; ShardError when it cannot be opened or is not a plain file."""
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

    def sha256(self, name: str) -> str:
        with self.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def names(self) -> list[str]:
        """Names of all files of the dataset, sorted; what is hidden at the top is left out.

        Symbolic links to folders are not followed.
        """
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

    def clear_staging(self) -> None:
        """Remove what interrupted writers left."""
        shutil.rmtree(self.path(STAGING), ignore_errors=True)

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
