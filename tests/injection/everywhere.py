"""Kill a job at every point, one after the other, and run it again each time.

    python everywhere.py IMAGES OUT OPTIONS

IMAGES: folder of images. OUT: a folder to work in. OPTIONS: of `quadpipe.tokenize`, as JSON. Prints
one JSON row a point: the point, how often it had been passed, and what differs from the undisturbed
run. Each run is a fork of this process, which has imported and compiled everything.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from reliability import compare, tree

import quadpipe
from injection import Fault
from quadpipe import faults
from quadpipe.errors import QuadpipeError
from quadpipe.job import isolation

os.fsync = lambda fd: None  # as in conftest.py


class ForkedDecoder:
    """Instead of the decoding process of `isolation`: a fork, so that it imports nothing."""

    def __init__(self, command: list[str], pass_fds: list[int], **streams: int) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            (descriptor,) = pass_fds
            os.closerange(3, descriptor)
            os.closerange(descriptor + 1, 4096)
            faults.hook = None
            isolation.serve(descriptor)
            os._exit(0)

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


def on_disk(folder: Path) -> dict[str, bytes | None]:
    """All files and folders but the logs, by name."""
    return {
        name: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "/.quadpipe/logs" not in (name := path.as_posix())
    }


def forked(work: Callable[[], object]) -> int:
    """The exit status of a fork that does the work; 1 when it raises."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except QuadpipeError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(
    start: Callable[[Path], object],
    run: Callable[[Path], object],
    folder: Path,
    look: Callable[[Path], object] = lambda out: None,
) -> Iterator[dict[str, Any]]:
    """A row for each point of a run: it is killed there, looked at, and run again.

    Points between which nothing on the disk changes share one kill: it leaves the same files.
    start: puts into a new folder what is there before. look: what to note of a folder after a kill.
    """
    isolation.subprocess.Popen = ForkedDecoder  # type: ignore[assignment, misc]
    points: list[tuple[str, dict[str, bytes | None]]] = []
    whole = folder / "whole"
    start(whole)
    faults.hook = lambda point: points.append((point, on_disk(whole)))
    run(whole)
    faults.hook = None
    expected = tree(whole)
    passed: Counter[str] = Counter()
    row: dict[str, Any] = {}
    before: dict[str, bytes | None] | None = None
    for point, state in points:
        if "logs/lock" in point:
            continue
        if state == before:
            yield row | {"point": point, "passed": passed[point]}
            passed[point] += 1
            continue
        before = state
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        start(out)
        faults.hook = Fault(at=point.replace(".", r"\."), skip=passed[point]).hook()
        killed = forked(partial(run, out)) == -signal.SIGKILL
        faults.hook = None
        seen = look(out)
        status = forked(partial(run, out))
        found = tree(out)
        lost, doubled = compare(found, expected)
        differing = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        row = {
            "point": point,
            "passed": passed[point],
            "killed": killed,
            "seen": seen,
            "status": status,
            "differing": differing,
            "lost": lost,
            "doubled": doubled,
            "temporary": (out / ".quadpipe" / "tmp").exists(),
        }
        yield row
        passed[point] += 1


def main(images: Path, folder: Path, options: dict[str, Any]) -> None:
    before = folder / "before"
    retry = bool(options.pop("retry_rejected", False))

    def tokenize(out: Path, **more: Any) -> None:
        quadpipe.tokenize(images, out, in_process=True, max_rejected="50%", **options, **more)

    if retry:  # the run that is disturbed is the second one, after an input was repaired
        tokenize(before)
        repaired, spoiled = images / "repaired", images / "zebra" / "spoiled.jpg"
        spoiled.write_bytes(repaired.read_bytes())

    def start(out: Path) -> None:
        if retry:
            shutil.copytree(before, out)

    def run(out: Path) -> None:
        tokenize(out, retry_rejected=retry)

    for row in kills(start, run, folder):
        print(json.dumps(row))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
