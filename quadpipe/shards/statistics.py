"""What is in a dataset, in numbers: classes, rejects, tokens per image, sizes of the originals.

`quadpipe info --stats` and the page of `quadpipe show` print the same ones. Classes are counted in
the index and rejects in their list. The rest comes from all samples, or from some at equal
distances, so that little is read of a dataset at a URL.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from quadpipe.counts import CountLimits
from quadpipe.errors import ShardError
from quadpipe.files import ReadableFolder
from quadpipe.shards.excerpt import spread_samples
from quadpipe.shards.format import REJECTED, gains_name
from quadpipe.shards.reader import Dataset, Sample

_BYTES_LOOKED_AT = 16 * 2**20
_MOST_LOOKED_AT = 1024
_GAINS_READ = 256 * 2**20
_ROWS_AT_ONCE = 2**20
_MEANS = (0.125, 0.25, 0.5, 0.75)
_LARGEST_SIDE = 2**32
_LONGEST_LINE = 2**20
_LONGEST_REASON = 64

_SIZE = np.dtype([("width", "<i8"), ("height", "<i8"), ("enlarged", "?")])
_TENTHS = {"smallest": 0.0, "10%": 0.1, "50%": 0.5, "90%": 0.9, "largest": 1.0}


def statistics(dataset: Dataset, *, whole: bool = False) -> dict[str, Any]:
    """By split: `classes`, `rejected`, `tokens` and `originals`, as JSON.

    classes: see `class_balance`. rejected: number of inputs by reason. tokens: for some means, the
    numbers of tokens per image in `of` samples, see `summarize_counts`. originals: see
    `original_sizes`. None where it is not known: without labels, without the list of rejects.
    whole: use all samples for tokens and originals. ShardError when something is damaged.
    """
    rejected = rejects_by_reason(dataset)
    splits = [name for name, info in dataset.manifest.splits.items() if info.samples]
    looked_at = {split: _look(dataset, split, whole) for split in splits}
    gains = {split: found for split, (_, found) in looked_at.items()}
    limits = CountLimits.of(dataset.manifest.geometry, dataset.manifest.tokenizer.tokens)
    means = {mean: count_quantiles(gains, mean, limits, quiet=True) for mean in _means(limits)}
    return {
        split: {
            "classes": class_balance(dataset, split),
            "rejected": None if rejected is None else rejected.get(split, {}),
            "tokens": {
                "of": len(gains[split]),
                "means": {str(mean): found[split] for mean, found in means.items()},
            }
            if split in gains
            else None,
            "originals": original_sizes(looked_at[split][0]) if split in looked_at else None,
        }
        for split in dataset.manifest.splits
    }


def labels_of(dataset: Dataset, split: str) -> np.ndarray:
    """int32 `[inputs]`: the class index of each sample of view 0.

    Of a dataset that was written before indexes existed, all shards are read.
    """
    index = dataset.index(split)
    if index is None:
        found = [sample.label for sample in dataset.samples(split, view=0)]
        return np.array(found, np.int32)
    return np.concatenate([np.empty(0, np.int32), *_labels(dataset, split, index)])


def _labels(dataset: Dataset, split: str, index: np.ndarray) -> Iterator[np.ndarray]:
    """`labels_of` in parts, since an index may be larger than the memory."""
    views = dataset.shards(split).views
    for begin in range(0, len(index), _ROWS_AT_ONCE):
        rows = index[begin : begin + _ROWS_AT_ONCE]
        labels = rows["label"][views[rows["shard"]] == 0]
        if ((labels < 0) | (labels >= len(dataset.manifest.classes or ()))).any():
            raise ShardError(
                f"{dataset.folder}: the index of {split} has labels above its number of classes"
            )
        yield labels


def class_balance(dataset: Dataset, split: str) -> dict[str, Any] | None:
    """`counts`: the number of inputs of each class, in their order; and what they are like.

    smallest, median, largest: of all classes. empty: number of classes without an input.
    imbalance: the largest class by the smallest that is not empty. None without labels or index.
    """
    classes = dataset.manifest.classes
    if not classes or dataset.split(split).index_sha256 is None:
        return None
    index = dataset.index(split)
    assert index is not None
    counts = np.zeros(len(classes), np.int64)
    for labels in _labels(dataset, split, index):
        counts += np.bincount(labels, minlength=len(classes))
    filled = counts[counts > 0]
    return {
        "smallest": int(counts.min()),
        "median": float(np.median(counts)),
        "largest": int(counts.max()),
        "empty": len(counts) - len(filled),
        "imbalance": round(float(filled.max() / filled.min()), 2) if len(filled) else None,
        "counts": counts.tolist(),
    }


def rejects_by_reason(dataset: Dataset) -> dict[str, dict[str, int]] | None:
    """Number of rejected inputs by split and reason, the most frequent first.

    None without the list of rejects, as in a copy. ShardError when it does not fit the manifest.
    """
    where = dataset.folder.where(REJECTED)
    splits = dataset.manifest.splits
    if not any(info.rejected for info in splits.values()):
        return {}
    if not dataset.folder.exists(REJECTED):
        return None
    found: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for line in _lines(dataset.folder, REJECTED):
        try:
            row = json.loads(line)
            reason = row["reason"]
            if not isinstance(reason, str) or len(reason) > _LONGEST_REASON:
                raise ValueError("a reason is not a short text")
            found[row["split"]][reason] += 1
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ShardError(f"{where}: not a list of rejects: {error}; fetch it again") from error
    for split, counts in found.items():
        if counts.total() != splits[split].rejected:
            raise ShardError(
                f"{where}: {counts.total()} lines of {split}, expected {splits[split].rejected}; "
                f"fetch it again"
            )
    return {split: dict(counts.most_common()) for split, counts in found.items()}


def _lines(folder: ReadableFolder, name: str) -> Iterator[bytes]:
    rest = b""
    for block in folder.blocks(name):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_LINE:
            raise ShardError(f"{folder.where(name)}: a line is too long; fetch it again")
    if rest:
        yield rest


def split_gains(dataset: Dataset, split: str, *, whole: bool = False) -> np.ndarray | None:
    """float32 `[B, K]`: the gains of a split; None if it has no file of gains, or a large one.

    whole: also a large one.
    """
    if dataset.split(split).gains_sha256 is None:
        return None
    size = None if whole else dataset.folder.size(gains_name(split))
    return None if size is not None and size > _GAINS_READ else dataset.gains(split)


def _look(dataset: Dataset, split: str, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """`_SIZE` `[B]` of all samples or of some; and `split_gains`, or those of the same samples."""
    info = dataset.split(split)
    count = min(_MOST_LOOKED_AT, max(1, _BYTES_LOOKED_AT * info.samples // max(info.bytes, 1)))
    gains = split_gains(dataset, split, whole=whole)
    drawn: list[np.ndarray] = []

    def sizes() -> Iterator[tuple[int, int, bool]]:
        some = spread_samples(dataset, split, count, _BYTES_LOOKED_AT)
        for sample in dataset.samples(split) if whole else some:
            if gains is None:
                drawn.append(sample.mosaic.gains)
            yield _size(dataset, sample)

    found = np.fromiter(sizes(), _SIZE)
    return found, np.stack(drawn) if gains is None else gains


def _size(dataset: Dataset, sample: Sample) -> tuple[int, int, bool]:
    sides: list[Any] = [sample.info.get(key) for key in ("width", "height")]
    if any(type(side) is not int or not 0 < side < _LARGEST_SIDE for side in sides):
        raise ShardError(f"{dataset.folder}: {sample.key}.json: has no width and height")
    x0, y0, x1, y1 = sample.info["box"]
    rows, columns = dataset.manifest.tokenizer.image_size
    return sides[0], sides[1], bool(x1 - x0 < columns or y1 - y0 < rows)


def original_sizes(sizes: np.ndarray) -> dict[str, Any]:
    """Quantiles of width and height in pixels of `_SIZE` `[B]`, and the share of enlarged images.

    of: the number of samples looked at. enlarged: their crop had fewer pixels than the mosaic.
    """
    return {
        "of": len(sizes),
        "width": _quantiles(sizes["width"]),
        "height": _quantiles(sizes["height"]),
        "enlarged": round(float(sizes["enlarged"].mean()), 4),
    }


def summarize_counts(dataset: Dataset, mean: int, limits: CountLimits) -> dict[str, Any]:
    """Numbers of tokens per image by split, at the threshold that gives the mean in `train`.

    Without that split, in the first one. at_least, at_most: shares of the images at the limits.
    """
    limits.check_mean(mean)
    splits = [name for name, info in dataset.manifest.splits.items() if info.samples]
    return count_quantiles({split: dataset.gains(split) for split in splits}, mean, limits)


def count_quantiles(
    gains: Mapping[str, np.ndarray], mean: int, limits: CountLimits, *, quiet: bool = False
) -> dict[str, Any]:
    """`summarize_counts` of the gains `[B, K]` of each split."""
    if not gains:
        return {}
    first = gains["train" if "train" in gains else next(iter(gains))]
    threshold = limits.threshold(first, mean, quiet=quiet)
    found = {}
    for split, rows in gains.items():
        counts = limits.geometry.roots + 3 * limits.at_threshold(rows, threshold)
        found[split] = {"mean": round(float(counts.mean()), 2)} | _quantiles(counts)
        found[split] |= {
            "at_least": round(float((counts == limits.least).mean()), 4),
            "at_most": round(float((counts == limits.most).mean()), 4),
        }
    return found


def _quantiles(values: np.ndarray) -> dict[str, int]:
    found = np.quantile(values, list(_TENTHS.values()), method="nearest")
    return {name: int(value) for name, value in zip(_TENTHS, found, strict=True)}


def _means(limits: CountLimits) -> list[int]:
    """Some means between the fewest and the most tokens of an image."""
    counts = limits.counts
    return sorted({counts[round(share * (len(counts) - 1))] for share in _MEANS})
