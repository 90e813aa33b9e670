"""The processes of a training run: one, or those that torchrun started."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from quadpipe.errors import ConfigError, QuadpipeError, first_line

T = TypeVar("T")
_TORCHRUN = "start the processes with torchrun, or unset the variable to train in one"


class ProcessGroupError(QuadpipeError):
    """Another process of the training run has failed or ended."""


@dataclass(frozen=True)
class World:
    """rank: index of this process. size: number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """The sums over all processes, exchanged through the CPU."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        try:
            dist.all_reduce(tensor, group=_control_group())
        except RuntimeError as error:
            raise _lost() from error
        return [float(value) for value in tensor]

    def max_(self, value: Tensor) -> None:
        """Replace a value by the largest of all processes, on its device and without a wait."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)

    def gather(self, names: list[str]) -> list[str]:
        """The names of all processes."""
        if self.size == 1:
            return names
        found: list[list[str]] = [[] for _ in range(self.size)]
        try:
            dist.all_gather_object(found, names, group=_control_group())
        except RuntimeError as error:
            raise _lost() from error
        return [name for some in found for name in some]

    def wait(self) -> None:
        """Block until all processes get here."""
        self.total(0.0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends all processes when it fails in one; that one reports the cause."""
        try:
            yield
        except BaseException:
            with suppress(ProcessGroupError):
                self.total(1.0)
            raise
        if self.total(0.0)[0]:
            raise _failed()

    def in_step(
        self,
        items: Iterator[T],
        along: Callable[[T | None], tuple[float, ...]] = lambda item: (),
    ) -> Iterator[tuple[T, list[float]]]:
        """The items, taken `together`; each process must have the same number of them.

        along: numbers that the processes exchange in the same message, also where there is no
        item. Their sums are with the item.
        """
        while True:
            try:
                item = next(items, None)
            except BaseException:
                with suppress(ProcessGroupError):
                    self.total(1.0, *along(None))
                raise
            failed, *sums = self.total(0.0, *along(item))
            if failed:
                raise _failed()
            if item is None:
                return
            yield item, sums


_group: dist.ProcessGroup | None = None


def _control_group() -> dist.ProcessGroup | None:
    """A gloo group for small numbers, so that the GPU does not wait for them."""
    global _group
    if _group is None and dist.get_backend() != "gloo":
        _group = dist.new_group(backend="gloo")
    return _group


@contextmanager
def join_world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun's environment variables name, until the block ends.

    Raises ConfigError if the variables are invalid, ProcessGroupError if another process ends.
    """
    size = rank_variable("WORLD_SIZE", 1, lowest=1)
    if size == 1:
        yield World()
        return
    if rank_variable("RANK", 0) >= size:
        raise ConfigError(f"RANK {os.environ['RANK']} is not below WORLD_SIZE {size}; {_TORCHRUN}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but the processes cannot meet ({first_line(error)}); {_TORCHRUN}"
        ) from error
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors, wherever torch exchanges gradients.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise _lost() from error
    finally:
        global _group
        _group = None
        dist.destroy_process_group()


def rank_variable(name: str, default: int, lowest: int = 0) -> int:
    """An environment variable of torchrun; ConfigError if it is not an integer >= `lowest`."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and int(text) >= lowest):
        raise ConfigError(
            f"{name} {text!r} in the environment is not a whole number of at least {lowest}; "
            f"{_TORCHRUN}"
        )
    return int(text)


def _failed() -> ProcessGroupError:
    return ProcessGroupError("another process of the run has failed; see its message")


def _lost() -> ProcessGroupError:
    return ProcessGroupError("another process of the run has ended; see its message")
