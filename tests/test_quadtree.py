from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import (
    gains,
    grow,
    join_maps,
    leaf_indices,
    splits_at_threshold,
    weight_scales,
)
from reference import heap

GOLDEN = Path(__file__).parent / "golden"


def sorted_boxes(boxes: np.ndarray) -> np.ndarray:
    return boxes[np.lexsort((boxes[:, 0], boxes[:, 1], boxes[:, 2]))]


def unit_geometry(maps: list[np.ndarray]) -> Geometry:
    """One pixel a smallest patch."""
    rows, columns = maps[0].shape[-2:]
    side = 2 ** len(maps)
    return Geometry(height=rows * side, width=columns * side, patch_size=1, max_patch_size=side)


def golden_names(file: str) -> list[str]:
    with np.load(GOLDEN / file) as arrays:
        return sorted({name.partition("/")[0] for name in arrays.files})


@pytest.mark.parametrize("name", golden_names("selection.npz"))
def test_leaves_equal_those_of_the_papers_code(name):
    size, patch, largest, tokens = map(int, name.split("_"))
    geometry = Geometry(height=size, width=size, patch_size=patch, max_patch_size=largest)
    with np.load(GOLDEN / "selection.npz") as arrays:
        scales = range(geometry.max_scale, 0, -1)
        maps = [arrays[f"{name}/importance_{patch << scale}"] for scale in scales]
        expected = arrays[f"{name}/leaves"]
    trees = grow(join_maps(maps, geometry, len(expected)), geometry, tokens)
    assert len(expected) == 8
    for nodes, leaves in zip(trees.nodes, expected, strict=True):
        chosen = leaf_indices(nodes, geometry.roots, geometry.num_splits(tokens))
        np.testing.assert_array_equal(sorted_boxes(nodes[chosen, :3]), leaves)


@pytest.mark.parametrize("case", golden_names("ties.npz"))
def test_equal_importances_go_coarser_first_then_in_raster_order(case):
    with np.load(GOLDEN / "ties.npz") as arrays:
        depths = sum(name.startswith(f"{case}/importance") for name in arrays.files)
        maps = [arrays[f"{case}/importance_depth{depth}"][None] for depth in range(depths)]
        expected = arrays[f"{case}/order"]
    geometry = unit_geometry(maps)
    nodes = grow(join_maps(maps, geometry, 1), geometry, geometry.max_tokens).nodes[0]
    nodes = nodes[np.argsort(nodes[:, 3])]
    x, y, scale, _ = nodes[nodes[:, 3] >= 0].T
    np.testing.assert_array_equal(np.stack([depths - scale, y >> scale, x >> scale], 1), expected)


@st.composite
def random_maps(draw: st.DrawFn) -> list[np.ndarray]:
    depths = draw(st.integers(1, 4))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    # Few values make many ties; -0.0 and 0.0 are one value.
    values = draw(st.sampled_from([[0.0, -0.0, 1.0], [-2.5, 0.0, 3e-39, 1e30], list(range(9))]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    return [
        rng.choice(np.array(values, np.float32), (rows << depth, columns << depth))
        for depth in range(depths)
    ]


@settings(max_examples=150)
@given(random_maps(), st.data())
def test_the_sort_gives_the_order_of_the_heap(maps, data):
    geometry = unit_geometry(maps)
    splits = data.draw(st.integers(0, geometry.splittable))
    importance = join_maps([level[None] for level in maps], geometry, 1)
    trees = grow(importance, geometry, geometry.roots + 3 * splits)
    assert [tuple(node) for node in trees.nodes[0].tolist()] == heap.nodes(maps, splits)


@settings(max_examples=100)
@given(random_maps(), st.floats(-3, 9))
def test_a_threshold_keeps_a_prefix_of_the_split_order(maps, threshold):
    geometry = unit_geometry(maps)
    importance = join_maps([level[None] for level in maps], geometry, 1)
    trees = grow(importance, geometry, geometry.max_tokens)
    splits = splits_at_threshold(trees.importance[0], threshold)
    leaves = trees.nodes[0][leaf_indices(trees.nodes[0], geometry.roots, splits), :3]
    assert {tuple(box) for box in leaves.tolist()} == heap.leaves_above(maps, threshold)


def test_images_of_a_batch_do_not_affect_each_other():
    geometry = Geometry(height=128, width=192, patch_size=16, max_patch_size=64)
    importance = np.random.default_rng(0).random((5, geometry.splittable), np.float32)
    together = grow(importance, geometry, 30)
    for image in range(5):
        alone = grow(importance[image : image + 1], geometry, 30)
        np.testing.assert_array_equal(together.nodes[image], alone.nodes[0])
        np.testing.assert_array_equal(together.importance[image], alone.importance[0])


def test_nothing_to_split_gives_the_roots():
    geometry = Geometry(height=64, width=32, patch_size=16, max_patch_size=16)
    trees = grow(join_maps([], geometry, 3), geometry, 8)
    assert trees.nodes.shape == (3, 8, 4)
    assert trees.importance.shape == (3, 0)
    assert (trees.nodes[:, :, 2:] == [0, -1]).all()


def test_gains_never_increase():
    importance = np.array([5, 7, 3, 4, 3, 1], np.float32)
    assert gains(importance).tolist() == [5, 5, 3, 3, 3, 1]
    assert splits_at_threshold(importance, 3) == 5


def test_a_threshold_of_nan_is_refused():
    with pytest.raises(ConfigError, match="threshold is NaN"):
        splits_at_threshold(np.ones(3, np.float32), float("nan"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_importances_that_are_not_finite_are_refused(bad):
    geometry = Geometry(height=128, width=128, patch_size=16, max_patch_size=64)
    maps = [np.zeros((2, 2, 2), np.float32), np.zeros((2, 4, 4), np.float32)]
    maps[1][1, 3, 0] = bad
    with pytest.raises(ConfigError, match="importance of image 1 of the batch is not finite"):
        join_maps(maps, geometry, 2)


def test_maps_of_wrong_shapes_are_refused():
    geometry = Geometry(height=128, width=128, patch_size=16, max_patch_size=64)
    with pytest.raises(ConfigError, match=r"expected \[\(1, 2, 2\), \(1, 4, 4\)\]"):
        join_maps([np.zeros((1, 2, 2), np.float32)], geometry, 1)


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.sampled_from([(1, 1), (2, 3)]),
    st.floats(0.01, 100),
    st.integers(0, 2**32 - 1),
)
def test_importance_is_multiplied_by_the_weight_once_per_scale(scales, grid, weight, seed):
    rng = np.random.default_rng(seed)
    maps = [
        rng.standard_normal((2, grid[0] << level, grid[1] << level)).astype(np.float32)
        for level in range(scales)
    ]
    geometry = unit_geometry(maps)
    found = weight_scales(join_maps(maps, geometry, 2), geometry, weight)
    weighted = []
    for level, scale in zip(maps, range(scales, 0, -1), strict=True):
        factor = 1.0
        for _ in range(scale):
            factor *= weight
        weighted.append((level.astype(np.float64) * factor).astype(np.float32))
    np.testing.assert_array_equal(found, join_maps(weighted, geometry, 2))


def test_a_weight_that_float32_cannot_hold_is_refused():
    maps = [np.ones((1, 1, 1), np.float32), np.ones((1, 2, 2), np.float32)]
    geometry = unit_geometry(maps)
    with pytest.raises(ConfigError, match=r"scale_weight 1e\+30 makes importances too large"):
        weight_scales(join_maps(maps, geometry, 1), geometry, 1e30)
