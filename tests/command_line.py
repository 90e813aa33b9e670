"""Runs of the command line: in this process, which has imported what commands need."""

import io
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

from quadpipe.cli import main


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `quadpipe` with these arguments prints, and its exit code."""
    given = ["quadpipe", *map(str, arguments)]
    out, errors = io.StringIO(), io.StringIO()
    argv, path = sys.argv, sys.path[:]
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with chdir(cwd or "."), redirect_stdout(out), redirect_stderr(errors):
            sys.argv = given
            main()
    except SystemExit as end:
        code = end.code
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        sys.argv, sys.path[:] = argv, path
    return subprocess.CompletedProcess(given, int(code or 0), out.getvalue(), errors.getvalue())
