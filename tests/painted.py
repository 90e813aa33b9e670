"""Pictures with a painted rectangle, and where it is after a crop."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

Rectangle = tuple[int, int, int, int]


def painted(width: int, height: int, rectangle: Rectangle) -> np.ndarray:
    """uint8 `[height, width]`: 255 in the rectangle (x0, y0, x1, y1), 0 elsewhere."""
    x0, y0, x1, y1 = rectangle
    pixels = np.zeros((height, width), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return pixels


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def members(width: int, height: int, rectangle: Rectangle) -> dict[str, bytes]:
    """A sample of a tar: picture, box and mask."""
    gray = painted(width, height, rectangle)
    return {
        "png": encoded(np.repeat(gray[..., None], 3, axis=2)),
        "bbox.json": json.dumps([rectangle, [0, 0, 2, 2]]).encode(),
        "seg.png": encoded(gray // 255 * 7),
    }


def inside(box: list[float] | None, shape: tuple[int, int], margin: float = 0) -> np.ndarray:
    """bool `[H, W]`: the pixels whose centers are in a box that is widened by `margin`."""
    if box is None:
        return np.zeros(shape, np.bool_)
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    x0, y0, x1, y1 = box
    wide = (x > x0 - margin) & (x < x1 + margin)
    wide &= (y > y0 - margin) & (y < y1 + margin)
    return wide


def assert_painted(pixels: np.ndarray, box: list[float] | None) -> None:
    """The bright pixels of `[H, W]` are those in the box, up to half a pixel at its edges."""
    bright = pixels > 127
    assert not (bright & ~inside(box, pixels.shape, 0.6)).any()
    assert not (inside(box, pixels.shape, -0.6) & ~bright).any()
