"""A summary of a dataset, as JSON for programs and for `quadpipe info`."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np

from quadpipe.counts import CountLimits
from quadpipe.errors import ShardError, UnreadableError
from quadpipe.shards.index import parts, scan
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.shards.tar import read_members

BYTES_LOOKED_AT = 16 * 2**20
"""Bytes that are read of each split for the shares of scales, whatever the size of its shards."""

# Upper bounds of the bytes of a sample beside its pixels.
_BYTES_PER_NODE = 64
_BYTES_PER_SAMPLE = 2**16


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Counts, budgets, bytes per sample and shares of scales by split, and the configuration.

    `scales` gives, for each patch size in pixels, its share of the tokens and of the image's area
    at the stored budget, in the first `looked_at` samples. ShardError when these are damaged.
    """
    manifest = dataset.manifest
    return {
        "location": str(dataset.folder),
        "name": manifest.name,
        "license": manifest.license,
        "source": manifest.source,
        "format_version": manifest.format_version,
        "tokenizer_version": manifest.tokenizer_version,
        "revision": manifest.revision,
        "fingerprint": manifest.fingerprint,
        "quadpipe": manifest.quadpipe,
        "classes": None if manifest.classes is None else len(manifest.classes),
        "budgets": list(range(manifest.geometry.roots, manifest.tokenizer.tokens + 1, 3)),
        "tokenizer": manifest.tokenizer.as_json(),
        "scorer": manifest.scorer,
        "codec": manifest.codec,
        "imaging_library": manifest.imaging_library,
        "samples_per_shard": manifest.samples_per_shard,
        "splits": {
            name: asdict(info)
            | {
                "bytes_per_sample": round(info.bytes / info.samples) if info.samples else None,
            }
            | _scales(dataset, name)
            for name, info in manifest.splits.items()
        },
    }


def summarize_counts(dataset: Dataset, mean: int, limits: CountLimits) -> dict[str, Any]:
    """Numbers of tokens per image by split, at the threshold that gives the mean in `train`.

    Without that split, in the first one. at_least, at_most: shares of the images at the limits.
    """
    limits.check_mean(mean)
    splits = [name for name, info in dataset.manifest.splits.items() if info.samples]
    if not splits:
        return {}
    first = "train" if "train" in splits else splits[0]
    threshold = limits.threshold(dataset.gains(first), mean)
    found = {}
    for split in splits:
        at = limits.at_threshold(dataset.gains(split), threshold)
        counts = limits.geometry.roots + 3 * at
        tenths = np.quantile(counts, (0, 0.1, 0.5, 0.9, 1), method="nearest")
        names = ("smallest", "10%", "50%", "90%", "largest")
        found[split] = {"mean": round(float(counts.mean()), 2)} | {
            name: int(count) for name, count in zip(names, tenths, strict=True)
        }
        found[split] |= {
            "at_least": round(float((counts == limits.least).mean()), 4),
            "at_most": round(float((counts == limits.most).mean()), 4),
        }
    return found


def _scales(dataset: Dataset, split: str) -> dict[str, Any]:
    geometry = dataset.manifest.geometry
    counts = np.zeros(geometry.max_scale + 1, np.int64)
    looked_at = 0
    for sample in _first_samples(dataset, split):
        counts += np.bincount(sample.mosaic.leaves().boxes[:, 2], minlength=len(counts))
        looked_at += 1
    areas = counts * 4 ** np.arange(len(counts))
    scales = {
        str(geometry.patch_size << scale): {
            "tokens": round(float(counts[scale] / max(counts.sum(), 1)), 4),
            "area": round(float(areas[scale] / max(areas.sum(), 1)), 4),
        }
        for scale in range(len(counts))
    }
    return {"looked_at": looked_at, "scales": scales}


def _first_samples(dataset: Dataset, split: str) -> Iterator[Sample]:
    """The complete samples in the first bytes of a split."""
    geometry, tokens = dataset.manifest.geometry, dataset.manifest.tokenizer.tokens
    per_node = 3 * geometry.patch_size**2 + _BYTES_PER_NODE
    largest_sample = geometry.num_nodes(tokens) * per_node + _BYTES_PER_SAMPLE
    left = BYTES_LOOKED_AT
    for shard in dataset.first_shards(split):
        if left <= 0:
            return
        size = min(shard.bytes, max(left, largest_sample))  # at least one whole sample
        left -= size
        yield from _samples_in_beginning(dataset, shard, size)


def _samples_in_beginning(dataset: Dataset, shard: ShardInfo, size: int) -> Iterator[Sample]:
    try:
        data = dataset.folder.beginning(shard.name, size)
        if len(data) < size:
            raise ShardError(f"{len(data)} bytes, expected {shard.bytes}")
        for part in _complete_samples(data, shard):
            yield dataset.parse_sample(part)
    except UnreadableError:
        raise
    except ShardError as error:
        raise dataset.located(shard, error) from error


def _complete_samples(data: memoryview, shard: ShardInfo) -> Iterator[memoryview]:
    """The complete samples in the beginning of a shard, or in all of it, found by their headers.

    Without the index, which is as long as the dataset has samples.
    """
    if len(data) == shard.bytes:
        rows, damage = scan(data, shard)
        if damage:
            raise ShardError(damage)
        yield from (part for _, part in parts(rows, data))
        return
    starts: list[int] = []
    key = ""
    try:
        for name, offset, _ in read_members(data):
            if name.partition(".")[0] != key:
                key = name.partition(".")[0]
                starts.append(offset)
    except ShardError:  # the last sample is cut
        if len(starts) < 2:
            raise
    for start, stop in pairwise(starts):
        yield data[start:stop]
