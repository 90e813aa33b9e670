"""Progress of a training run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from quadpipe.model.distributed import World
from quadpipe.model.evaluate import EvalResult
from quadpipe.model.timing import StepTimes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """An interval of training. loss, accuracy: means over the samples that were not skipped, None
    if all were.

    waiting: share of the time in which the CPU waited for data. copying, computing: shares in which
    the device copied batches and computed steps; on a GPU, which works while the CPU prepares the
    next step, it did nothing in the rest.
    """

    epoch: int
    step: int
    steps: int
    skipped: int
    loss: float | None
    accuracy: float | None
    lr: float
    images_per_second: float
    tokens_per_second: float
    waiting: float
    copying: float
    computing: float
    seconds_left: float


class TrainProgress:
    """Progress callbacks; the base class ignores them."""

    def started(self, trainer: Any) -> None:
        """Options are checked and weights loaded; trainer: the `train.Trainer`."""

    def warn(self, message: str) -> None:
        """A warning for the user."""

    def interval(self, report: StepReport) -> None:
        """An interval is finished."""

    def evaluated(self, epoch: int, score: EvalResult) -> None:
        """An epoch is finished and evaluated."""

    def finished(self, trainer: Any) -> None:
        """All epochs are finished and saved."""


class Interval:
    """Sums since the last progress report; a part of the checkpoint."""

    def __init__(self, device: torch.device, world: World, times: StepTimes) -> None:
        self._device, self._world, self._times = device, world, times
        self.clear()

    def clear(self) -> None:
        """Start a new interval."""
        self.steps = self.samples = self.skipped = 0
        self._loss = self._correct = torch.zeros((), device=self._device)
        self._remember()
        self.restart_clock()

    def _remember(self) -> None:
        self._before = self.steps, self.samples, self.skipped, self._loss, self._correct

    def undo(self) -> None:
        """Take the last step out."""
        self.steps, self.samples, self.skipped, self._loss, self._correct = self._before

    def restart_clock(self) -> None:
        """Measure rates from now on."""
        self._waited, self._timed, self._tokens = 0.0, 0, 0
        self._times.clear()
        self._started = time.perf_counter()

    def state(self) -> dict[str, float]:
        """The sums over all processes."""
        loss, correct = self._world.total(float(self._loss), float(self._correct))
        return {
            "steps": self.steps,
            "samples": self.samples,
            "skipped": self.skipped,
            "loss": loss,
            "correct": correct,
        }

    def restore(self, state: dict[str, float]) -> None:
        """Continue from `state`; the first process holds the sums."""
        self.steps, self.samples = int(state["steps"]), int(state["samples"])
        self.skipped = int(state.get("skipped", 0))
        share = 1.0 if self._world.is_rank_zero else 0.0
        self._loss = self._loss + state["loss"] * share
        self._correct = self._correct + state["correct"] * share

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches; measures rates, and the time spent waiting, from the first one on.

        The wait for that one is the start of reading, which no number of workers shortens.
        """
        batch = next(batches, None)
        self.restart_clock()
        while batch is not None:
            yield batch
            before = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - before

    def add(self, loss: Tensor, correct: Tensor, samples: int, skipped: int) -> None:
        """Add a step. loss, correct: of this process. samples, skipped: of the global batch."""
        self._remember()
        self.steps += 1
        self.samples += samples
        self.skipped += skipped
        self._timed += samples
        self._loss = self._loss + loss
        self._correct = self._correct + correct

    def count_tokens(self, tokens: int) -> None:
        """Add the tokens of a step, of the global batch."""
        self._tokens += tokens

    def report(self, *, epoch: int, step: int, steps: int, lr: float, left: int) -> StepReport:
        """The report of the interval; left: samples until the end of the run."""
        sums = self.state()
        copying, computing = self._times.totals()
        seconds = time.perf_counter() - self._started
        rate = self._timed / seconds
        whole = self.samples - self.skipped
        return StepReport(
            epoch=epoch,
            step=step,
            steps=steps,
            skipped=self.skipped,
            loss=sums["loss"] / whole if whole else None,
            accuracy=sums["correct"] / whole if whole else None,
            lr=lr,
            images_per_second=rate,
            tokens_per_second=self._tokens / seconds,
            waiting=self._waited / seconds,
            copying=copying / seconds,
            computing=computing / seconds,
            seconds_left=left / rate,
        )
