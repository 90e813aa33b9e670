"""Image files that are whole, that are refused, and that are bombs."""

import io
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from corpus.encoders import (
    MIB,
    PNG,
    chunk,
    claim,
    deflated_zeros,
    encoded,
    flat_png,
    more_scans,
    png,
    png_header,
    put_at,
    tiff,
)

ENCODED = Path(__file__).parents[1] / "golden" / "encoded"
NOT_OPENED = ("group4.tif", "jpeg.tif")


@cache
def readable() -> dict[str, bytes]:
    """Whole images of 64 x 48 pixels in every format and kind that is opened."""
    first, second = (
        Image.fromarray(photograph[100:356, 200:541]).resize((64, 48), Image.Resampling.BICUBIC)
        for photograph in load_sample_images().images
    )
    pixels = np.asarray(first)
    alpha = Image.fromarray(np.dstack([pixels, np.full((48, 64), 99, np.uint8)]))
    grey, palette = first.convert("L"), first.quantize(32)
    deep = pixels.astype(np.uint16) * 256 + 77
    exif = Image.Exif()
    exif[0x0112] = 6
    animation: dict[str, Any] = {"save_all": True, "append_images": [second, second.rotate(90)]}
    made: dict[str, Any] = {
        "baseline.jpg": encoded(first, "JPEG"),
        "progressive.jpg": encoded(first, "JPEG", progressive=True),
        "full-colour.jpg": encoded(first, "JPEG", subsampling=0, quality=97),
        "grey.jpg": encoded(grey, "JPEG"),
        "cmyk.jpg": encoded(first.convert("CMYK"), "JPEG"),
        "rotated.jpg": encoded(first, "JPEG", exif=exif),
        "restarts.jpg": encoded(first, "JPEG", restart_marker_blocks=1),
        "two-pictures.jpg": encoded(first, "MPO", save_all=True, append_images=[second]),
        "plain.png": encoded(first, "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "grey.png": encoded(grey, "PNG"),
        "grey-alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "bits.png": encoded(first.convert("1"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "palette-transparent.png": encoded(palette, "PNG", transparency=3),
        "rotated.png": encoded(first, "PNG", exif=exif),
        "animated.png": encoded(first, "PNG", **animation),
        "16-grey.png": encoded(Image.fromarray(deep[..., 0]), "PNG"),
        "16-colour.png": png(deep),
        "16-alpha.png": png(np.dstack([deep, deep[..., :1]])),
        "interlaced.png": png(pixels, interlaced=True),
        "16-interlaced.png": png(deep, interlaced=True),
        "plain.gif": encoded(palette, "GIF", interlace=0),
        "interlaced.gif": encoded(palette, "GIF", interlace=1),
        "animated.gif": encoded(first, "GIF", **animation, transparency=3),
        "plain.bmp": encoded(first, "BMP"),
        "palette.bmp": encoded(palette, "BMP"),
        "bits.bmp": encoded(first.convert("1"), "BMP"),
        "alpha.bmp": encoded(alpha, "BMP"),
        "plain.tif": encoded(first, "TIFF"),
        "alpha.tif": encoded(alpha, "TIFF"),
        "16-grey.tif": encoded(Image.fromarray(deep[..., 0]), "TIFF"),
        "float.tif": encoded(grey.convert("F"), "TIFF"),
        "rotated.tif": encoded(first, "TIFF", exif=exif),
        "big-endian.tif": tiff(pixels, order=">"),
        "strips.tif": tiff(pixels, rows=5),
        "looped.tif": tiff(pixels, next_directory="itself"),
        "looped-in-itself.tif": tiff(pixels, sub_directory="itself"),
        "plain.ppm": encoded(first, "PPM"),
        "grey.pgm": encoded(grey, "PPM"),
        "bits.pbm": encoded(first.convert("1"), "PPM"),
        "16-grey.pgm": encoded(Image.fromarray(deep[..., 0]), "PPM"),
        "16-colour.ppm": b"P6 64 48 65535\n" + deep.astype(">u2").tobytes(),
        "text.ppm": b"P3\n# a comment\n64 48 255\n" + " ".join(map(str, pixels.flat)).encode(),
        "text.pbm": b"P1 64 48\n" + b"01" * (64 * 48 // 2),
        "float.pnm": b"Pf\n64 48\n-1.0\n" + np.asarray(grey, "<f4").tobytes(),
    }
    stored: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(ENCODED.iterdir())}
    return {name: data for name, data in {**made, **stored}.items() if name not in NOT_OPENED}


@cache
def refused() -> dict[str, bytes]:
    """Files that are not images, or are of formats that are not opened, under an image's name."""
    tile = Image.linear_gradient("L").convert("RGB")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("image.png"), encoded(tile, "PNG"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"
    return {
        "drawing.jpg": postscript + b"newpath 0 0 moveto 64 48 lineto stroke\nshowpage\n",
        "endless-drawing.jpg": postscript + b"{ 1000000 array pop } loop\n",
        "drawing.tif": b"\xc5\xd0\xd3\xc6" + struct.pack("<4I", 30, 500, 0, 0) + postscript * 9,
        "vector.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "entities.png": b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "document.jpg": b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj\n%%EOF\n",
        "layers.png": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + bytes(999),
        "icon.bmp": encoded(tile, "ICO"),
        "targa.bmp": encoded(tile, "TGA"),
        "texture.png": encoded(tile, "DDS"),
        "page.gif": b"<!doctype html><html><body><h1>404 Not Found</h1></body></html>",
        "archive.jpg": archive.getvalue(),
        "avif.webp": struct.pack(">I", 32) + b"ftypavif" + bytes(400),
        "wavelets.jpg": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(400),
        "pickle.png": b"\x80\x04\x95\x10" + bytes(7) + b"\x8c\x02os\x8c\x06system\x93.",
        **{name: (ENCODED / name).read_bytes() for name in NOT_OPENED},
        "empty.jpg": b"",
        "zeros.ppm": bytes(5000),
        "text.jpg": b"not an image\n" * 40,
    }


@cache
def bombs() -> dict[str, bytes]:
    """Small files that claim to be huge, or really are when they are expanded."""
    jpeg, flat = readable()["baseline.jpg"], b"flat\0\0"
    webp = b"RIFF" + struct.pack("<I", 900) + b"WEBPVP8X" + struct.pack("<I", 10)
    side_24 = struct.pack("<I", 2**24 - 1)[:3]
    black = np.zeros((48, 64, 3), np.uint8)
    return {
        "bomb-claim.png": PNG + png_header(60_000, 60_000, (8, 2, 0, 0, 0)) + chunk(b"IDAT", b""),
        "bomb-flat.png": flat_png(40_000, 40_000, bits=8, channels=1),
        "bomb-text.png": _with_chunk(b"zTXt", flat + deflated_zeros(1536 * MIB)),
        "bomb-texts.png": _with_chunk(b"zTXt", flat + deflated_zeros(MIB - 1), times=1500),
        "bomb-utf8.png": _with_chunk(b"iTXt", b"a\0\1\0\0\0" + deflated_zeros(1536 * MIB)),
        "bomb-profile.png": _with_chunk(b"iCCP", flat + deflated_zeros(1536 * MIB)),
        "bomb-frames.png": _with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "bomb-screen.gif": claim(readable()["plain.gif"], 65_535, 65_535),
        "bomb-frame.gif": _gif_frame(readable()["plain.gif"], 65_535, 65_535),
        "bomb-grey.jpg": claim(jpeg, 65_500, 65_500),
        "bomb-progressive.jpg": claim(readable()["progressive.jpg"], 65_500, 65_500),
        "bomb-scans.jpg": more_scans(claim(readable()["progressive.jpg"], 9_400, 9_400), 10_000),
        "bomb-lines.jpg": claim(jpeg, 64, 0)[:-2] + b"\xff\xdc\0\4\xff\xff" * 5000 + b"\xff\xd9",
        "bomb-restarts.jpg": jpeg[:-2] + b"\xff\xd0\xff\xd7" * 50_000 + b"\xff\xd9",
        "bomb-fill.jpg": jpeg[:2] + b"\xff" * MIB + jpeg[2:],
        "bomb-segments.jpg": jpeg[:2] + b"\xff\xed\0\2" * 50_000 + jpeg[2:],
        "bomb-profile.jpg": jpeg[:2] + _icc_segments(255) + jpeg[2:],
        "bomb-exif.jpg": jpeg[:2] + _looped_exif() + jpeg[2:],
        "bomb-size.tif": claim(readable()["plain.tif"], 2**32 - 1, 2**32 - 1),
        "bomb-strips.tif": tiff(black, strips=2**28),
        "bomb-tiles.tif": tiff(black, tile=2**31 - 16),
        "bomb-samples.tif": tiff(black, samples=65_535),
        "bomb-entries.tif": b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\4\0\xff\xff\xff\x7f" * 65_535,
        "bomb-size.bmp": claim(readable()["plain.bmp"], 2**31 - 1, 2**31 - 1),
        "bomb-negative.bmp": claim(readable()["plain.bmp"], 2**31, 2**31),
        "bomb-colours.bmp": put_at(readable()["palette.bmp"], 46, struct.pack("<I", 2**32 - 1)),
        "bomb-runs.bmp": _bmp_runs(40_000, 40_000),
        "bomb-size.ppm": b"P6 1000000000 1000000000 255\n" + bytes(99),
        "bomb-negative.ppm": b"P6 -64 -48 255\n" + bytes(99),
        "bomb-digits.ppm": b"P6 " + b"9" * MIB + b" 48 255\n",
        "bomb-comment.ppm": b"P6 #" + b"x" * MIB,
        "bomb-text.ppm": b"P3 9000 9000 255\n" + b"1" * MIB,
        "bomb-canvas.webp": webp + b"\x02\0\0\0" + side_24 * 2 + b"ANIM" + bytes(400),
        "bomb-claim.webp": claim(readable()["lossless.webp"], 16_383, 16_383),
    }


def _with_chunk(kind: bytes, data: bytes, *, times: int = 1) -> bytes:
    plain = readable()["plain.png"]
    return plain[:33] + chunk(kind, data) * times + plain[33:]


def _gif_frame(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return put_at(data, at + 5, struct.pack("<HH", width, height))


def _icc_segments(count: int) -> bytes:
    body = bytes(65_000)
    segments = (
        b"\xff\xe2" + struct.pack(">H", len(body) + 16) + b"ICC_PROFILE\0" + bytes([n, count])
        for n in range(1, count + 1)
    )
    return b"".join(segment + body for segment in segments)


def _looped_exif() -> bytes:
    """An EXIF directory that names itself as its EXIF, GPS and interoperability directory."""
    tags = (0x8769, 0x8825, 0xA005)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, 8) for tag in tags)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries
    body += struct.pack("<I", 8)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _bmp_runs(width: int, height: int) -> bytes:
    """A run-length coded BMP that jumps over its lines."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    runs = b"\0\2\xff\xff" * 1000 + b"\xff\1" * 9000 + b"\0\1"
    offset = 14 + len(header) + 1024
    file = b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
    return file + header + bytes(range(256)) * 4 + runs
