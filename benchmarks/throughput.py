"""How fast images become shards, against the decoder alone.

    python benchmarks/throughput.py [--images 5000] [--runs 5] [--in FOLDER]

Without --in it makes JPEGs of 500 x 375 pixels and about 160 kB, as ImageNet's are, from the
photographs that scikit-learn ships. One core (two for the rows of two), page cache warm, output in
memory (/dev/shm where there is one), fsync included, which costs nothing there. Rates exclude the
start of Ray and the first shard of every run. `PIL` reads, decodes with the job's rule for scaled
decoding, resizes and crops. Runs of the rows alternate.
"""

import argparse
import io
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import describe_machine, spread
from PIL import Image
from sklearn.datasets import load_sample_images

import quadpipe
from quadpipe.job import Progress

BATCH = 1000
PIL, TWO_RUNS = "PIL alone", "two runs in process at once"
# Row: the row it is compared with, and the smallest share of its rate that is the target.
BARS = {
    "in process, 100 tokens": (PIL, 0.75),
    "in process, 196 tokens": (PIL, 0.70),
    "Ray, 2 workers": (TWO_RUNS, 0.95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--in", dest="source", type=Path)
    options = parser.parse_args()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        images = options.source or make_images(Path(temporary) / "images", options.images)
        paths = sorted(path for path in images.rglob("*") if path.is_file())
        describe_machine()
        total = sum(path.stat().st_size for path in paths)
        print(f"{len(paths):,} images of {total / len(paths) / 1000:.0f} kB\n")
        measure(paths, Path(temporary), options.runs)


def measure(paths: list[Path], temporary: Path, runs: int) -> None:
    listing = write_listing(temporary / "all.csv", paths)
    halves = [
        write_listing(temporary / f"half{half}.csv", paths[half::2], folder=half) for half in (0, 1)
    ]
    rows: dict[str, Callable[[Path], float]] = {
        PIL: lambda out: decode_alone(paths),
        "in process, 100 tokens": lambda out: tokenize(listing, out, in_process=True),
        "in process, 196 tokens": lambda out: tokenize(listing, out, in_process=True, tokens=196),
        "Ray, 1 worker": lambda out: tokenize(listing, out, workers=1),
        TWO_RUNS: lambda out: tokenize_twice(halves, out),
        "Ray, 2 workers": lambda out: tokenize(listing, out, workers=2),
    }
    rates: dict[str, list[float]] = {name: [] for name in rows}
    decode_alone(paths[:BATCH])  # warm the page cache
    for run in range(runs):
        for number, (name, row) in enumerate(rows.items()):
            with on_cores(2 if name in (TWO_RUNS, "Ray, 2 workers") else 1):
                rates[name].append(row(temporary / f"out-{run}-{number}"))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print("| work | images per second, median (smallest-largest) | of PIL | target |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        target = ""
        if name in BARS:
            other, bar = BARS[name]
            ratio = middle[name] / middle[other]
            verdict = "met" if ratio >= bar else "NOT met"
            target = f"{bar} of {other}: {ratio:.2f}, {verdict}"
        print(f"| {name} | {spread(values)} | {middle[name] / middle[PIL]:.2f} | {target} |")


def write_listing(path: Path, images: list[Path], folder: int | None = None) -> Path:
    """A list of paths for the job, in a folder of its own where one is given."""
    if folder is not None:
        path = path.parent / str(folder) / path.name
        path.parent.mkdir()
    path.write_text("".join(f"{os.path.relpath(image, path.parent)}\n" for image in images))
    return path


def tokenize_twice(halves: list[Path], out: Path) -> float:
    """The rates of two processes, a core and half of the images each, added."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        cores = sorted(os.sched_getaffinity(0))[:2]
        jobs = [
            (core, half, Path(f"{out}-{core}")) for core, half in zip(cores, halves, strict=True)
        ]
        return sum(pool.starmap(tokenize_on, jobs, chunksize=1))


def tokenize_on(core: int, listing: Path, out: Path) -> float:
    os.sched_setaffinity(0, {core})
    return tokenize(listing, out, in_process=True)


def decode_alone(paths: list[Path]) -> float:
    """Images per second of plain PIL code, with the job's rule for scaled decoding."""
    started = time.perf_counter()
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            short = min(image.size)
            scale = 292 / short
            size = (int(image.width * scale), int(image.height * scale))
            image.draft(None, (2 * size[0], 2 * size[1]))
            resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - 256) // 2, (size[1] - 256) // 2
        resized.crop((left, top, left + 256, top + 256)).tobytes()
    return len(paths) / (time.perf_counter() - started)


class Clock(Progress):
    """Times the work after the first finished shard, so that start-up is excluded."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int]] = []

    def shard_done(self, report: object) -> None:
        self.marks.append((time.perf_counter(), report.inputs))  # type: ignore[attr-defined]

    @property
    def rate(self) -> float:
        images = sum(inputs for _, inputs in self.marks[1:])
        if not images:
            raise SystemExit("too few images for two shards; give --images 200 or more")
        return images / (self.marks[-1][0] - self.marks[0][0])


def tokenize(images: Path, out: Path, **options: Any) -> float:
    clock = Clock()
    quadpipe.tokenize(images, out, samples_per_shard=100, progress=clock, **options)
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    return clock.rate


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def make_images(folder: Path, count: int) -> Path:
    """JPEGs of 500 x 375 pixels: parts of two photographs, enlarged or reduced and mirrored."""
    chance = random.Random(0)
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(count):
        photograph = chance.choice(photographs)
        width = chance.randint(320, 560)
        height = width * 3 // 4
        left = chance.randint(0, photograph.width - width)
        top = chance.randint(0, photograph.height - height)
        part = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
        if chance.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        target = folder / f"{number % 10}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        part.save(target, quality=99)
    return folder


if __name__ == "__main__":
    main()
