"""Shards -> batches for torch, in an order that does not depend on who reads.

Letters: B batch of all ranks; b of one rank; N tokens; P patch size.
"""

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from quadpipe.errors import ConfigError, LoaderError, QuadpipeError
from quadpipe.loader.order import EpochOrder
from quadpipe.loader.samples import SampleReader
from quadpipe.shards.reader import Dataset

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's slice of a global batch.

    tokens: uint8 `[b, N, P, P, 3]`. boxes: int16 `[b, N, 3]`: x, y, scale. label: int64 `[b]`, -1
    without labels. weight: float32 `[b]`: 1, or 0 for the sample that stands in for an empty
    slice. keys: of the samples. total: samples of the global batch, over all ranks. first: how
    many of them come before this slice.
    """

    tokens: Tensor
    boxes: Tensor
    label: Tensor
    weight: Tensor
    keys: list[str]
    total: int
    first: int

    def pin_memory(self) -> "Batch":
        return Batch(
            tokens=self.tokens.pin_memory(),
            boxes=self.boxes.pin_memory(),
            label=self.label.pin_memory(),
            weight=self.weight.pin_memory(),
            keys=self.keys,
            total=self.total,
            first=self.first,
        )


class Loader:
    """Batches of a split, epoch after epoch.

        loader = Loader("shards/", "train", batch_size=256, tokens=100)
        for batch in loader.epoch(0): ...

    The order of the samples depends on `seed`, the epoch and the dataset alone; rank r of
    `world_size` takes its slice of every global batch of `batch_size`, and `workers` processes only
    read ahead. All ranks make the same number of steps. Epoch e reads view e % views.

    Raises ConfigError on a split or budget that the dataset does not have, ShardError when a
    shard does not hold what the manifest says.
    """

    def __init__(
        self,
        dataset: Dataset | str | PathLike[str],
        split: str = "train",
        *,
        batch_size: int,
        tokens: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
        self.split = self.dataset.split(split)
        self.name = split
        stored = self.dataset.manifest.tokenizer.tokens
        self.tokens = stored if tokens is None else tokens
        self.dataset.manifest.geometry.splits(self.tokens)
        if self.tokens > stored:
            raise ConfigError(
                f"{self.dataset.folder} holds {stored} tokens, not {tokens}; use at most {stored}, "
                f"or tokenize again with --tokens {tokens}"
            )
        if batch_size < 1 or workers < 0 or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size {batch_size}, workers {workers}, rank {rank} of {world_size}: the "
                f"batch size must be above 0, workers at least 0, the rank below the world size"
            )
        self.batch_size = batch_size
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.workers, self.pin_memory = workers, pin_memory
        self.samples = self.split.samples // max(self.split.views, 1)
        full, rest = divmod(self.samples, batch_size)
        self.steps = full + (1 if rest and not drop_last else 0)
        if not self.steps:
            raise ConfigError(
                f"{split} of {self.dataset.folder} has {self.samples} samples, too few for a batch "
                f"of {batch_size}; use a smaller batch_size"
            )
        smallest = min(batch_size, self.samples)
        if smallest < world_size and rank == 0:
            _log.warning(
                "batches of %d samples for %d ranks: the others compute samples of weight zero",
                smallest,
                world_size,
            )

    def view(self, epoch: int) -> int:
        """The view that an epoch reads."""
        return epoch % self.split.views

    def epoch(self, epoch: int, *, consumed: int = 0) -> Iterator[Batch]:
        """The batches of an epoch after the first `consumed` samples of all ranks.

        `consumed` is a multiple of the batch size; (epoch, consumed) is all there is to resume.
        """
        if consumed % self.batch_size and consumed < self.samples:
            raise ConfigError(
                f"{consumed} samples are not a whole number of batches of {self.batch_size}; "
                f"resume with the batch size of before"
            )
        first = -(-consumed // self.batch_size)
        batches = DataLoader(
            _Steps(self, epoch),
            batch_size=None,
            sampler=range(first, self.steps),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_ignore_signals if self.workers else None,
        )
        try:
            for batch in batches:
                if isinstance(batch, QuadpipeError):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise LoaderError(
                f"a process that reads ahead died ({str(error).splitlines()[0]}); it may have run "
                f"out of memory or of shared memory: use fewer --workers"
            ) from error

    def slice_of(self, step: int) -> tuple[int, int, int]:
        """First and last position of this rank's slice of a global batch, and that batch's size."""
        start = step * self.batch_size
        total = min(self.batch_size, self.samples - start)
        low, high = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return start + low, start + high, total


def _ignore_signals(worker: int) -> None:
    """The training process decides what a signal to the whole group means; workers end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Steps(TorchDataset[Batch | QuadpipeError]):
    """The batches of one epoch by step; what a worker process holds.

    An error is returned, not raised, so that it comes out of a worker in one line.
    """

    def __init__(self, loader: Loader, epoch: int) -> None:
        self._loader = loader
        self._epoch = epoch

    def __getitem__(self, step: int) -> Batch | QuadpipeError:
        try:
            return self._batch(step)
        except QuadpipeError as error:
            return error

    def _batch(self, step: int) -> Batch:
        loader = self._loader
        start, stop, total = loader.slice_of(step)
        weight = 1.0
        if start == stop:  # an empty rank computes some sample with weight zero
            position = min(start, loader.samples - 1)
            start, stop, weight = position, position + 1, 0.0
        reader, order = self._opened()
        shards, numbers = order.locate(start, stop)
        first = min(start - step * loader.batch_size, total - 1)
        return _gather(loader, reader, shards, numbers, weight, total, first)

    def _opened(self) -> tuple[SampleReader, EpochOrder]:
        # Made where it is used: maps of files do not cross processes.
        if not hasattr(self, "_reader"):
            loader = self._loader
            self._reader = SampleReader(loader.dataset, loader.name, loader.view(self._epoch))
            counts = [shard.samples for shard in self._reader.shards]
            self._order = EpochOrder(
                counts, seed=loader.seed, epoch=self._epoch, shuffle=loader.shuffle
            )
        return self._reader, self._order


def _gather(
    loader: Loader,
    reader: SampleReader,
    shards: np.ndarray,
    numbers: np.ndarray,
    weight: float,
    total: int,
    first: int,
) -> Batch:
    side = loader.dataset.manifest.tokenizer.patch_size
    size = len(shards)
    tokens = np.empty((size, loader.tokens, side, side, 3), np.uint8)
    boxes = np.empty((size, loader.tokens, 3), np.int16)
    labels = np.full(size, -1, np.int64)
    keys = [""] * size
    for shard in np.unique(shards).tolist():
        places = np.flatnonzero(shards == shard)
        samples = reader.read(shard, numbers[places].tolist())
        for place, sample in zip(places.tolist(), samples, strict=True):
            leaves = sample.mosaic.leaves(loader.tokens)
            tokens[place], boxes[place] = leaves.tokens, leaves.boxes
            keys[place] = sample.key
            if sample.label is not None:
                labels[place] = sample.label
    return Batch(
        tokens=torch.from_numpy(tokens),
        boxes=torch.from_numpy(boxes),
        label=torch.from_numpy(labels),
        weight=torch.full((size,), weight),
        keys=keys,
        total=total,
        first=first,
    )
