"""Runs of the command line in a child process."""

import subprocess
import sys
from pathlib import Path


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "quadpipe.cli", *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, cwd=cwd)
