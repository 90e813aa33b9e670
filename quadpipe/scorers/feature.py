"""`feature`, the paper's main scorer: the change of a network's features when a patch is blurred.

Letters: B batch; C channels; h, w rows and columns of the feature map; H, W of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quadpipe.fields import declared_options, option
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Parameter
from quadpipe.scorers.network import SHUFFLENET
from quadpipe.scorers.network_scorer import NetworkOptions, NetworkScorer
from quadpipe.scorers.pooling import pool_to_patches, pool_to_scale

if TYPE_CHECKING:
    from torch import Tensor


_BLURS = ("each", "2x")


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(NetworkOptions):
    scorer_stride: int | None = option(
        None, "Scorer feature: stride of the features in pixels, 32 (the default) or 16."
    )
    scorer_distance: str | None = option(
        None,
        "Scorer feature: distance between features; by default mse.",
        choices=("mse", "cosine"),
    )
    scorer_blur: str | None = option(
        None,
        "Scorer feature: blur the image for each scale by its own factor (each, the paper's and "
        "the default), or once, by 2, for all scales (2x: two passes of the network).",
        choices=_BLURS,
    )


class Feature(NetworkScorer):
    """Distance between features of the image and of the image blurred, averaged over a patch.

    For patches of scale s the whole image is downsampled by 2**s and upsampled back, bilinear,
    half-pixel centers, no antialiasing; the distance of the two feature vectors of each cell,
    `mse` over the C channels or `cosine`, 1 - cos (0 where both are zero), is averaged over the
    patch (arXiv 2304.00287, section 3.2, and the authors' code). With blur `2x` the factor is 2 for
    all scales. Features are those of `backbone` before its classifier, at a 32nd or a 16th of the
    image's resolution.
    """

    name = "feature"
    summary = "change of a network's features when a patch is blurred (the paper's main scorer)"
    cost = "11 ms (ShuffleNetV2 x0.5), 66 ms (EfficientNet-Lite0)"
    options = FeatureOptions
    default_backbone = SHUFFLENET

    def __init__(
        self,
        geometry: Geometry,
        *,
        stride: int | None = None,
        distance: str = "mse",
        blur: str = "each",
        **network_options: Any,
    ) -> None:
        super().__init__(geometry, **network_options)
        options = declared_options(FeatureOptions)
        options["scorer_distance"].check("scorer_distance", distance)
        options["scorer_blur"].check("scorer_blur", blur)
        self._stride = self._backbone.strides[0] if stride is None else stride
        self._check_network(self._stride)
        self._distance = distance
        self._blurs_once = blur == "2x"

    @property
    def parameters(self) -> dict[str, Parameter]:
        parameters = super().parameters | {"stride": self._stride, "distance": self._distance}
        return parameters | ({"blur": "2x"} if self._blurs_once else {})

    def _score_batch(self, images: "Tensor", hints: Sequence[Any]) -> list[np.ndarray]:
        (sharp,) = self._features(images, self._stride)

        def blurring(scale: int) -> "Tensor":
            (blurred,) = self._features(_blur(images, 2**scale), self._stride)
            return self._distances(sharp.float(), blurred.float())

        if self._blurs_once:
            return pool_to_patches(blurring(1).cpu().numpy(), self.geometry)
        maps = {scale: blurring(scale) for scale in self._splittable_scales()}
        return [
            pool_to_scale(distances.cpu().numpy(), self.geometry, scale)
            for scale, distances in maps.items()
        ]

    def _distances(self, sharp: "Tensor", blurred: "Tensor") -> "Tensor":
        """`[B, h, w]`, at least 0."""
        if self._distance == "mse":
            return (sharp - blurred).square().mean(dim=1)
        from torch.nn.functional import cosine_similarity

        distances = (1 - cosine_similarity(sharp, blurred, dim=1)).clamp(min=0)
        nothing = (sharp == 0).all(dim=1) & (blurred == 0).all(dim=1)
        return distances.masked_fill(nothing, 0)


def _blur(images: "Tensor", factor: int) -> "Tensor":
    from torch.nn.functional import interpolate

    height, width = images.shape[2:]
    small = interpolate(images, (height // factor, width // factor), mode="bilinear")
    return interpolate(small, (height, width), mode="bilinear")
