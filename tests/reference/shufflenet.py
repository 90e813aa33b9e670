"""ShuffleNetV2 x0.5 and the paper's feature scorer, as they are defined: no batch norm folded,
three passes, contiguous memory."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

EPSILON = 1e-5


class ShuffleNet:
    """Runs on torchvision's state dict as it is."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv_norm(self, x: Tensor, name: str, position: int, **options: Any) -> Tensor:
        x = F.conv2d(x, self.state[f"{name}.{position}.weight"], **options)
        norm = f"{name}.{position + 1}"
        mean, variance, gain, shift = (
            self.state[f"{norm}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gain, shift, eps=EPSILON)

    def unit(self, x: Tensor, name: str, stride: int) -> Tensor:
        if stride == 1:
            left, right = x.chunk(2, dim=1)
        else:
            depthwise = self.conv_norm(
                x, f"{name}.branch1", 0, stride=2, padding=1, groups=x.shape[1]
            )
            left, right = self.conv_norm(depthwise, f"{name}.branch1", 2).relu(), x
        main = self.conv_norm(right, f"{name}.branch2", 0).relu()
        main = self.conv_norm(
            main, f"{name}.branch2", 3, stride=stride, padding=1, groups=main.shape[1]
        )
        main = self.conv_norm(main, f"{name}.branch2", 5).relu()
        joined = torch.cat([left, main], dim=1)
        batch, channels, height, width = joined.shape
        groups = joined.view(batch, 2, channels // 2, height, width)
        return groups.transpose(1, 2).reshape(batch, channels, height, width)

    def stages(self, x: Tensor, last: int) -> Tensor:
        x = self.conv_norm(x, "conv1", 0, stride=2, padding=1).relu()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage, units in ((2, 4), (3, 8), (4, 4)):
            if stage <= last:
                for number in range(units):
                    x = self.unit(x, f"stage{stage}.{number}", 1 if number else 2)
        return x

    def features(self, x: Tensor, stride: int) -> Tensor:
        if stride == 16:
            return self.stages(x, 3)
        return self.conv_norm(self.stages(x, 4), "conv5", 0).relu()


def feature_maps(
    network: ShuffleNet,
    images: Tensor,
    sides: list[int],
    stride: int,
    distance: str,
    blur: str = "each",
) -> list[Tensor]:
    """Importance of patches of each side in pixels, of normalised images `[B, 3, H, W]`.

    sides: coarse to fine, the last twice the patch size.
    """
    sharp = network.features(images, stride)
    maps = []
    for side in sides:
        factor = 2 if blur == "2x" else 2 * side // sides[-1]
        small = F.interpolate(images, scale_factor=1 / factor, mode="bilinear")
        blurred = network.features(
            F.interpolate(small, scale_factor=factor, mode="bilinear"), stride
        )
        if distance == "mse":
            cells = F.mse_loss(sharp, blurred, reduction="none").mean(dim=1, keepdim=True)
        else:
            cells = 1 - F.cosine_similarity(sharp, blurred, dim=1)[:, None]
        maps.append(F.avg_pool2d(cells, side // stride)[:, 0])
    return maps
