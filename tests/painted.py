"""Pictures with a painted rectangle, and where it is after a crop."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from source_files import make_tar

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


def make_source(folder: Path, count: int = 8) -> Path:
    """A tar of painted pictures of several sizes, with captions, boxes, masks and JSON.

    The second has no caption.
    """
    contents = []
    for number in range(count):
        width, height = 70 + 9 * number % 40, 60 + 7 * number % 30
        rectangle = (10 + number, 12, 45 + 2 * number, 40 + number)
        sample = members(width, height, rectangle) | {"cls": b"%d" % (number % 2)}
        sample |= {"json": b'{"n": %d}' % number, "txt": b"caption %d" % number, "id": b"1"}
        if number == 1:
            del sample["txt"]
        contents += [(f"{number:03d}.{name}", data) for name, data in sample.items()]
    folder.mkdir(parents=True, exist_ok=True)
    make_tar(folder / "painted.tar", *contents)
    return folder


KEPT: dict[str, Any] = {
    "keep": ("txt", "json"),
    "boxes": ("bbox.json",),
    "masks": ("seg.png",),
}
OPTIONS: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "max_patch_size": 16,
    "tokens": 36,
    "samples_per_shard": 4,
    "in_process": True,
}


def put_together(tokens: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The uint8 `[H, W]` image of tokens that all have the smallest scale."""
    assert not boxes[:, 2].any()
    side = tokens.shape[1]
    height, width = (boxes[:, :2].max(axis=0)[::-1] + 1) * side
    image = np.zeros((height, width), np.uint8)
    for token, (x, y, _) in zip(tokens, boxes, strict=True):
        image[y * side : (y + 1) * side, x * side : (x + 1) * side] = token[..., 0]
    return image
