import numpy as np
import pytest

import quadpipe
from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.geometry import Geometry
from quadpipe.scorers import make_scorer
from quadpipe.scorers.maps import read_array, read_map
from quadpipe.scorers.pooling import pool_to_patches
from quadpipe.scorers.precomputed import map_levels

GEOMETRY = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
WIDE = Geometry(height=64, width=128, patch_size=16, max_patch_size=64)


@pytest.mark.parametrize("cells", [1, 4, 5, 7, 8, 12, 16, 32])
def test_importance_is_the_mean_of_the_map_over_the_patch(cells):
    importance = np.random.default_rng(cells).random((cells, cells))
    # A side that is a whole number of cells and of patches.
    pixels = np.lcm(cells, 8)
    fine = importance.repeat(pixels // cells, 0).repeat(pixels // cells, 1)
    for level in map_levels(importance, GEOMETRY):
        side = pixels // len(level)
        expected = fine.reshape(len(level), side, len(level), side).mean(axis=(1, 3))
        np.testing.assert_allclose(level, expected, rtol=1e-6)


def test_a_large_map_of_odd_sides_takes_little_memory():
    import tracemalloc

    importance = np.ones((1021, 1021), np.float32)
    tracemalloc.start()
    coarse, _ = map_levels(importance, GEOMETRY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (coarse == 1).all()
    assert peak < 40e6


def test_an_unreadable_map_is_not_reported_missing(tmp_path):
    (tmp_path / "cat.npy").symlink_to("cat.npy")
    with pytest.raises(SourceError, match=r"cannot read cat\.npy"):
        read_map(tmp_path, "cat.jpg", GEOMETRY)


def test_an_image_that_is_not_square_has_square_cells():
    importance = np.arange(4 * 8, dtype=np.float32).reshape(1, 4, 8)
    coarse, middle = pool_to_patches(importance, WIDE)
    np.testing.assert_array_equal(middle[0], importance[0].reshape(2, 2, 4, 2).mean(axis=(1, 3)))
    np.testing.assert_array_equal(coarse[0], importance[0].reshape(1, 4, 2, 4).mean(axis=(1, 3)))
    with pytest.raises(ConfigError, match="square cells over 64 x 128 pixels; this one is 4 x 4"):
        map_levels(np.zeros((4, 4)), WIDE)


def test_a_boolean_map_counts_as_ones_and_zeros(tmp_path):
    mask = np.arange(256).reshape(16, 16) % 3 == 0
    numbers = map_levels(mask.astype(np.float32), GEOMETRY)
    np.save(tmp_path / "cat.npy", mask)
    data = (tmp_path / "cat.npy").read_bytes()
    (tmp_path / "odd.npy").write_bytes(data[:-256] + data[-256:].replace(b"\1", b"\7"))
    for found in (
        map_levels(mask, GEOMETRY),
        read_map(tmp_path, "cat.jpg", GEOMETRY),
        read_map(tmp_path, "odd.jpg", GEOMETRY),
    ):
        for level, expected in zip(found, numbers, strict=True):
            np.testing.assert_array_equal(level, expected)


def test_a_map_decides_the_quadtree(square):
    importance = np.zeros((16, 16), np.float32)
    importance[4:8, 8:12] = 1
    mosaic = quadpipe.Tokenizer(scorer="precomputed", tokens=31)(square[0], importance)
    fine = mosaic.leaves().boxes[mosaic.leaves().boxes[:, 2] == 0]
    assert {(x, y) for x, y, _ in fine.tolist()} == {
        (x, y) for x in range(8, 12) for y in range(4, 8)
    }
    both = quadpipe.Tokenizer(scorer="precomputed", tokens=31)(square[:2], [importance] * 2)
    np.testing.assert_array_equal(both[0].nodes, mosaic.nodes)


def test_maps_of_each_scale_are_used_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    maps = [rng.random((side, side)).astype(np.float32) for side in (4, 8)]
    found = make_scorer("precomputed", GEOMETRY).score(np.zeros((1, 256, 256, 3), np.uint8), [maps])
    for level, expected in zip(found, maps, strict=True):
        np.testing.assert_array_equal(level[0], expected)
    for side, level in zip((64, 32), maps, strict=True):
        np.save(tmp_path / f"cat.{side}.npy", level)
    for level, expected in zip(read_map(tmp_path, "cat.jpg", GEOMETRY), maps, strict=True):
        np.testing.assert_array_equal(level, expected)
    (tmp_path / "cat.32.npy").unlink()
    with pytest.raises(RejectError, match="no_map"):
        read_map(tmp_path, "cat.jpg", GEOMETRY)


def test_maps_are_found_by_the_names_of_the_images(tmp_path):
    (tmp_path / "a b" / "c\n").mkdir(parents=True)
    np.save(tmp_path / "a b" / "c\n" / "cat.v2.npy", np.eye(16))
    coarse, _ = read_map(tmp_path, "a b/c%0A/cat.v2.jpeg", GEOMETRY)
    np.testing.assert_array_equal(coarse, np.eye(4) / 4)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.zeros((3, 4)), "square cells"),
        (np.zeros((16, 16, 3)), "must be real numbers"),
        (np.zeros((0, 0)), "must be real numbers"),
        (np.zeros((4, 4), complex), "must be real numbers"),
        (np.full((4, 4), np.nan), "must hold finite float32 numbers"),
        (np.full((4, 4), 1e300), "must hold finite float32 numbers"),
        ([np.zeros((4, 4)), np.zeros((4, 4))], "maps of each scale must be"),
        ("cat", "must be real numbers"),
    ],
)
def test_invalid_maps_are_refused(importance, message):
    with pytest.raises(ConfigError, match=message):
        map_levels(importance, GEOMETRY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a NumPy array"),
        (b"\x93NUMPY\x01\x00\x04\x00{}  ", "is not a NumPy array"),
        (b"hello" * 100, "is not a NumPy array"),
        ("objects", "holds Python objects"),
        ("terabytes", "is not a NumPy array"),
        ("short", "is not a NumPy array"),
        ("cut header", "is not a NumPy array"),
        ("negative", "negative shape"),
        ("nan", "finite"),
    ],
)
def test_hostile_maps_are_rejects(data, message, tmp_path):
    path = tmp_path / "cat.npy"
    if data == "objects":
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    elif data == "nan":
        np.save(path, np.full((4, 4), np.nan))
    elif data in ("cut header", "negative"):
        shape = b"(16, 16" if data == "cut header" else b"(-1, 16), }"
        header = (b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape).ljust(117) + b"\n"
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        path.write_bytes(head + header + bytes(1024))
    elif isinstance(data, str):
        np.save(path, np.zeros((16, 16)))
        whole = path.read_bytes()
        path.write_bytes(
            whole.replace(b"(16, 16)", b"(1000000000000, 1000000000000)".ljust(8))
            if data == "terabytes"
            else whole[:-1]
        )
    else:
        path.write_bytes(data)
    with pytest.raises(RejectError, match=message) as caught:
        read_map(tmp_path, "cat.jpg", GEOMETRY)
    assert caught.value.reason == "bad_map"


@pytest.mark.parametrize(
    "path", ["/etc/cat.jpg", "../cat.jpg", "a/../../cat.jpg", "%2E%2E/cat.jpg"]
)
def test_names_do_not_lead_outside_the_folder_of_maps(path, tmp_path):
    np.save(tmp_path / "cat.npy", np.eye(16))
    (tmp_path / "maps").mkdir()
    with pytest.raises(RejectError, match="no_map"):
        read_map(tmp_path / "maps", path, GEOMETRY)


def test_one_map_is_read_from_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(np.arange(16.0).reshape(4, 4)))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), np.arange(16.0).reshape(4, 4))
    (tmp_path / "y.npy").write_text("hello")
    with pytest.raises(ConfigError, match=r"y\.npy: y\.npy is not a NumPy array"):
        read_array(tmp_path / "y.npy")
    with pytest.raises(SourceError, match="cannot read"):
        read_array(tmp_path / "none.npy")


def test_a_missing_hint_is_a_clear_error(square):
    with pytest.raises(ConfigError, match="precomputed needs an importance map for each image"):
        quadpipe.Tokenizer(scorer="precomputed")(square[0])
    maps = np.stack([np.eye(16)] * 2)
    assert len(quadpipe.Tokenizer(scorer="precomputed")(square[:2], maps)) == 2
    with pytest.raises(ConfigError, match="give one hint per image"):
        quadpipe.Tokenizer(scorer="precomputed")(square[:2], 5)
    with pytest.raises(ConfigError, match="give one hint per image"):
        quadpipe.Tokenizer(scorer="precomputed")(square[:2], [np.eye(16)])
