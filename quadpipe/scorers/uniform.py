"""`uniform`: nothing to split, the plain ViT grid, for fair comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
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

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        return []
