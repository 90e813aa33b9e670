"""Training steps on a GPU: precision, compilation, lengths, and whether the GPU waits.

    python benchmarks/gpu.py [--device cuda] [--models small base] [--batch 256] [--steps 50]

Batches of random tokens of 256 x 256 pixels in pinned memory, so without reading; forward,
backward, clipping and AdamW as `quadpipe train` does them, after a warm-up. 100 tokens per image;
`lengths` has 19 to 100, drawn evenly. `busy` is the share of the time in which the device copied or
computed.
"""

import argparse
import time
from typing import Any

import torch
from common import describe_machine

from quadpipe.loader import Batch
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.quadformer import PRESETS, Quadformer, QuadformerConfig
from quadpipe.model.step import TrainStep

CLASSES, LEAST, MOST = 1000, 19, 100
WARM_UP = 10
BATCHES = 4
KINDS: dict[str, dict[str, Any]] = {
    "float32": {"amp": "off"},
    "bf16": {"amp": "bf16"},
    "bf16, compiled": {"amp": "bf16", "compile": True},
    "bf16, lengths": {"amp": "bf16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["small", "base"], choices=list(PRESETS))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    device = torch.device(options.device)
    describe_machine()
    if device.type == "cuda":
        print(f"\n{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, ", end="")
        print(f"{options.batch} images per step.")
    print("\n| model | step | images/s | tokens/s | ms per step | copying | computing | busy |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.models:
        for kind in options.kinds:
            print(row(name, kind, device, options.batch, options.steps), flush=True)


def row(name: str, kind: str, device: torch.device, images: int, steps: int) -> str:
    torch.manual_seed(0)
    model = Quadformer(
        QuadformerConfig(
            classes=CLASSES, patch_size=16, grid=(16, 16), max_scale=2, **PRESETS[name]
        )
    )
    update = TrainStep(
        model.to(device).train(), TrainConfig(**KINDS[kind]), device, World(), columns=16
    )
    pinned = device.type == "cuda"
    batches = [make_batch(images, lengths="lengths" in kind, pinned=pinned) for _ in range(BATCHES)]

    def run(count: int) -> int:
        """Make steps; the number of their tokens."""
        tokens = 0
        for step in range(count):
            batch = batches[step % BATCHES]
            update(batch, step=step, rate=1e-4, skipped=0)
            tokens += batch.boxes.shape[:-1].numel()
        update.check()  # waits for the device
        return tokens

    run(WARM_UP)
    update.times.clear()
    started = time.perf_counter()
    tokens = run(steps)
    seconds = time.perf_counter() - started
    copying, computing = (part / seconds for part in update.times.totals())
    return (
        f"| {name} | {kind} | {steps * images / seconds:,.0f} | {tokens / seconds:,.0f} | "
        f"{seconds / steps * 1e3:,.1f} | {copying:.1%} | {computing:.1%} | "
        f"{copying + computing:.1%} |"
    )


def make_batch(images: int, *, lengths: bool, pinned: bool) -> Batch:
    drawn = torch.arange(LEAST, MOST + 1, 3)[torch.randint((MOST - LEAST) // 3 + 1, (images,))]
    leading = (int(drawn.sum()),) if lengths else (images, MOST)
    boxes = torch.cat([torch.randint(12, (*leading, 2)), torch.randint(3, (*leading, 1))], dim=-1)
    tensors = {
        "tokens": torch.randint(256, (*leading, 16, 16, 3), dtype=torch.uint8),
        "boxes": boxes.to(torch.int16),
        "label": torch.randint(CLASSES, (images,)),
        "weight": torch.ones(images),
    }
    return Batch(
        **{name: value.pin_memory() if pinned else value for name, value in tensors.items()},
        keys=[f"{number:010d}" for number in range(images)],
        total=images,
        first=0,
        skipped=0,
        lengths=drawn if lengths else None,
        members={},
    )


if __name__ == "__main__":
    main()
