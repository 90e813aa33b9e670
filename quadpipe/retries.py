"""Retries with back-off: a busy server, a broken connection, a disk that fails for a moment."""

import time
from collections.abc import Callable
from typing import TypeVar

from quadpipe.errors import QuadpipeError

T = TypeVar("T")

PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between attempts."""

# Errors that a retry would not fix.
_FINAL = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    MemoryError,
)


def retry(
    operation: Callable[[], T],
    *,
    on: type[Exception] = OSError,
    final: tuple[type[Exception], ...] = _FINAL,
) -> T:
    """The result of `operation`, which is retried after errors of type `on`.

    Errors in `final` and QuadpipeErrors are raised at once, others after the last attempt.
    """
    at_once: tuple[type[Exception], ...] = (QuadpipeError, *final)
    for pause in PAUSES:
        try:
            return operation()
        except at_once:
            raise
        except on:
            time.sleep(pause)
    return operation()
