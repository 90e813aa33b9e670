"""Sizes, legal budgets and boxes: integers only.

Letters: H, W image height and width in pixels; P patch size; S largest scale; R roots (patches of
scale S); A splittable patches (scales 1..S); T all patches (scales 0..S); N tokens; K splits;
M nodes.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields

MAX_TOKENS = 2**20
MAX_IMAGE_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """An image of `height` x `width` pixels cut into square patches of P * 2**s pixels, s = 0..S.

    All patches of all scales have an id: coarse to fine, raster order within a scale. The roots
    are the ids 0..R-1, the splittable patches the ids 0..A-1.

    Raises ConfigError when `max_patch_size` is not P times a power of two or does not divide the
    image.
    """

    height: int
    width: int
    patch_size: int
    max_patch_size: int

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("height", "width", "patch_size", "max_patch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not above 0")
        ratio, rest = divmod(self.max_patch_size, self.patch_size)
        if rest or ratio & (ratio - 1):
            doubles = ", ".join(str(self.patch_size * 2**s) for s in range(4))
            raise ConfigError(
                f"max_patch_size {self.max_patch_size} is not patch_size {self.patch_size} times "
                f"a power of two; use one of {doubles}, .."
            )
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % self.max_patch_size:
                lower = value // self.max_patch_size * self.max_patch_size
                choices = [str(n) for n in (lower, lower + self.max_patch_size) if n]
                raise ConfigError(
                    f"image {name} {value} is not a multiple of max_patch_size "
                    f"{self.max_patch_size}; use {' or '.join(choices)}"
                )

        if self.max_tokens > MAX_TOKENS:
            raise ConfigError(
                f"{self.height}x{self.width} pixels hold {self.max_tokens:,} patches of "
                f"{self.patch_size}, more than {MAX_TOKENS:,}; use a larger patch_size"
            )

    @property
    def max_scale(self) -> int:
        """S: the scale of the roots; 0 when there is nothing to split."""
        return (self.max_patch_size // self.patch_size).bit_length() - 1

    @property
    def roots(self) -> int:
        """R: the number of patches of the largest scale, and the smallest legal budget."""
        rows, columns = self.grid(self.max_scale)
        return rows * columns

    @property
    def max_tokens(self) -> int:
        """The number of patches of scale 0, and the largest legal budget."""
        rows, columns = self.grid(0)
        return rows * columns

    @property
    def splittable(self) -> int:
        """A: the number of patches of scale 1 and above."""
        return (self.max_tokens - self.roots) // 3

    def grid(self, scale: int) -> tuple[int, int]:
        """Rows and columns of the patches of one scale."""
        side = self.patch_size << scale
        return self.height // side, self.width // side

    def num_splits(self, tokens: int) -> int:
        """K, the number of splits that give `tokens` leaves; ConfigError when no number does."""
        if self.roots <= tokens <= self.max_tokens and (tokens - self.roots) % 3 == 0:
            return (tokens - self.roots) // 3
        inside = min(max(tokens, self.roots), self.max_tokens)
        lower = self.roots + (inside - self.roots) // 3 * 3
        choices = [str(n) for n in (lower, lower + 3) if n <= self.max_tokens]
        raise ConfigError(
            f"{tokens} tokens cannot tile {self.height}x{self.width} pixels with patches of "
            f"{self.patch_size} to {self.max_patch_size}: every split adds 3 to the {self.roots} "
            f"largest patches, up to {self.max_tokens}; use {' or '.join(choices)}"
        )

    def budgets_between(self, low: int, high: int) -> tuple[int, ...]:
        """The legal budgets from low to high, ascending; ConfigError when there is none."""
        first = self.roots + max(-(-(low - self.roots) // 3), 0) * 3
        budgets = tuple(range(first, min(high, self.max_tokens) + 1, 3))
        if not budgets:
            raise ConfigError(
                f"no number of tokens from {low} to {high} can tile {self.height}x{self.width} "
                f"pixels; use a range that holds {self.roots}, or {self.roots} plus a multiple of 3"
            )
        return budgets

    def num_nodes(self, tokens: int) -> int:
        """M, the number of patches that exist at some budget up to `tokens`."""
        return self.roots + 4 * self.num_splits(tokens)

    @cached_property
    def boxes(self) -> np.ndarray:
        """int32 `[T, 3]`: (x, y, scale) of each patch by id; left and top in units of P."""
        levels = []
        for scale in range(self.max_scale, -1, -1):
            y, x = np.indices(self.grid(scale), dtype=np.int32) << scale
            levels.append(np.stack([x, y, np.full_like(x, scale)], axis=-1).reshape(-1, 3))
        boxes = np.concatenate(levels)
        boxes.flags.writeable = False
        return boxes

    @cached_property
    def children(self) -> np.ndarray:
        """int32 `[A, 4]`: ids of each splittable patch's quarters, TL, TR, BL, BR."""
        levels = [np.empty((0, 4), np.int32)]
        first = 0
        for scale in range(self.max_scale, 0, -1):
            rows, columns = self.grid(scale)
            first += rows * columns
            y, x = np.indices((rows, columns), dtype=np.int32) * 2
            corner = first + y * (2 * columns) + x
            quarters = (corner, corner + 1, corner + 2 * columns, corner + 2 * columns + 1)
            levels.append(np.stack(quarters, axis=-1).reshape(-1, 4))
        children = np.concatenate(levels)
        children.flags.writeable = False
        return children
