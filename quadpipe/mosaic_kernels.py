"""The compiled loop of `mosaic`: cutting and resampling tokens. Arguments are not checked.

Letters: B batch; H, W image height and width in pixels; P patch size; M nodes; f = 2**s.
"""

import numpy as np

from quadpipe.compiled import compiled


@compiled
def cut_tokens(images: np.ndarray, nodes: np.ndarray, patch_size: int, area: bool) -> np.ndarray:
    """The patches of uint8 images `[B, H, W, 3]` at int32 nodes `[B, M, 4]`, each as P x P pixels.

    A pixel of a patch of scale s is made from a block of f x f pixels: from its four center
    pixels, `(a + b + c + d + 2) >> 2`, or with `area` from all of them, the mean rounded half up.
    Returns uint8 `[B, M, P, P, 3]`.
    """
    batch, count = nodes.shape[:2]
    tokens = np.empty((batch, count, patch_size, patch_size, 3), np.uint8)
    lines = images.reshape(batch, images.shape[1], 3 * images.shape[2])
    flat = tokens.reshape(batch, count, patch_size, 3 * patch_size)
    centers = np.empty(3 * images.shape[2], np.uint16)
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
                    # Summed at every pixel although only every f-th is used: this compiles to SIMD.
                    for j in range(3 * factor * (patch_size - 1) + 3):
                        centers[j] = (
                            np.uint16(upper[j])
                            + np.uint16(upper_right[j])
                            + np.uint16(lower[j])
                            + np.uint16(lower_right[j])
                        )
                    for column in range(patch_size):
                        for c in range(3):
                            center = np.int32(centers[3 * factor * column + c])
                            target[3 * column + c] = (center + 2) >> 2
    return tokens
