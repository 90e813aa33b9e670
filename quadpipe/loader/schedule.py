"""The budget and the size of every batch: pure functions of seed, epoch and step.

Letters: N samples of an epoch; K batches of an epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.seeds import random_bits, unit_interval

Tokens = int | str | Sequence[int]
"""Tokens per image: one budget, a range as "19-100", or several as "19,37,64"."""


def parse_tokens(tokens: Tokens, geometry: Geometry, *, means: bool = False) -> tuple[int, ...]:
    """The legal budgets that are meant, ascending; of a range all legal ones within it.

    means: they are means over images, which need not be legal. ConfigError on other text, on a
    budget that is not legal, and on a range without a legal one.
    """
    if isinstance(tokens, str):
        parts = tokens.split("-" if "-" in tokens else ",")
        if not all(part.strip().isdecimal() for part in parts) or (
            "-" in tokens and len(parts) > 2
        ):
            raise ConfigError(
                f"tokens {tokens!r} is not a number, a range such as 19-100, or a list such as "
                f"19,37,64"
            )
        numbers = [int(part) for part in parts]
        if "-" in tokens:
            return geometry.budgets_between(numbers[0], numbers[1])
        tokens = numbers
    given: Sequence[Any] = tokens if isinstance(tokens, Sequence) else [tokens]
    try:
        budgets = [index(number) for number in given]
    except TypeError:
        raise ConfigError(f"tokens {tokens!r} is not a whole number, or several") from None
    for budget in () if means else budgets:
        geometry.num_splits(budget)
    if not budgets:
        raise ConfigError("tokens is an empty list; give one budget or more")
    return tuple(sorted(set(budgets)))


@dataclass(frozen=True)
class Batches:
    """Batch k of an epoch has the samples starts[k] to starts[k + 1], at budgets[k] tokens each.

    starts: int64 `[K + 1]`. budgets: int64 `[K]`.
    """

    starts: np.ndarray
    budgets: np.ndarray

    def __len__(self) -> int:
        return len(self.budgets)

    @property
    def samples(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, step: int) -> tuple[int, int, int]:
        """First sample, the one after the last, and budget of a batch."""
        return int(self.starts[step]), int(self.starts[step + 1]), int(self.budgets[step])

    def after(self, consumed: int) -> int | None:
        """The number of batches that hold the first `consumed` samples; None within a batch."""
        done = int(np.searchsorted(self.starts, min(consumed, self.samples)))
        return done if self.starts[done] == min(consumed, self.samples) else None


class Schedule:
    """Batches of an epoch of N samples.

    A batch draws one of the budgets, evenly, or by `weights`, one for each budget. It has
    `batch_size` samples; with `tokens_per_batch` that many tokens divided by its budget, rounded
    down, at least 1 and at most `batch_size`. The last batch has what is left.

    most_batches: an epoch has no more.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        budgets: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        tokens_per_batch: int | None = None,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        if tokens_per_batch is not None and drop_last:
            raise ConfigError(
                "with a number of tokens per batch, epochs do not end with the same batch; leave "
                "out drop_last"
            )
        self.samples, self.batch_size, self.budgets = samples, batch_size, tuple(budgets)
        shares = np.ones(len(budgets)) if weights is None else np.asarray(weights, np.float64)
        self._bounds = np.cumsum(shares / shares.sum())[:-1]
        self._tokens_per_batch, self._drop_last, self._seed = tokens_per_batch, drop_last, seed
        sizes = [self._size(budget) for budget in self.budgets]
        self._sizes, self._budgets = np.array(sizes, np.int64), np.array(budgets, np.int64)
        self.most_batches = -(-samples // min(sizes))
        self.epoch = lru_cache(maxsize=4)(self._epoch)

    def _size(self, budget: int) -> int:
        if self._tokens_per_batch is None:
            return self.batch_size
        return min(max(self._tokens_per_batch // budget, 1), self.batch_size)

    def _epoch(self, epoch: int) -> Batches:
        """The batches of an epoch."""
        drawn = np.zeros(self.most_batches, np.int64)
        if len(self.budgets) > 1:
            bits = random_bits(self.most_batches, "loader/budget", self._seed, epoch)
            drawn = np.searchsorted(self._bounds, unit_interval(bits), side="right")
        ends = np.minimum(np.cumsum(self._sizes[drawn]), self.samples)
        count = int(np.searchsorted(ends, self.samples)) + 1
        if self._drop_last and self.samples % self.batch_size:
            count -= 1
        return Batches(np.concatenate([[0], ends[:count]]), self._budgets[drawn[:count]])
