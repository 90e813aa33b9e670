"""The scorers of APT (Adaptive Patch Transformers, arXiv 2510.18091) and its code.

APT keeps a large patch where its score is below the threshold of its scale; in quadpipe a threshold
is subtracted from the importance, and APT's choice is the selection at gain >= 0. Two differences:
APT pads images whose sides are not multiples of its patches, which quadpipe refuses; and its
Laplacian divides by 255 only if a batch has a pixel above 1, here always.

Letters: B batch; H, W image height and width in pixels.
"""

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import cache
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.pixel_blur import BlurScorer

_GRAY_UNITS = 10_000 * 255
_LARGEST_ENTROPY_SIDE = 256
_TABLE_BITS = 32


class Entropy(Scorer):
    """Shannon entropy in bits of the patch's gray levels, -sum q log2 q over 512 bins.

    Gray is 0.2989 R + 0.5870 G + 0.1140 B, a bin half a level wide; from 0 bits, a flat patch, to
    log2(512) = 9. n log2 n comes from a table in units of 2^-32, made with exact decimals, and is
    summed as integers. (APT adds 1e-10 to q inside the logarithm: less than 1e-7 bits.)
    """

    name = "entropy"
    summary = "bits of the gray-level histogram (APT)"
    cost = "0.2 ms"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if geometry.max_patch_size > _LARGEST_ENTROPY_SIDE:
            raise ConfigError(
                f"entropy counts patches of up to {_LARGEST_ENTROPY_SIDE} pixels, not "
                f"{geometry.max_patch_size}; use a smaller max_patch_size"
            )

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.kernels import entropy_sums

        sides = self._sides()
        table = count_log2_table(sides[0] ** 2)
        sums = entropy_sums(images, sides[-1], len(sides), table)
        maps, first = [], 0
        for scale, side in zip(self._splittable_scales(), sides, strict=True):
            rows, columns = self.geometry.grid(scale)
            level = sums[:, first : first + rows * columns].reshape(-1, rows, columns)
            first += rows * columns
            pixels = side * side
            bits = (table[pixels] - level) / (pixels * 2.0**_TABLE_BITS)
            maps.append(bits.astype(np.float32))
        return maps


class Laplacian(Scorer):
    """Mean of the absolute 8-neighbor Laplacian (1 around, -8 in the center) of gray / 255.

    Gray as for `entropy`; the image is reflected at its border. From 0 to 8. Summed as integers.
    """

    name = "laplacian"
    summary = "mean absolute Laplacian of the gray image: edges and fine texture (APT)"
    cost = "0.1 ms"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.kernels import laplacian_sums

        sides = self._sides()
        sums = [laplacian_sums(images, sides[-1])]
        for _ in sides[1:]:
            finer = sums[0]
            rows = finer[:, 0::2] + finer[:, 1::2]
            sums.insert(0, rows[:, :, 0::2] + rows[:, :, 1::2])
        return [
            (total / (side * side * float(_GRAY_UNITS))).astype(np.float32)
            for side, total in zip(sides, sums, strict=True)
        ]


class UpsampleMse(BlurScorer):
    """Mean squared error of RGB / 255 after downsampling by 2**s and upsampling back.

    The mean over the patch's pixels and channels, from 0 to 1. `pixel-blur` is the root of this,
    with normalized colors, times the root of the patch's side.
    """

    name = "upsample-mse"
    summary = "squared error of downsampling and upsampling (APT)"
    cost = "0.3 ms"

    def _importance(self, sums: np.ndarray, unit: float, side: int) -> np.ndarray:
        total: np.ndarray = sums[..., 0] + sums[..., 1] + sums[..., 2]
        return total / (3 * side * side * unit**2)


@cache
def count_log2_table(largest: int) -> np.ndarray:
    """round(n log2 n * 2^32) for n from 0 to `largest`, int64, the same on every machine."""
    context = Context(prec=34)
    scale = context.divide(Decimal(2**_TABLE_BITS), context.ln(Decimal(2)))
    values = [0]
    for n in range(1, largest + 1):
        exact = context.multiply(context.multiply(context.ln(Decimal(n)), scale), Decimal(n))
        values.append(int(exact.to_integral_value()))
    table = np.array(values, np.int64)
    table.flags.writeable = False
    return table
