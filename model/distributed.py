"""The processes of a training run: one alone, or those that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from quadpipe.errors import ConfigError, QuadpipeError


class ProcessGroupError(QuadpipeError):
    """The other processes of a training run are gone."""


@dataclass(frozen=True)
class World:
    """rank: number of this process. size: how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, exchanged through the CPU."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        try:
            dist.all_reduce(tensor, group=_control_group())
        except RuntimeError as error:
            raise ProcessGroupError(
                "another process of the run has ended; see its message"
            ) from error
        return [float(value) for value in tensor]

    def wait(self) -> None:
        """Until all processes are here."""
        self.total(0.0)


_group: dist.ProcessGroup | None = None


def _control_group() -> dist.ProcessGroup | None:
    """Small numbers go over gloo, so that a GPU does not wait for them."""
    global _group
    if _group is None and dist.get_backend() != "gloo":
        _group = dist.new_group(backend="gloo")
    return _group


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """The world of torchrun's environment variables, left when the block ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but the processes cannot meet ({error}); start them with torchrun"
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
