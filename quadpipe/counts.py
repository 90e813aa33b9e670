"""Numbers of tokens of images that differ: the splits that each image of a set gets.

The gains of an image never increase, so the largest gains of a set of images are a prefix of the
split order of each of them. A split is worth less to an image that has many already: the gain of
split k, counted from 1, is divided by k to the power of a discount (a negative one multiplied).
Without it, scorers whose maps are comparable between images give nearly all tokens to few images;
docs/budgets.md has what was measured.

Letters: B images; K stored splits.
"""

import logging
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry

DISCOUNT, MAX_DISCOUNT = 2, 8
QUANTILES = 1024
"""Rows of a `distribution`."""
_MOST_SORTED = 2**17

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CountLimits:
    """The least and the largest number of tokens of an image, both legal budgets; the discount."""

    geometry: Geometry
    least: int
    most: int
    discount: int = DISCOUNT

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        stored: int,
        least: int | None = None,
        most: int | None = None,
        discount: int = DISCOUNT,
    ) -> "CountLimits":
        """By default from the roots to the `stored` budget; ConfigError on other limits."""
        limits = cls(
            geometry=geometry,
            least=geometry.roots if least is None else index(least),
            most=stored if most is None else index(most),
            discount=index(discount),
        )
        for tokens in (limits.least, limits.most):
            geometry.num_splits(tokens)
        if limits.least > limits.most or limits.most > stored:
            raise ConfigError(
                f"from {limits.least} to {limits.most} tokens per image is not a range within the "
                f"{geometry.roots} to {stored} that are stored; give other min_tokens or max_tokens"
            )
        if not 0 <= discount <= MAX_DISCOUNT:
            raise ConfigError(f"gain_discount {discount} is not from 0 to {MAX_DISCOUNT}")
        return limits

    @property
    def counts(self) -> tuple[int, ...]:
        """All numbers of tokens that an image can have, ascending."""
        return self.geometry.budgets_between(self.least, self.most)

    def options(self) -> dict[str, Any]:
        """These limits as options of a `Loader`."""
        return {
            "min_tokens": self.least,
            "max_tokens": self.most,
            "gain_discount": self.discount,
        }

    def check_mean(self, mean: int) -> None:
        """Raise ConfigError unless images can have that many tokens on average."""
        if not self.least <= mean <= self.most:
            raise ConfigError(
                f"a mean of {mean} tokens is not from {self.least} to {self.most}, the fewest and "
                f"the most per image; give another one, or other min_tokens or max_tokens"
            )

    def share(self, gains: np.ndarray, mean: int) -> np.ndarray:
        """int64 `[B]`: the number of splits of each image when the set has `mean` * B tokens.

        gains: float32 `[B, K]`. The largest discounted gains of the set are taken; of equal ones
        those that come first in their image, then those of the first image. At most 2 tokens stay
        unused.
        """
        low, free = self._free(gains)
        wanted = self._wanted(len(gains), mean)
        if not 0 < wanted < free.size:
            return np.full(len(gains), low + (free.shape[1] if wanted else 0), np.int64)
        threshold = np.partition(free, free.size - wanted, axis=None)[free.size - wanted]
        counts: np.ndarray = low + (free > threshold).sum(axis=1)
        left = wanted - int(counts.sum() - low * len(gains))
        equal = np.argwhere(threshold == free.T)[:left, 1]
        return counts + np.bincount(equal, minlength=len(gains))

    def threshold(self, gains: np.ndarray, mean: int, *, quiet: bool = False) -> float:
        """The discounted gain down to which images are split for `mean` tokens per image.

        With many equal gains the images get less, which is logged unless `quiet`.
        """
        _, free = self._free(gains)
        wanted = self._wanted(len(gains), mean)
        if not 0 < wanted < free.size:
            return -np.inf if wanted else np.inf
        at = free.size - wanted
        value = float(np.partition(free, at, axis=None)[at])
        if np.count_nonzero(free >= value) > wanted:
            larger = free[free > value]
            value = float(larger.min()) if len(larger) else np.inf
        reached = self.least + 3 * np.count_nonzero(free >= value) / len(gains)
        if reached < mean - 1 and not quiet:
            _log.warning(
                "many images have equal gains, so with %d tokens on average wanted they get %.1f",
                mean,
                reached,
            )
        return value

    def at_threshold(self, gains: np.ndarray, threshold: float) -> np.ndarray:
        """int64 `[B]`: the splits of each image with a discounted gain of at least `threshold`."""
        low, free = self._free(gains)
        splits: np.ndarray = low + (free >= np.float32(threshold)).sum(axis=1, dtype=np.int64)
        return splits

    def _free(self, gains: np.ndarray) -> tuple[int, np.ndarray]:
        """Splits that every image has; discounted gains `[B, ..]` of those that it may have."""
        low, high = (self.geometry.num_splits(tokens) for tokens in (self.least, self.most))
        # Integers to the power of an integer, and one rounding: the same on every machine.
        divisors = np.arange(low + 1, high + 1, dtype=np.float64) ** self.discount
        free = gains[:, low:high]
        with np.errstate(over="ignore"):
            discounted = np.where(free < 0, free * divisors, free / divisors).astype(np.float32)
        return low, discounted

    def _wanted(self, images: int, mean: int) -> int:
        """Number of splits of the set beyond the least one of each image."""
        return images * (mean - self.least) // 3


def check_given(mean: object, *limits: object) -> None:
    """Raise ConfigError if limits are given without a mean; None: not given."""
    if mean is None and any(limit is not None for limit in limits):
        raise ConfigError(
            "min_tokens, max_tokens and gain_discount are for mean_tokens; give that too"
        )


def distribution(gains: np.ndarray) -> np.ndarray:
    """float32 `[1024, K]`: quantiles of the gains `[B, K]` of a set of images, for each split.

    A threshold of this table gives nearly the same mean as one of the images. Of more than 2**17
    images every n-th is taken.
    """
    ordered = np.sort(gains[:: -(-len(gains) // _MOST_SORTED)], axis=0)
    middles = (2 * np.arange(QUANTILES, dtype=np.int64) + 1) * len(ordered) // (2 * QUANTILES)
    table: np.ndarray = ordered[middles]
    return table
