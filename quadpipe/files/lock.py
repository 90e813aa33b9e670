"""The write lock of a folder, across all machines that share it.

The holder of a lock keeps its name in a file and increments a counter there every few seconds. The
same machine knows whether the holder is alive. Another machine watches the counter, so that clocks
of two machines are never compared.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING
from uuid import uuid4

from quadpipe.errors import OutputError, QuadpipeError

if TYPE_CHECKING:
    from quadpipe.files.folder import Folder

_log = logging.getLogger(__name__)

_READS = 3
_SECONDS_BETWEEN_READS = 0.02

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds, or held, a lock. machine: identifies one boot of one kernel."""

    token: str
    host: str
    machine: str
    process: int
    started: str
    beat: int = 0

    @classmethod
    def here(cls) -> "Holder":
        process = os.getpid()
        return cls(
            token=uuid4().hex,
            host=platform.node(),
            machine=_machine(),
            process=process,
            started=_start_of(process) or "",
        )

    @property
    def is_of_this_machine(self) -> bool:
        return self.machine == _machine()

    def is_alive(self) -> bool | None:
        """None if unknown: on another machine, or where other users' processes are hidden."""
        if not self.is_of_this_machine:
            return None
        if self.process == os.getpid():
            return self.token in _ours
        started = _start_of(self.process)
        if started is None or (started and self.started and started != self.started):
            return False
        return True if started else None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


# Tokens of the locks that this process holds.
_ours: set[str] = set()


@contextmanager
def held(folder: "Folder", name: str, *, alone_here: bool, settle: float = 0.0) -> Iterator[None]:
    """Hold the lock whose holder is named in the file `name`.

    alone_here: no other process of this machine can hold it. settle: seconds until a claim that
    another machine made at the same moment is visible.
    OutputError when another process holds it and is alive, or may be.
    """
    before = read_holder(folder, name)
    if before is not None and not (alone_here and before.is_of_this_machine):
        _check_gone(folder, name, before)
    holder = Holder.here()
    ended = Event()
    beating = Thread(target=_beat, args=(folder, name, holder, ended), daemon=True)
    _ours.add(holder.token)
    try:
        _write(folder, name, holder)
        if settle:
            time.sleep(settle)
        now = read_holder(folder, name)
        if now is None or now.token != holder.token:
            raise in_use(folder, now)
        folder.holder = name, holder.token
        beating.start()
        yield
    finally:
        ended.set()
        if beating.ident is not None:
            beating.join()
        with suppress(QuadpipeError):
            now = read_holder(folder, name)
            if now is not None and now.token == holder.token:
                folder.holder = None
                folder.remove(name)
        folder.holder = None
        _ours.discard(holder.token)


def check_held(folder: "Folder") -> None:
    """Raise OutputError when the folder has lost its write lock.

    This keeps a worker whose driver has died from writing into the output of another run.
    """
    if folder.holder is None:
        return
    name, token = folder.holder
    now = read_holder(folder, name)
    if now is None or now.token != token:
        raise OutputError(
            f"lost the write lock of {folder}: "
            + ("its run has ended" if now is None else f"{now} has taken it over")
            + "; rerun the same command when no other process writes there"
        )


def in_use(folder: "Folder", holder: Holder | None) -> OutputError:
    who = f" ({holder})" if holder else ""
    return OutputError(
        f"another quadpipe{who} is writing to {folder}; wait for it to end, or choose another place"
    )


def read_holder(folder: "Folder", name: str) -> Holder | None:
    """The holder named in the file; None without a file, or if a kill left it half written.

    OutputError when it cannot be read.
    """
    for _ in range(_READS):
        try:
            data = folder.get(name)
            return None if data is None else Holder(**json.loads(data))
        except (ValueError, TypeError):  # it may be half written
            time.sleep(_SECONDS_BETWEEN_READS)
        except QuadpipeError as error:
            raise OutputError(f"cannot read the write lock of {folder}: {error}") from error
    return None


def _check_gone(folder: "Folder", name: str, before: Holder) -> None:
    """Return when the holder is dead, or silent for long enough; OutputError when it is alive."""
    alive = before.is_alive()
    if alive is None:
        _watch(folder, name, before)
    elif alive:
        raise in_use(folder, before)


def _watch(folder: "Folder", name: str, before: Holder) -> None:
    """Return when the holder has been silent for long enough; OutputError when it is alive."""
    _log.warning(
        "%s is locked by %s; waiting %.0f seconds to see whether it is alive",
        folder,
        before,
        STALE_SECONDS,
    )
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(HEARTBEAT_SECONDS / 4, STALE_SECONDS / 4))
        now = read_holder(folder, name)
        if now is None:
            return
        if now != before:
            raise in_use(folder, now)


def _beat(folder: "Folder", name: str, holder: Holder, ended: Event) -> None:
    while not ended.wait(HEARTBEAT_SECONDS):
        with suppress(QuadpipeError):  # one missed beat is harmless
            now = read_holder(folder, name)
            if now is None or now.token != holder.token:
                return  # taken over: the next commit raises
            holder = replace(holder, beat=holder.beat + 1)
            _write(folder, name, holder)


def _write(folder: "Folder", name: str, holder: Holder) -> None:
    # Padded to one length, so that a reader never sees the rest of a longer record.
    folder.overwrite(name, json.dumps(asdict(holder), sort_keys=True).ljust(512).encode())


@cache
def _machine() -> str:
    """Identifies one boot of one kernel, and the namespace of our process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return platform.node()


def _start_of(process: int) -> str | None:
    """Start time of a process of this machine, in clock ticks, as the kernel prints it.

    None when it has ended, "" when it exists but its start time is hidden.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
