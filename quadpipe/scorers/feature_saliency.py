"""`feature-saliency`: where a network's features differ from those of the whole image.

Letters: B batch; C channels; h, w rows and columns of a feature map.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quadpipe.geometry import Geometry
from quadpipe.scorers.network import EFFICIENTNET
from quadpipe.scorers.network_scorer import NetworkScorer
from quadpipe.scorers.pooling import pool_to_patches
from quadpipe.scorers.saliency import PRODUCT_CELL, relative_product

if TYPE_CHECKING:
    from torch import Tensor

_SHARE_OF_MEAN = 0.05  # added to a channel's standard deviation
_SMALLEST_DEVIATION = 1e-12


class FeatureSaliency(NetworkScorer):
    """Geometric mean of three maps, from one pass of the network over the image.

    - the squared distance of each feature vector from the image's mean one, at the last stride;
    - at the stride before it, the mean over channels of the squared z-score, (x - mean)^2 over the
      squared standard deviation of the channel in the image, plus 5 % of the mean over channels;
      squared. Left out where the backbone has one stride only, as a user's own does;
    - the map of `barrier`.

    Each is divided by its mean over the image, plus 0.001, on cells of 16 x 16 pixels, and the
    geometric mean is averaged over the patch.
    """

    name = "feature-saliency"
    summary = "where a network's features differ from the whole image's, and barrier; one pass"
    cost = "25 ms (EfficientNet-Lite0)"
    default_backbone = EFFICIENTNET

    def __init__(self, geometry: Geometry, **network_options: Any) -> None:
        super().__init__(geometry, **network_options)
        self._strides = self._backbone.strides[:2]
        self._check_network(self._strides[0])

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        from quadpipe.scorers.saliency_kernels import SMALL_CELL, saliency_maps

        maps = super()._score(images, hints)
        _, far = saliency_maps(images, False, True)
        factors = [*zip(maps, self._strides, strict=True), (far, SMALL_CELL)]
        product = relative_product(factors, self.geometry)
        mean = np.cbrt(product) if len(factors) == 3 else np.sqrt(product)
        return pool_to_patches(mean, self.geometry, PRODUCT_CELL)

    def _score_batch(self, images: "Tensor", hints: Sequence[Any]) -> list[np.ndarray]:
        """The maps from the network, float32 `[B, h, w]`, the last stride first."""
        last, *before = (features.float() for features in self._features(images, *self._strides))
        maps = [_centered(last).square().sum(dim=1)]
        for features in before:
            centered = _centered(features)
            deviation = centered.square().mean((2, 3), keepdim=True).sqrt()
            deviation += _SHARE_OF_MEAN * deviation.mean(dim=1, keepdim=True)
            scores = centered / deviation.clamp(min=_SMALLEST_DEVIATION)
            maps.append(scores.square().mean(dim=1).square())
        return [values.cpu().numpy() for values in maps]


def _centered(features: "Tensor") -> "Tensor":
    """`[B, C, h, w]` less the mean over the image."""
    return features - features.mean((2, 3), keepdim=True)
