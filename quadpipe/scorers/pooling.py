"""A map over an image averaged over the patches of each scale."""

import math

import numpy as np

from quadpipe.geometry import Geometry


def pool_to_patches(maps: np.ndarray, geometry: Geometry) -> list[np.ndarray]:
    """The mean of each map over the area of every splittable patch.

    maps: `[B, rows, columns]` of any number of rows and columns, whose cells divide the image
    evenly. Returns float32 `[B, rows, columns]` for each scale, coarse to fine. Summed in float64
    in a fixed order, so that the result is the same everywhere.
    """
    exact = maps.astype(np.float64)
    levels = []
    for scale in range(geometry.max_scale, 0, -1):
        rows, columns = geometry.grid(scale)
        pooled = _mean_along(_mean_along(exact, 1, rows), 2, columns)
        levels.append(pooled.astype(np.float32))
    return levels


def _mean_along(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Resample one axis to `count` cells, each the mean of what lies under it."""
    length = values.shape[axis]
    common = math.lcm(length, count)
    fine = values.repeat(common // length, axis)
    step = common // count
    parts = [fine.take(range(k, common, step), axis) for k in range(step)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / step
