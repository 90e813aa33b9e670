"""Where the time of training goes: seconds per step, and a trace of some steps."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from quadpipe.files import LocalFolder

TRACE = "trace.json"
_STEPS_AHEAD = 2  # a step waits for the result of the one before: a GPU has finished older ones
STEPS_BEFORE_TRACE = 5  # the first ones compile, allocate and read


class StepTimes:
    """Seconds that a device copies batches and computes steps, without a wait for it.

    Measured by its events on a GPU, where the CPU runs ahead, and by the clock on a CPU. At most
    the last steps are kept, however long it is until `clear`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        self._copying = self._computing = 0.0
        self._steps: list[tuple[Any, Any, Any]] = []  # not in the sums yet

    def mark(self) -> Any:
        """A time for `add`: of the device, when it has done what it has to do by now."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, begin: Any, copied: Any, end: Any) -> None:
        """Add a step: its batch was copied from `begin` on, and computed when `copied`."""
        self._steps.append((begin, copied, end))
        self._sum_up(but=_STEPS_AHEAD)

    def totals(self) -> tuple[float, float]:
        """Seconds of copying and of computing, since `clear`. Waits for the device."""
        self._sum_up()
        return self._copying, self._computing

    def _sum_up(self, but: int = 0) -> None:
        """Add the steps to the sums, except for the last ones."""
        while len(self._steps) > but:
            begin, copied, end = self._steps.pop(0)
            self._copying += self._seconds(begin, copied)
            self._computing += self._seconds(copied, end)

    def _seconds(self, begin: Any, end: Any) -> float:
        if not self._on_gpu:
            return float(end - begin)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


@contextmanager
def traced(
    steps: int, folder: LocalFolder, tell: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Within it, call the function after each step: a torch profiler trace of `steps` steps, after
    the first ones, is written to the folder as `trace.json`. 0: of none. tell: is told where."""
    if not steps:
        yield lambda: None
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its own lines on stderr say nothing to users
    from torch.profiler import profile, schedule

    def write(finished: Any) -> None:
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / TRACE
            finished.export_chrome_trace(str(path))
            folder.write(TRACE, path.read_bytes())
        tell(f"the trace of the profiler is in {folder.where(TRACE)}")

    plan = schedule(wait=STEPS_BEFORE_TRACE - 1, warmup=1, active=steps, repeat=1)
    with profile(schedule=plan, on_trace_ready=write) as running:
        yield running.step
