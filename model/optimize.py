"""Optimization: parameter groups, learning rate, moving average of the weights."""

import math

import torch
from torch import Tensor, nn

from quadpipe.errors import ConfigError
from quadpipe.model.config import BACKBONE, TrainConfig
from quadpipe.model.quadformer import Quadformer

_NO_DECAY = ("cls_token", "reg_token", "pos_embed", "scale_embed", "attn_pool.latent")


def has_fused(device: torch.device) -> bool:
    """Whether AdamW's fused kernel is used, which can leave out an update by itself."""
    return device.type == "cuda"


def freeze(model: Quadformer, part: int | str) -> None:
    """Exclude a part of a model from training; see `TrainConfig.freeze`.

    ConfigError if it does not have so many blocks.
    """
    depth = len(model.blocks)
    if isinstance(part, int) and not 0 <= part <= depth:
        raise ConfigError(
            f"freeze {part} is not from 0 to {depth}, the number of blocks; to train the head "
            f"only, freeze {BACKBONE}"
        )
    for name, parameter in model.named_parameters():
        if part == BACKBONE:
            parameter.requires_grad_(name.startswith("head."))
        else:
            parameter.requires_grad_(_layer(name, depth + 1) > int(part))


def make_optimizer(
    model: Quadformer, config: TrainConfig, *, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW without decay on biases, norms and embeddings; `lr_scale` of a group is its layer's."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    depth = len(model.blocks) + 1
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or name in _NO_DECAY else config.weight_decay
        scale = config.layer_decay ** (depth - _layer(name, depth))
        groups.setdefault((decay, scale), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in groups.items()
        ],
        lr=config.lr,
        fused=fused or None,
    )


def _layer(name: str, depth: int) -> int:
    """0 for the embeddings, 1.. for the blocks, `depth` for the last norm, pooling and head."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    last = ("norm.", "attn_pool.", "fc_norm.", "head.")
    return depth if name.startswith(last) else 0


def learning_rate(config: TrainConfig, seen: int, samples: int) -> float:
    """Linear warm-up, then cosine. seen: samples up to the end of the step. samples: per epoch."""
    warmup, total = config.warmup_epochs * samples, config.epochs * samples
    if seen < warmup:
        return config.lr * seen / warmup
    share = min((seen - warmup) / max(total - warmup, 1), 1.0)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


class MovingAverage:
    """Exponential moving average of a model's weights, with its own warm-up: at step t the decay is
    at most (1 + t) / (10 + t), so that the initial weights are forgotten.

    weights: by name; the frozen ones are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = [k for k, p in model.named_parameters() if p.requires_grad]
        self.weights = {k: v.detach() for k, v in model.state_dict().items()}
        self.weights |= {k: self.weights[k].clone() for k in self._trained}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Replace the averaged weights; KeyError if one is missing."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, unless: Tensor | None = None) -> None:
        """unless: a float32 scalar on the device; where it is 1, the average stays as it is."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        state = model.state_dict()
        averages = [self.weights[name] for name in self._trained]
        current = [state[name] for name in self._trained]
        if unless is None:
            torch._foreach_lerp_(averages, current, share)
            return
        changes = torch._foreach_sub(current, averages)
        torch._foreach_mul_(changes, share * (1 - unless))
        torch._foreach_add_(averages, changes)
