"""Small JPEGs of images, for viewers."""

import io

import numpy as np
from PIL import Image

_QUALITY = 75


def preview_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """An image, uint8 `[H, W, 3]`, as a JPEG whose longer side has `side` pixels, or its own if
    that is shorter."""
    height, width = pixels.shape[:2]
    longer = max(height, width)
    size = (max(1, width * side // longer), max(1, height * side // longer))
    image = Image.fromarray(pixels)
    if longer > side:
        image = image.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
