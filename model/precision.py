"""bf16 autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

AMP = ("auto", "bf16", "off")
AMP_HELP = "bf16 autocast; auto uses it on GPUs that compute in bf16 (Ampere or later, AMD)."


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """The context for the model's forward pass; amp: one of AMP.

    Weights and the residual stream between the blocks stay in float32.
    """
    if amp == "bf16" or (amp == "auto" and _computes_in_bf16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _computes_in_bf16(device: torch.device) -> bool:
    """Not by emulation, which is slower than float32: so do T4 and V100."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
