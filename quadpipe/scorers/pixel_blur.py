"""`pixel-blur`, the paper's baseline: what is lost when a patch is shown at fewer pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Scorer

IMAGENET_STD = (0.229, 0.224, 0.225)

# The squares of one column of a patch are summed in int64.
LARGEST_SUM = 2**63 - 1


class PixelBlur(Scorer):
    """sqrt(mean squared error of blurring) * sqrt(side of the patch in pixels).

    The whole image is downsampled by 2**s and upsampled back, bilinear, half-pixel centres, no
    antialiasing; the squared difference is averaged over the patch's pixels and the three
    channels, normalised by ImageNet's standard deviations (arXiv 2304.00287, section 3.2, and the
    authors' code). The squares are summed as integers, so importances are the same everywhere.
    """

    name = "pixel-blur"
    summary = "error of downsampling and upsampling the pixels (the paper's baseline)"
    cost = "0.3 ms"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        check_blur_is_exact(self.name, geometry)

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.kernels import blur_errors

        maps = []
        for scale, side in zip(self._splittable_scales(), self._sides(), strict=True):
            sums = blur_errors(images, scale, side)
            unit = 16.0 * 4.0**scale * 255.0
            red, green, blue = (
                sums[..., c] / (side * side * unit * unit * IMAGENET_STD[c] ** 2) for c in range(3)
            )
            maps.append(np.sqrt((red + green + blue) / 3.0 * side).astype(np.float32))
        return maps


def check_blur_is_exact(scorer: str, geometry: Geometry) -> None:
    """Raise ConfigError when the squared errors of a column of a patch may not fit an int64."""
    factor = 2**geometry.max_scale
    if (16 * factor**2 * 255) ** 2 * geometry.max_patch_size > LARGEST_SUM:
        raise ConfigError(
            f"{scorer} cannot sum patches of {geometry.max_patch_size} pixels exactly, "
            f"{factor} times patch_size; use a smaller max_patch_size"
        )
