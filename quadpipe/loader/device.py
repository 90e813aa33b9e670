"""Copies of small tensors to a device, which the CPU does not wait for."""

import torch
from torch import Tensor


def to_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Tensors of the CPU on a device, in one copy from pinned memory."""
    if device.type == "cpu":
        return list(tensors)
    # Large elements come first, so that each tensor begins at a multiple of its elements' size.
    ordered = sorted(enumerate(tensors), key=lambda item: -item[1].element_size())
    parts = [tensor.reshape(-1).view(torch.uint8) for _, tensor in ordered]
    packed = torch.cat(parts).pin_memory().to(device, non_blocking=True)
    moved = list(tensors)
    sizes = [len(part) for part in parts]
    for (number, tensor), part in zip(ordered, packed.split_with_sizes(sizes), strict=True):
        moved[number] = part.view(tensor.dtype).view(tensor.shape)
    return moved
