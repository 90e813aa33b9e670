"""Whether a worker's memory grows with the dataset.

    python benchmarks/memory.py [--images 50000]

A job of 1,000 inputs, one of a tenth of the images and one of all, with one Ray worker and in
process: the largest unique set size (USS) of the process that makes the shards. The images
repeat the same 600 JPEGs; the in-process job is not run for all of them.
"""

import argparse
import multiprocessing
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from common import describe_machine
from throughput import make_images, tokenize, write_listing

FILES = 600
BAR = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    describe_machine()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        images = make_images(Path(temporary) / "images", FILES)
        paths = sorted(path for path in images.rglob("*") if path.is_file())
        measure(paths, Path(temporary), options.images)


def measure(paths: list[Path], temporary: Path, many: int) -> None:
    counts = (1000, many // 10, many)
    print("\n| peak USS, MiB | " + " | ".join(f"{count:,} images" for count in counts) + " |")
    print("|---|---|---|---|")
    for name, given, row in (
        ("Ray worker", {"workers": 1}, counts),
        ("in process", {"in_process": True}, counts[:2]),
    ):
        peaks = []
        for count in row:
            repeated = (paths * -(-count // len(paths)))[:count]
            listing = write_listing(temporary / f"{count}.csv", repeated)
            out = temporary / f"out-{name[:3]}-{count}"
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks.append(pool.apply(peak_of, (listing, out, given)))
        cells = [f"{peak / 2**20:.0f}" for peak in peaks] + [""] * (len(counts) - len(row))
        print(f"| {name} | " + " | ".join(cells) + " |")
        growth = peaks[-1] / peaks[0] - 1
        verdict = "met" if growth <= BAR else "NOT met"
        print(f"| growth | {growth:.1%}, target at most {BAR:.0%}: {verdict} | | |", flush=True)


def peak_of(listing: Path, out: Path, given: dict[str, object]) -> int:
    with watched_memory() as peak:
        tokenize(listing, out, **given)
    return peak[0]


@contextmanager
def watched_memory() -> Iterator[list[int]]:
    """Largest unique set size of this process, or of a Ray worker where there are any, in bytes."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not stop.wait(0.05):
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


if __name__ == "__main__":
    main()
