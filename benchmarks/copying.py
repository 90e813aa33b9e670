"""How fast smaller copies are made, against a plain loop that reads, cuts and writes.

    python benchmarks/copying.py [--images 2000] [--runs 5]

The source has 196 tokens per image, raw, the copies 64, raw and as JPEGs. The plain loop uses
tarfile, NumPy and PIL: no checksums, no checks of what is read, no index, no files that appear
whole. One core, in process, page cache warm, files in memory (/dev/shm where there is one). Runs
alternate.
"""

import argparse
import io
import math
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import describe_machine, make_images, spread
from PIL import Image
from throughput import on_cores

import quadpipe

TOKENS = 64
BAR = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as temporary:
        folder = Path(temporary)
        make_images(folder / "images", options.images, side=256)
        quadpipe.tokenize(
            folder / "images", folder / "shards", tokens=196, samples_per_shard=200, in_process=True
        )
        describe_machine()
        print(f"{options.images:,} images, {TOKENS} of 196 tokens\n")
        with on_cores(1):
            measure(folder, options.images, options.runs)


def measure(folder: Path, images: int, runs: int) -> None:
    source = folder / "shards"
    rows: dict[str, Callable[[Path], object]] = {
        "plain loop, raw": lambda out: plain_loop(source, out, "raw"),
        "quadpipe copy, raw": lambda out: copy(source, out, "raw"),
        "plain loop, jpg": lambda out: plain_loop(source, out, "jpg"),
        "quadpipe copy, jpg": lambda out: copy(source, out, "jpg"),
    }
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for run in range(runs + 1):  # the first one warms up
        for name, row in rows.items():
            started = time.perf_counter()
            row(folder / "out")
            if run:
                rates[name].append(images / (time.perf_counter() - started))
            shutil.rmtree(folder / "out")
    print("| work | images per second, median (smallest-largest) | of the plain loop | target |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        plain = statistics.median(rates[f"plain loop, {name[-3:]}"])
        share = statistics.median(values) / plain
        verdict = ""
        if name.startswith("quadpipe"):
            verdict = f"{BAR}, {'met' if share >= BAR else 'NOT met'}"
        print(f"| {name} | {spread(values)} | {share:.2f} | {verdict} |")


def copy(source: Path, out: Path, codec: str) -> None:
    quadpipe.copy(source, out, tokens=TOKENS, codec=codec, in_process=True)


def plain_loop(source: Path, out: Path, codec: str) -> None:
    """What a user would write: the prefix of each array of each sample."""
    out.mkdir()
    for tar in sorted(source.glob("*.tar")):
        with tarfile.open(tar) as before, tarfile.open(out / tar.name, "w") as after:
            for member in before:
                file = before.extractfile(member)
                assert file is not None
                key, _, name = member.name.partition(".")
                name, data = reduced(name, file.read(), codec)
                header = tarfile.TarInfo(f"{key}.{name}")
                header.size = len(data)
                after.addfile(header, io.BytesIO(data))


def reduced(name: str, data: bytes, codec: str) -> tuple[str, bytes]:
    """A member with fewer tokens: 16 roots and K splits."""
    splits = (TOKENS - 16) // 3
    if not name.endswith(".npy"):
        return name, data
    array = np.load(io.BytesIO(data))
    array = array[:splits] if name == "importance.npy" else array[: 16 + 4 * splits]
    if name == "nodes.npy":
        array[array[:, 3] >= splits, 3] = -1
    file = io.BytesIO()
    if name == "tokens.npy" and codec == "jpg":
        columns = math.isqrt(len(array) - 1) + 1
        rows = -(-len(array) // columns)
        padding = np.repeat(array[-1:], rows * columns - len(array), axis=0)
        grid = np.concatenate([array, padding]).reshape(rows, columns, 16, 16, 3)
        image = Image.fromarray(grid.swapaxes(1, 2).reshape(rows * 16, columns * 16, 3))
        image.save(file, "JPEG", quality=95, subsampling="4:4:4")
        return "tokens.jpg", file.getvalue()
    np.save(file, array)
    return name, file.getvalue()


if __name__ == "__main__":
    main()
