import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import subtract_thresholds
from quadpipe.scorers import make_scorer
from quadpipe.scorers.apt import count_log2_table
from reference import apt


def random_images(rng: np.random.Generator, geometry: Geometry) -> np.ndarray:
    """Noise, few levels, a flat image, and a hard edge: uint8 `[4, H, W, 3]`."""
    shape = (geometry.height, geometry.width, 3)
    noise = rng.integers(0, 256, shape, np.uint8)
    edge = np.zeros(shape, np.uint8)
    edge[:, geometry.width // 3 :] = 255
    return np.stack([noise, noise // 64 * 64, np.full(shape, rng.integers(256), np.uint8), edge])


geometries = st.builds(
    lambda sides, rows, columns: Geometry(
        height=rows * sides[1],
        width=columns * sides[1],
        patch_size=sides[0],
        max_patch_size=sides[1],
    ),
    st.sampled_from([(14, 56), (16, 64), (8, 64), (4, 32), (7, 14)]),
    st.integers(1, 3),
    st.integers(1, 2),
)


@settings(max_examples=15)
@given(geometries, st.integers(0, 2**32 - 1))
def test_entropy_equals_its_definition(geometry, seed):
    images = random_images(np.random.default_rng(seed), geometry)
    maps = make_scorer("entropy", geometry).score(images)
    for level, scale in zip(maps, range(geometry.max_scale, 0, -1), strict=True):
        side = geometry.patch_size << scale
        for image, found in zip(images, level, strict=True):
            expected = [
                [
                    apt.entropy(image[y : y + side, x : x + side])
                    for x in range(0, geometry.width, side)
                ]
                for y in range(0, geometry.height, side)
            ]
            np.testing.assert_allclose(found, expected, atol=2e-6)


@settings(max_examples=15)
@given(geometries, st.integers(0, 2**32 - 1))
def test_laplacian_and_upsample_mse_equal_their_definitions(geometry, seed):
    images = random_images(np.random.default_rng(seed), geometry)
    for name in ("laplacian", "upsample-mse"):
        maps = make_scorer(name, geometry).score(images)
        for level, scale in zip(maps, range(geometry.max_scale, 0, -1), strict=True):
            for image, found in zip(images, level, strict=True):
                errors = (
                    apt.laplacian(image)
                    if name == "laplacian"
                    else apt.upsample_error(image, scale)
                )
                expected = apt.patch_means(errors, geometry.patch_size << scale)
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_flat_image_has_entropy_zero_and_a_full_histogram_nine_bits():
    geometry = Geometry(height=64, width=64, patch_size=16, max_patch_size=64)
    flat = np.full((1, 64, 64, 3), 200, np.uint8)
    for name in ("entropy", "laplacian", "upsample-mse"):
        assert all((level == 0).all() for level in make_scorer(name, geometry).score(flat)), name
    halves = np.zeros((1, 64, 64, 3), np.uint8)
    halves[:, ::2] = 255
    coarse, fine = make_scorer("entropy", geometry).score(halves)
    assert (coarse == 1).all()
    assert (fine == 1).all()


def test_the_table_of_logarithms_is_exact_to_its_last_bit():
    table = count_log2_table(4096)
    assert table[0] == table[1] == 0
    assert table[2] == 2 * 2**32
    assert table[4096] == 4096 * 12 * 2**32
    for n in (3, 5, 7, 100, 4095):
        assert abs(int(table[n]) - n * math.log2(n) * 2**32) < 1
    # Pinned: these numbers decide bytes.
    assert int(table[3]) == 20422086318
    assert int(table[1000]) == 42802717581614


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.sampled_from([(1, 1), (2, 3)]),
    st.integers(2, 6),
    st.integers(0, 2**32 - 1),
)
def test_leaves_at_gain_0_after_thresholds_are_the_choice_of_apt(scales, grid, levels, seed):
    """For any number of scales, with many importances that equal their threshold."""
    rng = np.random.default_rng(seed)
    side = 2**scales
    thresholds = tuple((2**s, float(rng.integers(levels)) + 0.1) for s in range(1, scales + 1))
    config = quadpipe.TokenizerConfig(
        image_size=(grid[0] * side, grid[1] * side),
        patch_size=1,
        max_patch_size=side,
        tokens=grid[0] * grid[1] * side * side,
        thresholds=thresholds,
    )
    geometry = config.geometry
    maps = [
        (rng.integers(levels, size=(1, *geometry.grid(scale))) + 0.1).astype(np.float32)
        for scale in range(scales, 0, -1)
    ]
    tokenizer = quadpipe.Tokenizer(config, scorer=make_scorer("random", geometry))
    (mosaic,) = tokenizer.cut(np.zeros((1, *config.image_size, 3), np.uint8), maps)
    leaves = mosaic.leaves(threshold=0.0)
    expected = apt.chosen_boxes(
        [level[0].astype(np.float64) for level in maps],
        [threshold for _, threshold in reversed(thresholds)],
    )
    assert {tuple(box) for box in leaves.boxes.tolist()} == expected
    assert len(leaves) == len(expected)


def test_the_smallest_difference_from_a_threshold_keeps_its_sign():
    geometry = Geometry(height=64, width=64, patch_size=32, max_patch_size=64)
    less = subtract_thresholds(np.zeros((1, 1), np.float32), geometry, [(64, 1e-60)])
    assert less[0, 0] < 0
    assert not np.signbit(subtract_thresholds(np.ones((1, 1), np.float32), geometry, [(64, 1.0)]))


def test_thresholds_change_the_order_of_scales(square):
    plain = quadpipe.Tokenizer(scorer="entropy", tokens=64)(square[0])
    large_first = quadpipe.Tokenizer(
        scorer="entropy", tokens=64, thresholds=((32, 100.0), (64, 4.0))
    )(square[0])
    assert (plain.leaves().boxes[:, 2] == 0).any()
    assert (large_first.leaves().boxes[:, 2] >= 1).all()  # all roots are split before any quarter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": ((32, 1.0),)}, "give one for each size that can be split: 32=T,64=T"),
        ({"thresholds": ((32, 1.0), (32, 2.0), (64, 1.0))}, "thresholds are given for patches of"),
        ({"thresholds": ((32, math.nan), (64, 1.0))}, "thresholds must be a finite number"),
        ({"thresholds": ((32, math.inf), (64, 1.0))}, "thresholds must be a finite number"),
        (
            {"thresholds": (), "max_patch_size": 16, "tokens": 256, "scorer": "uniform"},
            "there is nothing to split",
        ),
        ({"thresholds": 5}, "thresholds must be a list"),
        ({"thresholds": ((32,), (64,))}, "thresholds must be 2 numbers"),
    ],
)
def test_invalid_thresholds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.TokenizerConfig(**options)


def test_entropy_refuses_patches_that_it_has_no_table_for():
    geometry = Geometry(height=512, width=512, patch_size=16, max_patch_size=512)
    with pytest.raises(ConfigError, match="entropy counts patches of up to 256 pixels, not 512"):
        make_scorer("entropy", geometry)
