"""The registry of scorers. A new scorer is one file and one line here."""

from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.apt import Entropy, Laplacian, UpsampleMse
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.feature import Feature
from quadpipe.scorers.grad_cam import GradCam
from quadpipe.scorers.network import Network, find_network
from quadpipe.scorers.network_scorer import NetworkScorer
from quadpipe.scorers.own import NamedScorer, OwnScorer
from quadpipe.scorers.pixel_blur import PixelBlur
from quadpipe.scorers.precomputed import Precomputed
from quadpipe.scorers.random import Random
from quadpipe.scorers.saliency import Barrier, Rarity, Saliency
from quadpipe.scorers.uniform import Uniform

SCORERS: dict[str, type[Scorer]] = {
    scorer.name: scorer
    for scorer in (
        *(PixelBlur, Feature, GradCam, Precomputed),
        *(Saliency, Rarity, Barrier),
        *(Entropy, Laplacian, UpsampleMse),
        *(Random, Uniform),
    )
}

ScorerCode = Network | NamedScorer
"""Code and weights that a scorer needs besides its options."""

__all__ = [
    "SCORERS",
    "Network",
    "NetworkScorer",
    "Scorer",
    "ScorerCode",
    "find_network",
    "make_scorer",
    "scorer_type",
]


def scorer_type(name: str) -> type[Scorer]:
    """The class of that name, OwnScorer for a `module:callable`; ConfigError on other names."""
    if ":" in name:
        return OwnScorer
    if name not in SCORERS:
        raise ConfigError(
            f"there is no scorer {name!r}; use one of {', '.join(SCORERS)}, or MODULE:CALLABLE"
        )
    return SCORERS[name]


def make_scorer(name: str, geometry: Geometry, **parameters: Any) -> Scorer:
    """The scorer of that name; ConfigError when there is none or it does not fit the geometry.

    A network scorer needs a `network`, from `find_network`, an own scorer its `code`.
    """
    kind = scorer_type(name)
    if kind is not Uniform and not geometry.max_scale:
        raise ConfigError(
            f"max_patch_size equals patch_size {geometry.patch_size}, so there is nothing to "
            f"score; use scorer uniform, or a larger max_patch_size"
        )
    return kind(geometry, **parameters)
