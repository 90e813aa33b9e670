"""How fast shards become batches, against webdataset, MosaicML Streaming, LitData and memcpy.

    python benchmarks/loader.py [--samples 4000] [--runs 5] [--peers PYTHON]

All give shuffled batches of 256 samples on one core, in one process without threads that read
ahead: the leaves at 100 tokens, uint8 `[256, 100, 16, 16, 3]`, their boxes and labels, as tensors.
At 64 tokens on average every image has a number of its own, from 16 to 100. The shards are in
memory (/dev/shm where there is one), page cache warm. webdataset reads the same tars with its own
pipeline (`WebDataset`, `shuffle`, `decode`, `batched`), the leaves chosen by one NumPy index. The
peers hold only the leaves, boxes and labels, uncompressed, in their own formats, and read them with
their own loaders. They install Pillow, so they need a separate environment:

    python -m venv peers && peers/bin/pip install torch mosaicml-streaming==0.13.0 litdata==0.2.76

Without --peers their rows are skipped. Runs of all loaders alternate.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from common import describe_machine, make_images, spread

BATCH, TOKENS = 256, 100
MEAN = 64
SHARD = 256
PEERS = ("streaming", "litdata")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", help="the Python of an environment with the peers")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.peer:
        serve_peer(options.peer, options.data)
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as temporary:
        measure(Path(temporary), options.samples, options.runs, options.peers)


def measure(temporary: Path, samples: int, runs: int, peers: str | None) -> None:
    import torch

    import quadpipe

    torch.set_num_threads(1)
    describe_machine()
    make_images(temporary / "images", samples, side=256)
    shards = temporary / "shards"
    quadpipe.tokenize(
        temporary / "images", shards, tokens=TOKENS, crop_pct=1.0, samples_per_shard=SHARD,
        in_process=True,
    )  # fmt: skip
    quarter = 16 + (TOKENS // 4 - 16) // 3 * 3
    rows: dict[str, Callable[[], float]] = {
        "quadpipe": lambda: read_quadpipe(str(shards), TOKENS),
        f"quadpipe, {quarter} tokens": lambda: read_quadpipe(str(shards), quarter),
        f"quadpipe, {MEAN} tokens": lambda: read_quadpipe(str(shards), MEAN),
        f"quadpipe, {MEAN} tokens on average": lambda: read_quadpipe(str(shards), MEAN, mean=True),
        "quadpipe, from file-like objects": lambda: read_quadpipe(f"file://{shards}", TOKENS),
        "webdataset": lambda: read_webdataset(shards),
        "memcpy of the same leaves": lambda: copy_memory(samples),
    }
    servers = start_peers(peers, temporary) if peers else {}
    rows |= {name: server.run for name, server in servers.items()}
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for name, run in rows.items():
        print(f"warming up {name}", flush=True)
        run()
    for _ in range(runs):
        for name, run in rows.items():
            rates[name].append(samples / run())
    for server in servers.values():
        server.stop()
    print_table(rates, quarter)


def print_table(rates: dict[str, list[float]], quarter: int) -> None:
    middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    print("\n| loader | samples per second, median (smallest-largest) | quadpipe is |")
    print("|---|---|---|")
    for name, values in rates.items():
        ratio = "" if name == "quadpipe" else f"{middle['quadpipe'] / middle[name]:.2f} times"
        print(f"| {name} | {spread(values)} | {ratio} |")
    bars = [
        ("quadpipe against webdataset", middle["quadpipe"] / middle["webdataset"], 10),
        (
            "quadpipe at a quarter of the budget against itself",
            middle[f"quadpipe, {quarter} tokens"] / middle["quadpipe"],
            2,
        ),
        (
            "quadpipe at a mean number of tokens against the same number for all",
            middle[f"quadpipe, {MEAN} tokens on average"] / middle[f"quadpipe, {MEAN} tokens"],
            0.8,
        ),
        (
            "quadpipe from file-like objects against webdataset",
            middle["quadpipe, from file-like objects"] / middle["webdataset"],
            2,
        ),
        (
            "quadpipe against memcpy (an aim)",
            middle["quadpipe"] / middle["memcpy of the same leaves"],
            0.5,
        ),
    ]
    bars += [
        (f"quadpipe against {n}", middle["quadpipe"] / middle[n], 5) for n in PEERS if n in middle
    ]
    print()
    for what, times, bar in bars:
        print(f"{what}: {times:.2f} times, target {bar}: {'met' if times >= bar else 'NOT met'}")


def read_quadpipe(location: str, tokens: int, *, mean: bool = False) -> float:
    """Seconds of an epoch; the loader is kept between epochs, as in training."""
    loader = _loader(location, tokens, mean)
    started = time.perf_counter()
    read = sum(len(batch.label) for batch in loader.epoch(next(_epochs)))
    assert read == loader.samples
    return time.perf_counter() - started


_epochs = count()


@cache
def _loader(location: str, tokens: int, mean: bool) -> Any:
    from quadpipe.loader import Loader

    if mean:
        return Loader(location, batch_size=BATCH, mean_tokens=tokens)
    return Loader(location, batch_size=BATCH, tokens=tokens)


def read_webdataset(shards: Path) -> float:
    """Seconds of an epoch of webdataset's own pipeline; leaves as docs/format.md defines them."""
    import numpy as np
    import torch
    import webdataset

    splits = (TOKENS - 16) // 3

    def leaves(sample: dict[str, Any]) -> tuple[Any, Any, int]:
        nodes = sample["nodes.npy"]
        step = nodes[:, 3]
        chosen = np.flatnonzero((step < 0) | (step >= splits))
        return (
            torch.from_numpy(sample["tokens.npy"][chosen]),
            torch.from_numpy(nodes[chosen, :3].astype(np.int16)),
            sample["cls"],
        )

    urls = sorted(str(path) for path in shards.glob("*.tar"))
    started = time.perf_counter()
    pipeline = (
        webdataset.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(1000)
        .decode()
        .map(leaves)
        .batched(BATCH)
    )
    for tokens, boxes, labels in pipeline:
        assert len(tokens) == len(boxes) == len(labels)
    return time.perf_counter() - started


def copy_memory(samples: int) -> float:
    """Seconds to copy the leaves of all samples from memory into the batch's."""
    import numpy as np

    size = TOKENS * 16 * 16 * 3
    source = np.ones((samples, size), np.uint8)
    batch = np.empty((BATCH, size), np.uint8)
    order = np.random.default_rng(0).permutation(samples)
    started = time.perf_counter()
    for place, sample in enumerate(order):
        batch[place % BATCH] = source[sample]
    return time.perf_counter() - started


class Peer:
    """A loader in another process and environment."""

    def __init__(self, python: str, name: str, data: Path) -> None:
        self._process = subprocess.Popen(
            [python, __file__, "--peer", name, "--data", str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("epoch\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return float(json.loads(line)["seconds"])
        raise SystemExit("a peer failed; its message is above")

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def start_peers(python: str, temporary: Path) -> dict[str, Peer]:
    """Export leaves, boxes and labels as plain arrays, from which each peer writes its format."""
    import numpy as np

    import quadpipe

    batches = list(_loader(str(temporary / "shards"), TOKENS).epoch(0))
    data = temporary / "exported"
    data.mkdir()
    for name in ("tokens", "boxes", "label"):
        np.save(data / f"{name}.npy", np.concatenate([getattr(b, name).numpy() for b in batches]))
    assert quadpipe.__version__
    peers = {}
    for name in PEERS:
        there = subprocess.run([python, "-c", f"import {name}"], capture_output=True)
        if there.returncode:
            print(f"{name} is skipped: {python} does not have it")
        else:
            peers[name] = Peer(python, name, data)
    return peers


def serve_peer(name: str, data: Path) -> None:
    """Write the peer's format, then time an epoch for every line on standard input."""
    import sys

    import numpy as np
    import torch

    torch.set_num_threads(1)
    arrays = [np.load(data / f"{part}.npy", mmap_mode="r") for part in ("tokens", "boxes", "label")]
    folder = data.parent / name
    shutil.rmtree(folder, ignore_errors=True)
    epoch = {"streaming": open_streaming, "litdata": open_litdata}[name](arrays, folder)
    for _ in sys.stdin:
        started = time.perf_counter()
        read = sum(len(batch["label"]) for batch in epoch())
        seconds = time.perf_counter() - started
        assert read == len(arrays[2]), read
        print(json.dumps({"seconds": seconds}), flush=True)


def open_streaming(arrays: list[Any], folder: Path) -> Callable[[], Any]:
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    columns = {
        "tokens": "ndarray:uint8:100,16,16,3",
        "boxes": "ndarray:int16:100,3",
        "label": "int",
    }
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 25) as writer:
        for tokens, boxes, label in zip(*arrays, strict=True):
            writer.write({"tokens": tokens, "boxes": boxes, "label": int(label)})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH)
    return lambda: loader


def open_litdata(arrays: list[Any], folder: Path) -> Callable[[], Any]:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="32MB")
    for number, (tokens, boxes, label) in enumerate(zip(*arrays, strict=True)):
        writer[number] = {"tokens": tokens, "boxes": boxes, "label": int(label)}
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=True)
    loader = StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0)
    return lambda: loader


if __name__ == "__main__":
    main()
