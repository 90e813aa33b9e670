"""A summary of a dataset, as JSON for programs and for `quadpipe info`."""

from dataclasses import asdict
from typing import Any

import numpy as np

from quadpipe.shards.excerpt import first_samples
from quadpipe.shards.reader import Dataset

BYTES_LOOKED_AT = 16 * 2**20
"""Bytes that are read of each split for the shares of scales, whatever the size of its shards."""


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
        "members": manifest.members,
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


def _scales(dataset: Dataset, split: str) -> dict[str, Any]:
    geometry = dataset.manifest.geometry
    counts = np.zeros(geometry.max_scale + 1, np.int64)
    looked_at = 0
    for sample in first_samples(dataset, split, BYTES_LOOKED_AT):
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
