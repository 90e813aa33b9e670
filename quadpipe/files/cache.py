"""A cache of remote shards in a local folder of bounded size.

A shard is stored under its checksum, which is verified after the download. Processes of one machine
share the folder: one fetches a shard, the others wait for it. The least recently used shards are
evicted.
"""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError, OutputError, QuadpipeError, ShardError
from quadpipe.files.folder import Contents, RangeReader, ReadableFolder
from quadpipe.files.local import exhausted
from quadpipe.files.remote import RemoteFolder
from quadpipe.text import counted

# Names of the cache's own files; other files in the folder are left alone.
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|part|data)")
_FETCH_AT_ONCE = 8
# The time of last use is updated at most this often.
_SECONDS_BETWEEN_MARKS = 1.0
_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True, kw_only=True)
class Cache:
    """folder: holds the cached shards. bytes: its maximum size."""

    folder: Path
    bytes: int

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise ConfigError(f"a cache of {self.bytes} bytes is empty; give a larger size")


class CachedFolder(ReadableFolder):
    """A remote folder whose shards are read from the cache; other files are read remotely.

    Raises ShardError when a shard arrives with another checksum twice, OutputError when the cache
    cannot be written, UnreadableError when the process may not open more files.
    """

    def __init__(self, remote: RemoteFolder, cache: Cache) -> None:
        self._remote = remote
        self._cache = cache
        self._lists: list[Callable[[str], tuple[str, int] | None]] = []
        self._known: dict[str, tuple[str, int]] = {}
        self._marked: dict[str, float] = {}
        self._wrong: dict[str, str] = {}
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            self._bookkeeping = cache.folder / ".lock"
            self._bookkeeping.touch()
        except OSError as error:
            raise self._unusable(error) from error

    def __str__(self) -> str:
        return str(self._remote)

    def know(self, shards: Callable[[str], tuple[str, int] | None]) -> None:
        """Checksum and bytes of a shard by its name, None of others; only these are cached.

        The function that was given last is asked first.
        """
        self._lists.insert(0, shards)
        self._known.clear()

    def _knows(self, name: str) -> bool:
        """Whether a file is a shard that is cached; `_known` has its checksum and bytes then."""
        for find in () if name in self._known else self._lists:
            if (found := find(name)) is not None:
                self._known[name] = found
                break
        return name in self._known

    def check_room(self, sizes: list[int]) -> None:
        """Raise ConfigError when shards of these sizes, read alternately, do not fit together."""
        if sum(sizes) > self._cache.bytes:
            raise ConfigError(
                f"a cache of {self._cache.bytes:,} bytes is too small for "
                f"{counted(len(sizes), 'shard')} of {sum(sizes):,} bytes at a time; give a larger "
                f"--cache-size, or omit --cache to read parts of shards"
            )

    def where(self, name: str) -> str:
        return self._remote.where(name)

    def size(self, name: str) -> int | None:
        return self._remote.size(name)

    def names(self) -> list[str] | None:
        return self._remote.names()

    def read(self, name: str) -> bytes:
        return self._contents(name).tobytes() if self._knows(name) else self._remote.read(name)

    def get(self, name: str) -> bytes | None:
        return super().get(name) if self._knows(name) else self._remote.get(name)

    def sha256(self, name: str) -> str:
        if self._knows(name):
            return hashlib.sha256(self._contents(name).data).hexdigest()
        return self._remote.sha256(name)

    def contents(self, name: str) -> Contents:
        return self._contents(name).data if self._knows(name) else self._remote.contents(name)

    def open_ranges(self, name: str) -> RangeReader:
        if not self._knows(name):
            return self._remote.open_ranges(name)
        # Mapped per batch: a shard that stays mapped would never free its space.
        return lambda starts, stops: (self._contents(name), starts)

    def fetch(self, names: list[str]) -> None:
        """Download missing shards, several at a time."""
        missing = [n for n in names if self._knows(n) and not self._target(n).exists()]
        if len(missing) > 1:
            with ThreadPoolExecutor(_FETCH_AT_ONCE, "quadpipe-fetch") as pool:
                list(pool.map(self._contents, missing))

    def _contents(self, name: str) -> np.ndarray:
        target, size = self._target(name), self._known[name][1]
        while True:
            try:
                contents: np.ndarray = np.memmap(target, np.uint8, "r")
            except (FileNotFoundError, ValueError):  # missing or empty
                contents = np.empty(0, np.uint8)
            except OSError as error:
                raise self._unusable(error) from error
            if len(contents) == size:
                self._mark_used(target)
                return contents
            self._fetch(name)

    def _target(self, name: str) -> Path:
        return self._cache.folder / f"{self._known[name][0]}.tar"

    def _mark_used(self, target: Path) -> None:
        now = time.monotonic()
        if now - self._marked.get(target.name, -_SECONDS_BETWEEN_MARKS) >= _SECONDS_BETWEEN_MARKS:
            self._marked[target.name] = now
            with suppress(FileNotFoundError):
                os.utime(target)

    def _fetch(self, name: str) -> None:
        """Download a shard, unless another process has done so meanwhile."""
        target, size = self._target(name), self._known[name][1]
        self.check_room([size])
        if name in self._wrong:
            raise ShardError(self._wrong[name])
        try:
            with _claimed(target.with_suffix(".part")) as claim:
                if claim is None or (target.exists() and target.stat().st_size == size):
                    return
                self._make_room(claim, size)
                data = target.with_suffix(".data")
                try:
                    self._download(name, data)
                    data.rename(target)
                finally:
                    data.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error

    def _download(self, name: str, path: Path) -> None:
        """Download a shard; retry once on another checksum, then raise ShardError."""
        sha256, size = self._known[name]
        for _ in range(2):
            try:
                self._remote.download(name, path)
            except OutputError as error:
                raise self._unusable(error) from error
            with path.open("r+b") as file:
                arrived = os.fstat(file.fileno()).st_size
                if arrived == size and hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    os.fsync(file.fileno())
                    return
        self._wrong[name] = (
            f"{self.where(name)} arrived twice with another checksum or size than in the shard "
            f"list; report it to the publisher"
        )
        raise ShardError(self._wrong[name])

    def _make_room(self, claim: Path, size: int) -> None:
        """Reserve `size` bytes for a claimed shard: the claim gets this length.

        Evicts the least recently used shards, and waits for downloads of other processes.
        """
        while True:
            with self._bookkeeping.open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                total, shards = size, []
                for path in self._cache.folder.iterdir():
                    if path == claim or not _OURS.fullmatch(path.name):
                        continue
                    with suppress(FileNotFoundError):
                        status = path.stat()
                        if path.suffix == ".tar":
                            shards.append((status.st_mtime, status.st_size, path))
                        elif path.suffix == ".part" and _remove_orphan(path):
                            continue
                        if path.suffix != ".data":  # counted by its claim
                            total += status.st_size
                for _, freed, path in sorted(shards):
                    if total <= self._cache.bytes:
                        break
                    path.unlink(missing_ok=True)
                    total -= freed
                if total <= self._cache.bytes:
                    os.truncate(claim, size)
                    return
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _unusable(self, error: OSError | OutputError) -> QuadpipeError:
        reason = getattr(error, "strerror", None) or error
        return exhausted(self._cache.folder, error) or OutputError(
            f"the cache {self._cache.folder} cannot be used: {reason}; choose another --cache, or "
            f"a smaller --cache-size"
        )


@contextmanager
def _claimed(claim: Path) -> Iterator[Path | None]:
    """Claim the download of a shard; None when another process has finished or failed it."""
    with claim.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            still_there = os.fstat(file.fileno()).st_ino == claim.stat().st_ino
        except FileNotFoundError:
            still_there = False
        if not still_there:
            yield None
            return
        try:
            yield claim
        finally:
            claim.unlink(missing_ok=True)


def _remove_orphan(claim: Path) -> bool:
    """Remove the partial shard of a dead process; False when its process is alive."""
    with suppress(OSError), claim.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        claim.with_suffix(".data").unlink(missing_ok=True)
        claim.unlink()
        return True
    return False
