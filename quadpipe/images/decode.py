"""Bytes of an image file -> an upright RGB picture, or a reject with a reason code.

Reason codes: `empty`, `not_an_image`, `no_decoder`, `corrupt`, `truncated`, `too_small`,
`too_many_pixels`, `unsupported_mode`; `sources` adds `too_many_bytes`. All name a cause in the
file's own bytes, so that a job repeats its decisions.
"""

import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# The plugins are imported by name so that PIL never loads the decoders we refuse.
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from quadpipe.errors import RejectError

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)

# Pillow's own warning limit: 256 MiB of RGB.
MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded, unless another limit is given."""
BYTES_PER_PIXEL = 8
"""Memory that decoding takes at most, beside the file: a test measures it."""
MIN_SIDE = 8
# Progressive JPEGs have about ten. Each costs a pass over all pixels, whatever little it holds.
MAX_SCANS = 1000

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
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
_REFUSED_SIGNATURES = (
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
)

# Not fax, nor JPEG inside TIFF: of damaged ones, libtiff leaves parts as memory happens to be.
_TIFF_COMPRESSIONS = (
    "raw",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
    "zstd",
    "lzma",
)

_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", *_WITH_ALPHA)


class EncodedImage:
    """An opened image file whose pixels are decoded on demand, at a reduced scale if wished.

    width, height: size in pixels after EXIF orientation. max_pixels: of the largest image that is
    decoded, whatever `PIL.Image.MAX_IMAGE_PIXELS` says.
    Raises RejectError when the bytes are no image that can be used.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self._max_pixels = max_pixels
        with _rejecting(data, max_pixels):
            if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
                # libwebp takes memory for the canvas before its size can be asked.
                _check_pixels(*_webp_size(data), max_pixels)
            image = self._open()
            width, height = image.size
            _check_pixels(width, height, max_pixels)
            _check_compression(image)
            if min(width, height) < MIN_SIDE:
                raise RejectError(
                    "too_small", f"{width} x {height} pixels, a side below {MIN_SIDE}"
                )
            self.scalable = isinstance(image, JpegImagePlugin.JpegImageFile)
            self._decoded: dict[int, Image.Image] = {}
            # Not decoded yet, and used once.
            self._opened: ImageFile.ImageFile | None = image if self.scalable else None
            if self.scalable:
                _check_scans(data)
                if _orientation(image) in (5, 6, 7, 8):
                    width, height = height, width
            else:
                self._decoded[1] = self._upright_rgb(image)
                width, height = self._decoded[1].size
            self.width, self.height = width, height

    def decode(self, reduction: int = 1) -> Image.Image:
        """The upright RGB image at 1 / `reduction` of its size (1, 2, 4 or 8; JPEG only)."""
        if reduction not in self._decoded:
            with _rejecting(self._data, self._max_pixels):
                image, self._opened = self._opened or self._open(), None
                image.draft(None, (image.width // reduction, image.height // reduction))
                self._decoded[reduction] = self._upright_rgb(image)
        return self._decoded[reduction]

    def _open(self) -> ImageFile.ImageFile:
        return Image.open(io.BytesIO(self._data), formats=FORMATS)

    def _upright_rgb(self, image: ImageFile.ImageFile) -> Image.Image:
        rawmode = _rawmode(image)
        upright = _upright_alone(image)
        if ";16" not in rawmode or rawmode.startswith("I;16"):
            return _convert(upright)
        if rawmode not in _LOW_BYTES:
            raise RejectError("unsupported_mode", f"pixels of kind {rawmode}")
        _round_in_place(upright, self._low_bytes(rawmode), rawmode)
        return _convert(upright)

    def _low_bytes(self, rawmode: str) -> Image.Image:
        image = self._open()
        _set_rawmode(image, _LOW_BYTES[rawmode])
        return _upright_alone(image)


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise RejectError("too_many_pixels", f"{width} x {height} pixels, more than {limit:,}")


def _check_scans(data: bytes) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise RejectError("corrupt", f"a JPEG of {scans:,} scans, more than {MAX_SCANS:,}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP's first chunk claims (RFC 9649); 0 where it claims none."""
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if kind == b"VP8L":
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    return 0, 0


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _check_compression(image: ImageFile.ImageFile) -> None:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        compression = image.info.get("compression", "raw")
        if compression not in _TIFF_COMPRESSIONS:
            raise RejectError("no_decoder", f"a TIFF in compression {compression}, not opened here")


class _PilLimit:
    """Keeps PIL's own limit of pixels, one for the whole process, from being lower than ours.

    It is only raised, by the threads that decode at the moment, and then is as before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ours: list[int] = []
        self._before: int | None = None

    @contextmanager
    def at_least(self, pixels: int) -> Iterator[None]:
        with self._lock:
            if not self._ours:
                self._before = Image.MAX_IMAGE_PIXELS
            self._ours.append(pixels)
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._ours.remove(pixels)
                self._set()

    def _set(self) -> None:
        if self._before is not None:
            Image.MAX_IMAGE_PIXELS = max(self._before, *self._ours, 0)


_pil_limit = _PilLimit()


@contextmanager
def _rejecting(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises on these bytes into a reject.

    The bytes are in memory already, so nothing but their content can be the cause; PIL's plugins
    raise many kinds of exceptions on damaged files. Only a lack of memory is not the file's doing.
    """
    try:
        with _pil_limit.at_least(max_pixels), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RejectError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise RejectError("too_many_pixels", f"more than {max_pixels:,} pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        reason = "truncated" if "truncated" in text.lower() else "corrupt"
        if "decoder" in text and "not available" in text:
            reason = "no_decoder"
        raise RejectError(reason, text) from error


def _unidentified(data: bytes) -> RejectError:
    if not data:
        return RejectError("empty", "the file has no bytes")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and not features.check("webp"):
        return RejectError("no_decoder", "WebP, which this imaging library was built without")
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return RejectError("corrupt", f"starts like {name}, but its header cannot be read")
    for signature, name in _REFUSED_SIGNATURES:
        if data.startswith(signature):
            return RejectError("no_decoder", f"{name} is not one of {', '.join(FORMATS)}")
    if data[4:8] == b"ftyp":
        return RejectError("no_decoder", f"HEIF or AVIF is not one of {', '.join(FORMATS)}")
    return RejectError("not_an_image", f"not a readable {', '.join(FORMATS)} file")


# PIL keeps the high byte of 16-bit colours. Under these raw modes the same file gives the low one.
_LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    "LA;16B": "RGBA",  # the four bytes of a pixel as they come
}


def _rawmode(image: ImageFile.ImageFile) -> str:
    """How the file's bytes become pixels, in PIL's words; "" when the decoder decides itself."""
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


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises many kinds on damaged EXIF; the pixels may be fine
        return 1
    return value if value in _TRANSPOSITIONS else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    transposition = _TRANSPOSITIONS[_orientation(image)]
    if transposition is None:
        return image
    upright = image.transpose(transposition)
    if "transparency" in image.info:
        upright.info["transparency"] = image.info["transparency"]
    return upright


def _upright_alone(image: ImageFile.ImageFile) -> Image.Image:
    """As `_upright`; the memory of the image as it lay in the file is given back."""
    upright = _upright(image)
    if upright is not image:
        image.close()
    return upright


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of an image's rows, some at a time.

    What a conversion needs beside the picture and its result is needed for one of them.
    """
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield (0, top, image.width, min(top + rows, image.height))


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The RGB picture of what `convert` makes of each band of rows."""
    if image.width * image.height <= _BAND_PIXELS:
        return convert(image)
    picture = Image.new("RGB", image.size)
    for box in _bands(image):
        picture.paste(convert(image.crop(box)), box)
    return picture


def _round_in_place(high: Image.Image, low: Image.Image, rawmode: str) -> None:
    """Round an image of 16-bit colours, of which PIL keeps the high bytes, given the low ones."""
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


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image upright and RGB: orientation applied, alpha composed on white.

    Raises RejectError on pixels that have no RGB colour.
    """
    return _convert(_upright(image))


def _convert(image: Image.Image) -> Image.Image:
    """Grey, palette, CMYK and 16-bit images as RGB; alpha composed on white."""
    if image.mode.startswith("I"):
        return _by_bands(image, _grey_of_integers)
    if image.mode not in _CONVERTIBLE:
        raise RejectError("unsupported_mode", f"pixels of kind {image.mode}")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _by_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_integers(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise RejectError("unsupported_mode", "integers outside 0..65535")
    rounded = _round_to_8_bits(values, image.info.get("transparency"))
    return Image.fromarray(rounded).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
