"""Boxes and masks are cropped as the pixels that they describe."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from painted import assert_painted, encoded, inside, painted
from PIL import Image

from quadpipe.errors import RejectError
from quadpipe.images.annotations import Boxes, Mask
from quadpipe.images.crop import Box, center_box, decode_and_resample, random_box
from quadpipe.images.decode import MAX_PIXELS, EncodedImage

CROPS = [
    (Box(0, 0, 90, 70), (64, 96)),
    (Box(11.5, 7.25, 80.75, 66.5), (48, 48)),
    (center_box(90, 70, (64, 64), 0.875), (64, 64)),
    (Box(30, 20, 62, 52), (32, 32)),
    *((random_box(90, 70, (0.3, 1), (0.75, 1.33), "test", n), (40, 56)) for n in range(4)),
]
RECTANGLES = [(20, 14, 70, 50), (0, 0, 45, 35), (60, 40, 90, 70)]


def png(rows: np.ndarray, bits: int, color: int, palette: bytes = b"") -> bytes:
    """A PNG of 4 columns from the bytes of its rows, which PIL would choose itself."""
    header = struct.pack(">IIBBBBB", 4, len(rows), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name != b"PLTE"
    )


@pytest.mark.parametrize(("box", "size"), CROPS)
@pytest.mark.parametrize("rectangle", RECTANGLES)
def test_boxes_and_masks_are_where_the_painted_pixels_are(rectangle, box, size):
    gray = painted(90, 70, rectangle)
    image = EncodedImage(encoded(np.repeat(gray[..., None], 3, axis=2)))
    pixels = decode_and_resample(image, box, size)[..., 0]
    (moved,) = json.loads(Boxes(json.dumps([rectangle]).encode()).cropped(box, size))
    assert_painted(pixels, moved)
    mask = Mask(encoded(gray // 255 * 7), (70, 90), MAX_PIXELS).cropped(box, size)
    values = np.asarray(Image.open(io.BytesIO(mask)))
    np.testing.assert_array_equal(values, inside(moved, size) * 7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_image_that_is_decoded_at_a_reduced_size(orientation):
    upright = Image.fromarray(np.repeat(painted(800, 600, (160, 80, 560, 480))[..., None], 3, 2))
    undo = ("", "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90",
            "TRANSVERSE", "ROTATE_270")[orientation - 1]  # fmt: skip
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=exif, quality=95)
    box = Box(100, 50, 700, 550)
    pixels = decode_and_resample(EncodedImage(file.getvalue()), box, (50, 60))[..., 0]
    boxes = json.loads(Boxes(b"[[160, 80, 560, 480]]").cropped(box, (50, 60)))
    assert boxes == [[6, 3, 46, 43]]
    assert_painted(pixels, boxes[0])


def test_boxes_are_clipped_and_those_outside_stay_as_null():
    boxes = Boxes(b"[[0, 0, 10, 10], [-5, 15, 25, 99.5], [30, 0, 40, 40], [12, 12, 12, 18]]")
    cropped = json.loads(boxes.cropped(Box(10, 10, 30, 30), (40, 10)))
    assert cropped == [None, [0, 10, 7.5, 40], None, [1, 4, 1, 16]]
    assert Boxes(b"[]").cropped(Box(0, 0, 1, 1), (8, 8)) == b"[]"


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"{}", b"[1,2,3,4]", b"[[1,2,3]]", b"[[3,0,1,9]]", b"[[0,0,1,NaN]]",
     b"[[0,0,1,1e400]]", b"[[0,0,true,1]]", b"[[0,0,1,1" + b"0" * 400 + b"]]", b"[" * 99_999,
     b"[" + b"0," * 100_000 + b"0]"],
)  # fmt: skip
def test_other_contents_are_not_boxes(data):
    with pytest.raises(RejectError, match="bad_boxes: "):
        Boxes(data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_masks_keep_their_kind_of_values(mode):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    if mode == "P":
        image = Image.fromarray(values)
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 1000)
    else:
        image = Image.fromarray(values * 5).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    mask = Mask(file.getvalue(), (6, 8), MAX_PIXELS)
    cropped = Image.open(io.BytesIO(mask.cropped(Box(2, 1, 6, 5), (8, 4))))
    assert cropped.mode == mode
    np.testing.assert_array_equal(
        np.asarray(cropped), np.asarray(image)[1:5, 2:6].repeat(2, axis=0)
    )
    if mode == "P":
        assert cropped.convert("RGB").getpixel((0, 0)) == image.convert("RGB").getpixel((2, 1))


@pytest.mark.parametrize("ignored", [2, 3, 14, 255])
def test_masks_keep_indices_beyond_their_palette(ignored):
    values = np.array([[0, 1, 2, ignored]] * 4, np.uint8)
    mask = Mask(png(values, 8, 3, bytes(9)), (4, 4), MAX_PIXELS)
    cropped = Image.open(io.BytesIO(mask.cropped(Box(0, 0, 4, 4), (4, 4))))
    assert cropped.mode == "P"
    np.testing.assert_array_equal(np.asarray(cropped), values)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_of_few_bits_keep_their_values(bits):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4) % 2**bits
    packed = values.reshape(4, -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
    mask = Mask(png(packed.sum(axis=2).astype(np.uint8), bits, 0), (4, 4), MAX_PIXELS)
    cropped = Image.open(io.BytesIO(mask.cropped(Box(0, 0, 4, 4), (4, 4))))
    np.testing.assert_array_equal(np.asarray(cropped), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file has no bytes"),
        (encoded(np.zeros((5, 4, 3), np.uint8), "JPEG"), "cannot be read as a PNG: "),
        (png(np.zeros((5, 24), np.uint8), 16, 2), "RGB;16B of 4 x 5 .* or 8-bit RGB PNG"),
        (encoded(np.zeros((4, 5), np.uint8)), "L of 5 x 4 pixels; expected .* image's 4 x 5"),
        (encoded(np.zeros((5, 4, 4), np.uint8)), "RGBA of 4 x 5 pixels; expected a gray"),
        (encoded(np.arange(20, dtype=np.uint8).reshape(5, 4))[:50], "."),
    ],
)
def test_other_contents_are_not_masks(data, message):
    with pytest.raises(RejectError, match=f"bad_mask: .*{message}"):
        Mask(data, (5, 4), MAX_PIXELS)
