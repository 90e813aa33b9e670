"""Previews beside the tokens: `--preview`."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import quadpipe
from forging import make_dataset, members_of
from quadpipe.errors import ConfigError
from quadpipe.job.reproduce import Reproducer
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def bare(image_folder, tmp_path_factory):
    return tokenized(image_folder, tmp_path_factory.mktemp("bare") / "out")


@pytest.fixture(scope="module")
def with_previews(image_folder, tmp_path_factory):
    return tokenized(image_folder, tmp_path_factory.mktemp("previews") / "out", preview=64)


def tokenized(images, out, **options):
    given: dict[str, Any] = {"image_size": (128, 256), "tokens": 32, "limit": 6, "split": "train"}
    quadpipe.tokenize(images, out, in_process=True, **given | options)
    return out


def test_each_sample_has_a_small_picture_of_its_crop(bare, with_previews):
    members, others = (members_of(out / "train-000000.tar") for out in (with_previews, bare))
    previews = {name: data for name, data in members.items() if name.endswith(".preview.jpg")}
    assert {name: data for name, data in members.items() if name not in previews} == others
    samples = list(quadpipe.Dataset(with_previews).samples("train"))
    assert len(previews) == len(samples) == 6
    for sample in samples:
        picture = Image.open(io.BytesIO(previews[f"{sample.key}.preview.jpg"]))
        assert (picture.format, picture.size) == ("JPEG", (64, 32))
        shown = Image.fromarray(sample.mosaic.rebuild()).resize(picture.size)
        assert np.abs(np.asarray(picture, int) - np.asarray(shown, int)).mean() < 20


def test_the_plan_and_the_manifest_name_the_previews(image_folder, with_previews, bare):
    assert quadpipe.Dataset(with_previews).manifest.preview == 64
    assert quadpipe.Dataset(bare).manifest.preview is None
    assert b"preview" not in (bare / ".quadpipe/plan.json").read_bytes()
    with pytest.raises(ConfigError, match=r"planned differently: dataset.preview was 64, now null"):
        tokenized(image_folder, with_previews)


def test_previews_are_made_again_with_the_same_bytes(image_folder, with_previews):
    reproduced = Reproducer(quadpipe.Dataset(with_previews), image_folder)
    assert [problem for _, found in reproduced.check(6) for problem in found] == []
    assert list(verify(quadpipe.Dataset(with_previews))) == []


def test_a_preview_is_not_larger_than_the_image(tmp_path):
    out = make_dataset(tmp_path, preview=64)
    members = members_of(out / "train-000000.tar")
    assert Image.open(io.BytesIO(members["0000000000.preview.jpg"])).size == (32, 32)


def test_copies_keep_previews(image_folder, with_previews, bare, tmp_path):
    quadpipe.copy(with_previews, tmp_path / "smaller", tokens=20, in_process=True)
    again = tokenized(image_folder, tmp_path / "again", tokens=20, preview=64)
    for name in ("train-000000.tar", "train.index.npy"):
        assert (tmp_path / "smaller" / name).read_bytes() == (again / name).read_bytes()
    assert quadpipe.Dataset(tmp_path / "smaller").manifest.preview == 64


def test_a_join_with_a_dataset_without_previews_has_none(with_previews, bare, tmp_path):
    other = tmp_path / "other"
    quadpipe.copy(bare, other, samples=2, in_process=True)
    joined = quadpipe.copy([with_previews, other], tmp_path / "joined", in_process=True)
    assert joined.manifest.preview is None
    names = members_of(tmp_path / "joined/train-000000.tar")
    assert not [name for name in names if "preview" in name]
