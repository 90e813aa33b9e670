"""Best-first quadtrees, and their prefixes.

The paper grows a tree greedily: split the most important splittable leaf, put its quarters on the
heap, repeat (Ronen et al., arXiv 2304.00287). Ties are split coarser first, then in raster order.
The order of the splits does not depend on the budget, so the tree of every smaller budget is a
prefix.

Letters: B batch; R roots; A splittable patches; N tokens; K = (N - R) / 3 splits; M = R + 4K nodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class Trees:
    """The quadtrees of B images, grown to one budget.

    nodes: int32 `[B, M, 4]`: x, y, scale, split step (-1: not split); the roots in raster order,
        then the quarters (top-left, top-right, bottom-left, bottom-right) of each split in order.
    importance: float32 `[B, K]`: importance of the split patches, in split order.
    """

    nodes: np.ndarray
    importance: np.ndarray


def join_maps(maps: Sequence[np.ndarray], geometry: Geometry, batch: int) -> np.ndarray:
    """Importance by patch id, float32 `[B, A]`, from one `[B, rows, columns]` map per scale.

    maps: coarse to fine, one for each splittable scale; higher is split first. -0.0 becomes 0.0.
    Raises ConfigError on a wrong shape and on values that are not finite.
    """
    expected = [(batch, *geometry.grid(scale)) for scale in range(geometry.max_scale, 0, -1)]
    if [level.shape for level in maps] != expected:
        raise ConfigError(
            f"importance maps have shapes {[level.shape for level in maps]}; expected {expected}, "
            f"one for each splittable scale, coarse to fine"
        )
    joined = np.zeros((batch, geometry.splittable), np.float32)
    ends = np.cumsum([rows * columns for _, rows, columns in expected])
    for level, part in zip(maps, np.split(joined, ends[:-1], axis=1), strict=False):
        part += level.reshape(batch, -1)
    if not np.isfinite(joined).all():
        image = int(np.flatnonzero(~np.isfinite(joined).all(axis=1))[0])
        raise ConfigError(
            f"importance of image {image} of the batch is not finite; a scorer must give every "
            f"patch a finite number"
        )
    return joined


def weight_scales(importance: np.ndarray, geometry: Geometry, weight: float) -> np.ndarray:
    """Importance by patch id times weight**s for its scale s, float32 `[B, A]`.

    importance: float32 `[B, A]`, from `join_maps`. The power is repeated multiplication in float64,
    and a product is rounded once, so that the result is the same everywhere. Raises ConfigError
    where a product is above the range of float32.
    """
    per_patch = np.empty(geometry.splittable)
    end, factor = geometry.splittable, 1.0
    for scale in range(1, geometry.max_scale + 1):
        factor *= weight
        start = end - math.prod(geometry.grid(scale))
        per_patch[start:end] = factor
        end = start
    with np.errstate(over="ignore"):
        weighted: np.ndarray = (importance * per_patch).astype(np.float32)
    if not np.isfinite(weighted).all():
        raise ConfigError(
            f"scale_weight {weight:g} makes importances too large for float32; use one closer to 1"
        )
    return weighted


def subtract_thresholds(
    importance: np.ndarray, geometry: Geometry, thresholds: Sequence[tuple[int, float]]
) -> np.ndarray:
    """Importance by patch id less the threshold of its scale, float32 `[B, A]`.

    thresholds: (side in pixels, threshold) for each splittable scale, finest first. The sign is
    exact: a patch is at least 0 exactly where its importance is at least the threshold, so that
    the splits with gain >= 0 are those of APT's rule, "split while this patch and all above it
    reach the threshold of their scale" (arXiv 2510.18091).
    """
    per_patch = np.concatenate(
        [
            np.full(math.prod(geometry.grid(scale)), threshold)
            for scale, (_, threshold) in reversed(list(enumerate(thresholds, start=1)))
        ]
    )
    exact = importance.astype(np.float64) - per_patch
    less: np.ndarray = exact.astype(np.float32)
    less[(exact < 0) & (less == 0)] = -np.finfo(np.float32).smallest_subnormal
    return less


def grow(importance: np.ndarray, geometry: Geometry, tokens: int) -> Trees:
    """The trees of B images at a legal budget.

    importance: float32 `[B, A]` by patch id, from `join_maps`. Raises ConfigError when the
    budget is not legal.
    """
    from quadpipe.quadtree_kernels import grow_trees

    nodes, split_importance = grow_trees(
        importance, geometry.boxes, geometry.children, geometry.roots, geometry.num_splits(tokens)
    )
    return Trees(nodes=nodes, importance=split_importance)


def leaf_indices(nodes: np.ndarray, roots: int, splits: int) -> np.ndarray:
    """int64 `[R + 3k]`: which of the nodes `[M, 4]` are the leaves after k = `splits` splits."""
    step = nodes[: roots + 4 * splits, 3]
    return np.flatnonzero((step < 0) | (step >= splits))


def gains(importance: np.ndarray) -> np.ndarray:
    """float32 `[..., K]`: running minimum of the importances in split order; never increases."""
    return np.minimum.accumulate(importance, axis=-1)


def splits_at_threshold(importance: np.ndarray, threshold: float) -> int:
    """The number of splits of one image `[K]` with a gain of at least `threshold`.

    That prefix is "split while this patch and all patches above it are at least t". Raises
    ConfigError when the threshold is NaN.
    """
    if np.isnan(threshold):
        raise ConfigError("threshold is NaN; give a number")
    return int(np.count_nonzero(gains(importance) >= threshold))
