"""A map over an image averaged over the patches of each scale.

Summed in float64 in a fixed order, so that the result is the same everywhere.
"""

import numpy as np

from quadpipe.geometry import Geometry


def pool_to_patches(
    maps: np.ndarray, geometry: Geometry, cell: int | None = None
) -> list[np.ndarray]:
    """The mean of each map over the area of every splittable patch.

    maps: `[B, rows, columns]`. cell: side of the maps' cells in pixels; the last row and column of
    cells may be smaller. Without it, a map's cells divide the image evenly, in any number. Returns
    float32 `[B, rows, columns]` for each scale, coarse to fine.
    """
    scales = range(geometry.max_scale, 0, -1)
    return [pool_to_scale(maps, geometry, scale, cell) for scale in scales]


def pool_to_scale(
    maps: np.ndarray, geometry: Geometry, scale: int, cell: int | None = None
) -> np.ndarray:
    """As `pool_to_patches`, for the patches of one scale."""
    if cell is not None:
        pooled = pool_to_cells(maps, geometry, cell, geometry.patch_size << scale)
    else:
        from quadpipe.scorers.kernels import area_means

        # In units of which a cell has as many as there are patches, and a patch as there are cells.
        grid, (rows, columns) = geometry.grid(scale), maps.shape[1:]
        size = (rows * grid[0], columns * grid[1])
        pooled = area_means(maps.astype(np.float64), grid, (rows, columns), size)
    return pooled.astype(np.float32)


def pool_to_cells(maps: np.ndarray, geometry: Geometry, cell: int, side: int) -> np.ndarray:
    """Maps with cells of `cell` pixels as maps with cells of `side`: float64 `[B, rows, columns]`.

    Both start at the top left; the last cells may be smaller.
    """
    from quadpipe.scorers.kernels import area_means

    size = (geometry.height, geometry.width)
    return area_means(maps.astype(np.float64), (cell, cell), (side, side), size)
