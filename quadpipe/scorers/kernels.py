"""The compiled loops of the pixel scorers and of pooling. Arguments are not checked.

Sums over pixels are exact, means of maps are float64 in a fixed order, so that they are the same on
every processor.

Letters: B batch; H, W image height and width in pixels; f = 2**s.
"""

import numpy as np

from quadpipe.compiled import compiled


@compiled
def blur_errors(images: np.ndarray, scale: int, side: int) -> np.ndarray:
    """Squared error of resampling down by f and up again, summed over square patches.

    Down is the mean of each block's four center pixels, up is bilinear with half-pixel centers,
    both unrounded. In units of 1 / (16 f^2) gray levels every term is an integer.

    images: uint8 `[B, H, W, 3]`. Returns float64 `[B, H / side, W / side, 3]`, the sums over the
    patches' `side` x `side` pixels in units of (1 / (16 f^2))^2; exact up to 2^53.
    """
    factor = 1 << scale
    half = factor >> 1
    batch, height, width = images.shape[:3]
    rows, columns = height // factor, width // factor
    row_values = 3 * width
    sums = np.zeros((batch, height // side, width // side, 3), np.float64)
    # The four center pixels' sum, interpolated along x with weights that add up to 2 f.
    widened = np.empty((rows, row_values), np.int32)
    center = np.empty((columns, 3), np.int32)
    squares = np.empty(row_values, np.float64)
    unit = np.int32(16 * factor * factor)
    for b in range(batch):
        for row in range(rows):
            y = row * factor + half
            for column in range(columns):
                x = column * factor + half
                for c in range(3):
                    center[column, c] = (
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
                        np.int32(2 * factor - weight) * center[left, c] + weight * center[right, c]
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


# APT's gray, 0.2989 R + 0.5870 G + 0.1140 B, as a whole number of 1 / 10,000 gray levels.
_RED, _GREEN, _BLUE = 2989, 5870, 1140


@compiled
def laplacian_sums(images: np.ndarray, side: int) -> np.ndarray:
    """|8-neighbour Laplacian| of the gray image, summed over square patches of `side` pixels.

    The image is reflected at its border. images: uint8 `[B, H, W, 3]`. Returns int64
    `[B, H / side, W / side]` in 1 / 10,000 gray levels.
    """
    batch, height, width = images.shape[:3]
    sums = np.zeros((batch, height // side, width // side), np.int64)
    gray = np.empty((height + 2, width + 2), np.int32)
    column = np.empty(width + 2, np.int32)
    row_sums = np.empty(width, np.int64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                gray[y + 1, x + 1] = (
                    np.int32(_RED) * np.int32(images[b, y, x, 0])
                    + np.int32(_GREEN) * np.int32(images[b, y, x, 1])
                    + np.int32(_BLUE) * np.int32(images[b, y, x, 2])
                )
            gray[y + 1, 0] = gray[y + 1, 2]
            gray[y + 1, width + 1] = gray[y + 1, width - 1]
        gray[0] = gray[2]
        gray[height + 1] = gray[height - 1]
        row_sums[:] = 0
        for y in range(height):
            for x in range(width + 2):
                column[x] = gray[y, x] + gray[y + 1, x] + gray[y + 2, x]
            for x in range(width):
                nine = column[x] + column[x + 1] + column[x + 2]
                row_sums[x] += abs(nine - np.int32(9) * gray[y + 1, x + 1])
            if (y + 1) % side == 0:
                for x in range(width):
                    sums[b, y // side, x // side] += row_sums[x]
                row_sums[:] = 0
    return sums


@compiled
def entropy_sums(images: np.ndarray, side: int, scales: int, table: np.ndarray) -> np.ndarray:
    """`table[count]` summed over the 512 bins of each patch's gray histogram.

    A bin is half a gray level wide. images: uint8 `[B, H, W, 3]`; side: in pixels of the smallest
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
                    gray = (
                        np.uint32(_RED) * np.uint32(images[b, y, x, 0])
                        + np.uint32(_GREEN) * np.uint32(images[b, y, x, 1])
                        + np.uint32(_BLUE) * np.uint32(images[b, y, x, 2])
                    )
                    histogram[gray // np.uint32(5000)] += 1
        first = patches
        for scale in range(scales):
            first -= (rows >> scale) * (columns >> scale)
            for row in range(rows >> scale):
                for column in range(columns >> scale):
                    if scale:  # sum the four quarters in place of the first
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
def area_means(
    maps: np.ndarray, cell: tuple[int, int], patch: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The mean of each map over every patch, weighted by the area of the cells under it.

    maps: float64 `[B, h, w]`. cell, patch, size: height and width of the maps' cells, of the
    patches and of the image, in one unit. Cells and patches start at the top left; where they do
    not divide the image, the last ones are smaller. Returns float64 `[B, rows, columns]`.
    """
    batch, _, cell_columns = maps.shape
    rows, columns = -(-size[0] // patch[0]), -(-size[1] // patch[1])
    means = np.empty((batch, rows, columns), np.float64)
    strip = np.empty(cell_columns, np.float64)
    for b in range(batch):
        for row in range(rows):
            top, bottom = row * patch[0], min((row + 1) * patch[0], size[0])
            strip[:] = 0.0
            for y in range(top // cell[0], -(-bottom // cell[0])):
                overlap = min((y + 1) * cell[0], bottom) - max(y * cell[0], top)
                for x in range(cell_columns):
                    strip[x] += maps[b, y, x] * overlap
            for x in range(cell_columns):
                strip[x] /= bottom - top
            for column in range(columns):
                left, right = column * patch[1], min((column + 1) * patch[1], size[1])
                total = 0.0
                for x in range(left // cell[1], -(-right // cell[1])):
                    overlap = min((x + 1) * cell[1], right) - max(x * cell[1], left)
                    total += strip[x] * overlap
                means[b, row, column] = total / (right - left)
    return means
