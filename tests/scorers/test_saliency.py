"""The scorers rarity, barrier and saliency: their definitions, their symmetries, their bytes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadpipe.geometry import Geometry
from quadpipe.quadtree import join_maps
from quadpipe.scorers import make_scorer
from reference import saliency

NAMES = ("rarity", "barrier", "saliency")

# Sides of the smallest and the largest patch: smaller than the cells, and no multiples of them.
SIDES = [(16, 64), (14, 28), (7, 14), (5, 20), (4, 32), (1, 2), (2, 8), (24, 48)]

geometries = st.builds(
    lambda sides, rows, columns: Geometry(
        height=rows * sides[1],
        width=columns * sides[1],
        patch_size=sides[0],
        max_patch_size=sides[1],
    ),
    st.sampled_from(SIDES),
    st.integers(1, 3),
    st.integers(1, 3),
)


def random_images(seed: int, geometry: Geometry) -> np.ndarray:
    """Noise, few levels, and a bright square on a gradient: uint8 `[3, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    shape = (geometry.height, geometry.width, 3)
    noise = rng.integers(0, 256, shape, np.uint8)
    ramp = np.linspace(0, 200, geometry.width).astype(np.uint8)
    scene = np.broadcast_to(ramp[:, None], shape).copy()
    scene[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = rng.integers(0, 256, 3)
    return np.stack([noise, noise // 128 * 128, scene])


def made_image(height: int, width: int) -> np.ndarray:
    """A gradient, a weave and a red disc, in integers."""
    y, x = np.indices((height, width))
    image = np.stack([x * 255 // width, y * 255 // height, (x * y) % 61 + 60], axis=-1)
    disc = (x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 6) ** 2
    image[disc] = (230, 40, 30)
    return image.astype(np.uint8)


@settings(max_examples=25)
@given(geometries, st.integers(0, 2**32 - 1))
def test_scores_are_those_of_their_definitions(geometry, seed):
    images = random_images(seed, geometry)
    for name in NAMES:
        maps = make_scorer(name, geometry).score(images)
        for level, scale in zip(maps, range(geometry.max_scale, 0, -1), strict=True):
            assert level.dtype == np.float32
            for image, found in zip(images, level, strict=True):
                expected = saliency.importance(name, image, geometry.patch_size << scale)
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_sweeps_are_never_below_the_exact_barrier_and_seldom_above(rows, columns, levels, seed):
    values = np.random.default_rng(seed).integers(levels, size=(rows, columns))
    swept, exact = saliency.swept_barrier(values), saliency.exact_barrier(values)
    assert (swept >= exact).all()
    assert (swept == exact).mean() >= 0.75


@settings(max_examples=20)
@given(
    st.sampled_from([(16, 64), (8, 32), (4, 16), (2, 16)]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_a_mirrored_image_has_the_mirrored_importance(sides, rows, columns, seed):
    """Where cells divide the image. The barrier exactly; rarity sums cells in another order."""
    geometry = Geometry(
        height=rows * sides[1], width=columns * sides[1], patch_size=sides[0],
        max_patch_size=sides[1],
    )  # fmt: skip
    images = random_images(seed, geometry)
    for name in NAMES:
        scorer = make_scorer(name, geometry)
        for level, mirrored in zip(
            scorer.score(images), scorer.score(images[:, :, ::-1]), strict=True
        ):
            tolerance = 0 if name == "barrier" else 1e-5
            np.testing.assert_allclose(mirrored[:, :, ::-1], level, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("turn", [lambda a: a[:, ::-1], lambda a: a.swapaxes(1, 2)])
def test_rarity_is_that_of_the_image_upside_down_or_transposed(turn, square, geometry):
    scorer = make_scorer("rarity", geometry)
    turned = scorer.score(np.ascontiguousarray(turn(square)))
    for level, other in zip(scorer.score(square), turned, strict=True):
        np.testing.assert_allclose(turn(other), level, rtol=1e-5)


@settings(max_examples=20)
@given(geometries, st.integers(0, 2**24 - 1))
def test_a_constant_image_has_one_importance_everywhere(geometry, color):
    image = np.empty((1, geometry.height, geometry.width, 3), np.uint8)
    image[:] = (color >> 16, color >> 8 & 255, color & 255)
    for name in NAMES:
        importance = join_maps(make_scorer(name, geometry).score(image), geometry, 1)
        expected = np.float32(1e-3) if name == "saliency" else 0
        np.testing.assert_allclose(importance, expected, rtol=1e-6)
        assert (importance == importance[0, 0]).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("y", "x"), [(101, 70), (30, 200), (130, 130)])
def test_one_odd_pixel_is_where_the_importance_is(name, y, x, geometry):
    image = np.full((1, 256, 256, 3), 90, np.uint8)
    image[0, y, x] = (255, 0, 60)
    for level, side in zip(make_scorer(name, geometry).score(image), (64, 32), strict=True):
        assert np.unravel_index(level[0].argmax(), level[0].shape) == (y // side, x // side)
        rest = level[0].copy()
        rest[y // side, x // side] = 0
        assert level.max() > 5 * rest.max()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_cell_has_nothing_to_compare(name):
    geometry = Geometry(height=4, width=4, patch_size=2, max_patch_size=4)
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), np.uint8)
    (level,) = make_scorer(name, geometry).score(image)
    np.testing.assert_allclose(level, 1e-3 if name == "saliency" else 0, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_importance_is_relative_to_the_image_at_every_scale(name, square, geometry):
    for level in make_scorer(name, geometry).score(square):
        if name == "saliency":
            assert 0.3 < level.mean() < 1.01
        else:
            np.testing.assert_allclose(level.mean(axis=(1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_scores_the_same_in_any_batch(name, square, geometry):
    scorer = make_scorer(name, geometry)
    together = scorer.score(square)
    for number, image in enumerate(square):
        for level, alone in zip(together, scorer.score(image[None]), strict=True):
            np.testing.assert_array_equal(level[number], alone[0])


@pytest.mark.parametrize(
    ("name", "second", "digest"),
    [
        ("rarity", 0.8010056614875793, "9ed3717473cccb64"),
        ("barrier", 1.5897554159164429, "b802f7e8b9126521"),
        ("saliency", 0.9811176657676697, "6674cf5f5fc36923"),
    ],
)
def test_bytes_are_pinned(name, second, digest):
    """The same numbers on every processor and in every version."""
    geometry = Geometry(height=112, width=168, patch_size=14, max_patch_size=56)
    scores = join_maps(make_scorer(name, geometry).score(made_image(112, 168)[None]), geometry, 1)
    assert scores[0, 1] == np.float32(second)
    assert hashlib.sha256(scores.tobytes()).hexdigest()[:16] == digest
