"""Shards -> batches for torch, in an order that does not depend on ranks or workers."""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadpipe.counts import DISCOUNT, CountLimits, check_given
from quadpipe.errors import ConfigError
from quadpipe.loader.batch import Batch, BatchMemory
from quadpipe.loader.mixture import Located, MixedOrder, Mixture
from quadpipe.loader.samples import Rows, check_verify
from quadpipe.loader.schedule import Schedule, Tokens, parse_tokens
from quadpipe.shards.joined import Location, open_datasets, why_not_comparable
from quadpipe.shards.members import checked_members
from quadpipe.shards.reader import Dataset
from quadpipe.shards.skipped import Skipped, check_on_error
from quadpipe.text import counted

_BATCHES_AHEAD = 2  # for each thread that reads ahead
_MOST_BATCHES = 2**26  # of an epoch with `repeat`; all are in memory

_log = logging.getLogger(__name__)


class Loader:
    """Batches of a split, epoch after epoch.

        loader = Loader("shards/", "train", batch_size=256, tokens=100)
        for batch in loader.epoch(0): ...

    Several datasets are read as one, their classes joined by name. weights: the share of each of
    them in every batch; repeat: whether small ones start over, see `mixture.Mixture`. classes: the
    names of the labels' indices, if they are not those of the datasets, which must be among them.

    tokens: tokens per image, by default all that each dataset holds. With several budgets, "19-100"
    or (19, 37, 64), each batch draws one, evenly or by `budget_weights`, one for each budget;
    `tokens_per_batch` limits a batch to that number of tokens. See `schedule.Schedule`.

    mean_tokens: instead of `tokens`, the mean number over the images of a global batch, or several.
    Each image has between `min_tokens` and `max_tokens`, by default the least possible number and
    the stored one: the largest gains of the batch are split; see `counts.CountLimits.share`.
    gain_discount: see `counts`. threshold: instead of both, each image is split down to this
    discounted gain, within the same limits.

    The order of the samples and the budgets depend on `seed`, the epoch and the dataset alone;
    rank r of `world_size` takes its slice of every global batch, and `workers` threads only read
    ahead. All ranks make the same number of steps. Epoch e reads view e % views.

    `iter(loader)` is the next epoch. `state_dict()`, between batches, and `load_state_dict()`,
    before the next `iter`, resume it exactly, on any number of ranks and threads.

    on_error="skip" skips damaged samples, and those of missing shards: they keep their rows, with
    weight zero, so that order, steps and resuming do not change. `skipped` counts them in every
    epoch, as they are read ahead.

    verify: when checksums of samples are verified; see `samples.VERIFY`.

    members: names of members, such as "txt" or "json", whose contents are in `Batch.members`; of
    several datasets, at least one has them.

    Raises ConfigError on a split, budget or member that the dataset does not have, ShardError when
    a shard does not fit the manifest.
    """

    def __init__(
        self,
        dataset: Location | Sequence[Location],
        split: str = "train",
        *,
        batch_size: int,
        weights: Sequence[float] | None = None,
        repeat: bool = False,
        classes: Sequence[str] | None = None,
        tokens: Tokens | None = None,
        mean_tokens: Tokens | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        gain_discount: int = DISCOUNT,
        threshold: float | None = None,
        budget_weights: Sequence[float] | None = None,
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
        members: Sequence[str] = (),
    ) -> None:
        check_on_error(on_error)
        check_verify(verify)
        batch_size, seed = index(batch_size), index(seed)
        shuffle, drop_last, repeat = bool(shuffle), bool(drop_last), bool(repeat)
        if tokens_per_batch is not None:
            tokens_per_batch = index(tokens_per_batch)
        self.mixture = Mixture(
            open_datasets(dataset),
            split,
            weights=weights,
            repeat=repeat,
            classes=classes,
            shuffle=shuffle,
            seed=seed,
            skip=on_error == "skip",
            verify=verify,
        )
        manifests = {str(each.folder): each.manifest for each in self.datasets}
        self.members = checked_members(manifests, members)
        self.name = split
        self.threshold = None if threshold is None else float(threshold)
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
        self._memory = BatchMemory(pinned=pin_memory)
        self.samples = self.mixture.samples
        self._position, self._is_loaded = (0, 0), False
        self.schedule = Schedule(
            self.samples,
            batch_size,
            self.budgets,
            weights=budget_weights,
            tokens_per_batch=tokens_per_batch,
            drop_last=drop_last,
            seed=seed,
        )
        self._decisive = {
            "fingerprints": [dataset.manifest.fingerprint for dataset in self.datasets],
            "split": split,
            "weights": self.mixture.shares,
            "repeat": repeat,
            "classes": None if classes is None else list(classes),
            "batch_size": batch_size,
            "budgets": list(self.budgets),
            "budget_weights": None if budget_weights is None else list(map(float, budget_weights)),
            "limits": self.limits and self.limits.options(),
            "threshold": self.threshold,
            "tokens_per_batch": tokens_per_batch,
            "shuffle": shuffle,
            "drop_last": drop_last,
            "seed": seed,
        }
        if repeat and self.schedule.most_batches > _MOST_BATCHES:
            raise ConfigError(
                f"with these weights, {self.mixture.ending} is used up after "
                f"{self.samples:,} samples, too many for an epoch; give it a larger weight"
            )
        if not self.steps(0):
            raise ConfigError(
                f"{split} of {self.where} has {counted(self.samples, 'sample')}, too few for a "
                f"batch of {batch_size}; use a smaller batch_size"
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
        manifest = self.mixture.manifest
        stored, geometry = manifest.tokenizer.tokens, manifest.geometry
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
            if reason := why_not_comparable(self.datasets):
                raise ConfigError(f"{reason}; give tokens, which all images have alike")
            for dataset in self.datasets:
                dataset.gains(self.name)
            return
        self.budgets = parse_tokens(stored if tokens is None else tokens, geometry)
        if self.budgets[-1] > stored:
            raise ConfigError(
                f"{self._smallest.folder} holds {stored} tokens, not {self.budgets[-1]}; use at "
                f"most {stored}, or rerun quadpipe tokenize with --tokens {self.budgets[-1]}"
            )

    @property
    def datasets(self) -> list[Dataset]:
        return self.mixture.datasets

    @property
    def where(self) -> str:
        """The folders of the datasets, for messages."""
        return " and ".join(str(dataset.folder) for dataset in self.datasets)

    @property
    def _smallest(self) -> Dataset:
        """The dataset with the fewest tokens per image."""
        return min(self.datasets, key=lambda dataset: dataset.manifest.tokenizer.tokens)

    def __iter__(self) -> Iterator[Batch]:
        """The batches after a loaded state, or those of the next epoch."""
        epoch, consumed = self._position
        if consumed and not self._is_loaded:
            epoch, consumed = epoch + 1, 0
        self._position, self._is_loaded = (epoch, consumed), False
        return self._counted(epoch, consumed)

    def _counted(self, epoch: int, consumed: int) -> Iterator[Batch]:
        samples = self.schedule.epoch(epoch).samples
        for batch in self.epoch(epoch, consumed=consumed):
            consumed += batch.total
            self._position = (epoch, consumed) if consumed < samples else (epoch + 1, 0)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The position of the last iterator, in numbers, text and lists: epoch, and samples of all
        ranks consumed in it; after the last batch of an epoch, the start of the next one. loader:
        what decides the batches.
        """
        epoch, consumed = self._position
        return {"epoch": epoch, "consumed": consumed, "loader": dict(self._decisive)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iterator continue at a position; ConfigError if it is of another loader."""
        try:
            position = index(state["epoch"]), index(state["consumed"])
            decisive = dict(state["loader"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{state!r:.200} is not the state of a Loader") from error
        differences = [
            f"{name} was {decisive.get(name)}, now {self._decisive.get(name)}"
            for name in self._decisive.keys() | decisive.keys()
            if decisive.get(name) != self._decisive.get(name)
        ]
        if differences:
            raise ConfigError(
                f"this is the state of another loader: {'; '.join(sorted(differences))}; make the "
                f"loader with the same datasets and options"
            )
        if not self.is_position(*position):
            raise ConfigError(f"{position[1]} samples of epoch {position[0]} do not end a batch")
        self._position, self._is_loaded = position, True

    def is_position(self, epoch: int, consumed: int) -> bool:
        """Whether a batch of an epoch ends after that many samples, or the epoch begins."""
        if epoch < 0 or consumed < 0:
            return False
        batches = self.schedule.epoch(epoch)
        return consumed <= batches.samples and batches.after(consumed) is not None

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
        order = self.mixture.order(epoch)
        steps = (batches[step] for step in range(done, len(batches)))
        if not self.workers:
            for step in steps:
                yield self._read_batch(order, *step)
            return
        with ThreadPoolExecutor(self.workers, "quadpipe-loader") as pool:
            ahead = deque[Future[Batch]]()
            try:
                while True:
                    for step in islice(steps, _BATCHES_AHEAD * self.workers - len(ahead)):
                        ahead.append(pool.submit(self._read_batch, order, *step))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def __repr__(self) -> str:
        folders = ", ".join(str(dataset.folder) for dataset in self.datasets)
        return (
            f"<Loader {folders}, {self.name}: {counted(self.samples, 'sample')} per epoch, "
            f"batches of {self.batch_size}>"
        )

    def steps(self, epoch: int) -> int:
        """The number of batches of an epoch."""
        return len(self.schedule.epoch(epoch))

    def _read_batch(self, order: MixedOrder, begin: int, end: int, budget: int) -> Batch:
        """This rank's slice of the global batch from one position to another."""
        total = end - begin
        first, stop = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        is_placeholder = first == stop  # an empty rank computes one sample with weight zero
        if is_placeholder:
            first = min(first, total - 1)
            stop = first + 1
        located, splits = self._locate(order, begin, end, budget, first, stop)
        geometry = self.mixture.manifest.geometry
        size, side, roots = stop - first, geometry.patch_size, geometry.roots
        lengths = roots + 3 * splits
        tokens = self._memory.take((int(lengths.sum()), side * side * 3))
        rows = Rows(tokens.numpy(), splits, roots, self.members)
        self.mixture.gather(located, rows)
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
            dataset=None
            if len(self.datasets) == 1
            else self._pinned(torch.from_numpy(located.dataset)),
            members=rows.members,
        )

    def _locate(
        self, order: MixedOrder, begin: int, end: int, budget: int, first: int, stop: int
    ) -> tuple[Located, np.ndarray]:
        """The samples of a slice of a batch, and their splits, int64 `[stop - first]`.

        begin, end: of the global batch in the epoch. The numbers of splits of its other images
        decide those of the slice.
        """
        if self.limits is None:
            equal = (budget - self.mixture.manifest.geometry.roots) // 3
            located = order.locate(begin + first, begin + stop)
            return located, np.full(stop - first, equal, np.int64)
        located = order.locate(begin, end)
        gains = self.mixture.gains(located)
        if self.threshold is None:
            splits = self.limits.share(gains, budget)
        else:
            splits = self.limits.at_threshold(gains, self.threshold)
        part = slice(first, stop)
        return Located(*(values[part] for values in located)), splits[part]

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.pin_memory else tensor
