"""SIGINT and SIGTERM of a training run."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from quadpipe.errors import QuadpipeError

# A launcher may pass on a signal that the process has already received itself.
_SECONDS_TO_SAVE = 2.0


class InterruptedTrainingError(QuadpipeError):
    """Training was stopped by a signal."""

    exit_code = 130


class StopSignals:
    """received: whether a signal asked training to stop."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block the first signal sets `received`; one much later stops at once.

        Only the main thread receives signals; in other threads they are left to the caller.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        first: float | None = None

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal first
            now = time.monotonic()
            first = now if first is None else first
            self.received = True
            if now - first > _SECONDS_TO_SAVE:
                raise InterruptedTrainingError(
                    "stopped without saving; continue from the last checkpoint with --resume"
                )

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
