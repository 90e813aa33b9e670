"""What a dataset holds and how it was made, as JSON for programs and for `quadpipe info`."""

from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np

from quadpipe.shards.reader import Dataset

LOOKED_AT = 1024
"""So many samples of each split are read for the shares of scales."""


def summarize(dataset: Dataset) -> dict[str, Any]:
    """Counts, budgets, bytes per sample and shares of scales by split, and the configuration.

    `scales` gives, for each patch size in pixels, its share of the tokens and of the image's area
    at the stored budget, in the first `LOOKED_AT` samples.
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
                "scales": _scales(dataset, name),
            }
            for name, info in manifest.splits.items()
        },
    }


def _scales(dataset: Dataset, split: str) -> dict[str, dict[str, float]]:
    geometry = dataset.manifest.geometry
    counts = np.zeros(geometry.max_scale + 1, np.int64)
    for sample in islice(dataset.samples(split), LOOKED_AT):
        counts += np.bincount(sample.mosaic.leaves().boxes[:, 2], minlength=len(counts))
    areas = counts * 4 ** np.arange(len(counts))
    return {
        str(geometry.patch_size << scale): {
            "tokens": round(float(counts[scale] / max(counts.sum(), 1)), 4),
            "area": round(float(areas[scale] / max(areas.sum(), 1)), 4),
        }
        for scale in range(len(counts))
    }
