"""Damaged, lying and foreign image files, made from photographs by a seed.

    for name, data in corpus(seed=0, count=2000):
        ...

The same seed, count and encoders give the same files. A name tells what was done to which image.
"""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

ENCODED = Path(__file__).parent / "golden" / "encoded"
NOT_OPENED = ("group4.tif", "jpeg.tif")
EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff"),
    *("ppm", "pgm", "pbm", "pnm"),
)
MIB = 2**20

_PNG = b"\x89PNG\r\n\x1a\n"
_EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
_SIDES = (0, 1, 7, 8, 65, 255, 9_000, 30_000, 60_000, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def corpus(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` files, a name and bytes each: all below as they are, then damaged ones."""
    whole = {**readable(), **refused(), **bombs()}
    chance = random.Random(seed)
    sources, first = sorted({**readable(), **refused()}), sorted(whole)
    for number in range(count):
        if number < len(first):
            name = first[number]
            yield f"{number:05d}-{name}", whole[name]
            continue
        name = chance.choice(sources)
        damage = chance.choice(DAMAGES)
        data = damage(whole[name], chance)
        if chance.random() < 0.2:
            data = chance.choice(DAMAGES)(data, chance)
        stem, _, extension = name.partition(".")
        if chance.random() < 0.3:
            extension = chance.choice(EXTENSIONS)
        yield f"{number:05d}-{stem}-{damage.__name__}.{extension}", data


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
    animation = {"save_all": True, "append_images": [second, second.rotate(90)]}
    made = {
        "baseline.jpg": _encoded(first, "JPEG"),
        "progressive.jpg": _encoded(first, "JPEG", progressive=True),
        "full-colour.jpg": _encoded(first, "JPEG", subsampling=0, quality=97),
        "grey.jpg": _encoded(grey, "JPEG"),
        "cmyk.jpg": _encoded(first.convert("CMYK"), "JPEG"),
        "rotated.jpg": _encoded(first, "JPEG", exif=exif),
        "restarts.jpg": _encoded(first, "JPEG", restart_marker_blocks=1),
        "two-pictures.jpg": _encoded(first, "MPO", save_all=True, append_images=[second]),
        "plain.png": _encoded(first, "PNG"),
        "alpha.png": _encoded(alpha, "PNG"),
        "grey.png": _encoded(grey, "PNG"),
        "grey-alpha.png": _encoded(alpha.convert("LA"), "PNG"),
        "bits.png": _encoded(first.convert("1"), "PNG"),
        "palette.png": _encoded(palette, "PNG"),
        "palette-transparent.png": _encoded(palette, "PNG", transparency=3),
        "rotated.png": _encoded(first, "PNG", exif=exif),
        "animated.png": _encoded(first, "PNG", **animation),
        "16-grey.png": _encoded(Image.fromarray(deep[..., 0]), "PNG"),
        "16-colour.png": png(deep),
        "16-alpha.png": png(np.dstack([deep, deep[..., :1]])),
        "interlaced.png": png(pixels, interlaced=True),
        "16-interlaced.png": png(deep, interlaced=True),
        "plain.gif": _encoded(palette, "GIF", interlace=0),
        "interlaced.gif": _encoded(palette, "GIF", interlace=1),
        "animated.gif": _encoded(first, "GIF", **animation, transparency=3),
        "plain.bmp": _encoded(first, "BMP"),
        "palette.bmp": _encoded(palette, "BMP"),
        "bits.bmp": _encoded(first.convert("1"), "BMP"),
        "alpha.bmp": _encoded(alpha, "BMP"),
        "plain.tif": _encoded(first, "TIFF"),
        "alpha.tif": _encoded(alpha, "TIFF"),
        "16-grey.tif": _encoded(Image.fromarray(deep[..., 0]), "TIFF"),
        "float.tif": _encoded(grey.convert("F"), "TIFF"),
        "rotated.tif": _encoded(first, "TIFF", exif=exif),
        "big-endian.tif": tiff(pixels, order=">"),
        "strips.tif": tiff(pixels, rows=5),
        "looped.tif": tiff(pixels, next_directory="itself"),
        "looped-in-itself.tif": tiff(pixels, sub_directory="itself"),
        "plain.ppm": _encoded(first, "PPM"),
        "grey.pgm": _encoded(grey, "PPM"),
        "bits.pbm": _encoded(first.convert("1"), "PPM"),
        "16-grey.pgm": _encoded(Image.fromarray(deep[..., 0]), "PPM"),
        "16-colour.ppm": b"P6 64 48 65535\n" + deep.astype(">u2").tobytes(),
        "text.ppm": b"P3\n# a comment\n64 48 255\n" + " ".join(map(str, pixels.flat)).encode(),
        "text.pbm": b"P1 64 48\n" + b"01" * (64 * 48 // 2),
        "float.pnm": b"Pf\n64 48\n-1.0\n" + np.asarray(grey, "<f4").tobytes(),
    }
    stored = {path.name: path.read_bytes() for path in sorted(ENCODED.iterdir())}
    return {name: data for name, data in {**made, **stored}.items() if name not in NOT_OPENED}


@cache
def refused() -> dict[str, bytes]:
    """Files named as images that are not images, or in formats that are refused."""
    tile = Image.linear_gradient("L").convert("RGB")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("image.png", _encoded(tile, "PNG"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"
    return {
        "drawing.jpg": postscript + b"newpath 0 0 moveto 64 48 lineto stroke\nshowpage\n",
        "endless-drawing.jpg": postscript + b"{ 1000000 array pop } loop\n",
        "drawing.tif": b"\xc5\xd0\xd3\xc6" + struct.pack("<4I", 30, 500, 0, 0) + postscript * 9,
        "vector.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "entities.png": b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "document.jpg": b"%PDF-1.7\n1 0 obj <</Type /Catalog>> endobj\n%%EOF\n",
        "layers.png": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 48, 64, 8, 3) + bytes(999),
        "icon.bmp": _encoded(tile, "ICO"),
        "targa.bmp": _encoded(tile, "TGA"),
        "texture.png": _encoded(tile, "DDS"),
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
        "bomb-claim.png": _PNG + _ihdr(60_000, 60_000, (8, 2, 0, 0, 0)) + chunk(b"IDAT", b""),
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
        "bomb-colours.bmp": _at(readable()["palette.bmp"], 46, struct.pack("<I", 2**32 - 1)),
        "bomb-runs.bmp": _bmp_runs(40_000, 40_000),
        "bomb-size.ppm": b"P6 1000000000 1000000000 255\n" + bytes(99),
        "bomb-negative.ppm": b"P6 -64 -48 255\n" + bytes(99),
        "bomb-digits.ppm": b"P6 " + b"9" * MIB + b" 48 255\n",
        "bomb-comment.ppm": b"P6 #" + b"x" * MIB,
        "bomb-text.ppm": b"P3 9000 9000 255\n" + b"1" * MIB,
        "bomb-canvas.webp": webp + b"\x02\0\0\0" + side_24 * 2 + b"ANIM" + bytes(400),
        "bomb-claim.webp": claim(readable()["lossless.webp"], 16_383, 16_383),
    }


# Encoders of what PIL cannot write.


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png(pixels: np.ndarray, *, interlaced: bool = False) -> bytes:
    """uint8 or uint16 `[h, w, 3 or 4]`, in one pass or in Adam7's seven."""
    height, width, channels = pixels.shape
    passes = ((0, 0, 1, 1),)
    if interlaced:
        passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1))  # fmt: skip
    rows = b"".join(
        b"\0" + row.astype(f">u{pixels.itemsize}").tobytes()
        for top, left, down, right in passes
        for row in pixels[top::down, left::right]
    )
    kind = (8 * pixels.itemsize, {3: 2, 4: 6}[channels], 0, 0, int(interlaced))
    header = _ihdr(width, height, kind)
    return _PNG + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flat_png(width: int, height: int, *, bits: int, channels: int) -> bytes:
    """A PNG of nothing but zeros, in a thousandth of their size."""
    header = _ihdr(width, height, (bits, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0))
    rows = deflated_zeros(height * (1 + width * channels * bits // 8))
    return _PNG + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


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
    """uint8 `[h, w, 3]` uncompressed; what is given beside it is claimed."""
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
    if data.startswith(_PNG):
        return _PNG + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]
    if data.startswith(b"GIF8"):
        return _at(data, 6, struct.pack("<HH", width & 0xFFFF, height & 0xFFFF))
    if data.startswith(b"BM"):
        return _at(data, 18, struct.pack("<II", width, height))
    if data.startswith((b"II*\0", b"MM\0*")):
        order = "<" if data.startswith(b"II") else ">"
        for tag, value in ((256, width), (257, height)):
            short, long = (struct.pack(f"{order}HHI", tag, kind, 1) for kind in (3, 4))
            at = max(data.rfind(short), data.rfind(long))
            if at >= 0:
                packed = struct.pack(f"{order}HHII", tag, 4, 1, value)
                data = _at(data, at, packed)
        return data
    if data.startswith(b"\xff\xd8"):
        frame = re.search(rb"\xff[\xc0\xc1\xc2]\0.\x08", data, re.DOTALL)
        size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        return _at(data, frame.end(), size) if frame else data
    if data.startswith(b"RIFF"):
        if data[12:16] == b"VP8L":
            bits = (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14
            return _at(data, 21, struct.pack("<I", bits))
        if data[12:16] == b"VP8X":
            sides = (struct.pack("<I", side - 1 & 0xFFFFFF)[:3] for side in (width, height))
            return _at(data, 24, b"".join(sides))
        return _at(data, 26, struct.pack("<HH", width & 0x3FFF, height & 0x3FFF))
    return re.sub(rb"\A(P\w\s(?:#.*\n)?)\d+ \d+", rb"\g<1>%d %d" % (width, height), data)


def more_scans(data: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times more."""
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


# Damages: bytes of a file, chance -> other bytes.


def flipped_bits(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, chance, len(data))


def flipped_header(data: bytes, chance: random.Random) -> bytes:
    return _flipped(data, chance, min(len(data), 64))


def cut_tail(data: bytes, chance: random.Random) -> bytes:
    return data[: _place(data, chance)]


def cut_middle(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + data[at + chance.randint(1, 64) :]


def repeated_middle(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + data[at : at + chance.randint(1, 400)] * chance.randint(2, 50) + data[at:]


def inserted_noise(data: bytes, chance: random.Random) -> bytes:
    at = _place(data, chance)
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def zeroed(data: bytes, chance: random.Random) -> bytes:
    return _at(data, _place(data, chance), bytes(chance.randint(1, 64)))


def swapped_header(data: bytes, chance: random.Random) -> bytes:
    other, length = _another(chance), chance.choice((2, 4, 8, 12, 16, 32, 64, 128))
    return other[:length] + data[length:]


def spliced(data: bytes, chance: random.Random) -> bytes:
    other = _another(chance)
    return data[: _place(data, chance)] + other[_place(other, chance) :]


def extreme_number(data: bytes, chance: random.Random) -> bytes:
    """An integer of two or four bytes, more often near the start, is made very large or small."""
    at = chance.randrange(min(len(data), 80) or 1) if chance.random() < 0.6 else None
    kind = chance.choice(("<I", ">I", "<H", ">H"))
    value = chance.choice(_EXTREMES) & (2**32 - 1 if "I" in kind else 2**16 - 1)
    return _at(data, _place(data, chance) if at is None else at, struct.pack(kind, value))


def lying_dimensions(data: bytes, chance: random.Random) -> bytes:
    return claim(data, chance.choice((64, *_SIDES)), chance.choice((48, *_SIDES)))


def damaged_chunk(data: bytes, chance: random.Random) -> bytes:
    """Bits flipped in one chunk of a PNG, with a valid checksum; in other files, anywhere."""
    starts, at = [], 8
    while data.startswith(_PNG) and at + 12 <= len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if not starts:
        return flipped_bits(data, chance)
    at = chance.choice(starts)
    end = min(len(data), at + 8 + int.from_bytes(data[at : at + 4], "big"))
    kind, inside = data[at + 4 : at + 8], data[at + 8 : end]
    if kind == b"IDAT" and chance.random() < 0.7:  # past zlib's own checksum
        try:
            inside = zlib.compress(flipped_bits(zlib.decompress(inside), chance))
        except zlib.error:
            inside = flipped_bits(inside, chance)
    else:
        inside = flipped_bits(inside, chance)
    return data[:at] + chunk(kind, inside) + data[end + 4 :]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped_bits,
    flipped_header,
    cut_tail,
    cut_middle,
    repeated_middle,
    inserted_noise,
    zeroed,
    swapped_header,
    spliced,
    extreme_number,
    lying_dimensions,
    damaged_chunk,
)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _ihdr(width: int, height: int, kind: tuple[int, ...]) -> bytes:
    return chunk(b"IHDR", struct.pack(">II5B", width, height, *kind))


def _with_chunk(kind: bytes, data: bytes, *, times: int = 1) -> bytes:
    plain = readable()["plain.png"]
    return plain[:33] + chunk(kind, data) * times + plain[33:]


def _gif_frame(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b",", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    return _at(data, at + 5, struct.pack("<HH", width, height))


def _icc_segments(count: int) -> bytes:
    body = bytes(65_000)
    segments = (
        b"\xff\xe2" + struct.pack(">H", len(body) + 16) + b"ICC_PROFILE\0" + bytes([n, count])
        for n in range(1, count + 1)
    )
    return b"".join(segment + body for segment in segments)


def _looped_exif() -> bytes:
    """A directory that names itself as its EXIF, GPS and interoperability directory."""
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


def _another(chance: random.Random) -> bytes:
    return readable()[chance.choice(sorted(readable()))]


def _flipped(data: bytes, chance: random.Random, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16)) if within else 0):
        changed[chance.randrange(within)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _place(data: bytes, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)


def _at(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]
