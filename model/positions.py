"""Positions of patches of any scale, from their centers: sinusoidal, and rotary (RoPE).

Letters: P patch size; H heads; E components of a head; F frequencies per axis.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PERIOD = 10_000.0
_DINOV3_PERIOD = 100.0
_EVA02_GRID = 16


def patch_centers(boxes: Tensor) -> Tensor:
    """Centers (x, y) of integer boxes `[.., 3]`, float32 `[.., 2]` in units of P."""
    return boxes[..., :2].float() + torch.exp2(boxes[..., 2:].float()) / 2


def sinusoidal_frequencies(width: int) -> Tensor:
    """Float32 `[width / 2]`, falling geometrically from 1 to 1 / 10000 (Vaswani et al.,
    arXiv 1706.03762, as the paper's code has them)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device="cpu") / max(half - 1, 1)
    return torch.exp(-math.log(_PERIOD) * steps).float()


def sinusoidal(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Sines, then cosines, `[.., 2 F]`, of positions `[..]` at F frequencies."""
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoidal_2d(centers: Tensor, frequencies: Tensor) -> Tensor:
    """`[.., 4 F]` of centers `[.., 2]`: x in the first half, y in the second."""
    return torch.cat([sinusoidal(centers[..., axis], frequencies) for axis in (0, 1)], dim=-1)


def rope_frequencies(kind: str, head_width: int) -> Tensor:
    """Frequencies of RoPE per axis, float32 `[head_width / 4]`, falling geometrically from 1."""
    steps = torch.arange(head_width // 4, dtype=torch.float32) / (head_width // 4)
    frequencies: Tensor = (_DINOV3_PERIOD if kind == "dinov3" else _PERIOD) ** -steps
    return frequencies


def rope_angles(boxes: Tensor, kind: str, grid: tuple[int, int], frequencies: Tensor) -> Tensor:
    """Angles `[.., E / 2]` of boxes `[.., 3]` on a grid of rows and columns: y, then x.

    At the patches' centers, in the units that the family was trained with: EVA02 (Fang et al.,
    arXiv 2303.11331) counts the patches of a grid of 16 x 16 from 0; DINOv3 (Simeoni et al.,
    arXiv 2508.10104) has -1..1 from edge to edge, in turns.
    """
    x, y = patch_centers(boxes).unbind(-1)
    axes = ((y, grid[0]), (x, grid[1]))
    if kind == "eva02":
        where = [(center - 0.5) / side * _EVA02_GRID for center, side in axes]
    else:
        where = [(center / side * 2 - 1) * math.tau for center, side in axes]
    return torch.cat([axis[..., None] * frequencies for axis in where], dim=-1)


class Rotation(NamedTuple):
    """Rotary positions: each pair of a head's components is turned by an angle of its row.

    cos, sin: of the angles, float32 `[.., 1, E / 2]` for heads of E components. axis: of the two
    components of a pair, in `[.., 2, E / 2]` (-2) or `[.., E / 2, 2]` (-1).
    """

    cos: Tensor
    sin: Tensor
    axis: int

    def __call__(self, x: Tensor) -> Tensor:
        """`[.., H, E]` to the same."""
        half = self.cos.shape[-1]
        pairs = (2, half) if self.axis == -2 else (half, 2)
        one, two = x.reshape(*x.shape[:-1], *pairs).unbind(self.axis)
        turned = (one * self.cos - two * self.sin, two * self.cos + one * self.sin)
        return torch.stack(turned, dim=self.axis).flatten(-2).to(x.dtype)
