"""Networks of scorers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quadpipe.geometry import Geometry
from quadpipe.scorers import Network, find_network, make_scorer


@pytest.fixture(scope="session")
def geometry() -> Geometry:
    return Geometry(height=256, width=256, patch_size=16, max_patch_size=64)


@pytest.fixture(scope="session")
def shufflenet(shufflenet_weights: Path) -> Network:
    return find_network("shufflenet-v2-x0.5", shufflenet_weights)


@pytest.fixture(scope="session")
def efficientnet() -> Network:
    return find_network("efficientnet-lite0")


@pytest.fixture(scope="session")
def scores_of(geometry: Geometry) -> Callable[..., list[np.ndarray]]:
    """Scores images with a scorer of that name and a network."""

    def score(
        name: str, network: Network, images: np.ndarray, hints: Any = None, **options: Any
    ) -> list[np.ndarray]:
        return make_scorer(name, geometry, network=network, **options).score(images, hints)

    return score
