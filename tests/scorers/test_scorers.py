from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import grow, join_maps, leaf_indices
from quadpipe.scorers import SCORERS, find_network, make_scorer
from reference import pixels

GOLDEN = Path(__file__).parents[1] / "golden" / "pixel_blur.npz"
NAMES = ("256_16_64_64", "256_16_64_100", "512_16_128_121")


def geometry(height=256, width=256, patch_size=16, max_patch_size=64) -> Geometry:
    return Geometry(
        height=height, width=width, patch_size=patch_size, max_patch_size=max_patch_size
    )


@pytest.mark.parametrize("name", NAMES)
def test_pixel_blur_equals_the_papers_code(name):
    size, patch, largest, tokens = map(int, name.split("_"))
    shape = geometry(size, size, patch, largest)
    with np.load(GOLDEN) as arrays:
        golden = {
            key.partition("/")[2]: arrays[key] for key in arrays.files if key.startswith(name)
        }
    maps = make_scorer("pixel-blur", shape).score(golden["images"])
    for scale, found in zip(range(shape.max_scale, 0, -1), maps, strict=True):
        expected = golden[f"importance_{patch << scale}"]
        assert found.dtype == np.float32
        assert (abs(found - expected) <= 1e-3 * expected + 1e-4).all()
    trees = grow(join_maps(maps, shape, len(golden["images"])), shape, tokens)
    for nodes, leaves in zip(trees.nodes, golden["leaves"], strict=True):
        boxes = nodes[leaf_indices(nodes, shape.roots, shape.num_splits(tokens)), :3]
        order = np.lexsort((boxes[:, 0], boxes[:, 1], boxes[:, 2]))
        np.testing.assert_array_equal(boxes[order], leaves)


@settings(max_examples=20)
@given(
    st.sampled_from([(14, 56), (16, 64), (8, 64), (4, 64), (7, 7 * 16)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2**32 - 1),
)
def test_pixel_blur_equals_its_definition(sides, rows, columns, seed):
    patch, largest = sides
    shape = geometry(rows * largest, columns * largest, patch, largest)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, shape.height, shape.width, 3), np.uint8)
    images[1] = 255 * (images[1] > 127)  # the largest differences there are
    for scale, found in zip(
        range(shape.max_scale, 0, -1), make_scorer("pixel-blur", shape).score(images), strict=True
    ):
        for image, importance in zip(images, found, strict=True):
            expected = pixels.pixel_blur(image, scale, patch << scale)
            np.testing.assert_allclose(importance, expected, rtol=1e-6, atol=1e-6)


def test_pixel_blur_of_a_flat_image_is_exactly_zero():
    flat = np.full((1, 256, 256, 3), 77, np.uint8)
    assert all((level == 0).all() for level in make_scorer("pixel-blur", geometry()).score(flat))


@pytest.mark.parametrize("name", ["pixel-blur", "random"])
def test_an_image_scores_the_same_in_any_batch(name, square):
    scorer = make_scorer(name, geometry())
    together = scorer.score(square)
    for number, image in enumerate(square):
        for level, alone in zip(together, scorer.score(image[None]), strict=True):
            np.testing.assert_array_equal(level[number], alone[0])


def test_random_depends_on_the_seed_and_on_the_image(square):
    scores = [make_scorer("random", geometry(), seed=seed).score(square)[1] for seed in (0, 1)]
    assert (scores[0] != scores[1]).mean() > 0.99
    assert (scores[0][0] != scores[0][1]).mean() > 0.99
    assert 0 <= scores[0].min()
    assert scores[0].max() < 1
    assert abs(scores[0].mean() - 0.5) < 0.1


def test_random_scores_are_pinned():
    image = np.zeros((1, 128, 128, 3), np.uint8)
    coarse, _ = make_scorer("random", geometry(128, 128), seed=3).score(image)
    expected = [0.2581133246421814, 0.7915343642234802, 0.5988836884498596, 0.991263747215271]
    np.testing.assert_array_equal(coarse.ravel(), np.array(expected, np.float32))


def test_uniform_has_no_patches_to_score():
    assert (
        make_scorer("uniform", geometry(max_patch_size=16)).score(np.zeros((2, 256, 256, 3))) == []
    )


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_can_be_made_again_from_its_parameters(name, square):
    kind = SCORERS[name]
    shape = geometry(max_patch_size=16) if name == "uniform" else geometry()
    beside: dict[str, Any] = (
        {"network": find_network("efficientnet-lite0")} if kind.uses_network else {}
    )
    hints: Any = {"grad-cam": [985, 985, 425, 425], "precomputed": [np.eye(16)] * 4}.get(name)
    scorer = make_scorer(name, shape, **beside)
    again = make_scorer(name, shape, **beside, **scorer.parameters)
    assert again.as_json() == scorer.as_json()
    for first, second in zip(scorer.score(square, hints), again.score(square, hints), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_accepts_an_empty_batch(name):
    kind = SCORERS[name]
    shape = geometry(max_patch_size=16) if name == "uniform" else geometry()
    beside: dict[str, Any] = (
        {"network": find_network("efficientnet-lite0")} if kind.uses_network else {}
    )
    maps = make_scorer(name, shape, **beside).score(np.zeros((0, 256, 256, 3), np.uint8), [])
    expected = [] if name == "uniform" else [(0, 4, 4), (0, 8, 8)]
    assert [level.shape for level in maps] == expected


def test_every_scorer_describes_itself():
    for name, kind in SCORERS.items():
        assert kind.name == name
        assert kind.summary
        assert kind.cost
        assert set(kind.option_names()) <= {f.name for f in fields(quadpipe.TokenizerConfig)}
        assert kind.label_aware <= bool(kind.hint)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("nonsense", geometry(), "unknown scorer 'nonsense'; use one of saliency"),
        ("uniform", geometry(), "give max_patch_size 16, equal to patch_size, and 256 tokens"),
        ("pixel-blur", geometry(max_patch_size=16), "nothing to score; use scorer uniform"),
        (
            "pixel-blur",
            geometry(4096, 4096, 16, 4096),
            "cannot sum patches of 4096 pixels exactly",
        ),
    ],
)
def test_invalid_scorers_are_refused_with_the_next_step(name, shape, message):
    with pytest.raises(ConfigError, match=message):
        make_scorer(name, shape)


def test_every_option_of_a_scorer_is_one_of_the_configuration():
    options = {name for scorer in SCORERS.values() for name in scorer.option_names()}
    assert {"backbone", "scorer_stride", "seed"} <= options
    assert options <= {item.name for item in fields(quadpipe.TokenizerConfig)}
