"""What every scorer is: uint8 images in, one float32 importance map per splittable scale out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry

Parameter = int | float | str


class Scorer(ABC):
    """Says which patches of an image matter.

    A scorer is made for one geometry. Its parameters decide the bytes of a dataset and are
    written into its plan and its manifest: `type(scorer)(geometry, **scorer.parameters)` scores
    alike (a network scorer needs its network beside). The same image gets the same importance in
    any batch, on any machine; from networks in batches of one size, on one kind of device, and
    otherwise but for the last digits.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for people
    cost: ClassVar[str]  # of an image of 256 x 256 pixels on one core, from benchmarks/scorers.py
    options: ClassVar[tuple[str, ...]] = ()  # fields of TokenizerConfig that it takes
    hint: ClassVar[str | None] = None  # what it must be told of each image beside its pixels
    label_aware: ClassVar[bool] = False  # looks at the label: for analysis, not for inference
    uses_network: ClassVar[bool] = False
    batches_out: ClassVar[int] = 1  # how many to submit before waiting for the first
    weights_sha256: str | None = None  # of a network's weights
    torch_version: str | None = None  # where torch decides bytes
    device: str | None = None  # kind of device that a network runs on

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What the scorer was made with, as JSON can hold it."""
        return {}

    def as_json(self) -> dict[str, Any]:
        """What a plan and a manifest say of the scorer."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "weights_sha256": self.weights_sha256,
            "label_aware": self.label_aware,
            "torch": self.torch_version,
            "device": self.device,
        }

    def score(self, images: np.ndarray, hints: Sequence[Any] | None = None) -> list[np.ndarray]:
        """Importance of every splittable patch; higher is split first.

        images: uint8 `[B, H, W, 3]`, RGB. hints: for each image what `hint` names, for the
        scorers that need it. Returns float32 `[B, rows, columns]` for each scale from S to 1
        (coarse to fine), finite. Raises ConfigError when hints are missing.
        """
        told = list(hints) if isinstance(hints, Sequence | np.ndarray) else []
        if self.hint and len(told) != len(images):
            raise ConfigError(
                f"scorer {self.name} needs {self.hint} for each image; give one hint an image"
            )
        if not len(images):
            grids = [self.geometry.grid(scale) for scale in self._splittable_scales()]
            return [np.zeros((0, *grid), np.float32) for grid in grids]
        return self._score(np.ascontiguousarray(images), told)

    def submit(
        self, images: np.ndarray, hints: Sequence[Any] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        """Begin to score; the function that is returned gives the maps, as `score` does.

        Scorers work at once, and then only one batch at a time should be out; a stand-in for
        scorers elsewhere overrides this and `batches_out`.
        """
        maps = self.score(images, hints)
        return lambda: maps

    def check_classes(self, classes: Sequence[str] | None) -> None:
        """Raise ConfigError when the scorer cannot work with these class names."""
        if self.label_aware and classes is None:
            raise ConfigError(
                f"scorer {self.name} needs labels; give a labelled source, or --labels"
            )

    @abstractmethod
    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        """As `score`, of at least one image."""

    def _splittable_scales(self) -> range:
        return range(self.geometry.max_scale, 0, -1)

    def _sides(self) -> list[int]:
        """Sides in pixels of the splittable patches, coarse to fine."""
        return [self.geometry.patch_size << scale for scale in self._splittable_scales()]
