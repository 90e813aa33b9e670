"""Runs of the command with faults at named points."""

import subprocess
from pathlib import Path
from typing import Any

import job_runs
from injection import Fault

OPTIONS: dict[str, Any] = {"samples_per_shard": 3, "tokens": 40}
NONE = Fault()


def command(images: Path, out: Path | str, *more: str, **options: Any) -> list[str]:
    return job_runs.command(images, out, {**OPTIONS, **options}, *more)


def run(
    images: Path, out: Path, *more: str, fault: Fault = NONE, **options: Any
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(images, out, *more, **options),
        env=fault.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(done: subprocess.CompletedProcess, code: int = 0) -> str:
    """The standard error of a run, which must have ended with this code."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr
