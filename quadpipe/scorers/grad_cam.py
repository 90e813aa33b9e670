"""`grad-cam`, the paper's oracle: where a classifier sees the true class. For analysis.

Letters: B batch; C channels; h, w rows and columns of the feature map.
"""

from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers.network import EFFICIENTNET
from quadpipe.scorers.network_scorer import NetworkScorer
from quadpipe.scorers.pooling import pool_to_patches

if TYPE_CHECKING:
    from torch import Tensor


class GradCam(NetworkScorer):
    """Grad-CAM of the image's class, averaged over each patch (Selvaraju et al., arXiv 1610.02391).

    ReLU(sum over channels of a_c A_c) of the last feature map A `[C, h, w]` before the classifier,
    where a_c is the mean over the map of the gradient of the class's logit to A_c. A hint is a
    class index of the classifier, or a class name: a WordNet id of ImageNet-1k, or the index in
    decimals.
    """

    name = "grad-cam"
    summary = "where a classifier sees the image's own class (the paper's oracle; needs labels)"
    cost = "22 ms (EfficientNet-Lite0)"
    hint = "the class"
    label_aware = True
    default_backbone = EFFICIENTNET

    def __init__(self, geometry: Geometry, **network_options: Any) -> None:
        super().__init__(geometry, **network_options)
        if self._backbone.head is None:
            raise ConfigError(
                f"{self._parameters['backbone']} has no classifier here; give weights with one, or "
                f"--backbone {EFFICIENTNET}"
            )
        self._check_network(self._backbone.strides[0])

    def check_classes(self, classes: Sequence[str] | None) -> None:
        super().check_classes(classes)
        for name in classes or ():
            self._index(name)

    def _score_batch(self, images: "Tensor", hints: Sequence[Any]) -> list[np.ndarray]:
        import torch

        (features,) = self._features(images, self._backbone.strides[0])
        with torch.enable_grad():
            features.requires_grad_()
            logits = self._logits(features)
            classes = torch.tensor([self._index(hint, logits.shape[1]) for hint in hints])
            chosen = logits.gather(1, self._moved(classes)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), features)
        weights = gradient.float().mean((2, 3), keepdim=True)
        maps = (weights * features.detach().float()).sum(dim=1).relu()
        return pool_to_patches(maps.cpu().numpy(), self.geometry)

    def _logits(self, features: "Tensor") -> "Tensor":
        """`[B, classes]`; ConfigError when the network's head fails, or gives something else."""
        import torch

        name, head = self._parameters["backbone"], self._backbone.head
        assert head is not None
        try:
            logits = head(features)
        except Exception as error:  # the user's network may raise anything
            raise ConfigError(
                f"the head of backbone {name} failed on features {list(features.shape)}: "
                f"{type(error).__name__}: {error}; it must give logits [B, classes]"
            ) from error
        if not isinstance(logits, torch.Tensor) or logits.shape[:-1] != features.shape[:1]:
            raise ConfigError(f"the head of backbone {name} must give logits [B, classes]")
        return logits

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._backbone.classes or ())}

    def _index(self, hint: Any, count: int | None = None) -> int:
        """Index of the classifier's logit for a hint."""
        index: int | None
        if isinstance(hint, str):
            index = self._indices.get(hint)
            if index is None and hint.isdecimal() and hint.isascii():
                index = int(hint)
        else:
            index = int(hint) if isinstance(hint, Integral) else None
        count = count or len(self._backbone.classes or ()) or None
        if index is None or index < 0 or (count is not None and index >= count):
            raise ConfigError(
                f"class {hint!r} is not one of the classifier's {count or 'unknown'} classes; name "
                f"classes by their WordNet ids as in ImageNet, or by the classifier's indices"
            )
        return index
