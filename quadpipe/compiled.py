"""Functions compiled by numba.

Import kernels inside the functions that call them: numba takes half a second to load.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile on first call and cache on disk, or in memory where no folder is writable."""
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(_Function, numba.njit(nogil=True)(function))


def read_only(array: np.ndarray) -> np.ndarray:
    """The array as an argument of a kernel: for arrays that can be written it is compiled again."""
    given = np.ascontiguousarray(array).view()
    given.flags.writeable = False
    return given
