"""The order of an epoch: a pure function of seed, epoch and the shards' counts.

Shards are permuted and dealt to a fixed number of lanes. A lane reads its shards in windows of
a few and shuffles the samples of a window. The lanes are merged evenly: sample i of a lane of n
samples is at (2 i + 1) / (2 n) of the epoch, so that all lanes end together. The order does not
depend on ranks or workers, and any position can be computed directly.

Letters: N samples of the epoch; L lanes; n_l samples of lane l.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np

from quadpipe.seeds import permutation

LANES = 16
WINDOW = 4
SHARDS_AT_ONCE = LANES * (WINDOW + 1)
"""The largest number of shards in use at a time: a window per lane, and the next shard of each."""
# Positions are merged in blocks of about this number of samples.
_BLOCK = 4096
_TURNS = 1 << 16
LARGEST_SHARE = 2**60
"""Bounds the sum of the shares of an `Interleave`, so that its sums fit 64 bits."""


class EpochOrder:
    """Shard and number of the sample at each position of one epoch.

    counts: samples of each shard, in the order of the shard list. shuffle: without it, that order.
    words: others give another order.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        *,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        words: Sequence[int | str] = (),
    ) -> None:
        self._words = (seed, epoch, *words)
        self._counts = np.asarray(counts, np.int64)
        self.samples = int(self._counts.sum())
        lanes = min(LANES, max(len(counts), 1)) if shuffle else 1
        self._shuffle = shuffle
        shards = permutation(len(counts), "loader/shards", *self._words)
        if not shuffle:
            shards = np.arange(len(counts))
        self._lanes = [shards[lane::lanes] for lane in range(lanes)]
        self._starts = [np.concatenate([[0], np.cumsum(self._counts[s])]) for s in self._lanes]
        self._lengths = np.array([starts[-1] for starts in self._starts], np.int64)
        self._blocks = max(1, self.samples // _BLOCK)
        self._window = lru_cache(maxsize=4 * lanes)(self._shuffled_window)
        self._block = lru_cache(maxsize=4)(self._merged_block)

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and number inside it, int64 `[stop - start]` each, of a range of positions."""
        assert 0 <= start <= stop <= self.samples
        shards, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        position = start
        while position < stop:
            first, in_shards, in_numbers = self._block(self._block_of(position))
            part = slice(position - first, min(stop - first, len(in_shards)))
            shards.append(in_shards[part])
            numbers.append(in_numbers[part])
            position = first + part.stop
        return np.concatenate(shards), np.concatenate(numbers)

    def _before(self, block: int) -> np.ndarray:
        """int64 `[L]`: samples of each lane before a block: those with (2i+1)/2n < block/blocks."""
        doubled = 2 * block * self._lengths - self._blocks
        return -(-doubled // (2 * self._blocks))

    def _block_of(self, position: int) -> int:
        found = bisect_right(
            range(self._blocks), position, key=lambda b: int(self._before(b).sum())
        )
        return found - 1

    def _merged_block(self, block: int) -> tuple[int, np.ndarray, np.ndarray]:
        """First position of a block; shard and number inside it of each of its samples."""
        low, high = self._before(block), self._before(block + 1)
        counts = high - low
        lane = np.repeat(np.arange(len(counts)), counts)
        index = np.arange(len(lane)) - np.repeat(np.cumsum(counts) - counts, counts) + low[lane]
        place = (2 * index + 1) / (2 * self._lengths[lane])
        order = np.lexsort((lane, place))
        return int(low.sum()), *self._in_lanes(lane[order], index[order])

    def _in_lanes(self, lane: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and number inside it of samples given by lane and index in the lane."""
        shards, numbers = np.empty_like(index), np.empty_like(index)
        for one in np.unique(lane).tolist():
            here = lane == one
            starts, inside = self._starts[one], index[here]
            slots = np.searchsorted(starts, inside, side="right") - 1
            if self._shuffle:
                for window in np.unique(slots // WINDOW).tolist():
                    chosen = slots // WINDOW == window
                    first = int(starts[window * WINDOW])
                    inside[chosen] = first + self._window(one, window)[inside[chosen] - first]
                slots = np.searchsorted(starts, inside, side="right") - 1
            shards[here] = self._lanes[one][slots]
            numbers[here] = inside - starts[slots]
        return shards, numbers

    def _shuffled_window(self, lane: int, window: int) -> np.ndarray:
        starts = self._starts[lane]
        first, last = window * WINDOW, min((window + 1) * WINDOW, len(starts) - 1)
        return permutation(
            int(starts[last] - starts[first]), "loader/window", *self._words, lane, window
        )


class Interleave:
    """Datasets in turns: at each position, all have had their share of the samples before it.

    shares: above 0, one for each dataset; only their ratios count. After any number of samples,
    each dataset is less than one sample from its share of them. Threads may share it.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self._shares = np.array(shares, np.int64) // np.gcd.reduce(np.array(shares, np.int64))
        nothing = np.zeros(len(shares), np.int64)
        # Samples taken from each dataset before each block, and its credit; see `take_turns`.
        self._starts = [(nothing, nothing)]
        self._lock = Lock()
        self._block = lru_cache(maxsize=4)(self._turns)

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset, and number of the sample among those of its dataset, int64 `[stop - start]`."""
        if len(self._shares) == 1:
            return np.zeros(stop - start, np.int64), np.arange(start, stop)
        parts = []
        for block in range(start // _TURNS, max(-(-stop // _TURNS), start // _TURNS + 1)):
            low = block * _TURNS
            part = slice(max(start - low, 0), max(stop - low, 0))
            parts.append([values[part] for values in self._block(block)])
        datasets, numbers = zip(*parts, strict=True)
        return np.concatenate(datasets), np.concatenate(numbers)

    def _turns(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset and number of each position of a block."""
        from quadpipe.loader.turns import take_turns

        with self._lock:
            while True:
                at = min(block, len(self._starts) - 1)
                taken, credits = (values.copy() for values in self._starts[at])
                datasets, numbers = np.empty(_TURNS, np.int64), np.empty(_TURNS, np.int64)
                take_turns(self._shares, taken, credits, datasets, numbers)
                if at + 1 == len(self._starts):
                    self._starts.append((taken, credits))
                if at == block:
                    return datasets, numbers
