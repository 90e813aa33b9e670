"""The interface of scorers: uint8 images in, a float32 importance map per splittable scale out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.fields import declared_options
from quadpipe.geometry import Geometry

Parameter = int | float | str


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The empty options of a scorer without options."""


class Scorer(ABC):
    """Importance of the splittable patches of images.

    A scorer is made for one geometry. Its parameters decide the bytes of a dataset and are
    written into its plan and its manifest: `type(scorer)(geometry, **scorer.parameters)` gives the
    same scores (a network scorer also needs its network). An image has the same importance in any
    batch and on any machine. Networks promise that for one batch size and one kind of device;
    otherwise the last digits may differ.

    options: a dataclass of the scorer's own command-line options (`fields.option`), all None by
    default. An option `scorer_x` is passed to the constructor as `x`.
    """

    name: str
    summary: ClassVar[str]  # one line for people
    cost: ClassVar[str]  # per image of 256 x 256 pixels on one core, from benchmarks/scorers.py
    options: ClassVar[type[Any]] = NoOptions
    uses_seed: ClassVar[bool] = False  # the constructor also takes the configuration's `seed`
    uses_network: ClassVar[bool] = False
    hint: str | None = None  # what it needs per image besides the pixels
    label_aware: bool = False  # uses the label: for analysis, not for inference
    batches_out: ClassVar[int] = 1  # how many batches to submit before waiting for the first
    weights_sha256: str | None = None  # of a network's weights
    torch_version: str | None = None  # set where torch decides the bytes
    device: str | None = None  # kind of device that a network runs on

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Fields of TokenizerConfig that the scorer takes."""
        return (*declared_options(cls.options), *(("seed",) if cls.uses_seed else ()))

    @classmethod
    def check_grid(
        cls, image_size: tuple[int, int], patch_size: int, max_patch_size: int, tokens: int
    ) -> None:
        """Raise ConfigError when the scorer cannot cut images into these patches.

        Called before the geometry is checked, so that its message can name the scorer.
        """
        return

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Arguments of the constructor, as JSON values."""
        return {}

    def as_json(self) -> dict[str, Any]:
        """The scorer's entry in the plan and the manifest."""
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

        images: uint8 `[B, H, W, 3]`, RGB. hints: one per image, as `hint` names it, for the
        scorers that need it. Returns float32 `[B, rows, columns]` for each scale from S to 1
        (coarse to fine), finite. Raises ConfigError when hints are missing.
        """
        given = list(hints) if isinstance(hints, Sequence | np.ndarray) else []
        if self.hint and len(given) != len(images):
            raise ConfigError(
                f"scorer {self.name} needs {self.hint} for each image; give one hint per image"
            )
        if not len(images):
            grids = [self.geometry.grid(scale) for scale in self._splittable_scales()]
            return [np.zeros((0, *grid), np.float32) for grid in grids]
        return self._score(np.ascontiguousarray(images), given)

    def submit(
        self, images: np.ndarray, hints: Sequence[Any] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        """Start scoring; returns a function that waits for the maps of `score` and returns them.

        Scores at once by default. A scorer that works in other processes overrides this and
        `batches_out`.
        """
        maps = self.score(images, hints)
        return lambda: maps

    def check_classes(self, classes: Sequence[str] | None) -> None:
        """Raise ConfigError when the scorer cannot work with these class names."""
        if self.label_aware and classes is None:
            raise ConfigError(
                f"scorer {self.name} needs labels; give a source with labels, or --labels"
            )

    @abstractmethod
    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        """As `score`, for at least one image and with its hints."""

    def _splittable_scales(self) -> range:
        return range(self.geometry.max_scale, 0, -1)

    def _sides(self) -> list[int]:
        """Sides in pixels of the splittable patches, coarse to fine."""
        return [self.geometry.patch_size << scale for scale in self._splittable_scales()]
