"""Trying again what may pass: a busy server, a connection that breaks, a disk that blinks."""

import time
from collections.abc import Callable
from typing import TypeVar

from quadpipe.errors import QuadpipeError

T = TypeVar("T")

PAUSES = (0.1, 0.5, 2.0, 5.0)
"""Seconds between tries."""

# What another try would not change.
_FINAL = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    NotImplementedError,
    MemoryError,
)


def patiently(
    operation: Callable[[], T],
    *,
    passing: type[Exception] = OSError,
    final: tuple[type[Exception], ...] = _FINAL,
) -> T:
    """Its result; errors of the kind `passing`, but for `final` ones and those meant for users, are
    tried again with back-off, then raised."""
    at_once: tuple[type[Exception], ...] = (QuadpipeError, *final)
    for pause in PAUSES:
        try:
            return operation()
        except at_once:
            raise
        except passing:
            time.sleep(pause)
    return operation()
