"""timm's Vision Transformers: the model that a state dict is of, and its names for the weights.

A layout is a set of names and shapes. Nine families of models are known; some share a layout. What
the layout does not tell is known by timm's name of the model, or has to be given.

Letters: D width; P patch size; G rows x columns of patches.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quadpipe import __version__
from quadpipe.errors import ConfigError
from quadpipe.images import IMAGENET_MEAN, IMAGENET_STD
from quadpipe.model.quadformer import QuadformerConfig

FAMILIES = "augreg, DeiT, DeiT3, MAE, DINOv2, DINOv3, CLIP, SigLIP, SigLIP2, EVA02"

_RENAMED = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
}
_JOINED = {
    "attn.qkv.weight": ("attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"),
    "mlp.fc1.weight": ("mlp.fc1_g.weight", "mlp.fc1_x.weight"),
    "mlp.fc1.bias": ("mlp.fc1_g.bias", "mlp.fc1_x.bias"),
}

_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_SATELLITE = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}

_WRITER = "quadpipe"  # in the metadata: the version that wrote it
# Fields of the configuration that names and shapes do not tell.
_IN_METADATA = (
    "heads",
    "activation",
    "norm_eps",
    "pool",
    "mean",
    "std",
    "positions",
    "no_embed_class",
    "grid",
)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_grid(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    )


_CHECKED = {"classes": _are_names, "grid": _is_grid}

# Layouts, after their best known families, and how messages call them.
_LAYOUTS = {
    "plain": "a plain ViT, such as augreg's, DeiT's or MAE's",
    "gap": "a ViT without CLS and attention pooling",
    "dinov2": "DINOv2 or DeiT3",
    "clip": "CLIP",
    "siglip": "SigLIP",
    "eva02": "EVA02",
    "dinov3": "DINOv3",
}

# Pattern of timm's names, layout, settings. The first pattern that matches a name counts. A name
# with `_gap_` has the layout `gap`. The activation is GELU unless stated.
_BY_NAME: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("vit_*_clip_quickgelu_*", "clip", {**_CLIP, "activation": "quick_gelu"}),
    ("vit_large_patch14_clip_*.laion2b*", "clip", _HALF),
    ("vit_*_clip_*", "clip", _CLIP),
    ("vit_base_patch32_siglip_*", "siglip", {**_HALF, "activation": "gelu_tanh"}),
    ("vit_large_patch16_siglip_*512.*", "siglip", {**_HALF, "activation": "gelu_tanh"}),
    ("vit_so400m_patch16_siglip_*", "siglip", {**_HALF, "activation": "gelu_tanh"}),
    ("vit_giantopt_*_siglip_*", "siglip", {**_HALF, "activation": "gelu_tanh"}),
    ("vit_*_siglip_*", "siglip", _HALF),
    ("vit_*_dinov3*.sat493m", "dinov3", _SATELLITE),
    ("vit_*_dinov3*", "dinov3", _IMAGENET),
    ("vit_*_lingbot*", "dinov3", {**_IMAGENET, "pool": "cls"}),
    ("vit_*_dinov2*", "dinov2", _IMAGENET),
    ("vit_*_tipsv2*", "dinov2", _UNIT),
    ("eva02_*_patch14_*.mim_*", "eva02", _CLIP),
    ("eva_large_*", "plain", _CLIP),
    ("deit3_*", "dinov2", _IMAGENET),
    ("deit*", "plain", _IMAGENET),
    ("vit_*.dino", "plain", _IMAGENET),
    ("vit_*.mae", "plain", _IMAGENET),
    ("vit_*_ijepa", "gap", _IMAGENET),
    ("vit_*_miil.*", "plain", _UNIT),
    ("vit_*.augreg*", "plain", _HALF),
    ("vit_*.orig_*", "plain", _HALF),
    ("vit_*.sam_*", "plain", _HALF),
    ("vit_*.sbb*", "gap", _HALF),
    ("vit_medium_*.sw_*", "gap", _HALF),
    ("flexivit_*", "plain", _HALF),
)

_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
_HEADS_OF_FAMILY = {
    ("dinov2", 1536): 24,
    ("dinov3", 1280): 20,
    ("dinov3", 1536): 24,
    ("dinov3", 4096): 32,
    ("gap", 1536): 16,
    ("siglip", 1536): 16,
}


def from_timm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the Quadformer's names, with joined matrices where timm has parts.

    ConfigError if such parts are of several shapes.
    """
    found = dict(weights)
    for block in sorted({".".join(n.split(".")[:2]) for n in weights if n.startswith("blocks.")}):
        for theirs, ours in _RENAMED.items():
            if f"{block}.{theirs}" in found:
                found[f"{block}.{ours}"] = found.pop(f"{block}.{theirs}")
        for ours, parts in _JOINED.items():
            names = [f"{block}.{part}" for part in parts]
            if all(name in found for name in names):
                shapes = {name: list(found[name].shape) for name in names}
                if [] in shapes.values() or len({tuple(shape) for shape in shapes.values()}) > 1:
                    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
                    raise ConfigError(f"its parts of {ours} differ in shape: {listed}")
                found[f"{block}.{ours}"] = torch.cat([found.pop(name) for name in names])
    return found


def to_timm(weights: Mapping[str, Tensor], config: QuadformerConfig) -> dict[str, Tensor]:
    """The inverse of `from_timm` for the weights of a model; patch embeddings are convolutions.

    As timm has it, models with RoPE have other names for layer scales, and some have parts in place
    of joined matrices.
    """
    found = {name: tensor.contiguous() for name, tensor in weights.items()}
    linear, side = found["patch_embed.proj.weight"], config.patch_size
    kernel = linear.view(-1, side, side, 3).permute(0, 3, 1, 2)
    found["patch_embed.proj.weight"] = kernel.contiguous()
    parted, split = splits_qkv(config), splits_swiglu(config)
    for block in (f"blocks.{number}" for number in range(config.depth)):
        for theirs, ours in _RENAMED.items():
            if f"{block}.{ours}" in found and (parted if "proj" in theirs else is_eva(config)):
                found[f"{block}.{theirs}"] = found.pop(f"{block}.{ours}")
        for ours, parts in _JOINED.items():
            if parted if ours.startswith("attn") else split:
                whole = found.pop(f"{block}.{ours}")
                for part, tensor in zip(parts, whole.chunk(len(parts)), strict=True):
                    found[f"{block}.{part}"] = tensor.clone()
    return found


def is_eva(config: QuadformerConfig) -> bool:
    """Whether timm's class is Eva, not VisionTransformer."""
    return config.rope != "none"


def splits_qkv(config: QuadformerConfig) -> bool:
    """Whether timm has queries, keys and values apart: in EVA02 with a norm inside the MLPs."""
    return config.rope == "eva02" and config.mlp_norm


def splits_swiglu(config: QuadformerConfig) -> bool:
    """Whether timm has the two halves of SwiGLU apart: with a norm inside, and in DINOv3."""
    return config.swiglu and (config.mlp_norm or config.rope == "dinov3")


def settings_by_name(name: str, layout: str) -> dict[str, Any]:
    """Mean, std and activation of timm's model of this name.

    layout: of the weights. ConfigError if the name is not known, or of another layout.
    """
    for pattern, named, settings in _BY_NAME:
        if fnmatchcase(name, pattern):
            named = "gap" if "_gap_" in name else named
            # SigLIP without its pooling is of either.
            if named != layout and {named, layout} != {"gap", "siglip"}:
                raise ConfigError(
                    f"--init-name {name} is of {_LAYOUTS[named]}, and the weights are of "
                    f"{_LAYOUTS[layout]}; correct the name, or omit it and give --mean, --std and "
                    f"--activation"
                )
            return {"activation": "gelu"} | settings
    raise ConfigError(
        f"--init-name {name} is not known; give timm's whole name with its tag, such as "
        f"vit_small_patch14_reg4_dinov2.lvd142m or vit_base_patch16_224.mae, of {FAMILIES}"
    )


def to_metadata(config: QuadformerConfig, classes: list[str]) -> dict[str, str]:
    """What weights do not tell of a model, as JSON by name, for the metadata of their file."""
    told = {name: getattr(config, name) for name in _IN_METADATA} | {"classes": classes}
    return {name: json.dumps(value) for name, value in told.items()} | {_WRITER: __version__}


def settings_by_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `to_metadata`; empty for files of other programs.

    `classes` are different names, and `grid` is rows and columns. The other values are checked
    where they are used. Raises ConfigError if one cannot be read.
    """
    found: dict[str, Any] = {}
    if _WRITER not in metadata:
        return found
    for name in {*_IN_METADATA, "classes"} & metadata.keys():
        try:
            found[name] = json.loads(metadata[name])
            if name in _CHECKED and not _CHECKED[name](found[name]):
                raise ValueError
        except (ValueError, RecursionError):
            raise ConfigError(
                f"its metadata has {name} {metadata[name][:60]!r}, which cannot be read; save the "
                f"weights without it"
            ) from None
    for name, count in Counter(found.get("classes", ())).most_common(1):
        if count > 1:
            raise ConfigError(
                f"its metadata has {count} classes {name!r}; save the weights with a name per class"
            )
    return found


class Recognized(NamedTuple):
    """layout: one of `_LAYOUTS`. fields: of a QuadformerConfig."""

    layout: str
    fields: dict[str, Any]


def recognize(weights: Mapping[str, Tensor]) -> Recognized:
    """The layout of weights under timm's names, and what it tells of the model.

    Of `heads`, `activation`, `mean` and `std` those are left out that models of this layout do not
    agree on. Raises ConfigError if the layout is not known; names that no layout has are not
    looked at.
    """
    is_eva_block = "blocks.0.gamma_1" in weights
    weights = from_timm(weights)
    width, _, _, _ = _shape(weights, "patch_embed.proj.weight", 4)
    fc1, _ = _shape(weights, "blocks.0.mlp.fc1.weight", 2)
    _, hidden = _shape(weights, "blocks.0.mlp.fc2.weight", 2)
    family = _family(weights, is_eva_block=is_eva_block, swiglu=fc1 == 2 * hidden)
    class_token = "cls_token" in weights
    registers = _shape(weights, "reg_token", 3)[1] if "reg_token" in weights else 0
    found: dict[str, Any] = {
        "width": width,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "mlp_ratio": _ratio(hidden, width),
        "swiglu": fc1 == 2 * hidden,
        "mlp_norm": "blocks.0.mlp.norm.weight" in weights,
        "class_token": class_token,
        "reg_tokens": registers,
        "positions": "learned" if "pos_embed" in weights else "none",
        "no_embed_class": _no_embed_class(weights, class_token + registers),
        "pre_norm": "norm_pre.weight" in weights,
        "qkv_bias": _qkv_bias(weights),
        "layer_scale": "blocks.0.ls1.gamma" in weights,
        "rope": family if family in ("eva02", "dinov3") else "none",
        "norm_eps": 1e-5 if family in ("clip", "dinov3") else 1e-6,
        "fc_norm": "fc_norm.weight" in weights,
        "pool": _pool(weights, family),
    }
    heads = _HEADS_OF_FAMILY.get((family, width), _HEADS.get(width))
    if heads is None and width % 64 == 0 and 192 <= width <= 1024:
        heads = width // 64
    if heads:
        found["heads"] = heads
    if family in ("plain", "dinov2", "eva02", "dinov3"):
        found["activation"] = "gelu"
    if family == "eva02":
        found |= _CLIP
    elif family == "dinov2" and registers in (0, 4):
        found |= _IMAGENET
    return Recognized(family, found)


def _family(weights: Mapping[str, Tensor], *, is_eva_block: bool, swiglu: bool) -> str:
    """The name of a layout, after its best known family."""
    names = {n for n in weights if not n.startswith("blocks.") or n.startswith("blocks.0.")}
    is_cls, positions = "cls_token" in names, "pos_embed" in names
    if is_eva_block or not positions:
        is_dinov3 = is_eva_block and not positions and {"cls_token", "reg_token"} <= names
        family = "dinov3" if is_dinov3 else None
    elif "blocks.0.attn.q_bias" in names:
        family = "eva02" if swiglu and is_cls and "fc_norm.weight" in names else None
    elif "attn_pool.latent" in names:
        family = "siglip" if not is_cls and "norm_pre.weight" not in names else None
    elif "norm_pre.weight" in names:
        family = "clip" if is_cls and "blocks.0.ls1.gamma" not in names else None
    elif not is_cls:
        family = "gap"
    else:
        family = "dinov2" if "blocks.0.ls1.gamma" in names else "plain"
    if family is None:
        raise ConfigError("its combination of parts is not one of these families")
    return family


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in weights:
        raise ConfigError(f"it has no {name}")
    if weights[name].dim() != dimensions or 0 in weights[name].shape:
        raise ConfigError(f"its {name} is {list(weights[name].shape)}")
    return tuple(weights[name].shape)


def _ratio(hidden: int, width: int) -> float:
    """A ratio for which `QuadformerConfig.hidden` is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _no_embed_class(weights: Mapping[str, Tensor], prefix: int) -> bool:
    """Whether the positions are of the patches only: then their number is a square."""
    if not prefix or "pos_embed" not in weights:
        return False
    count = _shape(weights, "pos_embed", 3)[1]
    return math.isqrt(count) ** 2 == count


def _qkv_bias(weights: Mapping[str, Tensor]) -> str:
    if "blocks.0.attn.qkv.bias" in weights:
        return "qkv"
    return "qv" if "blocks.0.attn.q_bias" in weights else "none"


def _pool(weights: Mapping[str, Tensor], family: str) -> str:
    if family == "siglip":
        return "attention"
    return "area" if family in ("gap", "dinov3") or "fc_norm.weight" in weights else "cls"
