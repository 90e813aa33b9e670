"""`precomputed`: importance maps made elsewhere.

A map covers the image after resizing and cropping.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.pooling import pool_to_patches

_LARGEST_MAP = 1 << 24  # cells


class Precomputed(Scorer):
    """The mean of a given map over each patch, or a given map for each scale.

    A hint is an array of real numbers or booleans `[rows, columns]` with square cells, of any
    resolution, or a sequence of such arrays, one per scale, coarse to fine, with exactly the
    patches' rows and columns. True counts as 1, False as 0.
    """

    name = "precomputed"
    summary = "the mean of a given map, or given maps for each scale"
    cost = "reading the map"
    hint = "an importance map"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        levels = [map_levels(hint, self.geometry) for hint in hints]
        return [np.stack(level) for level in zip(*levels, strict=True)]


def map_levels(hint: Any, geometry: Geometry) -> list[np.ndarray]:
    """Importance at each scale, float32 `[rows, columns]`, coarse to fine, from a hint.

    Raises ConfigError when it has another shape or other values than finite real numbers.
    """
    several = isinstance(hint, list | tuple)
    arrays = [np.asarray(array) for array in (hint if several else [hint])]
    # In a file, a boolean may be a byte above 1.
    zero, one = np.uint8(0), np.uint8(1)
    arrays = [np.where(a, one, zero) if a.dtype.kind == "b" else a for a in arrays]
    for array in arrays:
        if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.size:
            raise ConfigError(
                f"an importance map must be real numbers [rows, columns]; this one is "
                f"{array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all() or abs(array).max() > np.finfo(np.float32).max:
            raise ConfigError(
                "an importance map must hold finite float32 numbers; this one does not"
            )
    if several:
        expected = [geometry.grid(scale) for scale in range(geometry.max_scale, 0, -1)]
        if [array.shape for array in arrays] != expected:
            raise ConfigError(
                f"maps of each scale must be {[list(grid) for grid in expected]}, coarse to fine; "
                f"these are {[list(array.shape) for array in arrays]}"
            )
        return [array.astype(np.float32) for array in arrays]
    rows, columns = arrays[0].shape
    if rows * geometry.width != columns * geometry.height or rows * columns > _LARGEST_MAP:
        raise ConfigError(
            f"an importance map must have square cells over {geometry.height} x {geometry.width} "
            f"pixels; this one is {rows} x {columns}"
        )
    return [level[0] for level in pool_to_patches(arrays[0][None], geometry)]
