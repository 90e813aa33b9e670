"""Files from one folder to another, several at a time, each checked against its sha256."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock

from quadpipe.errors import ShardError
from quadpipe.files import Folder, ReadableFolder
from quadpipe.sharing.progress import CopyProgress

_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class CheckedFile:
    """A file of a dataset, and what its content must be."""

    name: str
    bytes: int
    sha256: str


class _WrongBytesError(Exception):
    """A file arrived with another checksum."""


class _StoppedError(Exception):
    """Another thread has failed, or the run was interrupted."""


class Transfer:
    """Checks and copies files in threads; the first error stops them all and is raised."""

    def __init__(
        self,
        source: ReadableFolder,
        out: Folder,
        progress: CopyProgress,
        threads: int | None = None,
    ) -> None:
        self._source, self._out = source, out
        self._progress, self._threads = progress, threads or _THREADS
        self._stopped = Event()
        self._lock = Lock()

    def missing(self, files: Iterable[CheckedFile]) -> list[CheckedFile]:
        """The files that the destination does not have with these bytes.

        They are all read, where the storage does not know their checksums itself.
        """
        missing: list[CheckedFile] = []
        size_of = self._out.sizes()

        def check(file: CheckedFile) -> None:
            if size_of(file.name) != file.bytes or not self._is_there(file):
                missing.append(file)

        self._each(check, files)
        return sorted(missing, key=lambda file: file.name)

    def copy(self, files: Iterable[CheckedFile]) -> None:
        """Copy files, each under a temporary name until its checksum was compared.

        ShardError when one arrives with another checksum twice.
        """
        self._each(self._copy, files)

    def _is_there(self, file: CheckedFile) -> bool:
        known = self._out.stored_sha256(file.name)
        if known is not None:
            self._advance(file.bytes if known == file.sha256 else 0)
            return known == file.sha256
        digest = hashlib.sha256()
        read = 0
        for block in self._out.blocks(file.name):
            digest.update(block)
            read += len(block)
            self._advance(len(block))
        if digest.hexdigest() == file.sha256:
            return True
        self._advance(-read)
        return False

    def _copy(self, file: CheckedFile) -> None:
        for _ in range(2):
            try:
                self._copy_once(file)
            except _WrongBytesError:
                continue
            return
        raise ShardError(
            f"{self._source.where(file.name)} arrived twice with another checksum or size than in "
            f"its dataset; run quadpipe verify on the source, or report it to the publisher"
        )

    def _copy_once(self, file: CheckedFile) -> None:
        digest = hashlib.sha256()
        with self._out.staged(file.name) as staged:
            for block in self._source.blocks(file.name):
                staged.write(block)
                digest.update(block)
                self._advance(len(block))
            if digest.hexdigest() != file.sha256:
                self._advance(-staged.bytes)
                raise _WrongBytesError

    def _advance(self, count: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._progress.advanced(count)

    def _each(self, work: Callable[[CheckedFile], None], files: Iterable[CheckedFile]) -> None:
        waiting = iter(files)

        def run() -> None:
            while not self._stopped.is_set():
                with self._lock:
                    file = next(waiting, None)
                if file is None:
                    return
                try:
                    work(file)
                except _StoppedError:
                    return
                except BaseException:
                    self._stopped.set()
                    raise

        with ThreadPoolExecutor(self._threads, "quadpipe-copy") as pool:
            threads = [pool.submit(run) for _ in range(self._threads)]
            try:
                for thread in threads:
                    thread.result()
            except BaseException:  # also of an interrupt
                self._stopped.set()
                raise
