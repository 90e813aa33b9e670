"""Faults at named points of a run, in whichever process reaches them.

A test describes a fault in an environment variable; `site/sitecustomize.py`, put on the path of
the processes of the run, hands it to the hook in `quadpipe.faults`. Nothing of this is installed
with quadpipe, and without the hook its points do nothing.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

VARIABLE = "QUADPIPE_TEST_FAULT"
_HERE = Path(__file__).parent
# After which a scorer that does not answer is looked at, in workers that serve several tests.
SECONDS_BETWEEN_LOOKS = 1.0


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def spin() -> None:
    while True:
        pass


def sleep() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    time.sleep(3600)


def doze() -> None:
    """Sleep in a way that a signal interrupts."""
    time.sleep(3600)


def disk_error() -> None:
    raise OSError(errno.EIO, "Input/output error")


ACTIONS: dict[str, Callable[[], None]] = {
    action.__name__: action for action in (kill, stop, crash, spin, sleep, doze, disk_error)
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """at: pattern of the point. skip: how often a process passes it unharmed. once: a file, made
    when the fault happens, after which it happens in no process again. seconds: that a decoder is
    given. heartbeat, stale: seconds of the lock. file: of a fault in JSON, which may change while
    processes run; then nothing else is given."""

    at: str = "$^"
    do: str = "kill"
    skip: int = 0
    once: str | None = None
    seconds: int | None = None
    heartbeat: float | None = None
    stale: float | None = None
    file: str | None = None

    def environment(self) -> dict[str, str]:
        """Of processes in which it shall happen."""
        return {**os.environ, **self.variables()}

    def variables(self) -> dict[str, str]:
        """What its environment has beside that of this process."""
        path = [str(_HERE / "site"), str(_HERE.parent), os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, path)), VARIABLE: self.to_json()}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def hook(self) -> Callable[[str], None]:
        left = self.skip

        def reach(point: str) -> None:
            nonlocal left
            if not re.fullmatch(self.at, point):
                return
            left -= 1
            if left < 0 and self._is_first():
                ACTIONS[self.do]()

        return reach

    def _is_first(self) -> bool:
        if self.once is None:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def killed_everywhere(script: str, *arguments: object) -> list[dict[str, Any]]:
    """The rows of a script beside this file, which kills runs; each run again must be whole."""
    done = subprocess.run(
        [sys.executable, str(_HERE / script), *map(str, arguments)],
        env=Fault().environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if not row["killed"]] == []
    assert [row for row in rows if row["status"] or row["differing"] or row["temporary"]] == []
    return rows


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    """A process that is killed at the end, so that a test that fails does not wait for it."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait until the condition holds; fail if the process ends before, or after 90 seconds."""
    deadline = time.monotonic() + 90
    while not condition():
        assert process is None or process.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def install() -> None:
    """In a process of a run: be ready for the fault that the environment describes."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    from quadpipe import faults

    os.fsync = lambda fd: None  # as in conftest.py
    fault = _read(text)
    if fault.file is not None:
        _follow(Path(fault.file))
        return
    faults.hook = fault.hook()
    if fault.heartbeat or fault.stale:
        from quadpipe.files import lock

        lock.HEARTBEAT_SECONDS = fault.heartbeat or lock.HEARTBEAT_SECONDS
        lock.STALE_SECONDS = fault.stale or lock.STALE_SECONDS
    if fault.seconds is not None:
        from quadpipe.job import isolation

        isolation.DECODE_SECONDS = fault.seconds


@cache
def _read(text: str) -> Fault:
    return Fault(**json.loads(text))


def _follow(file: Path) -> None:
    """Be ready for the fault that a file describes at the time."""
    from quadpipe import faults

    hook = cache(Fault.hook)
    faults.hook = lambda point: hook(_read(file.read_text()))(point)
    if any("default_worker" in word for word in sys.orig_argv):  # of Ray, not one of its agents
        from quadpipe.job import isolation, pool

        real = isolation.decode_seconds
        isolation.decode_seconds = lambda plan: _read(file.read_text()).seconds or real(plan)
        pool._SECONDS_BETWEEN_LOOKS = SECONDS_BETWEEN_LOOKS
