"""A user's own scorer, named as `module:callable`."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from quadpipe.errors import ConfigError, JobError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Parameter, Scorer


@dataclass(frozen=True, kw_only=True)
class NamedScorer:
    """A scorer that the user has named: data that can be sent to other machines.

    target: `module:callable`; the callable returns a `Scorer` for a geometry. description: the
    scorer's `as_json` as text, checked wherever it is created.
    """

    target: str
    description: str | None = None
    sha256: str | None = None
    weights: ClassVar[None] = None


def import_named(target: str) -> Any:
    """The object that `module:name` names; modules of the working folder are found.

    Never pass a name that comes from a file. Raises what the import raises.
    """
    if os.getcwd() not in sys.path:  # as with `python -m`
        sys.path.append(os.getcwd())
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


class OwnScorer(Scorer):
    """Runs a user's scorer and checks what it returns.

    Raises ConfigError when it cannot be made or fails, JobError when its parameters
    differ from those of the first call.
    """

    name = "MODULE:CALLABLE"
    summary = "your own scorer; docs/scorers.md shows one"
    cost = "depends on the scorer"

    def __init__(self, geometry: Geometry, *, code: NamedScorer) -> None:
        super().__init__(geometry)
        self.name = code.target
        try:
            scorer = import_named(code.target)(geometry)
            if isinstance(scorer, Scorer):
                json.dumps(scorer.parameters, allow_nan=False)
        except ConfigError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(
                f"scorer {code.target} cannot be made: {type(error).__name__}: {error}; give "
                f"MODULE:CALLABLE that can be imported on every machine, takes a Geometry and "
                f"returns a Scorer"
            ) from error
        if not isinstance(scorer, Scorer):
            raise ConfigError(
                f"scorer {code.target} returned {type(scorer).__name__}; it must return a "
                f"quadpipe.scorers.Scorer"
            )
        if scorer.hint and not scorer.label_aware:
            raise ConfigError(
                f"scorer {code.target} needs {scorer.hint} per image; a scorer named on the "
                f"command line gets only pixels and, if it is label_aware, the class"
            )
        self._scorer = scorer
        self.hint, self.label_aware = scorer.hint, scorer.label_aware
        self.weights_sha256 = scorer.weights_sha256
        self.torch_version, self.device = scorer.torch_version, scorer.device
        if code.description not in (None, self.description):
            raise JobError(
                f"scorer {code.target} is {self.description} here, and was {code.description} when "
                f"it was first called; install the same version on all machines"
            )

    @property
    def description(self) -> str:
        return json.dumps(self.as_json(), sort_keys=True)

    @property
    def parameters(self) -> dict[str, Parameter]:
        return self._scorer.parameters

    def check_classes(self, classes: Sequence[str] | None) -> None:
        super().check_classes(classes)
        self._scorer.check_classes(classes)

    def check_repeatable(self) -> None:
        """Raise ConfigError unless a test image gets the same importance twice.

        A scorer that uses labels is not checked: its classes are not known here.
        """
        if self.label_aware:
            return
        shape = (1, self.geometry.height, self.geometry.width, 3)
        noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        for once, twice in zip(self.score(noise), self.score(noise), strict=True):
            if not np.array_equal(once, twice):
                raise ConfigError(
                    f"scorer {self.name} gives different importance for the same image; switch "
                    f"off its randomness"
                )

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        try:
            maps = [np.array(level, np.float32) for level in self._scorer.score(images, hints)]
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(
                f"scorer {self.name} failed on images {list(images.shape)}: "
                f"{type(error).__name__}: {error}; fix it, or use another --scorer"
            ) from error
        expected = [
            (len(images), *self.geometry.grid(scale)) for scale in self._splittable_scales()
        ]
        if [level.shape for level in maps] != expected:
            raise ConfigError(
                f"scorer {self.name} gave maps {[list(level.shape) for level in maps]} for images "
                f"{list(images.shape)}; they must be {[list(shape) for shape in expected]}, coarse "
                f"to fine"
            )
        if not all(np.isfinite(level).all() for level in maps):
            raise ConfigError(f"scorer {self.name} gave importances that are not finite; fix it")
        return maps
