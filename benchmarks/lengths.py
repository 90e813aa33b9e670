"""A training step on images of different lengths, against one on images of the same length.

    python benchmarks/lengths.py [--runs 9] [--models nano tiny] [--means 64 37]

Batches of 32 images with 19 to 100 tokens each and a given mean, float32, forward, backward and
AdamW, on one core with one torch thread. The fixed batch has as many tokens, the same number in
each image. `lengths` is what quadpipe does: the images in one sequence, and attention for the
images of each length. The others replace its attention: a call for each image, and a batch that is
padded to its longest image, with a mask. The steps take turns; processor time.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from common import describe_machine
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from quadpipe.model.attention import Packing, attend
from quadpipe.model.config import TrainConfig
from quadpipe.model.optimize import make_optimizer
from quadpipe.model.quadformer import PRESETS, Quadformer, QuadformerConfig

IMAGES, LEAST, MOST = 32, 19, 100
BATCHES = 8
AGAINST_FIXED = 1.15  # at most, of lengths
PADDED = 1.5  # at least, against lengths


class Images(NamedTuple):
    """Packed tokens `[T, P, P, 3]`, boxes `[T, 3]`, and lengths `[IMAGES]`."""

    tokens: Tensor
    boxes: Tensor
    lengths: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--models", nargs="+", default=["nano", "tiny"], choices=list(PRESETS))
    parser.add_argument("--means", nargs="+", type=int, default=[64, 37])
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    describe_machine()
    print("\n| model, mean tokens | step | ms, median (smallest-largest) | of fixed | of lengths |")
    print("|---|---|---|---|---|")
    verdicts = [
        report(name, mean, measure(name, mean, options.runs))
        for name in options.models
        for mean in options.means
    ]
    print("\n" + "\n".join(verdicts))


def measure(name: str, mean: int, runs: int) -> dict[str, list[float]]:
    """Seconds of the steps of each kind, which take turns; each run does every batch once."""
    torch.manual_seed(0)
    model = Quadformer(
        QuadformerConfig(classes=1000, patch_size=16, grid=(16, 16), max_scale=2, **PRESETS[name])
    ).train()
    optimizer = make_optimizer(model, TrainConfig(model=name))
    chance = np.random.default_rng(0)
    batches = [make_images(draw_lengths(mean, chance)) for _ in range(BATCHES)]
    labels = torch.randint(1000, (IMAGES,))

    def seconds(logits: Callable[[], Tensor]) -> float:
        started = time.process_time()
        torch.autograd.backward(F.cross_entropy(logits(), labels))
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started

    found: dict[str, list[float]] = {}
    for turn, images in enumerate(islice(cycle(batches), runs + 2)):
        for kind, logits in steps(model, images, mean).items():
            elapsed = seconds(logits)
            if turn >= 2:  # the first are a warm-up
                found.setdefault(kind, []).append(elapsed)
    return found


def draw_lengths(mean: int, chance: np.random.Generator) -> Tensor:
    """Legal budgets with a mean, int64 `[IMAGES]`.

    Each split goes to an image by its weight. The weights are log-normal, as the sums of an
    image's gains are: a few busy images, many simple ones.
    """
    weights = chance.lognormal(sigma=0.8, size=IMAGES)
    splits = np.zeros(IMAGES, int)
    for _ in range((mean - LEAST) * IMAGES // 3):
        open_weights = weights * (LEAST + 3 * splits < MOST)
        splits[chance.choice(IMAGES, p=open_weights / open_weights.sum())] += 1
    return torch.from_numpy(LEAST + 3 * splits)


def make_images(lengths: Tensor) -> Images:
    count = int(lengths.sum())
    return Images(
        torch.randint(256, (count, 16, 16, 3), dtype=torch.uint8),
        torch.randint(3, (count, 3), dtype=torch.int16),
        lengths,
    )


def steps(model: Quadformer, images: Images, mean: int) -> dict[str, Callable[[], Tensor]]:
    """The logits of a batch, `[IMAGES, C]`, by each kind of step."""
    tokens, boxes, lengths = images
    sizes = lengths.tolist()
    fixed = [x[: IMAGES * mean].view(IMAGES, mean, *x.shape[1:]) for x in (tokens, boxes)]
    splits = (list(x.split_with_sizes(sizes)) for x in (tokens, boxes))
    padded = [pad_sequence(split, batch_first=True) for split in splits]
    mask = torch.arange(1 + max(sizes)) <= lengths[:, None]

    def logits(attention: Callable[..., Tensor], *given: Any) -> Tensor:
        with patch("quadpipe.model.quadformer.attend", attention):
            found: Tensor = model(*given)[0]
            return found

    return {
        "fixed": partial(logits, attend, *fixed),
        "lengths": partial(logits, attend, *images),
        "each image": partial(logits, attend_each, *images),
        "padded": partial(logits, partial(attend_masked, mask[:, None, None]), *padded),
    }


def attend_each(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    lengths = packing.starts.diff().tolist()
    parts = zip(*(x[None].split_with_sizes(lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*part)[0] for part in parts])


def attend_masked(mask: Tensor, q: Tensor, k: Tensor, v: Tensor, packing: None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def report(name: str, mean: int, found: dict[str, list[float]]) -> str:
    """Print the rows of a table, and return a line on the bars."""
    medians = {kind: statistics.median(values) for kind, values in found.items()}
    for kind, values in found.items():
        middle, low, high = (x * 1e3 for x in (medians[kind], min(values), max(values)))
        print(
            f"| {name}, {mean} | {kind} | {middle:,.1f} ({low:,.1f}-{high:,.1f}) | "
            f"{medians[kind] / medians['fixed']:.2f} | {medians[kind] / medians['lengths']:.2f} |",
            flush=True,
        )
    ours = medians["lengths"] / medians["fixed"]
    padded = medians["padded"] / medians["lengths"]
    met = ours <= AGAINST_FIXED and padded >= PADDED
    return (
        f"{name} at {mean}: lengths {ours:.2f} of fixed, at most {AGAINST_FIXED} wanted; padded "
        f"{padded:.2f} of lengths, at least {PADDED} wanted: {'met' if met else 'NOT met'}"
    )


if __name__ == "__main__":
    main()
