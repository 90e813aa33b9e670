"""Encoders of image files, also of those that PIL cannot write, and changes of their headers."""

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

MIB = 2**20

PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}  # color type by channels


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The file that PIL writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(pixels: np.ndarray, *, interlaced: bool = False) -> bytes:
    """uint8 or uint16 `[h, w, 1 to 4]`, in one pass or in Adam7's seven."""
    height, width, channels = pixels.shape
    passes: tuple[tuple[int, int, int, int], ...] = ((0, 0, 1, 1),)
    if interlaced:
        passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1))  # fmt: skip
    rows = b"".join(
        b"\0" + row.astype(f">u{pixels.itemsize}").tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
    )
    kind = (8 * pixels.itemsize, _PNG_COLORS[channels], 0, 0, int(interlaced))
    header = png_header(width, height, kind)
    return PNG + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flat_png(width: int, height: int, *, bits: int, channels: int) -> bytes:
    """A PNG of nothing but zeros, in a thousandth of their size."""
    header = png_header(width, height, (bits, _PNG_COLORS[channels], 0, 0, 0))
    rows = deflated_zeros(height * (1 + width * channels * bits // 8))
    return PNG + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deflated_zeros(size: int) -> bytes:
    """A zlib stream that expands to `size` zeros, made without them."""
    body = bytearray()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    step = min(size, 8 * MIB)
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    body += block * (size // step)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body += packer.compress(bytes(size % step)) + packer.flush()
    adler = (size % 65521) << 16 | 1
    return b"\x78\xda" + bytes(body) + struct.pack(">I", adler)


def tiff(
    pixels: np.ndarray,
    *,
    order: str = "<",
    rows: int | None = None,
    strips: int | None = None,
    tile: int | None = None,
    samples: int = 3,
    next_directory: str = "",
    sub_directory: str = "",
) -> bytes:
    """uint8 `[h, w, 3]` uncompressed; the options are claims in its header."""
    height, width, _ = pixels.shape
    data = pixels.tobytes()
    rows = rows or height
    starts = range(0, height, rows)
    offsets = [8 + 3 * width * start for start in starts]
    sizes = [3 * width * min(rows, height - start) for start in starts]
    directory_at = 8 + len(data) + 8 * len(starts) + 6
    many = len(starts) > 1
    at = 8 + len(data)
    lists = struct.pack(f"{order}{2 * len(starts)}I", *offsets, *sizes)
    entries = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 3, at + len(lists)),
        259: (3, 1, 1),
        262: (3, 1, 2),
        277: (3, 1, samples),
    }
    if tile:
        entries |= {322: (4, 1, tile), 323: (4, 1, tile), 324: (4, 1, 8), 325: (4, 1, len(data))}
    else:
        count = strips or len(starts)
        entries |= {
            273: (4, count, at if many else offsets[0]),
            278: (4, 1, rows),
            279: (4, count, at + 4 * len(starts) if many else sizes[0]),
        }
    if sub_directory:
        entries[34665] = entries[330] = (4, 1, directory_at)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    following = directory_at if next_directory else 0
    mark = b"II" if order == "<" else b"MM"
    return (
        mark
        + struct.pack(f"{order}HI", 42, directory_at)
        + data
        + lists
        + struct.pack(f"{order}3H", 8, 8, 8)
        + directory
        + struct.pack(f"{order}I", following)
    )


def claim(data: bytes, width: int, height: int) -> bytes:
    """The file with another width and height in its header, where its format has one."""
    if data.startswith(PNG):
        return PNG + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]
    if data.startswith(b"GIF8"):
        return put_at(data, 6, struct.pack("<HH", width & 0xFFFF, height & 0xFFFF))
    if data.startswith(b"BM"):
        return put_at(data, 18, struct.pack("<II", width, height))
    if data.startswith((b"II*\0", b"MM\0*")):
        order = "<" if data.startswith(b"II") else ">"
        for tag, value in ((256, width), (257, height)):
            short, long = (struct.pack(f"{order}HHI", tag, kind, 1) for kind in (3, 4))
            at = max(data.rfind(short), data.rfind(long))
            if at >= 0:
                packed = struct.pack(f"{order}HHII", tag, 4, 1, value)
                data = put_at(data, at, packed)
        return data
    if data.startswith(b"\xff\xd8"):
        frame = re.search(rb"\xff[\xc0\xc1\xc2]\0.\x08", data, re.DOTALL)
        size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        return put_at(data, frame.end(), size) if frame else data
    if data.startswith(b"RIFF"):
        if data[12:16] == b"VP8L":
            bits = (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14
            return put_at(data, 21, struct.pack("<I", bits))
        if data[12:16] == b"VP8X":
            sides = (struct.pack("<I", side - 1 & 0xFFFFFF)[:3] for side in (width, height))
            return put_at(data, 24, b"".join(sides))
        return put_at(data, 26, struct.pack("<HH", width & 0x3FFF, height & 0x3FFF))
    return re.sub(rb"\A(P\w\s(?:#.*\n)?)\d+ \d+", rb"\g<1>%d %d" % (width, height), data)


def more_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG with `count` more copies of its last scan."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def png_header(width: int, height: int, kind: tuple[int, ...]) -> bytes:
    return chunk(b"IHDR", struct.pack(">II5B", width, height, *kind))


def put_at(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]
