"""The compiled loops of rarity, barrier and saliency. Arguments are not checked.

Sums over pixels are exact. What follows is float64 in a fixed order, with sqrt as the only
function, so that it is the same on every processor.

An image is divided into square cells from the top left; the last row and column of cells may be
smaller. A cell's features are means over the pixels that it has.

Letters: B batch; H, W image height and width in pixels; h, w rows and columns of cells.
"""

import math

import numpy as np

from quadpipe.compiled import compiled, read_only

SMALL_CELL = 4
"""Side in pixels of the cells of `barrier`."""

LARGE_CELL = 8
"""Side in pixels of the cells of `rarity`."""

_RED, _GREEN, _BLUE = 299, 587, 114  # gray in 1 / 1,000 levels
_FEATURES = 8  # of a large cell
_RIDGE = 4.0  # added to the variance of each feature, in squared gray levels
_SWEEPS = 3  # over the rows: down, up, down
_UNREACHED = np.int32(1 << 29)  # above every barrier


def saliency_maps(images: np.ndarray, rarity: bool, barrier: bool) -> tuple[np.ndarray, np.ndarray]:
    """How rare each large cell is, and how far behind barriers each small cell is.

    images: uint8 `[B, H, W, 3]`. Returns float64 `[B, h, w]` twice: the squared `rare_cells` of
    large cells and the squared `barrier_distances` of small cells; zeros where not wanted.
    """
    return _saliency_maps(read_only(images), rarity, barrier)


@compiled
def _saliency_maps(
    images: np.ndarray, rarity: bool, barrier: bool
) -> tuple[np.ndarray, np.ndarray]:
    """As `saliency_maps`."""
    batch, height, width = images.shape[:3]
    rows, columns = -(-height // SMALL_CELL), -(-width // SMALL_CELL)
    large_rows, large_columns = -(-height // LARGE_CELL), -(-width // LARGE_CELL)
    rare = np.zeros((batch, large_rows, large_columns), np.float64)
    far = np.zeros((batch, rows, columns), np.float64)
    colors = np.empty((rows, columns, 3), np.int32)
    textures = np.empty((large_rows, large_columns, 5), np.int32)
    for b in range(batch):
        _sum_cells(images[b], rarity, colors, textures)
        if rarity:
            _rare_cells(colors, textures, height, width, rare[b])
        if barrier:
            _barrier_distances(colors, height, width, far[b])
    return rare, far


@compiled
def _sum_cells(
    image: np.ndarray, with_textures: bool, colors: np.ndarray, textures: np.ndarray
) -> None:
    """Sums over cells, in one pass over the pixels.

    image: uint8 `[H, W, 3]`. Writes R, G, B of small cells into colors, int32 `[h, w, 3]`, and,
    if wanted, of large cells R^2, G^2, B^2 and the absolute differences of gray between neighbors
    in a row and in a column into textures, int32 `[h, w, 5]`. Both neighbors are in the cell.
    """
    height, width = image.shape[:2]
    row_values = 3 * width
    sums = np.zeros(row_values, np.int32)
    squares = np.zeros(row_values, np.int32)
    across = np.zeros(width, np.int32)
    down = np.zeros(width, np.int32)
    gray = np.empty(width, np.int32)
    above = np.zeros(width, np.int32)
    for y in range(height):
        pixels = image[y].reshape(row_values)
        if with_textures:
            for j in range(row_values):
                value = np.int32(pixels[j])
                sums[j] += value
                squares[j] += value * value
            for x in range(width):
                gray[x] = (
                    np.int32(_RED) * np.int32(pixels[3 * x])
                    + np.int32(_GREEN) * np.int32(pixels[3 * x + 1])
                    + np.int32(_BLUE) * np.int32(pixels[3 * x + 2])
                )
            for x in range(width - 1):
                across[x] += abs(np.int32(gray[x + 1] - gray[x]))
            if y % LARGE_CELL:
                for x in range(width):
                    down[x] += abs(np.int32(gray[x] - above[x]))
            gray, above = above, gray
        else:
            for j in range(row_values):
                sums[j] += np.int32(pixels[j])
        last = y == height - 1
        if y % SMALL_CELL == SMALL_CELL - 1 or last:
            row = colors[y // SMALL_CELL]
            row[:] = 0
            for x in range(width):
                for c in range(3):
                    row[x // SMALL_CELL, c] += sums[3 * x + c]
            sums[:] = 0
        if with_textures and (y % LARGE_CELL == LARGE_CELL - 1 or last):
            row = textures[y // LARGE_CELL]
            row[:] = 0
            for x in range(width):
                cell = row[x // LARGE_CELL]
                for c in range(3):
                    cell[c] += squares[3 * x + c]
                if x % LARGE_CELL != LARGE_CELL - 1:  # else the neighbor is in the next cell
                    cell[3] += across[x]
                cell[4] += down[x]
            squares[:] = 0
            across[:] = 0
            down[:] = 0


@compiled
def _rare_cells(
    colors: np.ndarray, textures: np.ndarray, height: int, width: int, rare: np.ndarray
) -> None:
    """Squared Mahalanobis distance of each large cell from the image's mean cell, squared.

    The RX detector of Reed and Yu (IEEE TASSP 38, 1990). colors, textures: of `_sum_cells`. Writes
    rare, float64 `[h, w]`.
    """
    rows, columns = rare.shape
    features = np.empty((rows, _FEATURES, columns), np.float64)
    _cell_features(colors, textures, height, width, features)
    lower = np.zeros((_FEATURES, _FEATURES), np.float64)
    _center(features, lower)
    # Solve lower x whitened = feature for every cell; the distance is the whitened length.
    for y in range(rows):
        for x in range(columns):
            rare[y, x] = 0.0
        for j in range(_FEATURES):
            whitened = features[y, j]
            for k in range(j):
                weight = lower[j, k]
                earlier = features[y, k]
                for x in range(columns):
                    whitened[x] -= weight * earlier[x]
            for x in range(columns):
                whitened[x] /= lower[j, j]
                rare[y, x] += whitened[x] * whitened[x]
        for x in range(columns):
            rare[y, x] *= rare[y, x]


@compiled
def _cell_features(
    colors: np.ndarray, textures: np.ndarray, height: int, width: int, features: np.ndarray
) -> None:
    """Write the 8 features of each large cell, float64 `[h, 8, w]`.

    Mean and standard deviation of R, G and B, and mean absolute difference of gray between
    neighbors in a row and in a column (0 in a cell without neighbors).
    """
    small_rows, small_columns = colors.shape[:2]
    ratio = LARGE_CELL // SMALL_CELL
    for y in range(features.shape[0]):
        cell_height = min(LARGE_CELL, height - y * LARGE_CELL)
        for x in range(features.shape[2]):
            cell_width = min(LARGE_CELL, width - x * LARGE_CELL)
            pixels = cell_height * cell_width
            for c in range(3):
                total = np.int64(0)
                for small_y in range(y * ratio, min((y + 1) * ratio, small_rows)):
                    for small_x in range(x * ratio, min((x + 1) * ratio, small_columns)):
                        total += colors[small_y, small_x, c]
                features[y, c, x] = total / pixels
                variance = pixels * np.int64(textures[y, x, c]) - total * total
                features[y, 3 + c, x] = math.sqrt(variance) / pixels
            across = max(cell_height * (cell_width - 1), 1)
            down = max((cell_height - 1) * cell_width, 1)
            features[y, 6, x] = textures[y, x, 3] / (1000.0 * across)
            features[y, 7, x] = textures[y, x, 4] / (1000.0 * down)


@compiled
def _center(features: np.ndarray, lower: np.ndarray) -> None:
    """Subtract the mean cell from features, float64 `[h, 8, w]`, and factor their covariance.

    Writes lower, float64 `[8, 8]`: lower times its transpose is the covariance plus the ridge
    (Cholesky). Columns of the image are summed first, so that the loops over them are vectors.
    """
    rows, _, columns = features.shape
    cells = rows * columns
    sums = np.zeros((_FEATURES, columns), np.float64)
    for y in range(rows):
        for j in range(_FEATURES):
            for x in range(columns):
                sums[j, x] += features[y, j, x]
    means = np.zeros(_FEATURES, np.float64)
    for j in range(_FEATURES):
        for x in range(columns):
            means[j] += sums[j, x]
        means[j] /= cells
    products = np.zeros((_FEATURES, _FEATURES, columns), np.float64)
    for y in range(rows):
        for j in range(_FEATURES):
            for x in range(columns):
                features[y, j, x] -= means[j]
        for j in range(_FEATURES):
            for k in range(j + 1):
                for x in range(columns):
                    products[j, k, x] += features[y, j, x] * features[y, k, x]
    for j in range(_FEATURES):
        for k in range(j + 1):
            total = 0.0
            for x in range(columns):
                total += products[j, k, x]
            total /= cells
            if j == k:
                total += _RIDGE
            for i in range(k):
                total -= lower[j, i] * lower[k, i]
            lower[j, k] = math.sqrt(total) if j == k else total / lower[k, k]


@compiled
def _barrier_distances(colors: np.ndarray, height: int, width: int, far: np.ndarray) -> None:
    """Minimum barrier distance of each small cell to the image's border, squared.

    The barrier of a path is its largest value less its smallest; the distance is the smallest
    barrier of the paths to the cells at the border (Zhang et al., Minimum Barrier Salient Object
    Detection at 80 FPS, ICCV 2015). Summed over three opponent channels: R + G + B, 6 (R - G) and
    3 (R + G - 2 B), sums over 4 x 4 pixels; in a smaller cell 16 times the mean, rounded down.

    As in the paper, sweeps approximate it from above. Here a sweep goes down or up the rows; a cell
    takes the path of the cell before it in its column, then the better of the paths that come from
    the left and from the right in its row. So the distances of an image mirrored left to right are
    the mirrored distances, exactly.

    colors: of `_sum_cells`. Writes far, float64 `[h, w]`.
    """
    rows, columns = far.shape
    values = np.empty((3, rows, columns), np.int32)
    for y in range(rows):
        cell_height = min(SMALL_CELL, height - y * SMALL_CELL)
        for x in range(columns):
            red, green, blue = colors[y, x, 0], colors[y, x, 1], colors[y, x, 2]
            values[0, y, x] = red + green + blue
            values[1, y, x] = 6 * (red - green)
            values[2, y, x] = 3 * (red + green - 2 * blue)
            pixels = cell_height * min(SMALL_CELL, width - x * SMALL_CELL)
            if pixels < SMALL_CELL * SMALL_CELL:
                for c in range(3):
                    values[c, y, x] = values[c, y, x] * (SMALL_CELL * SMALL_CELL) // pixels
    # The largest and the smallest value of the best path so far.
    highs, lows = values.copy(), values.copy()
    highs[:, 1:-1, 1:-1] += _UNREACHED
    left_high = np.empty(columns, np.int32)
    left_low = np.empty(columns, np.int32)
    far[:] = 0.0
    for c in range(3):
        for sweep in range(_SWEEPS):
            for step in range(1, rows - 1):
                y = rows - 1 - step if sweep % 2 else step
                before = y + 1 if sweep % 2 else y - 1
                value, high, low = values[c, y], highs[c, y], lows[c, y]
                before_high, before_low = highs[c, before], lows[c, before]
                for x in range(1, columns - 1):
                    high[x], low[x] = _extend(
                        before_high[x], before_low[x], value[x], high[x], low[x]
                    )
                path_high = path_low = value[0]
                for x in range(1, columns - 1):
                    path_high, path_low = _extend(path_high, path_low, value[x], high[x], low[x])
                    left_high[x], left_low[x] = path_high, path_low
                path_high = path_low = value[columns - 1]
                for x in range(columns - 2, 0, -1):
                    path_high, path_low = _extend(path_high, path_low, value[x], high[x], low[x])
                    right, left = path_high - path_low, left_high[x] - left_low[x]
                    # Of equal barriers the lower one, so that left and right are treated alike.
                    is_right = right < left or (right == left and path_low < left_low[x])
                    high[x] = path_high if is_right else left_high[x]
                    low[x] = path_low if is_right else left_low[x]
        for y in range(rows):
            for x in range(columns):
                far[y, x] += highs[c, y, x] - lows[c, y, x]
    for y in range(rows):
        for x in range(columns):
            far[y, x] *= far[y, x]


@compiled
def _extend(path_high: int, path_low: int, value: int, high: int, low: int) -> tuple[int, int]:
    """Largest and smallest value of a path continued to a cell, or of the cell's own if better."""
    new_high, new_low = max(path_high, value), min(path_low, value)
    is_better = np.int32(new_high - new_low) < np.int32(high - low)
    return (new_high if is_better else high), (new_low if is_better else low)
