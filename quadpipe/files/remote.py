"""Remote datasets, through fsspec: an upload is visible when it is committed, or not at all."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np

from quadpipe import faults
from quadpipe.errors import (
    ConfigError,
    MissingError,
    OutputError,
    QuadpipeError,
    ShardError,
    UnreadableError,
)
from quadpipe.files.folder import (
    BLOCK_BYTES,
    STAGING,
    Contents,
    Folder,
    RangeReader,
    StagedFile,
    checked_name,
)
from quadpipe.files.local import exhausted
from quadpipe.files.lock import check_held, held
from quadpipe.files.storage import reason_of, retry, size_of, uploads

T = TypeVar("T")

# Names of a dataset's files.
_OURS = re.compile(
    r"\.quadpipe/.*|(train|val|test)[-.].*\.(tar|jsonl|npy)|(dataset|croissant)\.json|README\.md"
)
# Errors that only a local disk raises.
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_READ_AT_ONCE = 256
# Of two writers, object stores keep the last: seconds until a claim is read back.
_SETTLE_SECONDS = 1.0


class RemoteFolder(Folder):
    """A folder at any URL that fsspec knows; credentials are where its file system looks for them.

    Requests that fail are retried with back-off, in addition to the file system's own retries.
    """

    _part_options: dict[str, Any] = {}  # noqa: RUF012
    """Of the file system, for reading parts of files."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: tuple[int, Any, str] | None = None
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def _open(self) -> tuple[Any, str]:
        """The file system and the root in it.

        A forked process opens its own: it must not share connections with its parent. Listings are
        not cached, since other processes write too.
        """
        import fsspec

        if self._opened is None or self._opened[0] != os.getpid():
            try:
                system, root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError) as error:
                raise ConfigError(f"{self.url} cannot be opened: {error}") from error
            if set(root) & set("*?[]"):
                raise ConfigError(
                    f"{self.url} holds one of * ? [ ], which object stores read as patterns; "
                    f"choose another name"
                )
            self._opened = os.getpid(), system, root.rstrip("/")
        self._opened[1].invalidate_cache()
        return self._opened[1:]

    @property
    def _system(self) -> Any:
        return self._open()[0]

    @property
    def _root(self) -> str:
        return self._open()[1]

    @property
    def _is_web(self) -> bool:
        return "http" in str(self._system.protocol)

    def __str__(self) -> str:
        return self.url

    def where(self, name: str) -> str:
        return f"{self.url}/{checked_name(self.url, name)}"

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            size = retry(lambda: size_of(self._system, path))
        except FileNotFoundError:
            return None
        except Exception as error:  # file systems raise many kinds
            raise self._unreadable(name, error) from error
        # Some web servers do not send a size.
        return len(self.read(name)) if size is None else int(size)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        return bytes(self._reading(name, lambda: self._system.cat_file(path)))

    def get(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            return bytes(retry(lambda: self._system.cat_file(path)))
        except FileNotFoundError:
            return None
        except Exception as error:  # file systems raise many kinds
            raise self._unreadable(name, error) from error

    def contents(self, name: str) -> Contents:
        return memoryview(self.read(name))

    def blocks(self, name: str) -> Iterator[memoryview]:
        size = None if self._is_web else self.size(name)
        if size is None:  # some web servers do not serve parts of files
            yield from super().blocks(name)
            return
        path = self._path(name)
        for start in range(0, size, BLOCK_BYTES):
            stop = min(size, start + BLOCK_BYTES)
            yield memoryview(
                self._reading(name, lambda: self._part(path, start, stop))  # noqa: B023
            )

    @property
    def serves_parts(self) -> bool:
        return not self._is_web

    def _part(self, path: str, start: int, stop: int) -> Any:
        return self._system.cat_file(path, start=start, end=stop, **self._part_options)

    def open_ranges(self, name: str) -> RangeReader:
        path = self._path(name)

        def read(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ranges = [path] * len(starts), starts.tolist(), stops.tolist()
            options = {"on_error": "raise"} | self._part_options
            parts = self._reading(name, lambda: self._system.cat_ranges(*ranges, **options))
            lengths = np.fromiter(map(len, parts), np.int64, len(parts))
            if (lengths > stops - starts).any():
                raise UnreadableError(
                    f"{self.where(name)}: the server does not serve parts of files; "
                    f"copy the whole dataset to a local folder, or read it with --cache DIR"
                )
            begins = np.fromiter(accumulate(lengths.tolist(), initial=0), np.int64)
            return np.frombuffer(b"".join(parts), np.uint8), begins[:-1]

        return read

    def sha256(self, name: str) -> str:
        # Read whole, since some web servers do not serve parts of files.
        return hashlib.sha256(self.read(name)).hexdigest()

    def beginning(self, name: str, size: int) -> memoryview:
        if not self._is_web:
            return super().beginning(name, size)
        path = self._path(name)

        def stream() -> bytes:
            # With block size 0 fsspec streams; some servers do not serve parts of files.
            parts, left = [], size
            with self._system.open(path, "rb", block_size=0) as file:
                while left and (part := file.read(left)):
                    parts.append(part)
                    left -= len(part)
            return b"".join(parts)

        return memoryview(self._reading(name, stream))

    def names(self) -> list[str] | None:
        if self._is_web:
            return None
        system, root = self._open()
        found = self._reading("", lambda: system.find(root))
        names = (path.removeprefix(root).lstrip("/") for path in found)
        return sorted(name for name in names if not name.startswith("."))

    def read_many(self, names: list[str]) -> Iterator[bytes | None]:
        waiting = iter(names)
        while batch := list(islice(waiting, _READ_AT_ONCE)):
            paths = [self._path(name) for name in batch]
            found = self._reading("", lambda: self._system.cat(paths, on_error="return"))  # noqa: B023
            for name, path in zip(batch, paths, strict=True):
                data = found.get(path)
                if isinstance(data, FileNotFoundError):
                    yield None
                else:  # other failures are retried
                    yield data if isinstance(data, bytes) else self.read(name)

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a local path; OutputError if it cannot be written."""
        remote = self._path(name)

        def copy() -> None:
            try:
                self._system.get_file(remote, str(path))
            except OSError as error:
                if error.errno in _LOCAL_ERRORS:
                    raise OutputError(f"cannot write {path}: {error.strerror}") from error
                raise

        self._reading(name, copy)

    def write(self, name: str, data: bytes) -> None:
        faults.point("before upload", name)
        check_held(self)
        self._put(name, data)
        faults.point("after upload", name)

    def overwrite(self, name: str, data: bytes) -> None:
        self._put(name, data)

    @contextmanager
    def staged(self, name: str) -> Iterator[StagedFile]:
        system, path = self._system, self._path(name)
        with self._writing(name):
            file = system.open(path, "wb", autocommit=False, block_size=BLOCK_BYTES)
        try:

            def upload(data: Any) -> None:
                with self._writing(name):
                    file.write(data)

            staged = StagedFile(name, upload)
            yield staged
            with self._writing(name):
                faults.point("before last part", name)
                file.close()
                check_held(self)
                faults.point("before commit", name)
                file.commit()
                faults.point("after commit", name)
        except BaseException:
            with suppress(Exception):
                file.discard()
            file.closed = True  # otherwise garbage collection would upload it
            raise
        found = self.size(name)
        if found != staged.bytes:
            raise OutputError(
                f"{self.where(name)} has {found} bytes after {staged.bytes} were written; rerun "
                f"the same command"
            )

    def remove(self, name: str) -> None:
        path = self._path(name)
        check_held(self)
        faults.point("before removal", name)
        with self._writing(name), suppress(FileNotFoundError):
            retry(lambda: self._system.rm_file(path))
        faults.point("after removal", name)

    def remove_folder(self, name: str) -> None:
        path = self._path(name)
        check_held(self)
        with self._writing(name), suppress(FileNotFoundError):
            retry(lambda: self._system.rm(path, recursive=True))

    def clear_staging(self) -> None:
        """Also aborts unfinished uploads, which are billed although no listing shows them."""
        self.remove_folder(STAGING)
        system, root = self._open()
        if "s3" not in str(system.protocol):
            return  # other stores discard them
        bucket, _, prefix = root.partition("/")
        with self._writing(STAGING):
            prefix = f"{prefix}/" if prefix else ""
            for upload in uploads(system, bucket, prefix):
                name = upload["Key"].removeprefix(prefix)
                if _OURS.fullmatch(name):  # other files may share the bucket
                    system.call_s3("abort_multipart_upload", Bucket=bucket, **upload)

    def sizes(self) -> Callable[[str], int | None]:
        system, root = self._open()

        def listed() -> dict[str, int]:
            try:
                entries = system.ls(root, detail=True)
            except FileNotFoundError:
                return {}
            return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries}

        return self._reading("", listed).get

    def free_bytes(self) -> int | None:
        return None

    def check_writable(self) -> None:
        """Probe with two files: some file systems publish uncommitted files, some cannot commit.

        File systems that are known to lack commits are refused without a probe, which could leave
        a trace, such as a commit in a repository.
        """
        from fsspec.spec import AbstractBufferedFile

        name = f"{STAGING}/probe-{uuid4().hex}"
        system, path = self._system, self._path(name)
        with self._writing(name):
            try:
                discarded = system.open(path, "wb", autocommit=False)
            except NotImplementedError as error:
                raise OutputError(
                    f"{self.url}: this kind of storage is read-only; write to a local folder, "
                    f"then upload the finished dataset"
                ) from error
            does_nothing = AbstractBufferedFile.commit
            if getattr(type(discarded), "commit", does_nothing) is does_nothing:
                discarded.closed = True  # otherwise garbage collection would upload it
                raise self._publishes_early()
            discarded.write(b"discarded")
            discarded.close()
            early = system.exists(path)
            discarded.discard()
            with suppress(FileNotFoundError):
                system.rm_file(path)
            if early:
                raise self._publishes_early()
            kept = system.open(path, "wb", autocommit=False)
            kept.write(b"kept")
            kept.close()
            kept.commit()
            self._system.invalidate_cache()
            late = system.cat_file(path) if system.exists(path) else b""
            self.remove(name)
        if late != b"kept":
            raise self._publishes_early()

    def _publishes_early(self) -> OutputError:
        return OutputError(
            f"{self.url}: this kind of storage has no atomic uploads; write to "
            f"a local folder, then upload the finished dataset"
        )

    def lock(self, name: str) -> AbstractContextManager[None]:
        return held(self, f"{name}.json", alone_here=False, settle=_SETTLE_SECONDS)

    def _put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with self._writing(name):
            retry(lambda: self._system.pipe_file(path, data))

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(self.url, name)}"

    def _reading(self, name: str, operation: Callable[[], T]) -> T:
        try:
            return retry(operation)
        except Exception as error:  # file systems raise many kinds
            raise self._unreadable(name, error) from error

    def _unreadable(self, name: str, error: Exception) -> Exception:
        if isinstance(error, QuadpipeError | MemoryError):
            return error
        if isinstance(error, FileNotFoundError):
            return MissingError(f"cannot read {self.url}/{name}: no such file")
        return exhausted(f"{self.url}/{name}", error) or UnreadableError(
            f"cannot read {self.url}/{name}: {reason_of(error)}; check the URL, and whether this "
            f"machine has the credentials and the connection"
        )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OutputError, ShardError, MemoryError):
            raise
        except Exception as error:  # file systems raise many kinds
            raise self._unwritable(name, error) from error

    def _unwritable(self, name: str, error: Exception) -> OutputError:
        return OutputError(
            f"cannot write {self.where(name) if name else self.url}: {reason_of(error)}; fix the "
            f"cause and rerun the same command"
        )
