"""Training steps fed by the loader, against the same steps on tensors that are already in memory.

    python benchmarks/training.py [--samples 2048] [--runs 5]

The nano model at 100 tokens of 256 x 256 pixels, batches of 64, float32, forward, backward and
AdamW, on one core with one torch thread, so that reading and computing share it. The epochs
alternate; page cache warm.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from common import describe_machine, make_images, spread

import quadpipe
from quadpipe.loader import Batch, Loader
from quadpipe.model.config import TrainConfig
from quadpipe.model.optimize import make_optimizer
from quadpipe.model.quadformer import Quadformer

BATCH = 64
BAR = 0.97


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    describe_machine()
    with tempfile.TemporaryDirectory() as temporary:
        images, shards = Path(temporary) / "images", Path(temporary) / "shards"
        make_images(images, options.samples, side=256)
        quadpipe.tokenize(images, shards, crop_pct=1.0, samples_per_shard=256, in_process=True)
        measure(shards, options.runs)


def measure(shards: Path, runs: int) -> None:
    config = TrainConfig(model="nano")
    dataset = quadpipe.Dataset(shards)
    model = Quadformer(config.quadformer(dataset.manifest))
    optimizer = make_optimizer(model, config)

    def rate(batches: Iterable[Batch]) -> float:
        """Images per second of a step for each batch."""
        started, count = time.perf_counter(), 0
        for batch in batches:
            logits, _ = model(batch.tokens, batch.boxes)
            torch.autograd.backward(F.cross_entropy(logits, batch.label))
            optimizer.step()
            optimizer.zero_grad()
            count += len(batch.label)
        return count / (time.perf_counter() - started)

    plain = Loader(dataset, batch_size=BATCH)
    ahead = Loader(dataset, batch_size=BATCH, workers=1)
    rates: dict[str, list[float]] = {"in memory": [], "loader": [], "loader, one thread ahead": []}
    for run in range(-1, runs):
        in_memory = list(plain.epoch(run + 1))
        found = [rate(in_memory), rate(plain.epoch(run + 1)), rate(ahead.epoch(run + 1))]
        if run >= 0:  # the first is a warm-up
            for values, one in zip(rates.values(), found, strict=True):
                values.append(one)
    print("\n| fed from | images per second, median (smallest-largest) | of memory |")
    print("|---|---|---|")
    base = statistics.median(rates["in memory"])
    for name, values in rates.items():
        print(f"| {name} | {spread(values)} | {statistics.median(values) / base:.3f} |")
    best = max(statistics.median(values) for name, values in rates.items() if "loader" in name)
    print(f"\nloader against memory: {best / base:.3f}, target {BAR}: ", end="")
    print("met" if best / base >= BAR else "NOT met")


if __name__ == "__main__":
    main()
