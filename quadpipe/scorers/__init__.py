"""Scorers by name: one file a family, one registry."""

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.pixel_blur import PixelBlur
from quadpipe.scorers.random import Random
from quadpipe.scorers.uniform import Uniform

SCORERS: dict[str, type[Scorer]] = {scorer.name: scorer for scorer in (PixelBlur, Random, Uniform)}

__all__ = ["SCORERS", "Scorer", "make_scorer"]


def make_scorer(name: str, geometry: Geometry, **parameters: int | float | str) -> Scorer:
    """The scorer of that name; ConfigError when there is none or it does not fit the geometry."""
    if name not in SCORERS:
        raise ConfigError(f"no scorer is called {name!r}; use one of {', '.join(SCORERS)}")
    if name != Uniform.name and not geometry.max_scale:
        raise ConfigError(
            f"max_patch_size equals patch_size {geometry.patch_size}, so there is nothing to "
            f"score; use scorer uniform, or a larger max_patch_size"
        )
    return SCORERS[name](geometry, **parameters)
