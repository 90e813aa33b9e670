"""Processes of the command line, forks of one that has imported torch: they start at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["quadpipe.cli.train", "quadpipe.model.train", "quadpipe.loader"])


def start(
    arguments: Sequence[object],
    out: Path,
    errors: Path,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """`quadpipe` with these arguments, which prints into two files; leader of its own group."""
    given = (list(map(str, arguments)), (out, errors), dict(environment or {}))
    process = _CONTEXT.Process(target=_run, args=given)
    process.start()
    return process


def _run(arguments: list[str], files: tuple[Path, Path], environment: dict[str, str]) -> None:
    os.setsid()
    for number, path in enumerate(files, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    os.fsync = lambda fd: None  # as in conftest.py
    from quadpipe.cli import main

    sys.argv = ["quadpipe", *arguments]
    main()


def run(
    arguments: Sequence[object], folder: Path, processes: int = 1
) -> subprocess.CompletedProcess[str]:
    """Their output, and the first exit code that is not 0. Several meet as those of torchrun do."""
    out, errors = folder / "stdout", folder / "stderr"
    for path in (out, errors):
        path.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        start(arguments, out, errors, world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        if processes > 1
        else start(arguments, out, errors)
        for rank in range(processes)
    ]
    for process in started:
        process.join(240)
    codes = [process.exitcode for process in started]
    assert None not in codes, "still running"
    code = next(filter(None, codes), 0)
    return subprocess.CompletedProcess(
        list(map(str, arguments)), code, out.read_text(), errors.read_text()
    )
