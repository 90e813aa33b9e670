"""Permissions that hold for whoever runs the tests, root too."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


@contextmanager
def permissions_that_count() -> Iterator[None]:
    """Let permissions hold for root too, by dropping its capabilities that override them."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root's capabilities cannot be laid down here")
    header = _Header(0x20080522, 0)
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    for sets in (before, less):  # effective, permitted, inheritable, then their upper halves
        assert libc.capget(ctypes.byref(header), sets) == 0
    less[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(ctypes.byref(header), less):
        pytest.skip("root's capabilities cannot be laid down here")
    try:
        yield
    finally:
        libc.capset(ctypes.byref(header), before)
