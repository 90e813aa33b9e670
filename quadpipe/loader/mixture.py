"""One split of one or several datasets, read as one: order, samples, labels and gains.

Letters: b samples of a batch; D datasets; K splits that all datasets store.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from math import gcd, isfinite, lcm
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.files import CachedFolder, ReadableFolder
from quadpipe.loader.order import LARGEST_SHARE, SHARDS_AT_ONCE, EpochOrder, Interleave
from quadpipe.loader.samples import Rows, SampleReader, shared_shards
from quadpipe.shards.joined import class_indices, joint_manifest
from quadpipe.shards.reader import Dataset
from quadpipe.text import counted

_MOST_GAINS = 2**17


class Located(NamedTuple):
    """Where samples are, int64 `[b]` each. dataset: its number in the mixture. number: of the
    sample in its shard."""

    dataset: np.ndarray
    view: np.ndarray
    shard: np.ndarray
    number: np.ndarray


class Mixture:
    """A split of datasets that are read as one.

    weights: the share of each dataset in every batch, in any unit; by default their sizes, with
    which each sample is once in an epoch. With weights an epoch ends when the first dataset is used
    up; with `repeat`, when all are, and the others start over, each time in another order and at
    their next view. classes: the names of the labels' indices, by default the classes of all
    datasets joined by name. See `Loader` for the others. Threads may share it.

    manifest: see `joint_manifest`. sizes: samples of each dataset, of one view. samples: of an
    epoch. ending: the dataset with which it ends.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        split: str,
        *,
        weights: Sequence[float] | None = None,
        repeat: bool = False,
        classes: Sequence[str] | None = None,
        shuffle: bool = True,
        seed: int = 0,
        skip: bool = False,
        verify: str = "first",
    ) -> None:
        self.datasets, self.split = list(datasets), split
        self.manifest = joint_manifest(self.datasets)
        self._infos = [dataset.split(split) for dataset in self.datasets]
        self.sizes = [info.samples // max(info.views, 1) for info in self._infos]
        self._shuffle, self._seed, self._skip, self._verify = shuffle, seed, skip, verify
        self.shares = self._shares(weights, repeat=repeat)
        whole = sum(self.shares)
        sized = list(zip(self.sizes, self.shares, strict=True))
        ends = [
            -(-size * whole // share) if repeat else size * whole // share for size, share in sized
        ]
        self.samples = max(ends) if repeat else min(ends)
        self.ending = self.datasets[ends.index(self.samples)].folder
        self.interleave = Interleave(self.shares)
        self._labels = self._class_maps(classes)
        self._readers: dict[tuple[int, int], SampleReader] = {}
        self._opened = shared_shards(len(self.datasets))
        self._at_once: dict[int, list[int]] = {}
        self._lock = Lock()
        for number in range(len(self.datasets)):
            self.reader(number, 0)  # checks the counts of the shards

    def _shares(self, weights: Sequence[float] | None, *, repeat: bool) -> list[int]:
        """The weights as integers of the same ratios."""
        if weights is None:
            if repeat:
                raise ConfigError(
                    "repeat is for weights of several datasets; give both, or omit it"
                )
            if len(self.datasets) == 1:
                return [1]
            return [self._nonempty(number) for number in range(len(self.datasets))]
        if len(self.datasets) == 1:
            raise ConfigError("weights are for several datasets; omit them, or give more datasets")
        numbers = _positive(weights)
        if len(numbers) != len(self.datasets):
            raise ConfigError(
                f"{counted(len(numbers), 'weight')} for {counted(len(self.datasets), 'dataset')}; "
                f"give one for each"
            )
        for number in range(len(self.datasets)):
            self._nonempty(number)
        return _whole_numbers(numbers)

    def _nonempty(self, number: int) -> int:
        """The size of a dataset; ConfigError if it is 0."""
        if not self.sizes[number]:
            raise ConfigError(
                f"{self.datasets[number].folder} has no samples in {self.split}; omit it"
            )
        return self.sizes[number]

    def _class_maps(self, wanted: Sequence[str] | None) -> list[np.ndarray | None]:
        """For each dataset the indices of its classes, None where they are its own."""
        names = self.manifest.classes if wanted is None else list(wanted)
        if wanted is not None and self.manifest.classes is None:
            raise ConfigError(f"{self.datasets[0].folder} has no labels; omit classes")
        if names and len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"classes names {twice!r} twice; give each class once")
        maps: list[np.ndarray | None] = []
        for dataset in self.datasets:
            given = dataset.manifest.classes
            if given is None or names is None or given == names[: len(given)]:
                maps.append(None)
                continue
            indices = class_indices(given, names)
            if (indices < 0).any():
                missing = [name for name, at in zip(given, indices, strict=True) if at < 0]
                raise ConfigError(
                    f"{dataset.folder} has {counted(len(missing), 'class')} not among the "
                    f"{len(names)} wanted, such as {missing[0]!r}; use a dataset without them"
                )
            maps.append(indices.astype(np.int64))
        return maps

    def view(self, epoch: int, dataset: int, turn: int) -> int:
        """The view that a pass over a dataset reads; turn: the passes before it in the epoch."""
        return (epoch + turn) % self._infos[dataset].views

    def reader(self, dataset: int, view: int) -> SampleReader:
        with self._lock:
            if (dataset, view) not in self._readers:
                opened = self.datasets[dataset]
                reader = SampleReader(
                    opened,
                    self.split,
                    view,
                    skip=self._skip,
                    verify=self._verify,
                    opened=self._opened,
                )
                sizes = np.sort(reader.shards.bytes)[-(SHARDS_AT_ONCE if self._shuffle else 1) :]
                self._at_once[dataset] = sizes.tolist()
                self._check_room(opened.folder)
                self._readers[dataset, view] = reader
            return self._readers[dataset, view]

    def _check_room(self, folder: ReadableFolder) -> None:
        """Raise ConfigError if the shards that are read in turn do not fit the cache together."""
        cached = (n for n, d in enumerate(self.datasets) if isinstance(d.folder, CachedFolder))
        folder.check_room([size for n in cached for size in self._at_once.get(n, ())])

    def order(self, epoch: int) -> "MixedOrder":
        """The order of an epoch."""
        return MixedOrder(self, epoch)

    def pass_order(self, epoch: int, dataset: int, turn: int) -> EpochOrder:
        """The order of one pass over one dataset. A single dataset has one pass in an epoch."""
        reader = self.reader(dataset, self.view(epoch, dataset, turn))
        fingerprint = self.datasets[dataset].manifest.fingerprint
        words = () if len(self.datasets) == 1 else (fingerprint, turn)
        return EpochOrder(
            reader.shards.samples, seed=self._seed, epoch=epoch, shuffle=self._shuffle, words=words
        )

    def gather(self, located: Located, rows: Rows) -> None:
        """Fill the rows; see `SampleReader.gather`."""
        for dataset, reader, here in self._groups(located):
            reader.gather(located.shard, located.number, rows, here)
            indices = self._labels[dataset]
            if indices is not None:
                rows.labels[here] = indices[rows.labels[here]]

    def gains(self, located: Located) -> np.ndarray:
        """float32 `[b, K]`."""
        splits = self.manifest.tokenizer.num_splits
        gains = np.empty((len(located.shard), splits), np.float32)
        for _, reader, here in self._groups(located):
            gains[here] = reader.gains(located.shard[here], located.number[here])[:, :splits]
        return gains

    def _groups(self, located: Located) -> Iterator[tuple[int, SampleReader, np.ndarray]]:
        """Dataset, reader, and rows, for each view of a dataset that has some."""
        for (dataset, view), rows in _alike(located.dataset, located.view):
            yield dataset, self.reader(dataset, view), rows

    def in_proportion(self, gains: Sequence[np.ndarray]) -> np.ndarray:
        """float32 `[n, K]`: of the gains of each dataset as many rows as it has of an epoch's.

        gains: float32 `[samples, K or more]` of each dataset. Of several at most about 2**17 rows.
        """
        if len(gains) == 1:
            return gains[0]
        most, whole = min(self.samples, _MOST_GAINS), sum(self.shares)
        chosen = []
        for rows, share in zip(gains, self.shares, strict=True):
            count = max(most * share // whole, 1)
            numbers = np.arange(count) * len(rows) // count
            chosen.append(rows[numbers, : self.manifest.tokenizer.num_splits])
        return np.concatenate(chosen)


class MixedOrder:
    """The samples of one epoch of a mixture by position: a pure function of seed, epoch and the
    fingerprints of the datasets. Threads may share it."""

    def __init__(self, mixture: Mixture, epoch: int) -> None:
        self._mixture, self._epoch = mixture, epoch
        self._sizes = np.maximum(mixture.sizes, 1)
        self._order = lru_cache(maxsize=4 * len(mixture.datasets))(
            partial(mixture.pass_order, epoch)
        )
        for dataset in range(len(mixture.datasets)):
            self._order(dataset, 0)

    def locate(self, start: int, stop: int) -> Located:
        """The samples at the positions from start to stop."""
        dataset, number = self._mixture.interleave.locate(start, stop)
        turn, number = np.divmod(number, self._sizes[dataset])
        view, shard = np.zeros_like(number), np.zeros_like(number)
        for (one, its_turn), here in _alike(dataset, turn):
            first = int(number[here[0]])
            located = self._order(one, its_turn).locate(first, first + len(here))
            shard[here], number[here] = located
            view[here] = self._mixture.view(self._epoch, one, its_turn)
        return Located(dataset, view, shard, number)


def _alike(
    datasets: np.ndarray, others: np.ndarray
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Each pair of values of two int64 `[b]`, and the rows that have it, ascending."""
    left = np.arange(len(datasets))
    while len(left):
        pair = int(datasets[left[0]]), int(others[left[0]])
        chosen = (datasets[left] == pair[0]) & (others[left] == pair[1])
        yield pair, left[chosen]
        left = left[~chosen]


def _positive(weights: Any) -> list[float]:
    """The weights as numbers above 0; ConfigError if they are something else."""
    try:
        if isinstance(weights, str):  # of which each digit would be a number
            raise TypeError
        numbers = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        raise ConfigError(f"weights {weights!r} are not numbers, one for each dataset") from None
    wrong = [number for number in numbers if not (isfinite(number) and number > 0)]
    if wrong:
        raise ConfigError(
            f"weight {wrong[0]:g}: each must be above 0; omit a dataset that is not wanted"
        )
    return numbers


def _whole_numbers(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers with the ratios of the weights; of 0.7 and 0.3, 7 and 3.

    Where these are too large, as of 1000 and 1/3, the ratios are rounded.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    shares = _scaled(exact, Fraction(lcm(*(weight.denominator for weight in exact))))
    if sum(shares) > LARGEST_SHARE:
        shares = _scaled(exact, LARGEST_SHARE // 2 / sum(exact, Fraction()))
    if not all(shares):
        raise ConfigError("the weights differ too much; omit the dataset with the smallest")
    return shares


def _scaled(weights: Sequence[Fraction], unit: Fraction) -> list[int]:
    shares = [round(weight * unit) for weight in weights]
    return [share // gcd(*shares) for share in shares]
