"""State of a training run beside its weights: counters, and tensors of the optimizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from quadpipe.weights import listing, load_torch, state_dict_problems

_COUNTERS = "counters"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Position of a run in its data, and what the optimizer has accumulated.

    step: updates. epoch: finished epochs. consumed: samples seen in the current epoch. best:
    largest top-1 on the split val, -1 before the first evaluation. interval: `Interval.state`.
    optimizer: tensors of AdamW on the CPU, named `PARAMETER.NAME` as in `3.exp_avg`.
    """

    step: int
    epoch: int
    consumed: int
    best: float
    interval: dict[str, float]
    optimizer: dict[str, Tensor]

    def __post_init__(self) -> None:
        if min(self.step, self.epoch, self.consumed) < 0 or not isfinite(self.best):
            raise ValueError("a counter is negative or not finite")

    def to_safetensors(self) -> bytes:
        """The tensors, with the counters as JSON in the metadata."""
        from safetensors.torch import save

        counters = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "optimizer"}
        return save(self.optimizer, {_COUNTERS: json.dumps(counters)})

    @classmethod
    def from_safetensors(
        cls, tensors: dict[str, Tensor], metadata: Mapping[str, str]
    ) -> "TrainingState":
        """Raises KeyError, TypeError, ValueError or ArithmeticError on other contents."""
        return cls._of(json.loads(metadata[_COUNTERS]), tensors)

    @classmethod
    def from_torch(cls, data: bytes) -> "TrainingState":
        """State that an older version wrote with torch.save; raises what torch raises, too."""
        document = load_torch(data)
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}, not a state")
        return cls._of(document, optimizer_tensors(document["optimizer"]["state"]))

    @classmethod
    def _of(cls, counters: Mapping[str, Any], optimizer: dict[str, Tensor]) -> "TrainingState":
        return cls(
            step=int(counters["step"]),
            epoch=int(counters["epoch"]),
            consumed=int(counters["consumed"]),
            best=float(counters["best"]),
            interval=dict(counters["interval"]),
            optimizer=optimizer,
        )


def optimizer_tensors(state: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of `Optimizer.state_dict()["state"]` by name."""
    return {
        f"{number}.{name}": value.detach().cpu().contiguous()
        for number, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.AdamW, tensors: dict[str, Tensor]) -> None:
    """Set the optimizer's tensors; ValueError if they are not those of its parameters.

    None at all are those of an optimizer before its first update.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted: dict[str, Tensor] = {}
    for number, parameter in enumerate(parameters):
        wanted |= {f"{number}.{name}": parameter for name in ("exp_avg", "exp_avg_sq")}
        wanted[f"{number}.step"] = torch.zeros(())
    if tensors and (problems := state_dict_problems(tensors, wanted)):
        raise ValueError(f"the optimizer's tensors are not the model's: {listing(problems)}")
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        prefix, _, name = key.partition(".")
        state.setdefault(int(prefix), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
