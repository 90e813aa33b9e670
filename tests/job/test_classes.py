"""`--classes`: datasets that are made separately have the same class indices."""

import shutil
from pathlib import Path

import pytest
from job_runs import tokenize_small as tokenize

import quadpipe
from quadpipe.errors import ConfigError, ShardError, SourceError


@pytest.fixture(scope="module")
def training(image_folder, tmp_path_factory) -> quadpipe.Dataset:
    """Classes flower, temple, zebra."""
    return tokenize(image_folder, tmp_path_factory.mktemp("training") / "out", limit=9)


@pytest.fixture
def zebras(image_folder, tmp_path) -> Path:
    """Images of one of the classes, for a separate dataset."""
    return shutil.copytree(image_folder / "zebra", tmp_path / "val" / "zebra").parent


@pytest.mark.parametrize("given", ["folder", "manifest", "url", "names"])
def test_a_dataset_made_separately_has_the_given_classes(given, training, zebras, tmp_path):
    folder = training.folder.root
    classes = {
        "folder": folder,
        "manifest": folder / "dataset.json",
        "url": f"file://{folder}",
        "names": tmp_path / "names.txt",
    }[given]
    (tmp_path / "names.txt").write_text("flower\ntemple\nzebra\n")
    dataset = tokenize(zebras, tmp_path / "out", split="val", classes=classes)
    assert dataset.manifest.classes == training.manifest.classes
    assert {sample.label for sample in dataset.samples("val")} == {2}
    # Resumes with the same classes, and with no others.
    tokenize(zebras, tmp_path / "out", split="val", classes=classes)
    with (
        pytest.warns(UserWarning, match="all images are of one class, 'zebra'"),
        pytest.raises(ConfigError, match="classes were 3, now 1"),
    ):
        tokenize(zebras, tmp_path / "out", split="val")


def test_class_names_that_are_not_text_match_too(image_folder, zebras, tmp_path):
    odd = zebras.rename(tmp_path / "odd") / "50%\n"
    (odd.parent / "zebra").rename(odd)
    shutil.copytree(image_folder / "temple", odd.parent / "a")
    dataset = tokenize(odd.parent, tmp_path / "first")
    shutil.rmtree(odd.parent / "a")
    again = tokenize(odd.parent, tmp_path / "second", classes=tmp_path / "first")
    assert again.manifest.classes == dataset.manifest.classes == ["50%25%0A", "a"]


def test_classes_that_cannot_be_read_are_refused(training, image_folder, zebras, tmp_path):
    tokenize(image_folder, tmp_path / "unlabelled", use_labels=False, limit=1)
    (tmp_path / "few.txt").write_text("flower\n")
    for given, error, message in (
        (tmp_path / "nowhere.txt", SourceError, "nowhere.txt does not exist; give a file of class"),
        (image_folder, ShardError, "is not a finished dataset"),
        (tmp_path / "unlabelled", ConfigError, "has no labels; give another dataset"),
        (tmp_path / "few.txt", SourceError, "'zebra'; add them at its end"),
    ):
        with pytest.raises(error, match=message):
            tokenize(zebras, tmp_path / "out", classes=given)
    assert not (tmp_path / "out").exists()
