"""A trained model as a file of weights that timm loads.

On a uniform tiling of patches of scale 0 timm computes the same logits from the same pixels.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quadpipe.errors import ConfigError, OutputError
from quadpipe.model.layouts import is_eva, splits_qkv, splits_swiglu, to_metadata, to_timm
from quadpipe.model.positions import patch_centers, sinusoidal_2d, sinusoidal_frequencies
from quadpipe.model.quadformer import QuadformerConfig
from quadpipe.model.run_folder import RunFolder

_SUFFIX = ".safetensors"
_POOLS = {"cls": "token", "area": "avg", "attention": "map"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """code: Python that builds timm's model and loads the file. changed: adapted, and how."""

    code: str
    changed: dict[str, str]


def export(run: RunFolder, to: Path) -> Exported:
    """Write the weights of a run under timm's names.

    Those of the checkpoint that `RunFolder.model` loads. Sinusoidal positions become learned ones,
    and the embedding of scale 0 is added to the bias of the patch embedding, or without one to the
    positions: timm has neither. The metadata of the file holds what the weights do not tell: heads,
    activation, epsilon, pooling, kind of positions and their grid, the classes, and the mean and
    std that pixels in 0..1 are normalized with. Raises ConfigError if the name does not end in
    .safetensors or the file exists; OutputError if it cannot be written.
    """
    from safetensors.torch import save

    if to.suffix != _SUFFIX:
        raise ConfigError(f"{to} does not end in {_SUFFIX}; rename it")
    if to.exists():
        raise ConfigError(f"{to} exists; delete it, or choose another --to")
    manifest, model = run.config(), run.model(torch.device("cpu"))
    config = model.config
    if is_eva(config) and not config.swiglu and config.activation != "gelu":
        raise ConfigError(f"timm's models with RoPE have GELU, and {run} has {config.activation}")
    weights, config, changed = _without_own_parts(dict(model.state_dict()), config)
    metadata = {"format": "pt"} | to_metadata(config, manifest.classes)
    _write(to, save(to_timm(weights, config), metadata))
    return Exported(code=_timm_code(config, to), changed=changed)


def _without_own_parts(
    weights: dict[str, Tensor], config: QuadformerConfig
) -> tuple[dict[str, Tensor], QuadformerConfig, dict[str, str]]:
    """The weights of a model that has only parts that timm has, equal on scale 0.

    With its configuration, where positions are sinusoidal if the weights hold just these.
    """
    changed = dict[str, str]()
    rows, columns = config.grid
    cells = rows * columns
    if config.positions == "sinusoidal":
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        boxes = torch.stack([x, y, torch.zeros_like(x)], dim=-1).view(1, cells, 3)
        weights["pos_embed"] = sinusoidal_2d(
            patch_centers(boxes), sinusoidal_frequencies(config.width // 2)
        )
        changed["pos_embed"] = "holds the sinusoidal positions"
    if config.scale_embedding:
        scale = weights.pop("scale_embed")[0]
        if "patch_embed.proj.bias" in weights:
            name = "patch_embed.proj.bias"
            weights[name] += scale
        else:
            name = "pos_embed"
            weights[name][:, -cells:] += scale
            if config.positions == "sinusoidal":
                config = replace(config, positions="learned", no_embed_class=True)
        changed["scale_embed"] = f"of scale 0 is added to {name}"
    return weights, config, changed


def _timm_code(config: QuadformerConfig, path: Path) -> str:
    """Python that builds the model in timm and loads the weights."""
    name = "eva.Eva" if is_eva(config) else "vision_transformer.VisionTransformer"
    arguments = _eva_arguments(config) if is_eva(config) else _vit_arguments(config)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if config.swiglu and not is_eva(config):
        given += ", mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU"
    return (
        "import functools, safetensors.torch, timm, torch\n"
        f"norm = functools.partial(torch.nn.LayerNorm, eps={config.norm_eps})\n"
        f"model = timm.models.{name}({given}, norm_layer=norm)\n"
        f"model.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
    )


def _common_arguments(config: QuadformerConfig) -> dict[str, Any]:
    rows, columns = config.grid
    return {
        "img_size": (rows * config.patch_size, columns * config.patch_size),
        "patch_size": config.patch_size,
        "num_classes": config.classes,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias != "none",
        "class_token": config.class_token,
        "init_values": 1e-5 if config.layer_scale else None,
        "global_pool": _POOLS[config.pool],
    }


def _vit_arguments(config: QuadformerConfig) -> dict[str, Any]:
    arguments = _common_arguments(config) | {
        "reg_tokens": config.reg_tokens,
        "no_embed_class": config.no_embed_class or config.positions == "sinusoidal",
        "pre_norm": config.pre_norm,
        "fc_norm": config.fc_norm,
        "scale_mlp_norm": config.mlp_norm,
        "act_layer": config.activation,
    }
    if config.swiglu:
        del arguments["act_layer"]
        arguments["mlp_ratio"] *= 2  # timm counts both halves
    return arguments


def _eva_arguments(config: QuadformerConfig) -> dict[str, Any]:
    is_dinov3 = config.rope == "dinov3"
    return _common_arguments(config) | {
        "num_reg_tokens": config.reg_tokens,
        "no_embed_class": config.no_embed_class or config.positions == "sinusoidal",
        "use_abs_pos_emb": config.positions != "none",
        "use_rot_pos_emb": True,
        "rope_type": "dinov3" if is_dinov3 else "cat",
        "rope_temperature": 100.0 if is_dinov3 else 10_000.0,
        "rope_rotate_half": is_dinov3,
        "ref_feat_shape": None if is_dinov3 else (16, 16),
        "use_pre_transformer_norm": config.pre_norm,
        "use_fc_norm": config.fc_norm,
        "use_post_transformer_norm": not config.fc_norm,
        "qkv_fused": not splits_qkv(config),
        "swiglu_mlp": config.swiglu,
        "swiglu_align_to": int(splits_swiglu(config)),
        "scale_mlp": config.mlp_norm,
    }


def _write(to: Path, data: bytes) -> None:
    temporary = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(to)
    except OSError as error:
        raise OutputError(f"cannot write {to}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
