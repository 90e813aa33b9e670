import pytest

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry


def make(height=256, width=256, patch_size=16, max_patch_size=64) -> Geometry:
    return Geometry(
        height=height, width=width, patch_size=patch_size, max_patch_size=max_patch_size
    )


def test_the_default_geometry_has_16_roots_and_80_splittable_patches():
    geometry = make()
    assert (geometry.roots, geometry.splittable, geometry.max_tokens) == (16, 80, 256)
    assert geometry.num_splits(100) == 28
    assert geometry.num_nodes(100) == 128


@pytest.mark.parametrize(("tokens", "advice"), [(99, "97 or 100"), (3, "16 or 19"), (400, "256$")])
def test_an_illegal_budget_names_the_nearest_legal_ones(tokens, advice):
    with pytest.raises(ConfigError, match=f"use {advice}"):
        make().num_splits(tokens)


def test_images_need_not_be_square_and_patches_may_be_14():
    geometry = make(height=112, width=224, patch_size=14, max_patch_size=56)
    assert geometry.grid(0) == (8, 16)
    assert geometry.roots == 8


def test_children_tile_their_parent():
    geometry = make(height=128, width=192)
    for parent, children in enumerate(geometry.children):
        x, y, scale = geometry.boxes[parent]
        half = 1 << (scale - 1)
        assert geometry.boxes[children].tolist() == [
            [x + dx * half, y + dy * half, scale - 1] for dy in (0, 1) for dx in (0, 1)
        ]


def test_boxes_count_every_patch_of_every_scale_once():
    geometry = make(height=128, width=192)
    boxes = {tuple(box) for box in geometry.boxes.tolist()}
    assert len(boxes) == len(geometry.boxes) == geometry.splittable + geometry.max_tokens


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_patch_size": 48}, "power of two; use one of 16, 32, 64, 128"),
        ({"max_patch_size": 8}, "power of two"),
        ({"height": 250}, "height 250 is not a multiple of max_patch_size 64; use 192 or 256"),
        ({"width": 32}, "width 32 is not a multiple of max_patch_size 64; use 64"),
        ({"patch_size": 0}, "patch_size 0 is not above 0"),
        ({"height": 256.0}, "height must be a whole number, not 256.0"),
        ({"width": True}, "width must be a whole number, not True"),
        ({"height": 2048, "width": 2048, "patch_size": 1}, "4,194,304 patches of 1, more than"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_advice(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make(**sizes)
