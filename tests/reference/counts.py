"""The slow twin of `quadpipe.counts`: one split at a time, as a heap of images would."""

import numpy as np


def share_slowly(gains: np.ndarray, total: int, low: int, high: int) -> list[int]:
    """Splits per image of gains `[B, K]`: `low` each, then one at a time, up to `total` in all.

    The next split is the largest gain of the images that have fewer than `high`; of equal ones that
    of the image with the fewest splits, then of the first image.
    """
    counts = [low] * len(gains)
    while sum(counts) < total:
        able = [image for image, count in enumerate(counts) if count < high]
        best = min(able, key=lambda image: (-gains[image, counts[image]], counts[image], image))
        counts[best] += 1
    return counts
