"""The Quadformer: a Vision Transformer over patches of any scale.

A pre-norm ViT (Dosovitskiy et al., arXiv 2010.11929) as timm builds it, with one linear embedding
for the tokens of all scales, since each has the same number of pixels, and positions from the
patches' centers (Ronen et al., arXiv 2304.00287).

Letters: B batch; N tokens per image; R prefix tokens per image, CLS and registers; P patch size; D
width; E width of a head; C classes. In a batch of images of different lengths: T tokens of all
images; S = B * R + T rows.
"""

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, option
from quadpipe.images import IMAGENET_MEAN, IMAGENET_STD
from quadpipe.model.attention import Packing, attend, attend_with, check_lengths
from quadpipe.model.positions import (
    Rotation,
    patch_centers,
    rope_angles,
    rope_frequencies,
    sinusoidal_2d,
    sinusoidal_frequencies,
)

PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"width": 96, "depth": 4, "heads": 3},
    "tiny": {"width": 192, "depth": 12, "heads": 3},
    "small": {"width": 384, "depth": 12, "heads": 6},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
POSITIONS = ("sinusoidal", "learned", "none")
POOLS = ("cls", "area", "attention")
ROPES = ("none", "eva02", "dinov3")
QKV_BIASES = ("qkv", "qv", "none")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_LAYER_SCALE = 1e-5
_NOT_OF_THE_ARCHITECTURE = (
    "classes",
    "patch_size",
    "grid",
    "max_scale",
    "drop_path",
    "gradient_checkpointing",
)


@dataclass(frozen=True, kw_only=True)
class QuadformerConfig:
    """Configuration of a model; raises ConfigError if it cannot be built.

    grid: rows and columns of scale-0 patches; needed for learned positions and RoPE. The names are
    timm's where timm has them. The options from `class_token` on are what distinguishes the
    families of pretrained ViTs; by default the model is a plain ViT.
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
        "Pooling before the classifier: the CLS token, the mean of the tokens by area, or "
        "attention of a learned query.",
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
    class_token: bool = option(True, "Put a CLS token before the tokens.")
    reg_tokens: int = option(0, "Register tokens, after the CLS token.", low=0, high=1_024)
    no_embed_class: bool = option(
        False, "Learned positions for the patches only, none for CLS and registers."
    )
    pre_norm: bool = option(
        False, "Normalize before the first block; the patch embedding then has no bias."
    )
    qkv_bias: str = option("qkv", "Biases of queries, keys and values.", choices=QKV_BIASES)
    rope: str = option(
        "none", "Rotary positions, in the units of this family of models.", choices=ROPES
    )
    layer_scale: bool = option(False, "Scale the branches of each block by learned factors.")
    activation: str = option("gelu", "Activation of the MLPs.", choices=tuple(ACTIVATIONS))
    swiglu: bool = option(False, "SwiGLU as MLP, in place of the activation.")
    mlp_norm: bool = option(False, "Normalize inside the MLP, before its second layer.")
    norm_eps: float = option(1e-6, "Epsilon of the norms.", above=0, high=1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.heads or self.width % 4:
            raise ConfigError(
                f"width {self.width} is not a multiple of 4 and of {self.heads} heads"
            )
        if self.rope != "none" and self.width // self.heads % 4:
            raise ConfigError(
                f"rope {self.rope} needs heads of a multiple of 4, not {self.width // self.heads}"
            )
        if self.positions == "none" and self.rope == "none":
            raise ConfigError("positions none is for models with RoPE; choose other positions")
        if self.pool == "cls" and not self.class_token:
            raise ConfigError("pool cls is for models with a CLS token; choose pool area")
        if min(self.grid) < 1 or self.grid[0] * self.grid[1] > 2**20:
            raise ConfigError(f"grid {self.grid} has a side below 1, or more than 2^20 patches")
        if self.fc_norm and self.pool != "area":
            raise ConfigError(f"fc_norm is for pool area, not {self.pool}; omit it")

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON; `QuadformerConfig(**config.as_json())` is equal."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def architecture(self) -> dict[str, Any]:
        """The fields that neither the dataset nor the options of training decide."""
        return {k: v for k, v in vars(self).items() if k not in _NOT_OF_THE_ARCHITECTURE}

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return int(self.width * self.mlp_ratio)

    @property
    def prefix(self) -> int:
        """Number of the CLS and register tokens."""
        return self.class_token + self.reg_tokens

    def multiply_adds(self, tokens: int) -> int:
        """Multiply-adds per image at a budget: matrix products only, prefix tokens included."""
        n, d = tokens + self.prefix, self.width
        mlp = d * self.hidden * (3 if self.swiglu else 2)
        blocks = self.depth * (n * (4 * d * d + mlp) + 2 * n * n * d)
        embedding = tokens * self.patch_size**2 * 3 * d
        pooling = 2 * d * d + n * 2 * d * d + 2 * n * d + mlp if self.pool == "attention" else 0
        return embedding + blocks + pooling + d * self.classes


class PatchEmbedding(nn.Module):
    """One linear map for the pixels of tokens of all scales."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.patch_size**2 * 3, config.width, bias=not config.pre_norm)
        self.register_buffer("mean", torch.tensor(config.mean) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(config.std) * 255.0, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """`[.., P, P, 3]`, uint8 or float in 0..255 -> `[.., D]`."""
        normalized = (tokens.float() - self.mean) / self.std
        embedded: Tensor = self.proj(normalized.flatten(-3))  # from [.., P * P * 3]
        return embedded


class Attention(nn.Module):
    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias == "qkv")
        if config.qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, packing: Packing | None = None
    ) -> Tensor:
        """`[B, R + N, D]`, or `[S, D]` with its packing, to the same."""
        qkv = self._qkv(x).view(*x.shape[:-1], 3, self.heads, x.shape[-1] // self.heads)
        q, k, v = qkv.unbind(-3)  # each [.., heads, D / heads]
        if rotation is not None:
            q, k = rotation(q), rotation(k)
        projected: Tensor = self.proj(attend(q, k, v, packing).flatten(-2))
        return projected

    def _qkv(self, x: Tensor) -> Tensor:
        if not hasattr(self, "q_bias"):
            mapped: Tensor = self.qkv(x)
            return mapped
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return F.linear(x, self.qkv.weight, bias)


class Mlp(nn.Module):
    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        self.swiglu, self.activation = config.swiglu, ACTIVATIONS[config.activation]
        self.fc1 = nn.Linear(config.width, config.hidden * (2 if config.swiglu else 1))
        self.norm = _norm(config, config.hidden) if config.mlp_norm else nn.Identity()
        self.fc2 = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.swiglu:
            gate, x = x.chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = self.activation(x)
        mapped: Tensor = self.fc2(self.norm(x))
        return mapped


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, config: QuadformerConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = _norm(config)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = _norm(config)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, packing: Packing | None = None
    ) -> Tensor:
        """`[B, R + N, D]`, or `[S, D]` with its packing, to the same."""
        x = x + self._dropped(self.ls1(self.attn(self.norm1(x), rotation, packing)), packing)
        return x + self._dropped(self.ls2(self.mlp(self.norm2(x))), packing)

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


class AttentionPool(nn.Module):
    """Attention of one learned query to all tokens, then an MLP (Zhai et al., arXiv 2106.04560)."""

    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = _norm(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, packing: Packing | None = None) -> Tensor:
        """`[B, R + N, D]`, or `[S, D]` with its packing -> `[B, D]`."""
        size = (self.heads, x.shape[-1] // self.heads)
        k, v = self.kv(x).view(*x.shape[:-1], 2, *size).unbind(-3)
        mixed = attend_with(self.q(self.latent).view(1, *size), k, v, packing)
        pooled: Tensor = self.proj(mixed.flatten(1))  # from [B, 1, heads, D / heads]
        mapped: Tensor = self.mlp(self.norm(pooled))
        return pooled + mapped


class Quadformer(nn.Module):
    """Classifies images from the tokens and boxes of their leaves.

    On the leaves of `uniform` shards it is a plain ViT. The names of its parameters are timm's.
    """

    frequencies: Tensor
    rope_frequencies: Tensor

    def __init__(self, config: QuadformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(torch.zeros(1, config.reg_tokens, d))
        self.patch_embed = PatchEmbedding(config)
        if config.positions == "sinusoidal":
            self.register_buffer("frequencies", sinusoidal_frequencies(d // 2), persistent=False)
        elif config.positions == "learned":
            rows, columns = config.grid
            own = 0 if config.no_embed_class else config.prefix
            self.pos_embed = nn.Parameter(torch.zeros(1, own + rows * columns, d))
        if config.rope != "none":
            frequencies = rope_frequencies(config.rope, d // config.heads)
            self.register_buffer("rope_frequencies", frequencies, persistent=False)
        self.norm_pre = _norm(config) if config.pre_norm else nn.Identity()
        if config.scale_embedding:
            self.scale_embed = nn.Parameter(torch.zeros(config.max_scale + 1, d))
        drops = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, drop) for drop in drops)
        self.norm = nn.Identity() if config.fc_norm else _norm(config)
        if config.pool == "attention":
            self.attn_pool = AttentionPool(config)
        self.fc_norm = _norm(config) if config.fc_norm else nn.Identity()
        self.head = nn.Linear(d, config.classes)
        self.apply(_initialize)
        for name, parameter in self.named_parameters():
            if name in ("cls_token", "reg_token", "pos_embed", "attn_pool.latent"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def train(self, mode: bool = True) -> "Quadformer":
        """As of every module; frozen blocks stay in evaluation mode, without stochastic depth."""
        super().train(mode)
        for block in self.blocks:
            if not any(parameter.requires_grad for parameter in block.parameters()):
                block.eval()
        return self

    def forward(
        self, tokens: Tensor, boxes: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[B, C]`, and named intermediates.

        tokens: `[B, N, P, P, 3]`, uint8 or float in 0..255, RGB. boxes: integers `[B, N, 3]`, x, y,
        scale. The intermediates are `embedded` `[B, R + N, D]`, and after the last norm `tokens`
        `[B, N, D]`, `prefix` `[B, R, D]`, `cls` `[B, D]` if there is one, and `pooled` `[B, D]`;
        with `fc_norm` only `pooled` is normed.

        lengths: tokens per image, int64 `[B]` on the CPU, for images of different lengths, one
        after the other: tokens `[T, P, P, 3]`, boxes `[T, 3]`, and of the intermediates `embedded`
        `[S, D]`, for each image its prefix tokens and then its tokens, and `tokens` `[T, D]`.
        Raises ConfigError if they are not the lengths of the tokens.
        """
        if lengths is None:
            return self._classify(tokens, boxes)
        check_lengths(lengths, tokens)
        if (lengths != lengths[0]).any():
            packing = Packing(lengths, tokens.device, self.config.prefix)
            return self._classify(tokens, boxes, packing)
        tokens, boxes = (x.reshape(len(lengths), -1, *x.shape[1:]) for x in (tokens, boxes))
        logits, out = self._classify(tokens, boxes)
        return logits, out | {name: out[name].flatten(0, 1) for name in ("embedded", "tokens")}

    def _classify(
        self, tokens: Tensor, boxes: Tensor, packing: Packing | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out: dict[str, Tensor] = {}
        # Under autocast the branches of the blocks are in half precision, their sum is not.
        x = self.patch_embed(tokens).to(self.patch_embed.proj.weight.dtype)
        if self.config.positions != "none":
            x = x + self._positions(boxes).to(x.dtype)
        if self.config.scale_embedding:
            x = x + self.scale_embed[boxes[..., 2].long()]
        x = _join(self._prefix(x.dtype), x, packing)  # [B, R + N, D] or [S, D]
        out["embedded"] = x if packing is None else x.index_select(0, packing.rows)
        x, rotation = self.norm_pre(x), self._rotation(boxes, packing)
        for block in self.blocks:
            if self.config.gradient_checkpointing and block.training:
                x = checkpoint(block, x, rotation, packing, use_reentrant=False)
            else:
                x = block(x, rotation, packing)
        x, r = self.norm(x), self.config.prefix
        out["prefix"], out["tokens"] = (x[:, :r], x[:, r:]) if packing is None else packing.split(x)
        if self.config.class_token:
            out["cls"] = out["prefix"][:, 0]
        if self.config.pool == "attention":
            out["pooled"] = self.fc_norm(self.attn_pool(x, packing))
        else:
            out["pooled"] = self.fc_norm(self._pooled(out, boxes, packing))
        return self.head(out["pooled"]), out

    def _prefix(self, dtype: torch.dtype) -> Tensor:
        """CLS and registers with their positions, `[1, R, D]`."""
        # An index has a contiguous gradient, which DDP wants, also in a batch of one image.
        tokens = [getattr(self, n)[0] for n in ("cls_token", "reg_token") if hasattr(self, n)]
        if not tokens:
            return self.patch_embed.proj.weight.new_empty(1, 0, self.config.width, dtype=dtype)
        prefix = torch.cat(tokens)[None]
        if self.config.positions == "learned" and not self.config.no_embed_class:
            prefix = prefix + self.pos_embed[:, : self.config.prefix]
        return prefix.to(dtype)

    def _rotation(self, boxes: Tensor, packing: Packing | None) -> Rotation | None:
        """RoPE of all rows; prefix tokens are not turned."""
        if self.config.rope == "none":
            return None
        angles = rope_angles(boxes, self.config.rope, self.config.grid, self.rope_frequencies)
        unturned = angles.new_zeros(1, self.config.prefix, angles.shape[-1])
        angles = _join(unturned, angles, packing)
        angles = angles[..., None, :]  # the same for all heads
        return Rotation(angles.cos(), angles.sin(), -2 if self.config.rope == "dinov3" else -1)

    def _positions(self, boxes: Tensor) -> Tensor:
        """`[.., D]` of boxes `[.., 3]`."""
        centers = patch_centers(boxes)
        if self.config.positions == "sinusoidal":
            return sinusoidal_2d(centers, self.frequencies)
        rows, columns = self.config.grid
        cells = self.pos_embed[:, -rows * columns :]
        grid = cells.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32))
        x, y = centers.flatten(0, -2).unbind(-1)
        where = torch.stack([x / columns, y / rows], dim=-1)[None, None] * 2 - 1  # in -1..1
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
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _join(prefix: Tensor, tokens: Tensor, packing: Packing | None) -> Tensor:
    """The rows of a batch: those that all images share `[1, R, ..]` before those of the tokens."""
    if packing is not None:
        return packing.join(prefix[0], tokens)
    return torch.cat([prefix.expand(len(tokens), *prefix.shape[1:]), tokens], dim=1)


def _norm(config: QuadformerConfig, width: int | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(width or config.width, eps=config.norm_eps)
