"""Resampling and scoring of pixels, written as the definitions read."""

import numpy as np

STD = np.array([0.229, 0.224, 0.225])


def shrink(image: np.ndarray, scale: int, *, area: bool = False) -> np.ndarray:
    """The whole uint8 image resampled by 2**scale."""
    if scale == 0:
        return image
    f = 2**scale
    blocks = image.astype(np.int64).reshape(image.shape[0] // f, f, image.shape[1] // f, f, 3)
    if area:
        return ((blocks.sum(axis=(1, 3)) + f * f // 2) // (f * f)).astype(np.uint8)
    centre = blocks[:, f // 2 - 1 : f // 2 + 1, :, f // 2 - 1 : f // 2 + 1]
    return ((centre.sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)


def tokens(image: np.ndarray, nodes: np.ndarray, side: int, *, area: bool = False) -> np.ndarray:
    """Each node's patch, cut out of the shrunken image."""
    cut = []
    for x, y, scale, _ in nodes.tolist():
        level = shrink(image, scale, area=area)
        top, left = (y >> scale) * side, (x >> scale) * side
        cut.append(level[top : top + side, left : left + side])
    return np.stack(cut)


def interpolation(length: int, factor: int) -> np.ndarray:
    """`[length, length / factor]`: linear upsampling, half-pixel centres, clamped borders."""
    matrix = np.zeros((length, length // factor))
    for i in range(length):
        position = (i + 0.5) / factor - 0.5
        low = int(np.floor(position))
        share = position - low
        matrix[i, max(low, 0)] += 1 - share
        matrix[i, min(low + 1, length // factor - 1)] += share
    return matrix


def pixel_blur(image: np.ndarray, scale: int, side: int) -> np.ndarray:
    """Importance of the patches of `side` pixels, float64 `[rows, columns]`."""
    f = 2**scale
    pixels = image / 255.0 / STD
    height, width = image.shape[:2]
    blocks = pixels.reshape(height // f, f, width // f, f, 3)
    small = blocks[:, f // 2 - 1 : f // 2 + 1, :, f // 2 - 1 : f // 2 + 1].mean(axis=(1, 3))
    rows = np.einsum("ya,abc->ybc", interpolation(height, f), small)
    blurred = np.einsum("xb,ybc->yxc", interpolation(width, f), rows)
    error = (pixels - blurred) ** 2
    patches = error.reshape(height // side, side, width // side, side, 3)
    return np.sqrt(patches.mean(axis=(1, 3, 4))) * np.sqrt(side)
