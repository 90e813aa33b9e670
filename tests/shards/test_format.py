import io
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quadpipe.errors import ConfigError, ShardError
from quadpipe.shards.format import Codec, npy_array, npy_bytes, sample_key, shard_name
from quadpipe.shards.tar import END, member_bytes, read_members


def test_names_are_those_of_the_format():
    assert sample_key(12, 0) == "0000000012"
    assert sample_key(12, 3) == "0000000012-v03"
    assert shard_name("train", 0, 7) == "train-000007.tar"
    assert shard_name("train", 1, 7) == "train-v01-000007.tar"


@pytest.mark.parametrize("dtype", ["|u1", "<i4", "<f4"])
@pytest.mark.parametrize("shape", [(0,), (5,), (3, 4), (2, 3, 3, 3)])
def test_arrays_are_numpy_files(dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    data = npy_bytes(array)
    np.testing.assert_array_equal(np.load(io.BytesIO(data), allow_pickle=False), array)
    np.testing.assert_array_equal(npy_array(data, dtype, shape), array)
    assert len(data) % 64 == array.nbytes % 64


def test_arrays_written_by_numpy_itself_are_read():
    array = np.arange(12, dtype="<i4").reshape(3, 4)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0))
    data = file.getvalue().replace(b"'shape': (3, 4), }", b"'shape': (3,4),  }")
    np.testing.assert_array_equal(npy_array(data, "<i4", (3, 4)), array)


def saved(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a NumPy array"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "not a NumPy array"),
        (
            saved(np.zeros((3, 4), "<i8")),
            r"holds <i8 \[3, 4\], fortran_order False; expected <i4",
        ),
        (saved(np.zeros((4, 3), "<i4")), r"holds <i4 \[4, 3\]"),
        (saved(np.asfortranarray(np.zeros((3, 4), "<i4"))), "fortran_order True"),
        (saved(np.array([[{}] * 4] * 3), allow_pickle=True), r"holds \|O"),
        (npy_bytes(np.zeros((3, 4), "<i4"))[:-1], "holds 47 bytes of data, expected 48"),
        (npy_bytes(np.zeros((3, 4), "<i4")) + b"x", "holds 49 bytes of data, expected 48"),
        (npy_bytes(np.zeros((3, 4), "<i4")).replace(b"(3, 4)", b"(9**9,)"), "not a NumPy array"),
    ],
)
def test_other_arrays_are_refused(data, message):
    with pytest.raises(ShardError, match=message):
        npy_array(data, "<i4", (3, 4))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 128, 130])
@pytest.mark.parametrize("name", ["raw", "png", "jpg"])
def test_a_codec_round_trips_tokens(name, count, square):
    tokens = square[0].reshape(16, 16, 16, 16, 3).swapaxes(1, 2).reshape(256, 16, 16, 3)[:count]
    codec = Codec(name=name, patch_size=16)
    found = codec.decode(codec.encode(tokens), count)
    if name == "jpg":
        assert abs(found.astype(int) - tokens).mean() < 3
    else:
        np.testing.assert_array_equal(found, tokens)


def test_jpg_does_not_mix_tokens():
    tokens = np.zeros((4, 8, 8, 3), np.uint8)
    tokens[1], tokens[2] = [255, 0, 0], [0, 0, 255]
    codec = Codec(name="jpg", quality=100, patch_size=8)
    assert abs(codec.decode(codec.encode(tokens), 4).astype(int) - tokens).max() <= 3


def test_unused_cells_of_the_image_repeat_the_last_token(square):
    tokens = square[0].reshape(16, 16, 16, 16, 3).swapaxes(1, 2).reshape(256, 16, 16, 3)[:5]
    image = np.asarray(Image.open(io.BytesIO(Codec(name="png", patch_size=16).encode(tokens))))
    assert image.shape == (32, 48, 3)
    np.testing.assert_array_equal(image[16:, 32:], tokens[4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "webp", "patch_size": 16}, "codec 'webp' is not one of raw, jpg, png"),
        ({"name": "jpg", "patch_size": 14}, "multiple of 8, not 14"),
        ({"name": "jpg", "quality": 0, "patch_size": 16}, "quality 0 is not from 1 to 100"),
    ],
)
def test_invalid_codecs_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Codec(**options)


def test_images_that_are_not_the_tokens_are_refused(square):
    codec = Codec(name="png", patch_size=16)
    data = codec.encode(np.zeros((5, 16, 16, 3), np.uint8))
    with pytest.raises(ShardError, match="is a RGB image of 48 x 32 pixels, expected RGB, 64 x 64"):
        codec.decode(data, 16)
    with pytest.raises(ShardError, match="not a readable PNG image"):
        codec.decode(data[:60], 5)
    with pytest.raises(ShardError, match="not a readable PNG image"):
        codec.decode(Codec(name="jpg", patch_size=16).encode(np.zeros((5, 16, 16, 3), np.uint8)), 5)


def archive(*members: tuple[str, bytes]) -> bytes:
    return b"".join(member_bytes(name, data) for name, data in members) + END


def test_archives_are_read_by_tarfile():
    members = [("0000000000.a", b"x" * 511), ("0000000000.b", b""), ("0000000001.a", b"y" * 1024)]
    data = archive(*members)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = [(m.name, tar.extractfile(m).read(), m.offset) for m in tar]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "root", 0o444)}
    assert [(name, content) for name, content, _ in found] == members
    ours = list(read_members(memoryview(data)))
    assert ours == [(name, offset, content) for name, content, offset in found]


def test_archives_of_other_tools_are_read():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("0000000000.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"3"))
    data = file.getvalue()
    members = list(read_members(memoryview(data)))
    assert members == [("0000000000.cls", 0, b"3")]


def read_all(data: bytes) -> None:
    list(read_members(memoryview(data)))


@pytest.mark.parametrize("length", [0, 100, 512, 700, 1024, 1535, 1536, 2047])
def test_truncated_archives_are_refused(length):
    data = archive(("0000000000.a", b"x" * 600))
    assert len(data) == 512 + 1024 + 1024
    with pytest.raises(ShardError, match="cut short"):
        read_all(data[:length])


def test_damaged_and_hostile_headers_are_refused():
    data = bytearray(archive(("0000000000.a", b"x" * 600)))
    for position in (0, 5, 124, 130, 148, 156, 257):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(ShardError):
            read_all(bytes(damaged))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("evil")
        info.type, info.linkname = kind, "/etc/passwd"
        header = info.tobuf(tarfile.USTAR_FORMAT)
        with pytest.raises(ShardError, match="'evil' at byte 0 is not a plain file"):
            read_all(header + END)
    claims = tarfile.TarInfo("large")
    claims.size = 8 * 2**30 - 1
    with pytest.raises(ShardError, match="cut short: 'large' ends beyond the 1536 available bytes"):
        read_all(claims.tobuf(tarfile.USTAR_FORMAT) + END)
