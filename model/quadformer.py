"""The Quadformer: a Vision Transformer over patches of any scale.

A pre-norm ViT (Dosovitskiy et al., arXiv 2010.11929) as timm builds it, with one linear embedding
for the tokens of all scales, since each has the same number of pixels, and positions from the
patches' centers (Ronen et al., arXiv 2304.00287).

Letters: B batch; N tokens per image; P patch size; D width; C classes. In a batch of images of
different lengths: T tokens of all images; S = B + T rows, with a CLS token per image.
"""

import math
from dataclasses import MISSING, asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, option
from quadpipe.images import IMAGENET_MEAN, IMAGENET_STD
from quadpipe.model.attention import Packing, attend, check_lengths

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"width": 96, "depth": 4, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
POSITIONS = ("sinusoidal", "learned")
POOLS = ("cls", "area")
_PERIOD = 10_000.0


@dataclass(frozen=True, kw_only=True)
class QuadformerConfig:
    """Configuration of a model; raises ConfigError if it cannot be built.

    grid: rows and columns of scale-0 patches; needed for learned positions. The names are timm's
    where timm has them.
    """

    grid: tuple[int, int]
    classes: int = option(MISSING, "Number of classes.", low=1, high=10_000_000)
    patch_size: int = option(MISSING, "Side of a token in pixels.", low=1, high=256)
    max_scale: int = option(MISSING, "Scale of the largest patches.", low=0, high=10)
    width: int = option(MISSING, "Size of a token's embedding.", low=4, high=16_384)
    depth: int = option(MISSING, "Number of blocks.", low=1, high=1_000)
    heads: int = option(MISSING, "Attention heads per block.", low=1, high=1_024)
    mlp_ratio: float = option(4.0, "Width of the MLP, in widths of the model.", above=0, high=64)
    positions: str = option(
        "sinusoidal", "Position embedding, sampled at patch centers.", choices=POSITIONS
    )
    scale_embedding: bool = option(False, "Learn an embedding of the patch scale.")
    pool: str = option(
        "cls",
        "Pooling before the classifier: the CLS token, or the mean of the tokens by area.",
        choices=POOLS,
    )
    fc_norm: bool = option(
        False, "With --pool area: normalize after pooling instead of before, as timm's fc_norm."
    )
    drop_path: float = option(
        0.0, "Stochastic depth rate of the last block; earlier blocks have less.", low=0, below=1
    )
    gradient_checkpointing: bool = option(
        False, "Recompute activations in the backward pass to save memory."
    )
    mean: tuple[float, float, float] = option(
        IMAGENET_MEAN, "Mean of the pixels per channel, in 0..1."
    )
    std: tuple[float, float, float] = option(
        IMAGENET_STD, "Standard deviation of the pixels per channel, in 0..1.", above=0
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"width {self.width} is not a multiple of 4 and of {self.heads} heads"
            )
        if min(self.grid) < 1 or self.grid[0] * self.grid[1] > 2**20:
            raise ConfigError(f"grid {self.grid} has a side below 1, or more than 2^20 patches")
        if self.fc_norm and self.pool != "area":
            raise ConfigError(f"fc_norm is for pool area, not {self.pool}; omit it")

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON; `QuadformerConfig(**config.as_json())` is equal."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def multiply_adds(self, tokens: int) -> int:
        """Multiply-adds per image at a budget: matrix products only, CLS token included."""
        n, d = tokens + 1, self.width
        projections = n * d * (4 * d + 2 * int(d * self.mlp_ratio))
        attention = 2 * n * n * d
        embedding = tokens * self.patch_size**2 * 3 * d
        return embedding + self.depth * (projections + attention) + d * self.classes


def patch_centers(boxes: Tensor) -> Tensor:
    """Centers (x, y) of integer boxes `[.., 3]`, float32 `[.., 2]` in units of P."""
    return boxes[..., :2].float() + torch.exp2(boxes[..., 2:].float()) / 2


def sinusoidal(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, `[.., width]`, of positions `[..]` at width / 2 frequencies.

    The frequencies fall geometrically from 1 to 1 / 10000 (Vaswani et al., arXiv 1706.03762, as
    the paper's code has them).
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device="cpu") / max(half - 1, 1)
    frequencies = torch.exp(-math.log(_PERIOD) * steps).to(positions.device, torch.float32)
    angles = positions[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sinusoidal_2d(centers: Tensor, width: int) -> Tensor:
    """`[.., width]` of centers `[.., 2]`: x in the first half, y in the second."""
    return torch.cat([sinusoidal(centers[..., axis], width // 2) for axis in (0, 1)], dim=-1)


class PatchEmbedding(nn.Module):
    """One linear map for the pixels of tokens of all scales."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.patch_size**2 * 3, config.width)
        self.register_buffer("mean", torch.tensor(config.mean) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(config.std) * 255.0, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[.., P, P, 3]`, uint8 or float in 0..255 -> `[.., D]`."""
        normalized = (tokens.float() - self.mean) / self.std
        embedded: Tensor = self.proj(normalized.flatten(-3))  # from [.., P * P * 3]
        return embedded


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """`[B, 1 + N, D]`, or `[S, D]` with its packing, to the same."""
        qkv = self.qkv(x).view(*x.shape[:-1], 3, self.heads, x.shape[-1] // self.heads)
        q, k, v = qkv.unbind(-3)  # each [.., heads, D / heads]
        projected: Tensor = self.proj(attend(q, k, v, packing).flatten(-2))
        return projected


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return mapped


class Block(nn.Module):
    def __init__(self, config: QuadformerConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """`[B, 1 + N, D]`, or `[S, D]` with its packing, to the same."""
        x = x + self._dropped(self.attn(self.norm1(x), packing), packing)
        return x + self._dropped(self.mlp(self.norm2(x)), packing)

    def _dropped(self, branch: Tensor, packing: Packing | None = None) -> Tensor:
        """Stochastic depth (Huang et al., arXiv 1603.09382): drop the branch of whole samples."""
        if not self.training or not self.drop_path:
            return branch
        keep = 1 - self.drop_path
        if packing is None:
            mask = branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep)
        else:
            mask = branch.new_empty(packing.images, 1).bernoulli_(keep)[packing.image]
        return branch * (mask / keep)


class Quadformer(nn.Module):
    """Classifies images from the tokens and boxes of their leaves.

    On the leaves of `uniform` shards it is a plain ViT. The names of its parameters are timm's.
    """

    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.patch_embed = PatchEmbedding(config)
        if config.positions == "learned":
            rows, columns = config.grid
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, d))
        if config.scale_embedding:
            self.scale_embed = nn.Parameter(torch.zeros(config.max_scale + 1, d))
        drops = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.norm = nn.Identity() if config.fc_norm else nn.LayerNorm(d, eps=1e-6)
        self.fc_norm = nn.LayerNorm(d, eps=1e-6) if config.fc_norm else nn.Identity()
        self.head = nn.Linear(d, config.classes)
        self.apply(_initialize)
        for name in ("cls_token", "pos_embed"):
            if hasattr(self, name):
                nn.init.trunc_normal_(getattr(self, name), std=0.02)

    def forward(
        self, tokens: Tensor, boxes: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, C]`, and named intermediates.

        tokens: `[B, N, P, P, 3]`, uint8 or float in 0..255, RGB. boxes: integers `[B, N, 3]`, x, y,
        scale. The intermediates are `embedded` `[B, 1 + N, D]`, and after the last norm `tokens`
        `[B, N, D]`, `cls` `[B, D]` and `pooled` `[B, D]`; with `fc_norm` only `pooled` is normed.

        lengths: tokens per image, int64 `[B]` on the CPU, for images of different lengths, one
        after the other: tokens `[T, P, P, 3]`, boxes `[T, 3]`, and of the intermediates `embedded`
        `[S, D]`, for each image its CLS token and then its tokens, and `tokens` `[T, D]`. Raises
        ConfigError if they are not the lengths of the tokens.
        """
        if lengths is None:
            return self._classify(tokens, boxes)
        check_lengths(lengths, tokens)
        if (lengths != lengths[0]).any():
            return self._classify(tokens, boxes, Packing(lengths, tokens.device))
        tokens, boxes = (x.reshape(len(lengths), -1, *x.shape[1:]) for x in (tokens, boxes))
        logits, out = self._classify(tokens, boxes)
        return logits, out | {name: out[name].flatten(0, 1) for name in ("embedded", "tokens")}

    def _classify(
        self, tokens: Tensor, boxes: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out: dict[str, Tensor] = {}
        x = self.patch_embed(tokens)
        x = x + self._positions(boxes).to(x.dtype)
        if self.config.scale_embedding:
            x = x + self.scale_embed[boxes[..., 2].long()].to(x.dtype)
        cls: Tensor = self.cls_token
        if self.config.positions == "learned":
            cls = cls + self.pos_embed[:, :1]
        cls = cls.to(x.dtype)
        if packing is None:
            x = torch.cat([cls.expand(len(x), -1, -1), x], dim=1)  # [B, 1 + N, D]
            out["embedded"] = x
        else:
            x = packing.join(cls[0], x)  # [S, D]
            out["embedded"] = x.index_select(0, packing.rows)
        for block in self.blocks:
            if self.config.gradient_checkpointing and self.training:
                x = checkpoint(block, x, packing, use_reentrant=False)
            else:
                x = block(x, packing)
        x = self.norm(x)
        out["cls"], out["tokens"] = (x[:, 0], x[:, 1:]) if packing is None else packing.split(x)
        out["pooled"] = self.fc_norm(self._pooled(out, boxes, packing))
        return self.head(out["pooled"]), out

    def _positions(self, boxes: Tensor) -> Tensor:
        """`[.., D]` of boxes `[.., 3]`."""
        centers = patch_centers(boxes)
        if self.config.positions == "sinusoidal":
            return sinusoidal_2d(centers, self.config.width)
        rows, columns = self.config.grid
        grid = self.pos_embed[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32))
        extent = centers.new_tensor([columns, rows])
        where = centers.flatten(0, -2)[None, None] / extent * 2 - 1  # [1, 1, B * N, 2] in -1..1
        sampled = F.grid_sample(
            grid, where.to(grid.dtype), mode="bilinear", padding_mode="border", align_corners=False
        )
        return sampled[0, :, 0].T.reshape(*boxes.shape[:-1], -1)

    def _pooled(self, out: dict[str, Tensor], boxes: Tensor, packing: Packing | None) -> Tensor:
        """Means of the tokens by area, or the CLS tokens: `[B, D]`."""
        if self.config.pool == "cls":
            return out["cls"]
        areas = torch.exp2(2 * boxes[..., 2:].float())  # [B, N, 1] or [T, 1]
        if packing is not None:
            weights = areas / packing.spread(packing.sum(areas))
            return packing.sum(out["tokens"] * weights.to(out["tokens"].dtype))
        weights = areas / areas.sum(dim=1, keepdim=True)
        return (out["tokens"] * weights.to(out["tokens"].dtype)).sum(dim=1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
