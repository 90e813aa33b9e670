"""Random bits that are the same on all machines and with all library versions.

They come from SHAKE-256 (FIPS 202) over the words that name the draw, so that a draw depends on
its purpose (seed, split, input, view) and never on the process or the order.
"""

import hashlib
import json

import numpy as np

LARGEST_SEED = 2**63 - 1


def random_bits(count: int, *words: int | str) -> np.ndarray:
    """`count` uniform uint64 values named by `words`; other words give independent values."""
    digest = hashlib.shake_256(json.dumps(words).encode()).digest(8 * count)
    return np.frombuffer(digest, dtype="<u8")


def permutation(count: int, *words: int | str) -> np.ndarray:
    """A uniform random permutation of `range(count)`, int64 `[count]`."""
    return np.argsort(random_bits(count, *words), kind="stable")


def unit_interval(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from the upper 53 of each value's 64 random bits."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
