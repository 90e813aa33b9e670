"""`uniform`: nothing to split, the plain ViT grid, for fair comparisons."""

from collections.abc import Sequence
from math import isqrt
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import MAX_IMAGE_SIDE, Geometry
from quadpipe.scorers.base import Scorer


class Uniform(Scorer):
    """All patches have one size. Raises ConfigError when the geometry has more than one."""

    name = "uniform"
    summary = "no scoring: all patches of one size, the plain ViT grid"
    cost = "nothing"

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        if geometry.max_scale:
            raise ConfigError(
                f"scorer uniform has patches of one size; give max_patch_size "
                f"{geometry.patch_size}, equal to patch_size, and {geometry.max_tokens} tokens"
            )

    @classmethod
    def check_grid(
        cls, image_size: tuple[int, int], patch_size: int, max_patch_size: int, tokens: int
    ) -> None:
        """Raise ConfigError, with options that work, unless the tokens are a grid over the image.

        Sizes below 1 are left to the geometry.
        """
        side, (height, width) = patch_size, image_size
        if min(side, height, width, tokens) < 1:
            return
        rows, columns = height // side, width // side
        fits = (rows * side, columns * side) == (height, width)
        if fits and max_patch_size == side and rows * columns == tokens:
            return
        root = isqrt(tokens)
        choices = [
            f"--tokens {n * n} --image-size {n * side} --max-patch-size {side}"
            for n in range(root, root + 1 if root * root == tokens else root + 2)
            if n * side <= MAX_IMAGE_SIDE
        ]
        if fits:
            choices.append(
                f"--tokens {rows * columns} --max-patch-size {side} for images of {height}x{width}"
            )
        raise ConfigError(
            f"scorer uniform cuts an image into a grid of equal patches, and {tokens} tokens of "
            f"{side} pixels are not a grid over {height}x{width} with patches of {side} to "
            f"{max_patch_size}; give {', or '.join(dict.fromkeys(choices))}"
        )

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        return []
