"""The loops that numpy cannot run fast, compiled by numba; exact sums, so the same everywhere.

Import this module inside the functions that need it: numba takes half a second to load.
Arguments are not checked here, callers do.

Letters: B batch; H, W height and width in pixels; P patch size; M nodes; f = 2**s.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

_Function = TypeVar("_Function", bound=Callable[..., Any])


_LOW = np.int64(0xFFFFFFFF)


def compiled(function: _Function) -> _Function:
    """Compile on first call and cache on disk, or in memory where no folder can be written."""
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(_Function, numba.njit(nogil=True)(function))


@compiled
def grow_trees(
    importance: np.ndarray, boxes: np.ndarray, children: np.ndarray, roots: int, splits: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best-first trees of K = `splits` splits, with a heap for each image.

    The most important leaf is split, and its quarters that can be split again go onto the heap; of
    equal ones the smaller id goes first. importance: float32 `[B, A]` by patch id; boxes: int32
    `[T, 3]`; children: int32 `[A, 4]`; roots: R, the ids 0 to R - 1. Returns the nodes, int32
    `[B, R + 4 K, 4]`, x, y, scale and split step; the ids of the split patches, int32 `[B, K]`, and
    their importance, float32 `[B, K]`.
    """
    batch, patches = importance.shape
    nodes = np.empty((batch, roots + 4 * splits, 4), np.int32)
    order = np.empty((batch, splits), np.int32)
    worth = np.empty((batch, splits), np.float32)
    heap = np.empty(patches, np.int64)
    node_of = np.empty(len(boxes), np.int32)
    bits = (importance + np.float32(0)).view(np.int32)  # 0 for -0
    for b in range(batch):
        size = 0
        for patch in range(roots):
            _set_node(nodes[b, patch], boxes[patch])
            node_of[patch] = patch
            if patch < patches:
                size = _push(heap, size, _key(bits[b, patch], patch))
        for step in range(splits):
            best = _LOW - (heap[0] & _LOW)
            order[b, step] = best
            worth[b, step] = importance[b, best]
            nodes[b, node_of[best], 3] = step
            for quarter in range(4):
                child = children[best, quarter]
                node = roots + 4 * step + quarter
                _set_node(nodes[b, node], boxes[child])
                node_of[child] = node
            first = children[best, 0]
            if first < patches:
                _replace_first(heap, size, _key(bits[b, first], first))
                for quarter in range(1, 4):
                    child = children[best, quarter]
                    size = _push(heap, size, _key(bits[b, child], child))
            else:
                size -= 1
                _replace_first(heap, size, heap[size])
    return nodes, order, worth


@compiled
def _set_node(node: np.ndarray, box: np.ndarray) -> None:
    node[0] = box[0]
    node[1] = box[1]
    node[2] = box[2]
    node[3] = -1


@compiled
def _key(bits: int, patch: int) -> int:
    """One number that orders patches: importance above, the id turned round below."""
    return int((np.int64(bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (_LOW - patch))


@compiled
def _push(heap: np.ndarray, size: int, key: int) -> int:
    """Add a key to a heap of `size`, largest first; the new size."""
    place = size
    while place > 0:
        above = (place - 1) >> 1
        if heap[above] >= key:
            break
        heap[place] = heap[above]
        place = above
    heap[place] = key
    return size + 1


@compiled
def _replace_first(heap: np.ndarray, size: int, key: int) -> None:
    """Put a key where the first one was, in a heap that has `size`."""
    place, child = 0, 1
    while child < size:
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key


@compiled
def blur_errors(images: np.ndarray, scale: int, side: int) -> np.ndarray:
    """Squared error of resampling down by f and up again, summed over square patches.

    Down is the mean of each block's four centre pixels, up is bilinear with half-pixel centres,
    both unrounded. In units of 1 / (16 f^2) grey levels every term is an integer.

    images: uint8 `[B, H, W, 3]`. Returns float64 `[B, H / side, W / side, 3]`, the sums over the
    patches' `side` x `side` pixels in units of (1 / (16 f^2))^2; exact up to 2^53.
    """
    factor = 1 << scale
    half = factor >> 1
    batch, height, width = images.shape[:3]
    rows, columns = height // factor, width // factor
    row_values = 3 * width
    sums = np.zeros((batch, height // side, width // side, 3), np.float64)
    # The four centre pixels' sum, interpolated along x with weights that add up to 2 f.
    widened = np.empty((rows, row_values), np.int32)
    centre = np.empty((columns, 3), np.int32)
    squares = np.empty(row_values, np.float64)
    unit = np.int32(16 * factor * factor)
    for b in range(batch):
        for row in range(rows):
            y = row * factor + half
            for column in range(columns):
                x = column * factor + half
                for c in range(3):
                    centre[column, c] = (
                        np.int32(images[b, y - 1, x - 1, c])
                        + np.int32(images[b, y - 1, x, c])
                        + np.int32(images[b, y, x - 1, c])
                        + np.int32(images[b, y, x, c])
                    )
            for x in range(width):
                right = (x + half) >> scale
                left = max(right - 1, 0)
                weight = np.int32(2 * ((x + half) & (factor - 1)) + 1)
                right = min(right, columns - 1)
                for c in range(3):
                    widened[row, 3 * x + c] = (
                        np.int32(2 * factor - weight) * centre[left, c] + weight * centre[right, c]
                    )
        squares[:] = 0
        for y in range(height):
            below = (y + half) >> scale
            upper = widened[max(below - 1, 0)]
            lower = widened[min(below, rows - 1)]
            lower_weight = np.int32(2 * ((y + half) & (factor - 1)) + 1)
            upper_weight = np.int32(2 * factor - lower_weight)
            pixels = images[b, y].reshape(row_values)
            for j in range(row_values):
                error = np.float64(
                    np.int32(pixels[j]) * unit - upper_weight * upper[j] - lower_weight * lower[j]
                )
                squares[j] += error * error
            if (y + 1) % side == 0:
                for x in range(width):
                    for c in range(3):
                        sums[b, y // side, x // side, c] += squares[3 * x + c]
                squares[:] = 0
    return sums


# APT's grey, 0.2989 R + 0.5870 G + 0.1140 B, as a whole number of 1 / 10,000 grey levels.
_RED, _GREEN, _BLUE = 2989, 5870, 1140


@compiled
def laplacian_sums(images: np.ndarray, side: int) -> np.ndarray:
    """|8-neighbour Laplacian| of the grey image, summed over square patches of `side` pixels.

    The image is reflected at its border. images: uint8 `[B, H, W, 3]`. Returns int64
    `[B, H / side, W / side]` in 1 / 10,000 grey levels.
    """
    batch, height, width = images.shape[:3]
    sums = np.zeros((batch, height // side, width // side), np.int64)
    grey = np.empty((height + 2, width + 2), np.int32)
    column = np.empty(width + 2, np.int32)
    row_sums = np.empty(width, np.int64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                grey[y + 1, x + 1] = (
                    np.int32(_RED) * np.int32(images[b, y, x, 0])
                    + np.int32(_GREEN) * np.int32(images[b, y, x, 1])
                    + np.int32(_BLUE) * np.int32(images[b, y, x, 2])
                )
            grey[y + 1, 0] = grey[y + 1, 2]
            grey[y + 1, width + 1] = grey[y + 1, width - 1]
        grey[0] = grey[2]
        grey[height + 1] = grey[height - 1]
        row_sums[:] = 0
        for y in range(height):
            for x in range(width + 2):
                column[x] = grey[y, x] + grey[y + 1, x] + grey[y + 2, x]
            for x in range(width):
                nine = column[x] + column[x + 1] + column[x + 2]
                row_sums[x] += abs(nine - np.int32(9) * grey[y + 1, x + 1])
            if (y + 1) % side == 0:
                for x in range(width):
                    sums[b, y // side, x // side] += row_sums[x]
                row_sums[:] = 0
    return sums


@compiled
def entropy_sums(images: np.ndarray, side: int, scales: int, table: np.ndarray) -> np.ndarray:
    """`table[count]` summed over the 512 bins of each patch's grey histogram.

    A bin is half a grey level wide. images: uint8 `[B, H, W, 3]`; side: in pixels of the smallest
    patches, each of the `scales` is twice as large as the one before; table: int64. Returns int64
    `[B, A]`, coarse to fine, in raster order.
    """
    batch, height, width = images.shape[:3]
    rows, columns = height // side, width // side
    patches = 0
    for scale in range(scales):
        patches += (rows >> scale) * (columns >> scale)
    sums = np.empty((batch, patches), np.int64)
    counts = np.zeros((rows, columns, 512), np.int32)
    for b in range(batch):
        counts[:] = 0
        for y in range(height):
            for column in range(columns):
                histogram = counts[y // side, column]
                for x in range(column * side, (column + 1) * side):
                    grey = (
                        np.uint32(_RED) * np.uint32(images[b, y, x, 0])
                        + np.uint32(_GREEN) * np.uint32(images[b, y, x, 1])
                        + np.uint32(_BLUE) * np.uint32(images[b, y, x, 2])
                    )
                    histogram[grey // np.uint32(5000)] += 1
        first = patches
        for scale in range(scales):
            first -= (rows >> scale) * (columns >> scale)
            for row in range(rows >> scale):
                for column in range(columns >> scale):
                    if scale:  # the sum of its four quarters, put where the first one was
                        for level in range(512):
                            counts[row, column, level] = (
                                counts[2 * row, 2 * column, level]
                                + counts[2 * row, 2 * column + 1, level]
                                + counts[2 * row + 1, 2 * column, level]
                                + counts[2 * row + 1, 2 * column + 1, level]
                            )
                    total = np.int64(0)
                    for level in range(512):
                        total += table[counts[row, column, level]]
                    sums[b, first + row * (columns >> scale) + column] = total
    return sums


@compiled
def cut_tokens(images: np.ndarray, nodes: np.ndarray, patch_size: int, area: bool) -> np.ndarray:
    """The patches of uint8 images `[B, H, W, 3]` at int32 nodes `[B, M, 4]`, each as P x P pixels.

    A pixel of a patch of scale s is made from a block of f x f pixels: from its four centre
    pixels, `(a + b + c + d + 2) >> 2`, or with `area` from all of them, the mean rounded half up.
    Returns uint8 `[B, M, P, P, 3]`.
    """
    batch, count = nodes.shape[:2]
    tokens = np.empty((batch, count, patch_size, patch_size, 3), np.uint8)
    lines = images.reshape(batch, images.shape[1], 3 * images.shape[2])
    flat = tokens.reshape(batch, count, patch_size, 3 * patch_size)
    centres = np.empty(3 * images.shape[2], np.uint16)
    for b in range(batch):
        for m in range(count):
            scale = nodes[b, m, 2]
            top = nodes[b, m, 1] * patch_size
            left = nodes[b, m, 0] * patch_size
            factor = 1 << scale
            half = factor >> 1
            if scale == 0:
                for row in range(patch_size):
                    source = lines[b, top + row, 3 * left : 3 * (left + patch_size)]
                    target = flat[b, m, row]
                    for j in range(3 * patch_size):
                        target[j] = source[j]
            elif area:
                for row in range(patch_size):
                    for column in range(patch_size):
                        for c in range(3):
                            total = np.int64(factor * half)
                            for y in range(top + row * factor, top + (row + 1) * factor):
                                for x in range(
                                    left + column * factor, left + (column + 1) * factor
                                ):
                                    total += images[b, y, x, c]
                            tokens[b, m, row, column, c] = total >> (2 * scale)
            else:
                for row in range(patch_size):
                    y = top + row * factor + half
                    upper, lower = lines[b, y - 1], lines[b, y]
                    target = flat[b, m, row]
                    first = 3 * (left + half - 1)
                    upper_right, lower_right = upper[first + 3 :], lower[first + 3 :]
                    upper, lower = upper[first:], lower[first:]
                    # At every pixel, of which each f-th is wanted: so it is vector instructions.
                    for j in range(3 * factor * (patch_size - 1) + 3):
                        centres[j] = (
                            np.uint16(upper[j])
                            + np.uint16(upper_right[j])
                            + np.uint16(lower[j])
                            + np.uint16(lower_right[j])
                        )
                    for column in range(patch_size):
                        for c in range(3):
                            centre = np.int32(centres[3 * factor * column + c])
                            target[3 * column + c] = (centre + 2) >> 2
    return tokens
