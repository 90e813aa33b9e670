"""Which part of a picture a sample shows, and the resampling to its size.

Letters: w, h width and height of the picture; W, H of the sample.
"""

from dataclasses import dataclass
from decimal import Context, Decimal
from math import floor, isfinite, sqrt

import numpy as np
from PIL import Image

from quadpipe.errors import ConfigError
from quadpipe.images.decode import EncodedImage
from quadpipe.seeds import random_bits, unit_interval

RESIZES = ("crop", "squash")

# Scaled decoding of JPEGs keeps at least this multiple of the needed size.
DECODE_MARGIN = 2

# Decimal's logarithms are rounded correctly on every machine, libm's are not.
_DECIMAL = Context(prec=20)
_TRIES = 10


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture's pixels: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float

    def rounded(self) -> list[int | float]:
        """To hundredths of a pixel, whole numbers as such: for people and JSON."""
        values = (round(v, 2) for v in (self.x0, self.y0, self.x1, self.y1))
        return [int(v) if v == int(v) else v for v in values]


def center_box(w: int, h: int, size: tuple[int, int], crop_pct: float) -> Box:
    """The part that a center crop shows.

    The picture is resized, its aspect kept, until it covers `floor(size / crop_pct)`, and `size`
    = (H, W) is cut from the middle; rounded as torchvision's Resize and CenterCrop do.
    """
    height, width = size
    cover_height, cover_width = floor(height / crop_pct), floor(width / crop_pct)
    if cover_height * w >= cover_width * h:
        resized_width, resized_height = cover_height * w // h, cover_height
    else:
        resized_width, resized_height = cover_width, cover_width * h // w
    left, top = round((resized_width - width) / 2), round((resized_height - height) / 2)
    return Box(
        left * w / resized_width,
        top * h / resized_height,
        (left + width) * w / resized_width,
        (top + height) * h / resized_height,
    )


def random_box(
    w: int, h: int, scale: tuple[float, float], ratio: tuple[float, float], *words: int | str
) -> Box:
    """A random-resized crop as torchvision draws it, from the random bits named by `words`.

    scale: share of the picture's area; ratio: width to height, drawn log-uniformly. After ten
    draws that do not fit, the largest centered crop with a legal ratio.
    """
    draws = unit_interval(random_bits(4 * _TRIES, *words)).reshape(_TRIES, 4).tolist()
    low, high = (_DECIMAL.ln(Decimal(r)) for r in ratio)
    for area_draw, ratio_draw, x_draw, y_draw in draws:
        area = w * h * (scale[0] + area_draw * (scale[1] - scale[0]))
        exponent = _DECIMAL.add(low, _DECIMAL.multiply(Decimal(ratio_draw), high - low))
        aspect = float(_DECIMAL.exp(exponent))
        width, height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < width <= w and 0 < height <= h:
            left, top = int(x_draw * (w - width + 1)), int(y_draw * (h - height + 1))
            return Box(left, top, left + width, top + height)
    width, height = w, h
    if w < ratio[0] * h:
        height = max(1, round(w / ratio[0]))
    elif w > ratio[1] * h:
        width = max(1, round(h * ratio[1]))
    left, top = (w - width) // 2, (h - height) // 2
    return Box(left, top, left + width, top + height)


def decode_and_resample(image: EncodedImage, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part of an image file in `box`, bicubic, as uint8 `[H, W, 3]`; size is (H, W).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least twice the needed
    size. Raises RejectError when the file cannot be decoded.
    """
    height, width = size
    needed = max(width / (box.x1 - box.x0), height / (box.y1 - box.y0)) * DECODE_MARGIN
    reductions = (8, 4, 2, 1) if image.scalable else (1,)
    reduction = next(k for k in reductions if k == 1 or k * needed <= 1)
    picture = image.decode(reduction)
    reduced = Box(
        box.x0 / reduction,
        box.y0 / reduction,
        min(box.x1 / reduction, picture.width),
        min(box.y1 / reduction, picture.height),
    )
    return resample(picture, reduced, size)


def resample(picture: Image.Image, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The part of an RGB picture in `box`, bicubic, as uint8 `[H, W, 3]`; size is (H, W)."""
    height, width = size
    corners = (box.x0, box.y0, box.x1, box.y1)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, corners))


def check_range(name: str, values: tuple[float, float], upper: float) -> None:
    """Raise ConfigError unless 0 < low <= high <= upper."""
    low, high = values
    if not (isfinite(low) and isfinite(high) and 0 < low <= high <= upper):
        limit = f", at most {upper:g}" if isfinite(upper) else ""
        raise ConfigError(
            f"{name} {low:g},{high:g} is not a range of numbers above 0{limit}, smaller one first"
        )
