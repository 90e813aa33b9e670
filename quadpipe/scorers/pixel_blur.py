"""`pixel-blur`, the paper's baseline: what is lost when a patch is shown at fewer pixels."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.images import IMAGENET_STD
from quadpipe.scorers.base import Scorer

# The squares of one column of a patch are summed in float64, exactly.
LARGEST_SUM = 2**53


class BlurScorer(Scorer):
    """Scores by the squared error of downsampling the whole image by 2**s and upsampling it again.

    Bilinear, half-pixel centers, no antialiasing. The squares are summed exactly, so that
    importances are the same everywhere. Raises ConfigError on patches too large for that.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        factor = 2**geometry.max_scale
        if (16 * factor**2 * 255) ** 2 * geometry.max_patch_size > LARGEST_SUM:
            raise ConfigError(
                f"{self.name} cannot sum patches of {geometry.max_patch_size} pixels exactly, "
                f"{factor} times patch_size; use a smaller max_patch_size"
            )

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.kernels import blur_errors

        maps = []
        for scale, side in zip(self._splittable_scales(), self._sides(), strict=True):
            sums = blur_errors(images, scale, side)
            unit = 16.0 * 4.0**scale * 255.0
            maps.append(self._importance(sums, unit, side).astype(np.float32))
        return maps

    @abstractmethod
    def _importance(self, sums: np.ndarray, unit: float, side: int) -> np.ndarray:
        """From sums over the patches' pixels, float64 `[B, rows, columns, 3]`.

        They are in units of (1 / unit)^2 for pixels from 0 to 1.
        """


class PixelBlur(BlurScorer):
    """sqrt(mean squared error of blurring) * sqrt(side of the patch in pixels).

    The squared difference is averaged over the patch's pixels and the three channels, normalized by
    ImageNet's standard deviations (arXiv 2304.00287, section 3.2, and the authors' code).
    """

    name = "pixel-blur"
    summary = "error of downsampling and upsampling the pixels (the paper's baseline)"
    cost = "0.3 ms"

    def _importance(self, sums: np.ndarray, unit: float, side: int) -> np.ndarray:
        red, green, blue = (
            sums[..., c] / (side * side * unit * unit * IMAGENET_STD[c] ** 2) for c in range(3)
        )
        importance: np.ndarray = np.sqrt((red + green + blue) / 3.0 * side)
        return importance
