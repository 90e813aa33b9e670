"""What every scorer is: uint8 images in, one float32 importance map per splittable scale out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from quadpipe.geometry import Geometry


class Scorer(ABC):
    """Says which patches of an image matter.

    A scorer is made for one geometry. Its parameters decide the bytes of a dataset and are
    written into its plan and its manifest: `type(scorer)(geometry, **scorer.parameters)` scores
    alike. The same image gets the same importance in any batch, on any machine.
    """

    name: ClassVar[str]
    label_aware: ClassVar[bool] = False  # looks at the label: for analysis, not for inference
    summary: ClassVar[str]  # one line for people
    weights_sha256: str | None = None  # of a network's weights

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @property
    def parameters(self) -> dict[str, int | float | str]:
        """What the scorer was made with, as JSON can hold it."""
        return {}

    @abstractmethod
    def score(self, images: np.ndarray) -> list[np.ndarray]:
        """Importance of every splittable patch; higher is split first.

        images: uint8 `[B, H, W, 3]`, RGB. Returns float32 `[B, rows, columns]` for each scale
        from S to 1 (coarse to fine), finite.
        """

    def _splittable_scales(self) -> range:
        return range(self.geometry.max_scale, 0, -1)
