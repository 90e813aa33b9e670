"""Node arrays that are not a quadtree are refused."""

import numpy as np
import pytest

from quadpipe.errors import ShardError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import grow
from quadpipe.shards.members import check_nodes


@pytest.fixture
def nodes() -> tuple[np.ndarray, Geometry]:
    geometry = Geometry(height=128, width=192, patch_size=16, max_patch_size=64)
    importance = np.random.default_rng(0).random((1, geometry.splittable), np.float32)
    return grow(importance, geometry, 36).nodes[0].copy(), geometry


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (0, 0, 1, "first nodes are not the largest patches"),
        (0, 2, 1, "first nodes are not the largest patches"),
        (6, 0, 99, "not followed by its quarters"),
        (8, 3, 5, "split steps are not 0 to 9, each once"),
        (0, 3, 1000, "split steps are not 0 to 9, each once"),
        (-1, 3, -2, "split steps are not 0 to 9, each once"),
    ],
)
def test_nodes_that_are_not_a_quadtree_are_refused(nodes, row, column, value, message):
    array, geometry = nodes
    check_nodes(array, geometry, 10)
    array[row, column] = value
    with pytest.raises(ShardError, match=message):
        check_nodes(array, geometry, 10)


def test_splits_before_their_patch_or_of_the_smallest_scale_are_refused(nodes):
    array, geometry = nodes
    steps = array[:, 3].copy()
    deep = int(np.flatnonzero(steps >= 0)[-1])
    first = int(np.flatnonzero(steps == 0)[0])
    array[deep, 3], array[first, 3] = 0, steps[deep]
    with pytest.raises(ShardError, match="split before it exists"):
        check_nodes(array, geometry, 10)
    one_root = Geometry(height=64, width=64, patch_size=16, max_patch_size=64)
    array = grow(np.array([[9, 8, 7, 0, 0]], np.float32), one_root, 10).nodes[0]
    assert array[[2, 5], 2:].tolist() == [[1, 2], [0, -1]]
    array[[2, 5], 3] = -1, 2
    with pytest.raises(ShardError, match="smallest scale is split"):
        check_nodes(array, one_root, 3)
