"""Weights of timm's Vision Transformers for a Quadformer.

Letters: D width; P patch size; G rows x columns of patches.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from quadpipe.errors import ConfigError
from quadpipe.model.quadformer import Quadformer
from quadpipe.weights import parse_weights, read_weights_file

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "visual.trunk.")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was done with a checkpoint: names of parameters.

    fresh: kept as initialized. unused: in the checkpoint only. changed: adapted, and how.
    """

    fresh: list[str]
    unused: list[str]
    changed: dict[str, str]


def load_pretrained(model: Quadformer, path: Path) -> Loaded:
    """Copy timm ViT weights into `model`.

    The patch embedding is reshaped to a linear map, positions are resampled to the model's grid
    (bicubic, antialiased), the head is dropped when its classes differ. Raises ConfigError when
    the file cannot be read, a needed parameter is missing, has another shape, or one is left over
    that is not expected; ShardError when the file holds anything but weights.
    """
    weights = _without_prefix(parse_weights(read_weights_file(path), str(path)))
    wanted = model.state_dict()
    changed: dict[str, str] = {}
    expected_fresh = {"scale_embed"}
    expected_unused: set[str] = set()
    if "patch_embed.proj.weight" in weights:
        weights["patch_embed.proj.weight"] = _linear_patches(
            weights["patch_embed.proj.weight"], wanted["patch_embed.proj.weight"], changed
        )
    if "pos_embed" in weights and "pos_embed" in wanted:
        weights["pos_embed"] = _resample_positions(weights["pos_embed"], model, changed)
    elif "pos_embed" in weights:
        if "cls_token" in weights:
            weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        changed["pos_embed"] = "left out: the model has sinusoidal positions"
        expected_unused.add("pos_embed")
    if model.config.pool == "area" and "fc_norm.weight" in weights:
        for part in ("weight", "bias"):
            weights.setdefault(f"norm.{part}", weights.pop(f"fc_norm.{part}"))
    if "head.weight" in weights and weights["head.weight"].shape != wanted["head.weight"].shape:
        found = weights["head.weight"].shape[0]
        changed["head"] = f"left out: {found} classes, the model has {model.config.classes}"
        for part in ("head.weight", "head.bias"):
            weights.pop(part, None)
    if "head.weight" not in weights:
        expected_fresh |= {"head.weight", "head.bias"}
    fresh = sorted(wanted.keys() - weights.keys())
    unused = sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} {list(weights[name].shape)}, expected {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    problems = [
        *(f"missing {name}" for name in fresh if name not in expected_fresh),
        *(f"unexpected {name}" for name in unused if name not in expected_unused),
        *shapes,
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ConfigError(
            f"{path} does not fit the model: {'; '.join(problems[:8])}{more}; give weights of a "
            f"plain timm ViT of width {model.config.width} and depth {model.config.depth}, or "
            f"another --model"
        )
    model.load_state_dict({k: weights.get(k, v) for k, v in wanted.items()})
    return Loaded(fresh=fresh, unused=unused, changed=changed)


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while not any(name.startswith("patch_embed.") for name in weights):
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in weights)), None)
        if prefix is None:
            break
        weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    return dict(weights)


def _linear_patches(weight: Tensor, wanted: Tensor, changed: dict[str, str]) -> Tensor:
    """A convolution `[D, 3, P, P]` as a linear map `[D, P * P * 3]` of pixels in H, W, C order."""
    if weight.dim() != 4 or weight.shape[2:].numel() * 3 != wanted.shape[1]:
        return weight
    changed["patch_embed.proj.weight"] = (
        f"reshaped from a {weight.shape[2]} x {weight.shape[3]} convolution"
    )
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _resample_positions(positions: Tensor, model: Quadformer, changed: dict[str, str]) -> Tensor:
    """`[1, 1 + G, D]` resampled from its square grid to the model's."""
    rows, columns = model.config.grid
    cells = positions.shape[1] - 1
    side = round(cells**0.5)
    if side * side != cells or (side, side) == (rows, columns):
        return positions
    changed["pos_embed"] = f"resampled from {side} x {side} to {rows} x {columns}"
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    flat = resized.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)
    return torch.cat([positions[:, :1], flat.to(positions.dtype)], dim=1)
