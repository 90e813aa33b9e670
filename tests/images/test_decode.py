import io
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.encoders import chunk, claim, encoded, more_scans, png
from corpus.files import ENCODED
from PIL import Image, features

from quadpipe.errors import RejectError
from quadpipe.images.color import to_rgb
from quadpipe.images.decode import FORMATS, EncodedImage


def pixels(data: bytes, reduction: int = 1) -> np.ndarray:
    return np.asarray(EncodedImage(data).decode(reduction))


def with_chunk(data: bytes, kind: bytes, inside: bytes) -> bytes:
    """A PNG with one more chunk before its pixels."""
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk(kind, inside) + data[at:]


@pytest.fixture
def picture(photographs) -> Image.Image:
    return Image.fromarray(photographs[0][:120, :160])


def test_seven_formats_are_opened():
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_exactly(kind, picture):
    np.testing.assert_array_equal(pixels(encoded(picture, kind)), np.asarray(picture))


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})]
)
def test_lossy_formats_give_nearly_the_pixels(kind, options, picture):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this imaging library was built without WebP")
    found = pixels(encoded(picture, kind, **options)).astype(int)
    assert abs(found - np.asarray(picture)).mean() < 4


def test_the_first_frame_of_an_animation_is_used(picture):
    second = Image.new("RGB", picture.size, "red")
    data = encoded(picture.quantize(64), "GIF", save_all=True, append_images=[second.quantize(4)])
    expected = np.asarray(picture.quantize(64).convert("RGB")).astype(int)
    assert abs(pixels(data) - expected).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, picture):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }[orientation]
    image = EncodedImage(encoded(picture, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(image.decode()), upright(np.asarray(picture)))
    photo = EncodedImage(encoded(picture, "JPEG", exif=exif, quality=95))
    assert (photo.height, photo.width) == upright(np.asarray(picture)).shape[:2]
    found = np.asarray(photo.decode()).astype(int)
    assert abs(found - upright(np.asarray(picture))).mean() < 4
    assert photo.decode(2).size == ((photo.width + 1) // 2, (photo.height + 1) // 2)


def test_gray_is_repeated_in_three_channels(picture):
    grey = picture.convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG")), expected)
    bits = grey.convert("1")
    np.testing.assert_array_equal(
        pixels(encoded(bits, "PNG"))[..., 0], np.asarray(bits) * np.uint8(255)
    )


def test_palettes_are_looked_up(picture):
    palette = picture.quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(pixels(encoded(palette, "PNG")), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_composited_on_white(kind, picture):
    alpha = np.linspace(0, 255, 160).astype(np.uint8)[None].repeat(120, 0)
    data = encoded(Image.fromarray(np.dstack([picture, alpha])), kind)
    share = alpha[..., None] / 255
    expected = np.asarray(picture) * share + 255 * (1 - share)
    assert abs(pixels(data) - expected).max() <= 1


def test_a_transparent_palette_entry_is_white(picture):
    palette = picture.quantize(16)
    data = encoded(palette, "PNG", transparency=3)
    found = pixels(data)
    index = np.asarray(palette)
    assert (found[index == 3] == 255).all()
    np.testing.assert_array_equal(found[index != 3], np.asarray(palette.convert("RGB"))[index != 3])


def test_cmyk_becomes_rgb(picture):
    found = pixels(encoded(picture.convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert abs(found - np.asarray(picture)).mean() < 8


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_rounded_to_8(channels):
    values = np.random.default_rng(0).integers(0, 65536, (30, 40, channels))
    values.ravel()[:6] = [0, 65535, 128, 129, 257 * 7 + 128, 257 * 7 + 129]
    expected = np.broadcast_to(np.round(values * 255 / 65535), (30, 40, 3))
    np.testing.assert_array_equal(pixels(png(values.astype("u2"))), expected)


@pytest.mark.parametrize("channels", [2, 4])
def test_16_bits_with_alpha_are_rounded_and_composited(channels):
    values = np.random.default_rng(1).integers(0, 65536, (30, 40, channels))
    bits_8 = np.round(values * 255 / 65535)
    share = bits_8[..., -1:] / 255
    expected = np.broadcast_to(bits_8[..., :-1] * share + 255 * (1 - share), (30, 40, 3))
    assert abs(pixels(png(values.astype("u2"))) - expected).max() <= 0.51


def test_16_bit_tiff_and_pgm():
    values = np.random.default_rng(2).integers(0, 65536, (30, 40), np.uint16)
    expected = np.round(values / 257)
    for kind in ("TIFF", "PPM", "PNG"):
        found = pixels(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(found[..., 0], expected)


def test_a_pil_image_becomes_upright_rgb(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(picture.convert("L"), "PNG", exif=exif)))
    assert to_rgb(image).size == (120, 160)
    assert to_rgb(image).mode == "RGB"


def rejected(data: bytes) -> RejectError:
    with pytest.raises(RejectError) as caught:
        EncodedImage(data).decode()
    return caught.value


def test_unreadable_files_are_rejected_with_a_reason(picture):
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    assert rejected(b"").reason == "empty"
    assert rejected(b"hello, I am text").reason == "not_an_image"
    assert rejected(b"<svg xmlns='http://www.w3.org/2000/svg'/>").reason == "not_an_image"
    assert rejected(b"%PDF-1.7\n").reason == "no_decoder"
    assert rejected(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").reason == "no_decoder"
    assert rejected(b"\0\0\0\x20ftypavif").reason == "no_decoder"
    assert rejected(jpeg[: len(jpeg) // 2]).reason == "truncated"
    assert rejected(png[: len(png) // 2]).reason == "truncated"
    assert rejected(b"\xff\xd8\xff" + bytes(100)).reason == "corrupt"
    assert rejected(encoded(picture.resize((4, 90)), "PNG")).reason == "too_small"
    assert rejected(encoded(Image.new("F", (20, 20)), "TIFF")).reason == "unsupported_mode"
    assert rejected(encoded(Image.new("I", (20, 20), 70_000), "TIFF")).reason == "unsupported_mode"


def test_a_png_with_a_wrong_checksum_is_corrupt(picture):
    data = bytearray(encoded(picture, "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert rejected(bytes(data)).reason in ("corrupt", "truncated")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_false_dimensions_are_refused_before_memory_is_allocated(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    error = rejected(data + struct.pack(">I", zlib.crc32(b"IDAT")))
    assert error.reason == "too_many_pixels"
    assert "89,478,485" in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF"])
@pytest.mark.parametrize("theirs", [None, 10])
def test_the_pixel_limit_is_ours_not_that_of_pil(kind, theirs, picture, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", theirs)
    data = encoded(picture, kind)
    limit = 120 * 160
    assert EncodedImage(data, limit).decode().size == (160, 120)
    with pytest.raises(RejectError, match="160 x 120 pixels, more than 19,199"):
        EncodedImage(data, limit - 1)
    assert Image.MAX_IMAGE_PIXELS == theirs


def test_a_raised_limit_opens_images_that_pil_calls_bombs():
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")  # over twice PIL's own limit
    error = rejected(data)
    assert error.reason == "too_many_pixels"
    image = EncodedImage(data, 200_000_000)
    assert (image.width, image.height) == (20_000, 10_000)


def test_threads_that_decode_leave_pils_limit_as_it_was(picture, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    data = encoded(picture, "PNG")
    with ThreadPoolExecutor(8) as pool:
        sizes = set(pool.map(lambda n: EncodedImage(data, 20_000 + n).width, range(200)))
    assert sizes == {160}
    assert Image.MAX_IMAGE_PIXELS == 10


def test_messages_are_one_line(picture):
    assert "\n" not in rejected(encoded(picture, "JPEG")[:300]).message


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_unreadable_exif_does_not_change_pixels(kind, picture):
    if kind == "WEBP" and not features.check("webp"):
        pytest.skip("this imaging library was built without WebP")
    data = encoded(picture, kind, exif=b"Exif\0\0junkjunkjunk")
    assert pixels(data).shape == (120, 160, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_16_bit_color_is_white(channels):
    values = np.random.default_rng(3).integers(0, 65536, (30, 40, channels))
    values[5, 5] = values[7, 7] = [1000, 2000, 3000][:channels]
    data = png(values.astype("u2"))
    transparent = np.array([1000, 2000, 3000][:channels], ">u2").tobytes()
    found = pixels(with_chunk(data, b"tRNS", transparent))
    assert (found[[5, 7], [5, 7]] == 255).all()
    expected = np.broadcast_to(np.round(values / 257), found.shape)
    others = np.ones((30, 40), bool)
    others[[5, 7], [5, 7]] = False
    np.testing.assert_array_equal(found[others], expected[others])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_color_tiffs_are_rounded(channels, order):
    values = np.random.default_rng(4).integers(0, 65536, (20, 24, channels)).astype(np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    found = pixels(tiff_16(values, order))
    np.testing.assert_array_equal(found, np.round(values[..., :3] / 257))


def tiff_16(values: np.ndarray, order: str) -> bytes:
    """An uncompressed 16-bit colour TIFF, which PIL cannot write."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8 + len(data)),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        *([(338, 3, 1, 2)] if channels == 4 else []),
    ]
    at = 8 + len(data) + len(bits)
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, at)
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return header + data + bits + directory + bytes(4)


@pytest.mark.parametrize("kind", ["group4", "jpeg"])
def test_tiffs_that_would_show_uninitialized_memory_are_refused(kind):
    assert rejected((ENCODED / f"{kind}.tif").read_bytes()).reason == "no_decoder"


@pytest.mark.parametrize("kind", ["animated", "lossless", "lossy"])
def test_a_webp_canvas_is_checked_before_memory_is_allocated(kind, monkeypatch):
    def fail(file: object, **options: Any) -> None:
        raise MemoryError

    data = claim((ENCODED / f"{kind}.webp").read_bytes(), 16_000, 16_001)
    monkeypatch.setattr(Image, "open", fail)
    error = rejected(data)
    assert error.reason == "too_many_pixels"
    assert error.message.startswith("16000 x 16001 pixels")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_conversion_in_bands_equals_conversion_of_the_whole_image(bits, channels, monkeypatch):
    values = np.random.default_rng(5).integers(0, 2**bits, (23, 17, channels))
    values[20:, 3] = values[2, 3]
    pixel = values[2, 3].tolist()
    data = (
        png(values.astype("u2"))
        if bits == 16
        else encoded(Image.fromarray(values.astype("u1")), "PNG")
    )
    if channels == 3:
        data = with_chunk(data, b"tRNS", np.array(pixel, ">u2").tobytes())
    whole = pixels(data)
    monkeypatch.setattr("quadpipe.images.color._BAND_PIXELS", 17 * 5)
    np.testing.assert_array_equal(pixels(data), whole)


@pytest.mark.parametrize("kind", [np.int32, np.uint16])
def test_conversion_of_integers_in_bands_equals_that_of_the_whole_image(kind, monkeypatch):
    values = np.random.default_rng(6).integers(0, 65536, (30, 40)).astype(kind)
    data = encoded(Image.fromarray(values), "TIFF")
    whole = pixels(data)
    monkeypatch.setattr("quadpipe.images.color._BAND_PIXELS", 100)
    np.testing.assert_array_equal(pixels(data), whole)


LARGEST = """
import sys
sys.path.insert(0, sys.argv[1])
from corpus.encoders import flat_png
from quadpipe.images.decode import EncodedImage

data = flat_png(7000, 7000, bits=int(sys.argv[2]), channels=4)

def peak():
    return int(next(s for s in open("/proc/self/status") if s.startswith("VmHWM")).split()[1])

before = peak()
EncodedImage(data)
print((peak() - before) * 1024 / 7000**2)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_image_takes_at_most_twice_its_memory(bits):
    """PIL keeps 4 bytes a pixel; of a few rows at a time, numbers of 16 bits take more."""
    command = [sys.executable, "-c", LARGEST, str(ENCODED.parents[1]), str(bits)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10


def test_a_jpeg_with_too_many_scans_is_corrupt(picture):
    data = encoded(picture, "JPEG", progressive=True)
    assert pixels(more_scans(data, 100)).shape == (120, 160, 3)
    error = rejected(more_scans(data, 1000))
    assert (error.reason, error.message) == ("corrupt", "a JPEG of 1,010 scans, more than 1,000")
