"""What planning, merging and opening cost as a dataset grows: a synthetic one of many shards.

    python benchmarks/scale.py [--shards 1000000] [--flat | --opening]

As many inputs as shards, empty files in 1,000 folders, are listed and planned, one per shard.
Done-markers and empty tars of the right sizes replace the work (their offsets are short: one sample
per shard), then the job runs as after a crash: it finds all shards done and merges them. Every step
runs in a separate process; peak memory is that of the process. All in memory (/dev/shm where there
is one).

Then readers are measured, of a manifest, a shard list, an index and gains of as many shards of one
sample, of which only the few that are read exist. anonymous: memory at the end that is not that of
mapped files. With --opening, only this.

With --flat the files are in one folder, and only listing and planning them, in shards of 1,024, is
measured.
"""

import argparse
import hashlib
import io
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from common import describe_machine, make_images

if TYPE_CHECKING:
    from quadpipe.job import Job

BYTES = 512 * 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--flat", action="store_true", help="one folder, which is only planned")
    parser.add_argument("--opening", action="store_true", help="lists, which are only opened")
    options = parser.parse_args()
    describe_machine()
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    try:
        measured = measure_flat if options.flat else measure_opening if options.opening else measure
        measured(folder, options.shards)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, shards: int) -> None:
    for number in range(shards):
        image = folder / f"images/n{number % 1000:08d}/ILSVRC2012_train_{number:08d}.JPEG"
        if number < 1000:
            image.parent.mkdir(parents=True)
        image.touch()
    print(f"\n| {shards:,} shards | seconds | peak memory, MiB |")
    print("|---|---|---|")
    for name, step in (
        ("plan: list, shuffle, cut, store", plan),
        ("(stand-ins for the work)", stand_in),
        ("resume and merge", merge),
    ):
        seconds, peak = in_process_of_its_own(step, folder)
        print(f"| {name} | {seconds:.1f} | {peak / 2**20:,.0f} |", flush=True)
    sizes = {
        "dataset.json": folder / "out/dataset.json",
        "train.shards.jsonl": folder / "out/train.shards.jsonl",
        "train.index.npy": folder / "out/train.index.npy",
        "plan.json": folder / "out/.quadpipe/plan.json",
    }
    listed = sum(
        path.stat().st_size for path in (folder / "out/.quadpipe/listing").rglob("*.jsonl")
    )
    cells = [f"{name} {path.stat().st_size:,} bytes" for name, path in sizes.items()]
    print(f"\n{', '.join(cells)}, the listing {listed:,} bytes")
    measure_opening(folder / "opening", shards)


def measure_flat(folder: Path, files: int) -> None:
    (folder / "images").mkdir()
    for number in range(files):
        (folder / f"images/ILSVRC2012_val_{number:08d}.JPEG").touch()
    print(f"\n| {files:,} files in one folder | seconds | peak memory, MiB |")
    print("|---|---|---|")
    for name, step in (("list", list_images), ("list, shuffle, cut", preview)):
        seconds, peak = in_process_of_its_own(step, folder)
        print(f"| {name} | {seconds:.1f} | {peak / 2**20:,.0f} |", flush=True)


def measure_opening(folder: Path, shards: int) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(make_lists, (folder, shards))
    print(f"\n| {shards:,} shards | CPU seconds | peak memory, MiB | anonymous, MiB |")
    print("|---|---|---|---|")
    for name, module, step in (
        ("`Dataset`: manifest, shard list and index", "quadpipe.shards", open_dataset),
        ("`quadpipe info`", "quadpipe.shards.summary", summarize),
        ("a sample by its number", "quadpipe.shards", read_sample),
        ("loader: open, and locate three batches", "quadpipe.loader", locate),
    ):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, peak, anonymous = pool.apply(timed_alone, (module, step, folder))
        print(f"| {name} | {seconds:.2f} | {peak:,.0f} | {anonymous:,.0f} |", flush=True)


def timed_alone(
    module: str, step: Callable[[Path], object], folder: Path
) -> tuple[float, float, float]:
    """CPU seconds without imports; the peak of memory and, at the end, anonymous memory in MiB."""
    import_module(module)
    started = time.process_time()
    kept = step(folder)
    seconds = time.process_time() - started
    status = Path("/proc/self/status").read_text()
    del kept
    peak, anonymous = (
        int(status.partition(f"{name}:")[2].split()[0]) / 1024 for name in ("VmHWM", "RssAnon")
    )
    return seconds, peak, anonymous


def make_lists(folder: Path, shards: int) -> None:
    """A dataset of copies of one shard of one sample; the first ones and a middle one exist."""
    import quadpipe
    from quadpipe.files import LocalFolder
    from quadpipe.shards.arrays import write_array
    from quadpipe.shards.format import gains_name, index_name, json_bytes, shard_name
    from quadpipe.shards.gains import DTYPE
    from quadpipe.shards.index import FIELDS

    make_images(folder / "images", 1, side=256)
    one = quadpipe.tokenize(folder / "images", folder / "one", in_process=True)
    shard, info = one.shards("train")[0], one.split("train")
    rows = np.repeat(np.asarray(one.index("train")), shards)
    rows["shard"] = np.arange(shards)
    gains = np.repeat(one.gains("train"), shards, axis=0)
    out = LocalFolder(folder / "out")
    digest = hashlib.sha256()
    with out.staged(info.shard_list) as file:
        for number in range(shards):
            name = shard_name("train", 0, number)
            line = json_bytes(asdict(replace(shard, name=name)))
            digest.update(line)
            file.write(line)
    for number in (*range(min(shards, 1000)), shards // 2):
        target = folder / "out" / shard_name("train", 0, number)
        if not target.exists():
            target.hardlink_to(folder / "one" / shard.name)
    index = write_array(out, index_name("train"), FIELDS, (shards,), io.BytesIO(rows.tobytes()))
    data = io.BytesIO(gains.tobytes())
    split = replace(
        info,
        inputs=shards,
        samples=shards,
        shards=shards,
        bytes=shards * shard.bytes,
        shard_list_sha256=digest.hexdigest(),
        index_sha256=index,
        gains_sha256=write_array(out, gains_name("train"), DTYPE, gains.shape, data),
    )
    splits = {"train": split}
    manifest = replace(one.manifest, splits=splits, samples_per_shard=1, fingerprint="")
    out.write("dataset.json", manifest.to_bytes())


def in_process_of_its_own(step: Callable[[Path], object], folder: Path) -> tuple[float, int]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(timed, (step, folder))


def timed(step: Callable[[Path], object], folder: Path) -> tuple[float, int]:
    started = time.perf_counter()
    step(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return time.perf_counter() - started, peak


def make_job(folder: Path) -> "Job":
    from quadpipe.job import Job, JobConfig

    config = JobConfig.from_options(samples_per_shard=1, in_process=True)
    return Job(folder / "images", folder / "out", config)


def plan(folder: Path) -> None:
    from quadpipe.files import LocalFolder

    make_job(folder)._planner.store(LocalFolder(folder / "out"))


def list_images(folder: Path) -> None:
    from quadpipe.sources import open_source

    open_source(folder / "images").list()


def preview(folder: Path) -> None:
    from quadpipe.job import Job, JobConfig

    Job(folder / "images", folder / "out", JobConfig.from_options(in_process=True)).preview()


def stand_in(folder: Path) -> None:
    """Markers and tars of finished shards; the tars are not read."""
    from quadpipe.files import open_folder
    from quadpipe.job.plan import read_plan
    from quadpipe.shards.format import marker_name, npy_bytes, shard_gains_name
    from quadpipe.shards.index import make_rows
    from quadpipe.shards.manifest import ShardInfo
    from quadpipe.shards.marker import FinishedTar, Marker

    out = folder / "out"
    plan = read_plan(open_folder(out))
    gains = npy_bytes(np.zeros((1, 1, plan.config.tokenizer.num_splits), np.float32))
    for index in range(plan.splits["train"].shards):
        name = f"train-{index:06d}.tar"
        info = ShardInfo(name=name, view=0, samples=1, bytes=BYTES, sha256="0" * 64)
        rows = make_rows([0], BYTES - 1024, [index + 1], [0])
        tar = FinishedTar(info=info, rows=rows)
        marker = Marker(inputs=1, rejected=[], tars=[tar])
        path = out / marker_name("train", index)
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(marker.to_bytes("train", index))
        (out / shard_gains_name("train", index)).write_bytes(gains)
        with (out / name).open("wb") as file:
            file.truncate(BYTES)


def merge(folder: Path) -> None:
    make_job(folder).run()


def open_dataset(folder: Path) -> object:
    import quadpipe

    dataset = quadpipe.Dataset(folder / "out")
    dataset.index("train")
    return dataset


def summarize(folder: Path) -> object:
    import quadpipe
    from quadpipe.shards.summary import summarize

    return summarize(quadpipe.Dataset(folder / "out"))


def read_sample(folder: Path) -> object:
    import quadpipe

    samples = quadpipe.Dataset(folder / "out")["train"]
    return samples, samples[len(samples) // 2]


def locate(folder: Path) -> object:
    from quadpipe.loader import Loader
    from quadpipe.loader.order import EpochOrder

    loader = Loader(folder / "out", "train", batch_size=256)
    counts = loader.datasets[0].shards("train").samples
    order = EpochOrder(counts, seed=0, epoch=0)
    for start in (0, order.samples // 2, order.samples - 256):
        order.locate(start, start + 256)
    return loader, order


if __name__ == "__main__":
    main()
