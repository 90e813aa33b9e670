"""Helpers of the benchmarks: images, a description of the machine, medians."""

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

USUAL_BACKBONE = "backbone=efficientnet-lite0"
SHORTEST_RUN = 0.2  # seconds; faster work is repeated


def describe_machine() -> None:
    """Print processor, cores and versions."""
    print(machine())


def machine() -> str:
    """Processor, cores and versions."""
    import quadpipe
    from quadpipe.images.library import describe, imaging_library

    names = [
        line.partition(":")[2].strip()
        for line in _lines("/proc/cpuinfo")
        if line.startswith("model name")
    ]
    packages = ("numpy", "numba", "torch", "ray", "webdataset")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, quadpipe "
        f"{quadpipe.__version__}, {versions}, {describe(imaging_library())}"
    )


def make_images(folder: Path, count: int, *, side: int, quality: int = 90) -> None:
    """JPEGs of square parts of the photographs that scikit-learn ships, in two classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    chance = random.Random(0)
    photographs = [Image.fromarray(p) for p in load_sample_images().images]
    for number in range(count):
        photograph = photographs[number % 2]
        left = chance.randint(0, photograph.width - side)
        top = chance.randint(0, photograph.height - side)
        target = folder / ("temple", "flower")[number % 2]
        target.mkdir(parents=True, exist_ok=True)
        part = photograph.crop((left, top, left + side, top + side))
        part.save(target / f"{number:06d}.jpg", quality=quality)


def scorer_options(text: str) -> dict[str, Any]:
    """Options of the tokenizer from `NAME[,OPTION=VALUE]`, as in pixel-blur,scale_weight=0.5.

    SystemExit when there is no such option; the tokenizer checks the rest.
    """
    from quadpipe import TokenizerConfig

    def parsed(value: str) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value

    name, *pairs = text.split(",")
    options = {key: parsed(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    unknown = options.keys() - TokenizerConfig.__dataclass_fields__.keys()
    if unknown:
        raise SystemExit(f"{text}: the tokenizer has no option {', '.join(unknown)}")
    return {"scorer": name} | options


def scorer_title(text: str) -> str:
    """How pages name a scorer with its options; the usual backbone goes without saying."""
    name, *pairs = text.split(",")
    return ", ".join([f"`{name}`", *(pair for pair in pairs if pair != USUAL_BACKBONE)])


def seconds_of(function: Callable[[], object]) -> float:
    """Mean seconds of the calls that fill SHORTEST_RUN, after a warm-up call."""
    function()
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SHORTEST_RUN:
        function()
        calls += 1
    return elapsed / calls


def spread(values: Sequence[float]) -> str:
    """Median (smallest-largest)."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
