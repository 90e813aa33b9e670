"""Bytes of an image file -> an upright RGB picture, or a reject with a reason code.

Reason codes: `empty`, `not_an_image`, `no_decoder`, `corrupt`, `truncated`, `too_small`,
`too_many_pixels`, `unsupported_mode`; `sources` adds `too_many_bytes`. All name a cause in the
file's own bytes, so that a job always rejects the same files.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

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
from quadpipe.images.color import orientation, upright_rgb

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
# Progressive JPEGs have about ten. Each costs a pass over all pixels, however small it is.
MAX_SCANS = 1000

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

# No fax or JPEG inside TIFF: for damaged ones, libtiff returns uninitialized memory.
_TIFF_COMPRESSIONS = (
    "raw",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
    "zstd",
    "lzma",
)


class EncodedImage:
    """An opened image file whose pixels are decoded on demand, optionally at a reduced scale.

    width, height: size in pixels after EXIF orientation. max_pixels: of the largest image that is
    decoded; `PIL.Image.MAX_IMAGE_PIXELS` does not lower it.
    Raises RejectError when the bytes are not a usable image.
    """

    def __init__(self, data: bytes, max_pixels: int = MAX_PIXELS) -> None:
        self._data = data
        self._max_pixels = max_pixels
        with rejecting(data, max_pixels):
            if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
                # libwebp allocates the canvas before it reports the size.
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
                if orientation(image) in (5, 6, 7, 8):
                    width, height = height, width
            else:
                self._decoded[1] = upright_rgb(image, self._open)
                width, height = self._decoded[1].size
            self.width, self.height = width, height

    def decode(self, reduction: int = 1) -> Image.Image:
        """The upright RGB image at 1 / `reduction` of its size (1, 2, 4 or 8; JPEG only)."""
        if reduction not in self._decoded:
            with rejecting(self._data, self._max_pixels):
                image, self._opened = self._opened or self._open(), None
                image.draft(None, (image.width // reduction, image.height // reduction))
                self._decoded[reduction] = upright_rgb(image, self._open)
        return self._decoded[reduction]

    def _open(self) -> ImageFile.ImageFile:
        return Image.open(io.BytesIO(self._data), formats=FORMATS)


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise RejectError("too_many_pixels", f"{width} x {height} pixels, more than {limit:,}")


def _check_scans(data: bytes) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise RejectError("corrupt", f"a JPEG of {scans:,} scans, more than {MAX_SCANS:,}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP's first chunk claims (RFC 9649); 0 if it has none."""
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
    """Raises PIL's pixel limit, which is global, to ours while threads decode.

    When the last thread is done, the limit is as before.
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
def rejecting(data: bytes, max_pixels: int) -> Iterator[None]:
    """Turn whatever a decoder raises on these bytes into a reject.

    The bytes are in memory already, so only their content can be the cause. PIL's plugins raise
    many kinds of exceptions on damaged files. A MemoryError is not the fault of the file.
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
