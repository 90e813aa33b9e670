"""Decoded pictures of any mode -> upright RGB: orientation, 16-bit colors, alpha on white."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from quadpipe.errors import RejectError

_BAND_PIXELS = 2**20

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_WITH_ALPHA)

# PIL keeps the high byte of 16-bit colors. Under these raw modes the same file gives the low one.
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    "LA;16B": "RGBA",  # the four bytes of a pixel, unchanged
}


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image upright and RGB: orientation applied, alpha composed on white.

    Raises RejectError on pixels that have no RGB color.
    """
    return _convert(_upright(image))


def upright_rgb(
    image: ImageFile.ImageFile, reopen: Callable[[], ImageFile.ImageFile]
) -> Image.Image:
    """As `to_rgb`, for a file that is opened and not decoded yet; its 16-bit colors are rounded.

    reopen: opens the same file again. Raises RejectError, and what PIL raises on damaged files.
    """
    rawmode = _rawmode(image)
    upright = _upright_alone(image)
    if ";16" not in rawmode or rawmode.startswith("I;16"):
        return _convert(upright)
    if rawmode not in _LOW_BYTES:
        raise RejectError("unsupported_mode", f"pixels of kind {rawmode}")
    # The low bytes are not kept in a variable, so their memory is freed before the conversion.
    _round_in_place(upright, _low_bytes(reopen(), rawmode), rawmode)
    return _convert(upright)


def _low_bytes(image: ImageFile.ImageFile, rawmode: str) -> Image.Image:
    _set_rawmode(image, _LOW_BYTES[rawmode])
    return _upright_alone(image)


def _rawmode(image: ImageFile.ImageFile) -> str:
    """PIL's raw mode of the file's pixels; "" if its decoder takes none."""
    if not image.tile:
        return ""
    arguments = image.tile[0].args
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _set_rawmode(image: ImageFile.ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 if it is missing or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises many kinds on damaged EXIF; the pixels may be fine
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    transposition = _TRANSPOSITIONS[orientation(image)]
    if transposition is None:
        return image
    upright = image.transpose(transposition)
    if "transparency" in image.info:
        upright.info["transparency"] = image.info["transparency"]
    return upright


def _upright_alone(image: ImageFile.ImageFile) -> Image.Image:
    """As `_upright`; also frees the memory of the original image."""
    upright = _upright(image)
    if upright is not image:
        image.close()
    return upright


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cut an image into bands of rows, so that conversions need little extra memory."""
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield (0, top, image.width, min(top + rows, image.height))


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The image converted to RGB band by band."""
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    picture = Image.new("RGB", image.size)
    for box in _bands(image):
        picture.paste(convert(image.crop(box)), box)
    return picture


def _round_in_place(high: Image.Image, low: Image.Image, rawmode: str) -> None:
    """Round 16-bit colors, given by their high bytes, as PIL keeps them, and their low bytes."""
    transparent = high.info.pop("transparency", None)
    for box in _bands(high):
        low_bytes = np.asarray(low.crop(box))
        if rawmode == "LA;16B":
            low_bytes = low_bytes[..., [1, 1, 1, 3]]
        values = np.asarray(high.crop(box)) * np.uint32(256) + low_bytes
        high.paste(Image.fromarray(_round_to_8_bits(values, transparent)), box)


def _round_to_8_bits(values: np.ndarray, transparent: Any = None) -> np.ndarray:
    """round(v * 255 / 65535), which is v / 257 rounded (never a tie); the transparent value white.

    values: `[h, w]` or `[h, w, C]` in 0..65535.
    """
    rounded = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int | tuple):
        where = values == np.array(transparent)
        rounded[where.all(axis=-1) if values.ndim == 3 else where] = 255
    return rounded


def _convert(image: Image.Image) -> Image.Image:
    """Gray, palette, CMYK and 16-bit images as RGB; alpha composed on white."""
    if image.mode.startswith("I"):
        return _by_bands(image, _gray_of_integers)
    if image.mode not in _CONVERTIBLE:
        raise RejectError("unsupported_mode", f"pixels of kind {image.mode}")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _by_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray_of_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise RejectError("unsupported_mode", "integers outside 0..65535")
    rounded = _round_to_8_bits(values, image.info.get("transparency"))
    return Image.fromarray(rounded).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
