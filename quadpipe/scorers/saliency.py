"""Saliency without a network: `rarity`, `barrier` and their product, `saliency`.

Each is a map relative to its own image: divided by its mean over the image, and averaged over a
patch, so that importance does not grow with the patch.

Letters: B batch; h, w rows and columns of cells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.pooling import pool_to_cells, pool_to_patches

PRODUCT_CELL = 16
"""Side in pixels of the cells of `relative_product`."""

_FLOOR = 1e-3  # of a relative map in a product, so that one map alone does not make it 0


class Rarity(Scorer):
    """How much the colors and textures of a place differ from those of the whole image.

    For each cell of 8 x 8 pixels the squared Mahalanobis distance of 8 features from the image's
    mean cell, squared once more. It is the RX detector of Reed and Yu (IEEE Transactions on
    Acoustics, Speech and Signal Processing 38, 1990). Features: mean and standard deviation of R, G
    and B, mean absolute difference of gray (0.299 R + 0.587 G + 0.114 B) between neighbors in a row
    and in a column of the cell. The ridge of the covariance is 4 squared gray levels. 0 where all
    cells are equal.
    """

    name = "rarity"
    summary = "how much colors and texture differ from the rest of the image (RX detector)"
    cost = "0.2 ms"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.saliency_kernels import LARGE_CELL, saliency_maps

        rare, _ = saliency_maps(images, True, False)
        return pool_to_patches(relative(rare, self.geometry, LARGE_CELL), self.geometry, LARGE_CELL)


class Barrier(Scorer):
    """How sharply a place is separated from the image's border.

    For each cell of 4 x 4 pixels the minimum barrier distance to the border, summed over the
    opponent channels R + G + B, 6 (R - G) and 3 (R + G - 2 B), and squared (Zhang et al., Minimum
    Barrier Salient Object Detection at 80 FPS, ICCV 2015). 0 at the border.
    """

    name = "barrier"
    summary = "how sharply a place is separated from the image's border (minimum barrier distance)"
    cost = "0.2 ms"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.saliency_kernels import SMALL_CELL, saliency_maps

        _, far = saliency_maps(images, False, True)
        return pool_to_patches(relative(far, self.geometry, SMALL_CELL), self.geometry, SMALL_CELL)


class Saliency(Scorer):
    """Geometric mean of `rarity` and `barrier`, each plus 0.001, on cells of 16 x 16 pixels."""

    name = "saliency"
    summary = "rarity and barrier: what differs from the image and is separated from its border"
    cost = "0.3 ms"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.saliency_kernels import LARGE_CELL, SMALL_CELL, saliency_maps

        rare, far = saliency_maps(images, True, True)
        product = relative_product([(rare, LARGE_CELL), (far, SMALL_CELL)], self.geometry)
        return pool_to_patches(np.sqrt(product), self.geometry, PRODUCT_CELL)


def relative_product(factors: Sequence[tuple[np.ndarray, int]], geometry: Geometry) -> np.ndarray:
    """The product of relative maps, each plus 0.001, on cells of PRODUCT_CELL pixels.

    factors: maps `[B, h, w]` and the side of their cells in pixels.
    """
    product = np.ones(())
    for maps, cell in factors:
        cells = pool_to_cells(maps, geometry, cell, PRODUCT_CELL)
        product = product * (relative(cells, geometry, PRODUCT_CELL) + _FLOOR)
    return product


def relative(maps: np.ndarray, geometry: Geometry, cell: int) -> np.ndarray:
    """Maps with cells of `cell` pixels, `[B, h, w]`, divided by their means over the image.

    Maps of zeros are zeros.
    """
    from quadpipe.scorers.kernels import area_means

    size = (geometry.height, geometry.width)
    means = area_means(maps, (cell, cell), size, size)
    return maps / np.where(means > 0, means, 1.0)
