"""The scenes of the benchmarks: disjoint material, the same scenes every time."""

import argparse

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def scenes(monkeypatch):
    import sys
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import scenes

    yield scenes
    del sys.modules["scenes"]


@pytest.fixture
def material(scenes, tmp_path):
    """Two classes of four cut-outs and six photographs, each of a color of its own: the green of a
    cut-out is its number, photographs are blue."""
    for label, name in enumerate(("disc", "square")):
        (tmp_path / "objects" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.zeros((40, 40, 4), np.uint8)
            pixels[5:35, 8:32] = (200, 40 * number, 0, 255)
            Image.fromarray(pixels).save(tmp_path / f"objects/{name}/{label}{number}.png")
    (tmp_path / "backgrounds").mkdir()
    for number in range(6):
        color = (0, 0, 100 + 20 * number)
        Image.new("RGB", (300, 280), color).save(tmp_path / f"backgrounds/{number}.png")
    return scenes.load(
        argparse.Namespace(
            data=tmp_path, objects=tmp_path / "objects", backgrounds=tmp_path / "backgrounds"
        )
    )


def numbers_of_cut_outs(found) -> set[int]:
    """From the ratio of green to red, which a change of brightness keeps; saturation changes all
    colors alike, so that their order is kept."""
    ratios = []
    for image, mask in zip(found.images, found.masks, strict=True):
        red, green, blue = image[mask].mean(axis=0)
        ratios.append((green - blue) / (red - blue))
    return {round(5 * ratio) for ratio in ratios}


def test_test_scenes_share_neither_cut_outs_nor_photographs_with_tuning_scenes(material):
    tuning = material.coverage_set("tuning", 60, seed=0)
    test = material.coverage_set("test", 60, seed=0)
    assert numbers_of_cut_outs(tuning) == {0, 2}
    assert numbers_of_cut_outs(test) == {1, 3}
    assert set(tuning.photographs) == {0, 1, 3, 4}
    assert set(test.photographs) == {2, 5}


def test_a_scene_depends_on_its_number_and_the_seed(material):
    few, many = (material.coverage_set("test", count, seed=3) for count in (4, 9))
    other = material.coverage_set("test", 4, seed=4)
    assert (few.images == many.images[:4]).all()
    assert (few.images != other.images).any()


def test_the_mask_is_where_the_object_was_pasted(material):
    for _, scene in material.labelled_scenes("large", "train", 6, seed=0):
        changed = (scene.image != scene.background).any(axis=2)
        assert changed[scene.mask].all()
        assert changed[~scene.mask].sum() < 0.2 * scene.mask.sum()  # soft edges
        rows, columns = scene.mask.any(axis=1).sum(), scene.mask.any(axis=0).sum()
        assert 0.55 * 256 < max(rows, columns) < 0.97 * 256


def test_hard_scenes_are_the_test_scenes_with_less_contrast(material):
    test, hard = (material.coverage_set(name, 8, seed=0) for name in ("test", "hard"))
    assert (test.masks == hard.masks).all()
    assert (test.photographs == hard.photographs).all()

    def contrast(found):
        inside = [image[mask].mean(axis=0) for image, mask in zip(found.images, found.masks)]  # noqa: B905
        around = [image[~mask].mean(axis=0) for image, mask in zip(found.images, found.masks)]  # noqa: B905
        return np.abs(np.array(inside) - around).mean()

    assert contrast(hard) == pytest.approx(0.4 * contrast(test), rel=0.1)


def test_setting_small_has_one_cut_out_per_class_and_held_out_photographs(material):
    for split, photographs in (("train", {0, 1, 3, 4}), ("val", {2, 5})):
        found = list(material.labelled_scenes("small", split, 40, seed=0))
        assert {scene.photograph for _, scene in found} == photographs
        for _, scene in found:
            red, green, blue = scene.image[scene.mask].mean(axis=0)
            assert abs(green - blue) < 10  # of the first cut-out, which has no green
            assert red > green + 50


@pytest.mark.parametrize(
    ("objects", "backgrounds", "message"),
    [
        (["a/1.png", "a/2.png"], [], "two class folders"),
        (["a/1.png", "a/2.png", "b/1.png"], [], "b needs two images"),
        (["a/1.png", "a/2.png", "b/1.png", "b/2.png"], ["1.png", "2.png"], "three photographs"),
    ],
)
def test_too_little_material_is_named(scenes, tmp_path, objects, backgrounds, message):
    folders = {"objects": objects, "backgrounds": backgrounds}
    for folder, names in folders.items():
        (tmp_path / folder).mkdir()
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            Image.new("RGBA", (8, 8), "red").save(path)
    places = {folder: tmp_path / folder for folder in folders}
    with pytest.raises(SystemExit, match=message):
        scenes.load(argparse.Namespace(data=tmp_path, **places))


def test_a_package_that_cannot_be_fetched_leaves_nothing_behind(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="give folders of your own"):
        scenes.fetch_objects(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
