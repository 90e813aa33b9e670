"""Rarity, barrier and saliency of one image, as they are defined."""

import numpy as np


def cells_of(image: np.ndarray, side: int) -> list[list[np.ndarray]]:
    """The image cut into squares from the top left; the last ones are smaller."""
    height, width = image.shape[:2]
    return [
        [image[y : y + side, x : x + side].astype(np.float64) for x in range(0, width, side)]
        for y in range(0, height, side)
    ]


def cell_features(cell: np.ndarray) -> list[float]:
    gray = cell @ np.array([0.299, 0.587, 0.114])
    texture = [
        float(differences.mean()) if differences.size else 0.0
        for differences in (abs(np.diff(gray, axis=1)), abs(np.diff(gray, axis=0)))
    ]
    return [*cell.mean(axis=(0, 1)), *cell.std(axis=(0, 1)), *texture]


def rarity(image: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance of each cell of 8 x 8 pixels, squared; `[h, w]`."""
    features = np.array([[cell_features(cell) for cell in row] for row in cells_of(image, 8)])
    rows = features.reshape(-1, 8)
    centered = rows - rows.mean(axis=0)
    covariance = centered.T @ centered / len(rows) + 4 * np.eye(8)
    distances = (centered @ np.linalg.inv(covariance) * centered).sum(axis=1)
    return (distances**2).reshape(features.shape[:2])


def opponent_channels(image: np.ndarray) -> np.ndarray:
    """`[3, h, w]` of cells of 4 x 4 pixels: 16 times the mean."""
    means = np.array([[cell.mean(axis=(0, 1)) for cell in row] for row in cells_of(image, 4)])
    red, green, blue = np.moveaxis(16 * means, 2, 0)
    channels = [red + green + blue, 6 * (red - green), 3 * (red + green - 2 * blue)]
    return np.floor(np.round(channels, 6)).astype(int)


def swept_barrier(values: np.ndarray) -> np.ndarray:
    """Barrier distance of each cell of one channel to the border, by sweeps down, up and down."""
    rows, columns = values.shape
    paths = {}  # by cell the largest and smallest value of its best path
    for y in range(rows):
        for x in range(columns):
            if y in (0, rows - 1) or x in (0, columns - 1):
                paths[y, x] = (values[y, x], values[y, x])

    def barrier(path):
        return path[0] - path[1]

    def better(path, y, x, own):
        longer = (max(path[0], values[y, x]), min(path[1], values[y, x]))
        return longer if own is None or barrier(longer) < barrier(own) else own

    for sweep in ("down", "up", "down"):
        inner = range(1, rows - 1) if sweep == "down" else range(rows - 2, 0, -1)
        for y in inner:
            before = y - 1 if sweep == "down" else y + 1
            own = {
                x: better(paths[before, x], y, x, paths.get((y, x))) for x in range(1, columns - 1)
            }
            from_left, from_right = {0: paths[y, 0]}, {columns - 1: paths[y, columns - 1]}
            for x in range(1, columns - 1):
                from_left[x] = better(from_left[x - 1], y, x, own[x])
            for x in range(columns - 2, 0, -1):
                from_right[x] = better(from_right[x + 1], y, x, own[x])
            for x in range(1, columns - 1):
                paths[y, x] = min(from_left[x], from_right[x], key=lambda p: (barrier(p), p[1]))
    return np.array([[barrier(paths[y, x]) for x in range(columns)] for y in range(rows)])


def exact_barrier(values: np.ndarray) -> np.ndarray:
    """The smallest barrier of all paths to the border.

    For every smallest value that a path may have: the smallest possible largest value, by growing
    the set of cells that are reached.
    """
    best = np.full(values.shape, np.iinfo(int).max)
    border = np.zeros(values.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    for low in np.unique(values):
        for high in np.unique(values[values >= low]):
            inside = (values >= low) & (values <= high)
            reached = border & inside
            while True:
                grown = reached.copy()
                grown[1:] |= reached[:-1]
                grown[:-1] |= reached[1:]
                grown[:, 1:] |= reached[:, :-1]
                grown[:, :-1] |= reached[:, 1:]
                grown &= inside
                if (grown == reached).all():
                    break
                reached = grown
            best[reached] = np.minimum(best[reached], high - low)
    return best


def barrier(image: np.ndarray) -> np.ndarray:
    """Barrier distance of each cell of 4 x 4 pixels, summed over channels and squared; `[h, w]`."""
    distances = sum(swept_barrier(channel) for channel in opponent_channels(image))
    return distances.astype(np.float64) ** 2


def by_pixel(cells: np.ndarray, side: int, image: np.ndarray) -> np.ndarray:
    """`[H, W]`: each pixel's cell."""
    return cells.repeat(side, axis=0).repeat(side, axis=1)[: image.shape[0], : image.shape[1]]


def relative(pixels: np.ndarray) -> np.ndarray:
    return pixels / pixels.mean() if pixels.any() else pixels


def importance(name: str, image: np.ndarray, side: int) -> np.ndarray:
    """Importance of the patches of `side` pixels, float64 `[rows, columns]`."""
    rare, far = (
        relative(by_pixel(cells, cell, image))
        for cells, cell in ((rarity(image), 8), (barrier(image), 4))
    )
    if name == "saliency":
        pixels = geometric_mean([rare, far], image)
    else:
        pixels = rare if name == "rarity" else far
    return cell_means(pixels, side)


def cell_means(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array([[cell.mean() for cell in row] for row in cells_of(pixels, side)])


def geometric_mean(factors: list[np.ndarray], image: np.ndarray) -> np.ndarray:
    """`[H, W]`: of relative maps, each plus 0.001, on cells of 16 x 16 pixels."""
    logarithms = [np.log(cell_means(pixels, 16) + 1e-3) for pixels in factors]
    return by_pixel(np.exp(np.mean(logarithms, axis=0)), 16, image)


def feature_importance(image: np.ndarray, features: dict[int, np.ndarray], side: int) -> np.ndarray:
    """Of `feature-saliency`, float64 `[rows, columns]`; features: `[C, h, w]` by stride."""
    last, *before = sorted(features, reverse=True)
    vectors = {
        stride: np.moveaxis(values.astype(np.float64), 0, 2).reshape(-1, len(values))
        for stride, values in features.items()
    }
    maps = {last: ((vectors[last] - vectors[last].mean(axis=0)) ** 2).sum(axis=1)}
    for stride in before:
        deviation = vectors[stride].std(axis=0)
        scores = (vectors[stride] - vectors[stride].mean(axis=0)) / (
            deviation + 0.05 * deviation.mean()
        )
        maps[stride] = (scores**2).mean(axis=1) ** 2
    factors = [
        relative(by_pixel(values.reshape(features[stride].shape[1:]), stride, image))
        for stride, values in maps.items()
    ]
    factors.append(relative(by_pixel(barrier(image), 4, image)))
    return cell_means(geometric_mean(factors, image), side)
