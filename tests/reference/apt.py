"""APT's scores and its choice of patches (arXiv 2510.18091 and its code), as they are defined."""

import numpy as np

from reference.pixels import interpolation


def grey(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) @ np.array([0.2989, 0.5870, 0.1140])


def entropy(patch: np.ndarray) -> float:
    """Bits of the 512-bin histogram of a patch's grey levels in [0, 256)."""
    # A whole number of 1 / 10,000 levels can come out a little below itself.
    bins = np.floor(np.round(grey(patch), 6) * 512 / 256).astype(int)
    shares = np.bincount(bins.reshape(-1), minlength=512) / bins.size
    return float(-(shares * np.log2(shares + 1e-10)).sum())


def laplacian(image: np.ndarray) -> np.ndarray:
    """|8-neighbour Laplacian| of every pixel."""
    padded = np.pad(grey(image) / 255, 1, mode="reflect")
    height, width = image.shape[:2]
    neighbours = sum(
        padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (dy, dx) != (0, 0)
    )
    return np.abs(neighbours - 8 * padded[1:-1, 1:-1])


def upsample_error(image: np.ndarray, scale: int) -> np.ndarray:
    """Squared error of every pixel, the mean over channels."""
    f = 2**scale
    pixels = image / 255.0
    height, width = image.shape[:2]
    blocks = pixels.reshape(height // f, f, width // f, f, 3)
    small = blocks[:, f // 2 - 1 : f // 2 + 1, :, f // 2 - 1 : f // 2 + 1].mean(axis=(1, 3))
    rows = np.einsum("ya,abc->ybc", interpolation(height, f), small)
    blurred = np.einsum("xb,ybc->yxc", interpolation(width, f), rows)
    return ((pixels - blurred) ** 2).mean(axis=2)


def patch_means(values: np.ndarray, side: int) -> np.ndarray:
    height, width = values.shape
    return values.reshape(height // side, side, width // side, side).mean(axis=(1, 3))


def chosen_boxes(maps: list[np.ndarray], thresholds: list[float]) -> set[tuple[int, int, int]]:
    """Boxes (x, y, scale) that APT keeps, from maps and thresholds, both coarse to fine.

    A patch is kept where its score is below the threshold of its scale and no patch above it is
    kept; the smallest patches fill the rest.
    """
    top = len(maps)
    rows, columns = maps[0].shape
    kept = set()

    def visit(x: int, y: int, scale: int) -> None:
        side = 2**scale
        level = top - scale
        if scale == 0 or maps[level][y // side, x // side] < thresholds[level]:
            kept.add((x, y, scale))
            return
        half = side // 2
        for dy in (0, half):
            for dx in (0, half):
                visit(x + dx, y + dy, scale - 1)

    for row in range(rows):
        for column in range(columns):
            visit(column * 2**top, row * 2**top, top)
    return kept
