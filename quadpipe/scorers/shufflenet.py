"""ShuffleNetV2 x0.5 (Ma et al., arXiv 1807.11164), under torchvision's state-dict keys.

Batch norms are folded into the convolutions when weights are loaded, so the modules here have
none; the channel shuffle is one interleaving copy in channels-last memory.

Letters: B batch; C channels; h, w rows and columns of a feature map.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

STAGES = ((4, 48), (8, 96), (4, 192))  # units and channels of stages 2, 3 and 4
STEM, FEATURES = 24, 1024


class ShuffleNet(nn.Module):
    """Features of images; `head` gives logits where the weights have a classifier."""

    def __init__(self, classes: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(_conv(3, STEM, 3, stride=2))
        (first, second, third), channels = STAGES, [STEM, *(width for _, width in STAGES)]
        self.stage2 = _stage(channels[0], *first)
        self.stage3 = _stage(channels[1], *second)
        self.stage4 = _stage(channels[2], *third)
        self.conv5 = nn.Sequential(_conv(channels[3], FEATURES, 1))
        self.fc = nn.Linear(FEATURES, classes) if classes else None

    def forward(self, images: Tensor, strides: Sequence[int]) -> list[Tensor]:
        """`[B, 3, H, W]` -> a map for each stride: for 32 `[B, 1024, H / 32, W / 32]`, for 16 the
        96 channels of stage 3."""
        # ReLU and maximum can change places, and after the pooling there is a quarter to do.
        x: Tensor = F.max_pool2d(self.conv1(images), 3, stride=2, padding=1).relu_()
        maps = {16: self.stage3(self.stage2(x))}
        if 32 in strides:
            maps[32] = self.conv5(self.stage4(maps[16])).relu_()
        return [maps[stride] for stride in strides]

    def head(self, features: Tensor) -> Tensor:
        """`[B, 1024, h, w]` -> logits `[B, classes]`."""
        assert self.fc is not None
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class _Unit(nn.Module):
    """Half of the channels (stride 1) or a strided branch (stride 2) beside the main branch."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.stride = stride
        # Positions as in torchvision, which has batch norms and ReLUs in between.
        self.branch1 = nn.ModuleDict()
        if stride == 2:
            self.branch1["0"] = _conv(channels, channels, 3, stride=2, groups=channels)
            self.branch1["2"] = _conv(channels, half, 1)
        self.branch2 = nn.ModuleDict(
            {
                "0": _conv(channels if stride == 2 else half, half, 1),
                "3": _conv(half, half, 3, stride=stride, groups=half),
                "5": _conv(half, half, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
        else:
            left, right = self.branch1["2"](self.branch1["0"](x)).relu_(), x
        main = self.branch2["3"](self.branch2["0"](right).relu_())
        main = self.branch2["5"](main).relu_()
        # Concatenate and shuffle in two groups: alternate the channels of the two.
        pairs = torch.stack((left.permute(0, 2, 3, 1), main.permute(0, 2, 3, 1)), dim=-1)
        return pairs.flatten(-2).permute(0, 3, 1, 2)


def _stage(channels: int, units: int, width: int) -> nn.Sequential:
    rest = (_Unit(width, width, 1) for _ in range(units - 1))
    return nn.Sequential(_Unit(channels, width, 2), *rest)


def _conv(channels: int, width: int, side: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, side, stride, side // 2, groups=groups)
