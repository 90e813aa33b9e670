"""The slow twin of `quadpipe.counts`: one split at a time, as a heap of images would."""

import numpy as np


def share_slowly(gains: np.ndarray, total: int, low: int, high: int, discount: int) -> list[int]:
    """Splits per image of gains `[B, K]`: `low` each, then one at a time, up to `total` in all.

    The next split is the largest discounted gain of the images that have fewer than `high`; of
    equal ones that of the image with the fewest splits, then of the first image.
    """

    def worth(image: int, split: int) -> np.float32:
        gain = float(gains[image, split])
        power = float((split + 1) ** discount)
        return np.float32(gain * power if gain < 0 else gain / power)

    counts = [low] * len(gains)
    while sum(counts) < total:
        able = [image for image, count in enumerate(counts) if count < high]
        best = min(able, key=lambda i: (-worth(i, counts[i]), counts[i], i))
        counts[best] += 1
    return counts
