"""Shards -> batches for torch, in an order that does not depend on ranks or workers.

Letters: B batch of all ranks; b of one rank; N tokens per image; T tokens of b images; P patch
size.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from quadpipe.counts import DISCOUNT, CountLimits, check_given
from quadpipe.errors import ConfigError
from quadpipe.loader.order import SHARDS_AT_ONCE, EpochOrder
from quadpipe.loader.samples import Rows, SampleReader, check_verify
from quadpipe.loader.schedule import Schedule, Tokens, parse_tokens
from quadpipe.shards.reader import Dataset
from quadpipe.shards.skipped import Skipped, check_on_error

_BATCHES_AHEAD = 2  # for each thread that reads ahead
_MOST_KEPT = 64  # batches whose memory is reused

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's slice of a global batch.

    tokens: uint8 `[b, N, P, P, 3]`. boxes: int16 `[b, N, 3]`: x, y, scale. label: int64 `[b]`, -1
    without labels. weight: float32 `[b]`: 1, or 0 for a skipped sample and for the placeholder of
    an empty slice. keys: of the samples. total: samples of the global batch, over all ranks. first:
    number of them before this slice. skipped: number of damaged samples of this slice; their rows
    are a valid, blank input (tokens 0, boxes of a valid tree, label 0, or -1 without labels, key
    empty), which must not count in loss and accuracy. The mean over a global batch is the sum of
    weight times loss over all ranks, divided by the sum of the weights over all ranks, which is
    `total` where nothing was skipped.

    lengths: None where every image has N tokens. Else tokens per image, int64 `[b]`, always on the
    CPU, and with T their sum, image after image: tokens uint8 `[T, P, P, 3]`, boxes int16 `[T, 3]`.
    """

    tokens: Tensor
    boxes: Tensor
    label: Tensor
    weight: Tensor
    keys: list[str]
    total: int
    first: int
    skipped: int
    lengths: Tensor | None = None


class Loader:
    """Batches of a split, epoch after epoch.

        loader = Loader("shards/", "train", batch_size=256, tokens=100)
        for batch in loader.epoch(0): ...

    tokens: tokens per image, by default all that the dataset holds. With several budgets, "19-100"
    or (19, 37, 64), each batch draws one, evenly or by `weights`, one for each budget;
    `tokens_per_batch` limits a batch to that number of tokens. See `schedule.Schedule`.

    mean_tokens: instead of `tokens`, the mean number over the images of a global batch, or several.
    Each image has between `min_tokens` and `max_tokens`, by default the least possible number and
    the stored one: the largest gains of the batch are split; see `counts.CountLimits.share`.
    gain_discount: see `counts`. threshold: instead of both, each image is split down to this
    discounted gain, within the same limits.

    The order of the samples and the budgets depend on `seed`, the epoch and the dataset alone;
    rank r of `world_size` takes its slice of every global batch, and `workers` threads only read
    ahead. All ranks make the same number of steps. Epoch e reads view e % views.

    on_error="skip" skips damaged samples, and those of missing shards: they keep their rows, with
    weight zero, so that order, steps and resuming do not change. `skipped` counts them in every
    epoch, as they are read ahead.

    verify: when checksums of samples are verified; see `samples.VERIFY`.

    Raises ConfigError on a split or budget that the dataset does not have, ShardError when a
    shard does not fit the manifest.
    """

    def __init__(
        self,
        dataset: Dataset | str | PathLike[str],
        split: str = "train",
        *,
        batch_size: int,
        tokens: Tokens | None = None,
        mean_tokens: Tokens | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        gain_discount: int = DISCOUNT,
        threshold: float | None = None,
        weights: Sequence[float] | None = None,
        tokens_per_batch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        on_error: str = "raise",
        verify: str = "first",
    ) -> None:
        check_on_error(on_error)
        check_verify(verify)
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
        self.split = self.dataset.split(split)
        self.name = split
        self.threshold = threshold
        self._set_budgets(tokens, mean_tokens, min_tokens, max_tokens, gain_discount)
        if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size {batch_size}, workers {workers}, rank {rank} of {world_size}: the "
                f"batch size must be above 0, workers at least 0, the rank below the world size"
            )
        self.batch_size = batch_size
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.workers, self.pin_memory = workers, pin_memory
        self.on_error, self.verify, self.skipped = on_error, verify, Skipped()
        self._memory = _Memory(pinned=pin_memory)
        self._readers: dict[int, SampleReader] = {}
        self.samples = self.split.samples // max(self.split.views, 1)
        self._reader(0)  # checks the counts of the shards
        self.schedule = Schedule(
            self.samples,
            batch_size,
            self.budgets,
            weights=weights,
            tokens_per_batch=tokens_per_batch,
            drop_last=drop_last,
            seed=seed,
        )
        if not self.steps(0):
            raise ConfigError(
                f"{split} of {self.dataset.folder} has {self.samples} samples, too few for a batch "
                f"of {batch_size}; use a smaller batch_size"
            )
        smallest = min(batch_size, self.samples)
        if smallest < world_size and rank == 0:
            _log.warning(
                "batches of %d samples for %d ranks: some ranks compute samples of weight zero",
                smallest,
                world_size,
            )

    def _set_budgets(
        self,
        tokens: Tokens | None,
        mean_tokens: Tokens | None,
        min_tokens: int | None,
        max_tokens: int | None,
        discount: int,
    ) -> None:
        """Set `budgets`, and `limits` where images have numbers of tokens of their own."""
        stored, geometry = self.dataset.manifest.tokenizer.tokens, self.dataset.manifest.geometry
        given = [value for value in (tokens, mean_tokens, self.threshold) if value is not None]
        is_adaptive = bool(given) and tokens is None
        if len(given) > 1:
            raise ConfigError("give one of tokens, mean_tokens and threshold")
        check_given(is_adaptive or None, min_tokens, max_tokens)
        self.limits = None
        if is_adaptive:
            self.limits = CountLimits.of(geometry, stored, min_tokens, max_tokens, discount)
            means = self.limits.most if mean_tokens is None else mean_tokens
            self.budgets = parse_tokens(means, geometry, means=True)
            for mean in self.budgets:
                self.limits.check_mean(mean)
            if self.threshold is not None and math.isnan(self.threshold):
                raise ConfigError("threshold is NaN; give a number")
            self.dataset.gains(self.name)
            return
        self.budgets = parse_tokens(stored if tokens is None else tokens, geometry)
        if self.budgets[-1] > stored:
            raise ConfigError(
                f"{self.dataset.folder} holds {stored} tokens, not {self.budgets[-1]}; use at most "
                f"{stored}, or rerun quadpipe tokenize with --tokens {self.budgets[-1]}"
            )

    def view(self, epoch: int) -> int:
        """The view that an epoch reads."""
        return epoch % self.split.views

    def epoch(self, epoch: int, *, consumed: int = 0) -> Iterator[Batch]:
        """The batches of an epoch after the first `consumed` samples of all ranks.

        (epoch, consumed) after a batch is the state for resuming.
        """
        batches = self.schedule.epoch(epoch)
        done = batches.after(consumed)
        if done is None:
            raise ConfigError(
                f"{consumed} samples are not a whole number of batches of {self.batch_size}; "
                f"resume with the earlier batch size"
            )
        reader = self._reader(self.view(epoch))
        order = EpochOrder(reader.shards.samples, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        steps = (batches[step] for step in range(done, len(batches)))
        if not self.workers:
            for step in steps:
                yield self._read_batch(reader, order, *step)
            return
        with ThreadPoolExecutor(self.workers, "quadpipe-loader") as pool:
            ahead = deque[Future[Batch]]()
            try:
                while True:
                    for step in islice(steps, _BATCHES_AHEAD * self.workers - len(ahead)):
                        ahead.append(pool.submit(self._read_batch, reader, order, *step))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _reader(self, view: int) -> SampleReader:
        if view not in self._readers:
            skip = self.on_error == "skip"
            reader = self._readers[view] = SampleReader(
                self.dataset, self.name, view, skip=skip, verify=self.verify
            )
            sizes = np.sort(reader.shards.bytes)[-(SHARDS_AT_ONCE if self.shuffle else 1) :]
            self.dataset.folder.check_room(sizes.tolist())
        return self._readers[view]

    def steps(self, epoch: int) -> int:
        """The number of batches of an epoch."""
        return len(self.schedule.epoch(epoch))

    def _read_batch(
        self, reader: SampleReader, order: EpochOrder, begin: int, end: int, budget: int
    ) -> Batch:
        """This rank's slice of the global batch from one position to another."""
        total = end - begin
        first, stop = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        is_placeholder = first == stop  # an empty rank computes one sample with weight zero
        if is_placeholder:
            first = min(first, total - 1)
            stop = first + 1
        shards, numbers, splits = self._locate(reader, order, begin, end, budget, first, stop)
        size, side = stop - first, self.dataset.manifest.tokenizer.patch_size
        roots = self.dataset.manifest.geometry.roots
        lengths = roots + 3 * splits
        tokens = self._memory.take((int(lengths.sum()), side * side * 3))
        rows = Rows(tokens.numpy(), splits, roots)
        reader.gather(shards, numbers, rows)
        weight = torch.full((size,), 0.0 if is_placeholder else 1.0)
        weight[list(rows.skipped)] = 0.0
        for name, error in rows.skipped.values():
            self.skipped.add(name, error, 0 if is_placeholder else 1)
        leading = (size, budget) if self.limits is None else (len(tokens),)
        return Batch(
            tokens=tokens.view(*leading, side, side, 3),
            boxes=self._pinned(torch.from_numpy(rows.boxes).view(*leading, 3)),
            lengths=None if self.limits is None else torch.from_numpy(lengths),
            label=self._pinned(torch.from_numpy(rows.labels)),
            weight=self._pinned(weight),
            keys=rows.keys(),
            total=total,
            first=first,
            skipped=0 if is_placeholder else len(rows.skipped),
        )

    def _locate(
        self,
        reader: SampleReader,
        order: EpochOrder,
        begin: int,
        end: int,
        budget: int,
        first: int,
        stop: int,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shard, number in it, and splits, int64 `[stop - first]` each, of a slice of a batch.

        begin, end: of the global batch in the epoch. The numbers of splits of its other images
        decide those of the slice.
        """
        if self.limits is None:
            equal = (budget - self.dataset.manifest.geometry.roots) // 3
            located = order.locate(begin + first, begin + stop)
            return *located, np.full(stop - first, equal, np.int64)
        shards, numbers = order.locate(begin, end)
        gains = reader.gains(shards, numbers)
        if self.threshold is None:
            splits = self.limits.share(gains, budget)
        else:
            splits = self.limits.at_threshold(gains, self.threshold)
        part = slice(first, stop)
        return shards[part], numbers[part], splits[part]

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.pin_memory else tensor


class _Memory:
    """Memory for the tokens of batches, reused when no tensor shares it.

    Fresh memory costs a page fault every 4 kB, as much as copying the tokens. Pinned memory is
    managed by torch, which knows which copies to a GPU are running.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free = deque[np.ndarray](maxlen=_MOST_KEPT)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 of this shape, uninitialized."""
        size = math.prod(shape)
        try:
            return self._take(shape, size)
        except (MemoryError, RuntimeError) as error:
            raise ConfigError(
                f"a batch of {shape[0]:,} tokens is {size:,} bytes, more than the available "
                f"memory; use a smaller batch_size"
            ) from error

    def _take(self, shape: tuple[int, ...], size: int) -> Tensor:
        if self._pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        memory = self._free_block(size)
        if memory is None:
            memory = np.empty(size, np.uint8)
        # torch keeps this array while a tensor or an array shares its memory.
        lent = memory[:size]
        finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _free_block(self, size: int) -> np.ndarray | None:
        """A block of at least `size` bytes; smaller ones are dropped. Threads may call this."""
        while True:
            try:
                block = self._free.popleft()
            except IndexError:
                return None
            if len(block) >= size:
                return block
