"""Averages a map of an image over the patches of each scale."""

import numpy as np

from quadpipe.geometry import Geometry


def pool_to_patches(maps: np.ndarray, geometry: Geometry) -> list[np.ndarray]:
    """The mean of each map over the area of every splittable patch.

    maps: `[B, rows, columns]` of any number of rows and columns, whose cells divide the image
    evenly. Returns float32 `[B, rows, columns]` for each scale, coarse to fine. Summed in float64
    in a fixed order, so that the result is the same everywhere.
    """
    return [pool_to_scale(maps, geometry, scale) for scale in range(geometry.max_scale, 0, -1)]


def pool_to_scale(maps: np.ndarray, geometry: Geometry, scale: int) -> np.ndarray:
    """As `pool_to_patches`, for the patches of one scale."""
    rows, columns = geometry.grid(scale)
    pooled = _mean_along(_mean_along(maps.astype(np.float64), 1, rows), 2, columns)
    return pooled.astype(np.float32)


def _mean_along(values: np.ndarray, axis: int, count: int) -> np.ndarray:
    """Resample one axis to `count` cells, each the mean of the input under it."""
    length = values.shape[axis]
    # In units of which an input cell has `count` and an output cell `length`.
    begins = np.arange(count) * length
    total = np.zeros((*values.shape[:axis], count, *values.shape[axis + 1 :]))
    shape = [-1 if a == axis else 1 for a in range(values.ndim)]
    for step in range(-(-length // count) + 1):
        cells = begins // count + step
        ends = np.minimum((cells + 1) * count, begins + length)
        overlap = np.maximum(ends - np.maximum(cells * count, begins), 0)
        total += values.take(np.minimum(cells, length - 1), axis) * overlap.reshape(shape)
    mean: np.ndarray = total / length
    return mean
