"""Runs of a job: in this process, and as a command."""

import sys
from pathlib import Path
from typing import Any

import quadpipe

SMALL: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 8,
    "max_patch_size": 32,
    "tokens": 40,
    "in_process": True,
}


def tokenize(source: Path, out: Path, **options: Any) -> quadpipe.Dataset:
    return quadpipe.tokenize(source, out, **{"in_process": True, "samples_per_shard": 4, **options})


def tokenize_small(source: Path, out: Path, **options: Any) -> quadpipe.Dataset:
    return quadpipe.tokenize(source, out, **SMALL | options)


def command(images: Path, out: Path | str, options: dict[str, Any], *more: str) -> list[str]:
    given = [
        word
        for name, value in options.items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    arguments = ("tokenize", "--in", str(images), "--out", str(out), *given, *more)
    return [sys.executable, "-m", "quadpipe.cli", *arguments]
