"""One image as tokens of every size: its leaves at a budget, its mirror image, its dense map.

Letters: H, W image height and width in pixels; P patch size; M nodes; N leaves; K splits; C
channels of features; R roots.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import Trees, gains, leaf_indices, splits_at_threshold

RESAMPLERS = ("bilinear", "area")


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """The patches that tile the image at one budget, in node order.

    tokens: uint8 `[N, P, P, 3]`, RGB.
    boxes: int32 `[N, 3]`: x, y, scale; left and top in units of P.
    truncated: a threshold asked for more splits than the mosaic holds.
    """

    tokens: np.ndarray
    boxes: np.ndarray
    truncated: bool = False

    def __repr__(self) -> str:
        truncated = ", truncated" if self.truncated else ""
        return f"<Leaves: tokens {self.tokens.dtype} {self.tokens.shape}{truncated}>"

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mosaic:
    """All patches that one image shows at some budget up to N.

    tokens: uint8 `[M, P, P, 3]`, RGB, in node order.
    nodes: int32 `[M, 4]`: x, y, scale, split step (-1: never split); see `quadtree.Trees`.
    importance: float32 `[K]`: importance of the split patches, in split order.
    """

    geometry: Geometry
    tokens: np.ndarray
    nodes: np.ndarray
    importance: np.ndarray

    def __repr__(self) -> str:
        size = f"{self.geometry.width} x {self.geometry.height} pixels"
        return (
            f"<Mosaic of {size}: up to {self.budget} tokens per image, "
            f"{self.tokens.dtype} {self.tokens.shape}>"
        )

    @property
    def budget(self) -> int:
        """N, the largest number of tokens that this mosaic serves."""
        return self.geometry.roots + 3 * len(self.importance)

    @property
    def gains(self) -> np.ndarray:
        """float32 `[K]`: importance of the least important split so far; never increases."""
        return gains(self.importance)

    def leaves(self, tokens: int | None = None, *, threshold: float | None = None) -> Leaves:
        """The leaves at a budget (by default the stored one), or down to a gain threshold.

        `threshold` splits a patch while it and all patches above it have at least that
        importance, so the number of tokens differs between images. If the stored splits end
        before the threshold is reached, the result is `truncated`. Raises ConfigError
        on a budget that is not legal or not stored, and when both are given.
        """
        splits, truncated = self._prefix(tokens, threshold)
        chosen = leaf_indices(self.nodes, self.geometry.roots, splits)
        return Leaves(tokens=self.tokens[chosen], boxes=self.nodes[chosen, :3], truncated=truncated)

    def reduced(self, tokens: int) -> "Mosaic":
        """The mosaic of fewer tokens, as tokenizing the image with that budget gives it."""
        splits, _ = self._prefix(tokens, None)
        count = self.geometry.roots + 4 * splits
        nodes = self.nodes[:count].copy()
        nodes[nodes[:, 3] >= splits, 3] = -1
        return replace(
            self, tokens=self.tokens[:count], nodes=nodes, importance=self.importance[:splits]
        )

    def flip(self) -> "Mosaic":
        """The mosaic of the image mirrored left to right: pixels and boxes exactly.

        The splits keep their order. Tokenizing the mirrored image would split ties from the other
        side.
        """
        order = _mirror_order(self.geometry, len(self.importance))
        nodes = self.nodes[order]
        columns = self.geometry.width // self.geometry.patch_size
        nodes[:, 0] = columns - nodes[:, 0] - (1 << nodes[:, 2])
        return replace(self, nodes=nodes, tokens=self.tokens[order][:, :, ::-1].copy())

    def rebuild(self, tokens: int | None = None, *, threshold: float | None = None) -> np.ndarray:
        """The image as the leaves show it, uint8 `[H, W, 3]`: every pixel of a token repeated."""
        leaves = self.leaves(tokens, threshold=threshold)
        side = self.geometry.patch_size
        image = np.empty((self.geometry.height, self.geometry.width, 3), np.uint8)
        for token, (x, y, scale) in zip(leaves.tokens, leaves.boxes.tolist(), strict=True):
            factor = 1 << scale
            rows = slice(y * side, (y + factor) * side)
            image[rows, x * side : (x + factor) * side] = token.repeat(factor, 0).repeat(factor, 1)
        return image

    def _prefix(self, tokens: int | None, threshold: float | None) -> tuple[int, bool]:
        stored = len(self.importance)
        if tokens is not None and threshold is not None:
            raise ConfigError("give a number of tokens or a threshold, not both")
        if threshold is not None:
            splits = splits_at_threshold(self.importance, threshold)
            return splits, splits == stored < self.geometry.splittable
        if tokens is None:
            return stored, False
        splits = self.geometry.num_splits(tokens)
        if splits > stored:
            raise ConfigError(
                f"the mosaic holds {self.budget} tokens, not {tokens}; use at most {self.budget} "
                f"or retokenize with --tokens {tokens}"
            )
        return splits, False


def cut(
    images: np.ndarray, trees: Trees, geometry: Geometry, resample: str = "bilinear"
) -> list[Mosaic]:
    """The mosaics of uint8 images `[B, H, W, 3]` with their trees.

    A patch of scale s shows the whole image resampled by 2**s: `bilinear` without antialiasing,
    as in the paper, the mean of each block's four center pixels, `(a + b + c + d + 2) >> 2`, or
    `area`, the mean of the block rounded half up.
    """
    from quadpipe.compiled import read_only
    from quadpipe.mosaic_kernels import cut_tokens

    if resample not in RESAMPLERS:
        raise ConfigError(f"resample {resample!r} is not one of {', '.join(RESAMPLERS)}")
    tokens = cut_tokens(read_only(images), trees.nodes, geometry.patch_size, resample == "area")
    return [
        Mosaic(geometry=geometry, tokens=tokens[b], nodes=nodes, importance=trees.importance[b])
        for b, nodes in enumerate(trees.nodes)
    ]


def dense_map(features: np.ndarray, boxes: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Features of N leaves `[N, C]` unfolded to `[C, rows, columns]`, one cell per scale-0 patch.

    boxes: integers `[N, 3]` that tile the `grid` (rows, columns); each leaf's features are
    repeated over its area. Raises ConfigError when the boxes do not tile the grid.
    """
    rows, columns = grid
    owner = np.full((rows, columns), -1, np.int64)
    covered = 0
    for leaf, (x, y, scale) in enumerate(np.asarray(boxes).tolist()):
        side = 1 << scale
        owner[y : y + side, x : x + side] = leaf
        covered += side * side
    if covered != rows * columns or (owner < 0).any():
        raise ConfigError(f"the boxes do not tile a grid of {rows} x {columns} patches")
    return np.moveaxis(np.asarray(features)[owner], -1, 0)


def _mirror_order(geometry: Geometry, splits: int) -> np.ndarray:
    """int64 `[M]`: for each node of the mirrored mosaic, its index before."""
    rows, columns = geometry.grid(geometry.max_scale)
    roots = np.arange(rows * columns).reshape(rows, columns)[:, ::-1].reshape(-1)
    quarters = np.arange(4 * splits).reshape(splits, 4)[:, [1, 0, 3, 2]].reshape(-1)
    return np.concatenate([roots, len(roots) + quarters])
