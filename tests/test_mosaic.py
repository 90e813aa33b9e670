from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.mosaic import Mosaic, cut, dense_map
from quadpipe.quadtree import grow, join_maps
from quadpipe.tokenizer import Tokenizer
from reference import pixels

GOLDEN = Path(__file__).parent / "golden"


def random_mosaic(shape: Geometry, tokens: int, seed: int, resample: str = "bilinear") -> tuple:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, shape.height, shape.width, 3), np.uint8)
    importance = rng.random((2, shape.splittable), np.float32)
    trees = grow(importance, shape, tokens)
    return images, cut(images, trees, shape, resample)


def test_tokens_equal_those_of_the_papers_code_within_rounding():
    shape = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
    with np.load(GOLDEN / "pixel_blur.npz") as arrays:
        images, leaves, tokens = (
            arrays[f"256_16_64_64/{name}"] for name in ("images", "leaves", "tokens")
        )
    tokenizer = Tokenizer(scorer="pixel-blur", tokens=64, crop_pct=1.0)
    for mosaic, expected_boxes, expected in zip(
        tokenizer.tokenize(images), leaves, tokens, strict=True
    ):
        found = mosaic.leaves()
        x, y, scale = found.boxes.T
        order = np.lexsort((x, y, scale))
        np.testing.assert_array_equal(found.boxes[order], expected_boxes)
        difference = found.tokens[order].transpose(0, 3, 1, 2) - expected.astype(np.float64)
        assert abs(difference).max() <= 1.0
    assert mosaic.geometry == shape


@settings(max_examples=25)
@given(
    st.sampled_from([(14, 56), (16, 64), (4, 64), (16, 16), (5, 20)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["bilinear", "area"]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_tokens_are_cut_from_the_shrunken_image(sides, rows, columns, resample, seed, data):
    patch, largest = sides
    shape = Geometry(
        height=rows * largest, width=columns * largest, patch_size=patch, max_patch_size=largest
    )
    splits = data.draw(st.integers(0, shape.splittable))
    images, mosaics = random_mosaic(shape, shape.roots + 3 * splits, seed, resample)
    for image, mosaic in zip(images, mosaics, strict=True):
        expected = pixels.tokens(image, mosaic.nodes, patch, area=resample == "area")
        np.testing.assert_array_equal(mosaic.tokens, expected)


def test_a_smaller_budget_is_a_prefix_of_a_larger_one(square):
    large = Tokenizer(tokens=196, crop_pct=1.0).tokenize(square)
    for budget in (16, 64, 100, 145, 196):
        small = Tokenizer(tokens=budget, crop_pct=1.0).tokenize(square)
        for one, other in zip(large, small, strict=True):
            ours, theirs = one.leaves(budget), other.leaves()
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)
            assert len(ours) == budget


def test_leaves_tile_the_image_at_every_budget(square):
    mosaic = Tokenizer(tokens=256, crop_pct=1.0).tokenize(square[:1])[0]
    for budget in range(16, 257, 3):
        leaves = mosaic.leaves(budget)
        dense_map(np.zeros((budget, 1)), leaves.boxes, (16, 16))


def test_the_largest_budget_rebuilds_the_image_exactly(square):
    mosaic = Tokenizer(tokens=256, crop_pct=1.0).tokenize(square[:1])[0]
    np.testing.assert_array_equal(mosaic.rebuild(), square[0])


def test_a_threshold_gives_each_image_its_own_length_and_reports_truncation(square):
    mosaics = Tokenizer(tokens=196, crop_pct=1.0).tokenize(square)
    assert len({len(mosaic.leaves(threshold=1.5)) for mosaic in mosaics}) > 1
    for mosaic in mosaics:
        middle = float(mosaic.gains[20])
        leaves = mosaic.leaves(threshold=middle)
        assert not leaves.truncated
        assert len(leaves) == 16 + 3 * np.count_nonzero(mosaic.gains >= middle)
        assert mosaic.leaves(threshold=-1.0).truncated
        assert len(mosaic.leaves(threshold=float("inf"))) == 16
    full = Tokenizer(tokens=256, crop_pct=1.0).tokenize(square[:1])[0]
    assert not full.leaves(threshold=-1.0).truncated


def test_flipping_the_mosaic_equals_flipping_the_image():
    shape = Geometry(height=128, width=192, patch_size=16, max_patch_size=64)
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (1, 128, 192, 3), np.uint8)
    maps = [rng.random((1, 2, 3), np.float32), rng.random((1, 4, 6), np.float32)]
    mirrored = [level[:, :, ::-1] for level in maps]
    mosaic = cut(image, grow(join_maps(maps, shape, 1), shape, 60), shape)[0]
    expected = cut(image[:, :, ::-1], grow(join_maps(mirrored, shape, 1), shape, 60), shape)[0]
    flipped = mosaic.flip()
    np.testing.assert_array_equal(flipped.nodes, expected.nodes)
    np.testing.assert_array_equal(flipped.tokens, expected.tokens)
    np.testing.assert_array_equal(flipped.importance, expected.importance)
    np.testing.assert_array_equal(flipped.rebuild(30), mosaic.rebuild(30)[:, ::-1])
    np.testing.assert_array_equal(flipped.flip().tokens, mosaic.tokens)


def test_dense_maps_equal_those_of_the_papers_code():
    with np.load(GOLDEN / "model.npz") as arrays:
        for boxes, features, dense in zip(
            arrays["boxes"], arrays["features"], arrays["dense"], strict=True
        ):
            np.testing.assert_array_equal(dense_map(features, boxes, (16, 16)), dense)


@pytest.mark.parametrize(
    "boxes", [[[0, 0, 0]], [[0, 0, 1], [0, 0, 0]], [[-1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]]
)
def test_boxes_that_do_not_tile_are_refused(boxes):
    with pytest.raises(ConfigError, match="do not tile a grid of 2 x 2"):
        dense_map(np.zeros((len(boxes), 2)), np.array(boxes), (2, 2))


@pytest.fixture
def mosaic(square) -> Mosaic:
    return Tokenizer(tokens=100, crop_pct=1.0).tokenize(square[:1])[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": 101}, "use 100 or 103"),
        ({"tokens": 196}, "holds 100 tokens, not 196; use at most 100 or retokenize with"),
        ({"tokens": 64, "threshold": 1.0}, "not both"),
    ],
)
def test_budgets_that_cannot_be_served_are_refused(mosaic, arguments, message):
    with pytest.raises(ConfigError, match=message):
        mosaic.leaves(**arguments)


def test_an_unknown_resampling_is_refused(square):
    shape = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
    trees = grow(np.zeros((1, 80), np.float32), shape, 16)
    with pytest.raises(ConfigError, match="resample 'cubic' is not one of bilinear, area"):
        cut(square[:1], trees, shape, "cubic")


def test_leaves_do_not_share_memory_with_the_mosaic(mosaic):
    before = mosaic.tokens.copy()
    mosaic.leaves().tokens[:] = 0
    replace(mosaic).flip().tokens[:] = 0
    np.testing.assert_array_equal(mosaic.tokens, before)
