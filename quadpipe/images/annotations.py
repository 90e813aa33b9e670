"""Boxes and masks of a picture, which follow the crop and the resampling of a sample exactly.

Letters: w, h width and height of the picture; W, H of the sample; n boxes.
"""

import io
import json
from math import isfinite
from typing import Any, Protocol

import numpy as np
from PIL import Image

from quadpipe.errors import RejectError
from quadpipe.images.crop import Box
from quadpipe.images.decode import rejecting

_MASK_MODES = ("1", "L", "P", "I;16", "RGB")
_GRAY_STEPS = {"L;2": 85, "L;4": 17}  # PIL spreads the values of 2 and 4 bits over 0 to 255
_MOST_BOXES = 100_000


class Annotation(Protocol):
    """What can be cropped as its picture is."""

    def cropped(self, box: Box, size: tuple[int, int]) -> bytes:
        """Of the part of the picture in `box`, resampled to `size` = (H, W)."""


class Boxes:
    """JSON `[[x0, y0, x1, y1], ..]`, left, top, right and bottom in pixels of the upright picture.

    Raises RejectError `bad_boxes` on other contents. Those of a crop are in its pixels, clipped to
    it and rounded to 1/1000; a box of which nothing is in the crop is `null` in its place.
    """

    def __init__(self, data: bytes) -> None:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RejectError("bad_boxes", f"not JSON: {error}") from error
        if not isinstance(document, list) or len(document) > _MOST_BOXES:
            raise RejectError("bad_boxes", f"not a JSON list of at most {_MOST_BOXES:,} boxes")
        for box in document:
            if not _is_box(box):
                raise RejectError(
                    "bad_boxes",
                    f"{json.dumps(box)[:60]} is not [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1",
                )
        self._boxes = document

    def cropped(self, box: Box, size: tuple[int, int]) -> bytes:
        height, width = size
        rows: list[list[float] | None] = []
        for x0, y0, x1, y1 in self._boxes:
            left, right = (_moved(x, box.x0, box.x1, width) for x in (x0, x1))
            top, bottom = (_moved(y, box.y0, box.y1, height) for y in (y0, y1))
            inside = left < width and right > 0 and top < height and bottom > 0
            corners = (left, width), (top, height), (right, width), (bottom, height)
            clipped = [_rounded(min(max(value, 0), limit)) for value, limit in corners]
            rows.append(clipped if inside else None)
        return json.dumps(rows, separators=(",", ":")).encode()


class Mask:
    """A PNG of the size of the upright picture: gray of 1 to 16 bits, palette, or RGB of 8 bits.

    Raises RejectError `bad_mask` on other contents. That of a crop takes the pixel under the center
    of each of its pixels, so it has no values that the mask has not.
    """

    def __init__(self, data: bytes, size: tuple[int, int], max_pixels: int) -> None:
        """size: (h, w) of the upright picture."""
        try:
            with rejecting(data, max_pixels):
                image = Image.open(io.BytesIO(data), formats=["PNG"])
                stored = str(image.tile[0].args)  # PIL's name for the kind of the file's pixels
                fits = image.size == size[::-1] and image.mode in _MASK_MODES
                if not fits or stored == "RGB;16B":
                    raise RejectError(
                        "bad_mask",
                        f"{stored} of {image.width} x {image.height} pixels; expected a gray, "
                        f"palette or 8-bit RGB PNG of the upright image's {size[1]} x {size[0]}",
                    )
                values = np.asarray(image)
                step = _GRAY_STEPS.get(stored)
                self._values = values // step if step else values
                self._palette = _whole_palette(image, self._values)
        except RejectError as error:
            if error.reason == "bad_mask":
                raise
            raise RejectError("bad_mask", f"cannot be read as a PNG: {error.message}") from error

    def cropped(self, box: Box, size: tuple[int, int]) -> bytes:
        height, width = size
        rows = _centers(box.y0, box.y1, height, len(self._values))
        columns = _centers(box.x0, box.x1, width, self._values.shape[1])
        image = Image.fromarray(self._values[rows[:, None], columns])
        if self._palette:
            image.putpalette(self._palette)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=6)
        return file.getvalue()


def parse_annotation(kind: str, data: bytes, size: tuple[int, int], max_pixels: int) -> Annotation:
    """kind: `boxes` or `mask`. size: (h, w) of the upright picture. RejectError on bad contents."""
    return Boxes(data) if kind == "boxes" else Mask(data, size, max_pixels)


def _whole_palette(image: Image.Image, indices: np.ndarray) -> list[int] | None:
    """The colors of a palette image, and black for indices beyond them, which PIL would cut."""
    colors = image.getpalette() if image.mode == "P" else None
    if colors is None:
        return None
    return colors + [0] * (3 * (int(indices.max()) + 1) - len(colors))


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or [type(v) in (int, float) for v in box] != [True] * 4:
        return False
    x0, y0, x1, y1 = box
    return all(abs(v) < 2**32 and isfinite(v) for v in box) and x0 <= x1 and y0 <= y1


def _moved(value: float, start: float, stop: float, length: int) -> float:
    return (value - start) * length / (stop - start)


def _rounded(value: float) -> float:
    value = round(value, 3)
    return int(value) if value == int(value) else value


def _centers(start: float, stop: float, count: int, limit: int) -> np.ndarray:
    """int64 `[count]`: the pixels, below `limit`, under the centers of `count` resampled ones."""
    places = start + (np.arange(count) + 0.5) * ((stop - start) / count)
    under: np.ndarray = np.clip(np.floor(places).astype(np.int64), 0, limit - 1)
    return under
