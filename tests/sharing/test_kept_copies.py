"""Every kind of copy carries the kept members."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from painted import KEPT, OPTIONS, make_source

import quadpipe
from forging import edit_manifest
from quadpipe.errors import ConfigError
from quadpipe.shards.verify import verify

KINDS = {"txt": "bytes", "original.json": "bytes", "bbox.json": "boxes", "seg.png": "mask"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quadpipe.tokenize(make_source(root / "source"), root / "out", views=2, **OPTIONS | KEPT)
    return root / "out"


def extras(location: Path) -> dict[tuple[str, int], dict[str, Any]]:
    samples = quadpipe.Dataset(location).samples("train")
    return {(sample.info["path"], sample.info["view"]): sample.extra for sample in samples}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 8),
        ({"name": "Painted"}, 8),
        ({"tokens": 15}, 8),
        ({"codec": "png"}, 8),
        ({"codec": "jpg", "tokens": 30}, 8),
        ({"classes": "1"}, 4),
        ({"samples": 5}, 5),
        ({"shards": 1}, 4),
        ({"labels": "labels.csv"}, 8),
    ],
)
def test_a_copy_has_the_members_of_its_source(options, count, shards, tmp_path):
    if "labels" in options:
        rows = "".join(f"painted.tar/{n:03d}.png,{'new' if n else 'old'}\n" for n in range(8))
        (tmp_path / "labels.csv").write_text(rows)
        options = {"labels": tmp_path / "labels.csv"}
    made = quadpipe.copy(shards, tmp_path / "out", in_process=True, **options)
    before, after = extras(shards), extras(tmp_path / "out")
    assert len(after) == 2 * count
    assert after == {place: before[place] for place in after}
    assert made.manifest.members == KINDS
    assert list(verify(made)) == []


def test_joined_datasets_have_the_members_of_each(shards, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quadpipe.tokenize(
            make_source(tmp_path / "other", 4), tmp_path / "b", views=2,
            **OPTIONS | {"keep": ("id",), "boxes": ("bbox.json",)},
        )  # fmt: skip
    made = quadpipe.copy([shards, tmp_path / "b"], tmp_path / "out", in_process=True)
    assert made.manifest.members == KINDS | {"id": "bytes"}
    found = Counter(tuple(sample.extra) for sample in made.samples("train"))
    assert found[("bbox.json", "id")] == 8
    assert found[("bbox.json", "original.json", "seg.png", "txt")] == 14
    edit_manifest(tmp_path / "b", members={"bbox.json": "bytes", "id": "bytes"})
    with pytest.raises(ConfigError, match=r"holds bbox\.json as bytes, another source as boxes"):
        quadpipe.copy([shards, tmp_path / "b"], tmp_path / "again", in_process=True)
    edit_manifest(tmp_path / "b", members=None)
    made = quadpipe.copy([shards, tmp_path / "b"], tmp_path / "third", in_process=True)
    assert made.manifest.members is None
