"""How fast images become shards, against the decoder alone, and how much memory a worker takes.

    python benchmarks/throughput.py [--images 5000] [--runs 5] [--in FOLDER]

Without --in it makes JPEGs from the photographs that scikit-learn ships. All on one core, the row
of two workers on two, page cache warm, output on the system's temporary folder. Rates leave out
the start of Ray and the first shard of every run.
"""

import argparse
import io
import os
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from PIL import Image
from sklearn.datasets import load_sample_images

import quadpipe
from quadpipe.images.library import describe, imaging_library
from quadpipe.job import Progress

BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--in", dest="source", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images = options.source or make_images(Path(temporary) / "images", options.images)
        paths = sorted(path for path in images.rglob("*") if path.is_file())
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
        print(f"Python {platform.python_version()}, {describe(imaging_library())}")
        total = sum(path.stat().st_size for path in paths)
        print(f"{len(paths):,} images of {total / len(paths) / 1000:.0f} kB\n")
        measure(images, paths, Path(temporary), options.runs)


def measure(images: Path, paths: list[Path], temporary: Path, runs: int) -> None:
    rows: dict[str, Callable[[Path], float]] = {
        "decode, resize, crop (PIL)": lambda out: decode_alone(paths),
        "in process, 100 tokens": lambda out: tokenize(images, out, in_process=True),
        "in process, 196 tokens": lambda out: tokenize(images, out, in_process=True, tokens=196),
        "Ray, 1 worker, 100 tokens": lambda out: tokenize(images, out, workers=1),
        "Ray, 2 workers, 100 tokens": lambda out: tokenize(images, out, workers=2),
    }
    rates: dict[str, list[float]] = {name: [] for name in rows}
    peaks: dict[str, int] = {}
    decode_alone(paths[:BATCH])  # warm the page cache
    for run in range(runs):
        for name, row in rows.items():
            with on_cores(2 if "2 workers" in name else 1), watched_memory() as peak:
                rates[name].append(
                    row(temporary / f"{run}-{len(rates[name])}-{name[:4]}{name[-9:]}")
                )
            peaks[name] = max(peaks.get(name, 0), peak[0])
    base = statistics.median(rates["decode, resize, crop (PIL)"])
    print(f"{'':28}  images/s      spread  of PIL  peak USS of a process")
    for name, values in rates.items():
        middle = statistics.median(values)
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(
            f"{name:28} {middle:9.0f} {spread:>11} {middle / base:7.2f} {peaks[name] >> 20:8} MiB"
        )


def decode_alone(paths: list[Path]) -> float:
    """Images a second of what everybody does, with the job's rule for scaled decoding."""
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
    """Times the work from the first finished shard on, so that starting up is left out."""

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


def tokenize(images: Path, out: Path, **options: object) -> float:
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


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Largest unique set size of this process, or of a Ray worker where there are any, in bytes."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(0.2):
            try:
                below = me.children(recursive=True)
                workers = [
                    p
                    for p in below
                    if "".join(p.cmdline()[:1]).startswith(("ray::make_shard", "ray::IDLE"))
                ]
                peak[0] = max([peak[0], *(p.memory_full_info().uss for p in workers or [me])])
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


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
        part.save(target, quality=97)
    return folder


if __name__ == "__main__":
    main()
