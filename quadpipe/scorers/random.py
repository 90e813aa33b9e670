"""`random`: the baseline that every scorer has to beat."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Parameter, Scorer
from quadpipe.seeds import random_bits


class Random(Scorer):
    """Uniform in [0, 1), drawn from the seed and the image's own pixels.

    An image has the same mosaic in a job, in Python and at inference.
    """

    name = "random"
    summary = "uniform noise, seeded by the image: the baseline that every scorer has to beat"
    cost = "0.1 ms"
    uses_seed = True

    def __init__(self, geometry: Geometry, *, seed: int = 0) -> None:
        super().__init__(geometry)
        self.seed = seed

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {"seed": self.seed}

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        draws = np.empty((len(images), self.geometry.splittable), np.float32)
        for draw, image in zip(draws, images, strict=True):
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            bits = random_bits(len(draw), "scorers/random", self.seed, digest)
            draw[:] = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        grids = [self.geometry.grid(scale) for scale in self._splittable_scales()]
        ends = np.cumsum([rows * columns for rows, columns in grids])
        levels = np.split(draws, ends[:-1], axis=1)
        return [
            level.reshape(len(images), *grid) for level, grid in zip(levels, grids, strict=True)
        ]
