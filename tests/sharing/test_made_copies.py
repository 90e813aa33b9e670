"""Copies with fewer tokens or another codec: the bytes that `tokenize` would have written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_cli

import quadpipe
from forging import edit_json, make_dataset, members_of, remove_index, reseal, tar_of
from quadpipe.errors import ConfigError, JobError, OutputError
from quadpipe.shards.verify import verify

OPTIONS: dict[str, Any] = {"samples_per_shard": 4, "val_share": 0.2, "views": 2}


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory) -> Path:
    """Photographs, one of them broken."""
    root = Path(shutil.copytree(image_folder, tmp_path_factory.mktemp("photographs") / "images"))
    (root / "zebra" / "broken.jpg").write_bytes(b"no image")
    return root


def tokenize(images: Path, out: Path, **options: Any) -> Path:
    quadpipe.tokenize(images, out, in_process=True, max_rejected="1", **OPTIONS | options)
    return out


@pytest.fixture(scope="module")
def source(images, tmp_path_factory) -> Path:
    return tokenize(images, tmp_path_factory.mktemp("source") / "shards", tokens=196)


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("noise"))


def payload(files: dict[str, bytes]) -> dict[str, bytes]:
    """Shards, lists, indexes and gains."""
    kinds = (".tar", ".jsonl", ".npy")
    return {n: d for n, d in files.items() if n.endswith(kinds) and not n.startswith(".")}


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 64},
        {"tokens": 100, "codec": "jpg"},
        {"codec": "jpg", "quality": 60},
        {"tokens": 16, "codec": "png"},
        {"views": 1},
    ],
)
def test_a_smaller_copy_has_the_bytes_of_tokenizing_again(
    options, source, images, files_of, tmp_path
):
    made = quadpipe.copy(source, tmp_path / "copy", in_process=True, **options)
    again = tokenize(images, tmp_path / "again", **{"tokens": 196} | options)
    expected = payload(files_of(again))
    assert payload(files_of(tmp_path / "copy")) == expected
    assert len(expected) > 12
    assert list(verify(made)) == []
    theirs = quadpipe.Dataset(again).manifest
    assert made.manifest.fingerprint == theirs.fingerprint
    assert made.manifest.splits == theirs.splits
    assert sum(split.rejected for split in theirs.splits.values()) == 1


def test_ray_makes_the_same_bytes(source, files_of, tmp_path):
    quadpipe.copy(source, tmp_path / "here", tokens=64, in_process=True)
    quadpipe.copy(source, tmp_path / "ray", tokens=64, workers=2)
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")


def test_the_source_is_recorded(source, tmp_path):
    given: dict[str, Any] = {"tokens": 64, "in_process": True}
    first = quadpipe.copy(source, tmp_path / "a", name="One", license="mit", **given)
    parent = quadpipe.Dataset(source).manifest.fingerprint
    assert [entry["fingerprint"] for entry in first.manifest.parents] == [parent]
    second = quadpipe.copy(tmp_path / "a", tmp_path / "b", tokens=16, in_process=True)
    (entry,) = second.manifest.parents
    assert (entry["name"], entry["license"]) == ("One", "mit")
    assert [above["fingerprint"] for above in entry["parents"]] == [parent]
    assert (second.manifest.name, second.manifest.license) == ("One", "mit")
    card = (tmp_path / "b" / "README.md").read_text()
    assert f"Made from: One, fingerprint {first.manifest.fingerprint}, license mit (from" in card
    direct = quadpipe.copy(source, tmp_path / "c", tokens=16, in_process=True)
    assert direct.manifest.fingerprint == second.manifest.fingerprint
    edit_json(tmp_path / "b" / "dataset.json", parents=[{"fingerprint": 5}])
    with pytest.raises(Exception, match="parents needs a fingerprint of each dataset"):
        quadpipe.Dataset(tmp_path / "b")


def test_a_copy_of_jpegs_says_that_they_are_encoded_again(source, tmp_path):
    quadpipe.copy(source, tmp_path / "jpg", codec="jpg", in_process=True)
    (tmp_path / "jpg" / "README.md").write_text("mine")
    again = run_cli("copy", tmp_path / "jpg", tmp_path / "less", "--tokens", 64, "--in-process")
    assert again.returncode == 0, again.stderr
    assert "JPEGs: their pixels are encoded again" in again.stderr
    assert "README.md was edited by hand" in again.stderr
    made = quadpipe.Dataset(tmp_path / "less")
    assert list(verify(made)) == []
    assert made.manifest.codec == {"name": "jpg", "quality": 95}
    raw = run_cli("copy", tmp_path / "jpg", tmp_path / "pixels", "--codec", "raw", "--in-process")
    assert "JPEGs: the copy has their pixels, not those of the images" in raw.stderr
    whole = run_cli("copy", source, tmp_path / "raw", "--tokens", 64, "--in-process")
    assert "JPEG" not in whole.stderr


def test_jpegs_that_stay_are_not_encoded_again(source, tmp_path):
    quadpipe.copy(source, tmp_path / "jpg", codec="jpg", in_process=True)
    quadpipe.copy(tmp_path / "jpg", tmp_path / "few", samples=3, in_process=True)
    kept, all_of_them = (
        {
            bytes(data)
            for tar in (tmp_path / name).glob("*.tar")
            for member, data in members_of(tar).items()
            if member.endswith(".jpg")
        }
        for name in ("few", "jpg")
    )
    assert len(kept) == 9  # two views of the split train, one of val
    assert kept <= all_of_them


def test_a_finished_copy_is_left_alone_and_a_damaged_shard_is_made_again(noise, files_of, tmp_path):
    out = tmp_path / "out"
    quadpipe.copy(noise, out, tokens=10, in_process=True)
    expected = files_of(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    quadpipe.copy(noise, out, tokens=10, in_process=True)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == times
    data = bytearray((out / "train-000001.tar").read_bytes())
    data[700] ^= 1
    (out / "train-000001.tar").write_bytes(data)
    quadpipe.copy(noise, out, tokens=10, in_process=True)
    assert files_of(out) == expected
    changed = {p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {"train-000001.tar"}
    with pytest.raises(OutputError, match="holds another dataset"):
        quadpipe.copy(noise, out, tokens=7, in_process=True)
    assert files_of(out) == expected


def test_unknown_members_are_kept(noise, tmp_path):
    source = Path(shutil.copytree(noise, tmp_path / "source"))
    name = "train-000001.tar"
    members = []
    for member, data in members_of(source / name).items():
        members.append((member, data))
        if member.endswith(".json"):
            members.append((f"{member.partition('.')[0]}.txt", b"a caption"))
    reseal(source, name, tar_of(members))
    made = quadpipe.copy(source, tmp_path / "out", tokens=10, in_process=True)
    captions = [sample.extra for sample in made.samples("train")]
    assert captions.count({"txt": b"a caption"}) == 4


def test_a_dataset_without_an_index_is_copied_with_one(noise, files_of, tmp_path):
    old = Path(shutil.copytree(noise, tmp_path / "old"))
    remove_index(old)
    quadpipe.copy(old, tmp_path / "a", tokens=10, in_process=True)
    quadpipe.copy(noise, tmp_path / "b", tokens=10, in_process=True)
    assert payload(files_of(tmp_path / "a")) == payload(files_of(tmp_path / "b"))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_damaged_source_fails_its_shards_and_publishes_nothing(indexed, noise, tmp_path):
    damaged = Path(shutil.copytree(noise, tmp_path / "damaged"))
    if not indexed:
        remove_index(damaged)
    data = bytearray((damaged / "train-000002.tar").read_bytes())
    data[700] ^= 1
    (damaged / "train-000002.tar").write_bytes(data)
    with pytest.raises(JobError, match=r"1 of 5 shards could not .*\n.*train-000002\.tar: .*chec"):
        quadpipe.copy(damaged, tmp_path / "out", tokens=10, in_process=True)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not (tmp_path / "out" / "train-000002.tar").exists()


def test_options_that_do_not_fit_are_refused(noise, tmp_path):
    for options, message in (
        ({"tokens": 19}, "holds 16 tokens per image, not 19; give at most"),
        ({"views": 2}, "holds 1 view per image, not 2; give at most"),
        ({"tokens": 11}, "11 tokens cannot tile .*; use 10 or 13"),
        ({"codec": "jpg"}, "codec jpg needs a patch_size that is a multiple of 8"),
        ({"codec": "png", "quality": 5}, "quality is for codec jpg, not png"),
        ({"tokens": 10, "provenance": True}, "provenance is that of the source; omit it"),
        ({"tokens": 10, "workers": 2, "in_process": True}, "in_process makes one shard at a time"),
    ):
        with pytest.raises(ConfigError, match=message):
            quadpipe.copy(noise, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_document_of_a_copy_names_no_places(source, tmp_path):
    quadpipe.copy(source, tmp_path / "out", tokens=64, in_process=True)
    assert not list((tmp_path / "out" / ".quadpipe").rglob("*.jsonl"))  # logs name hosts
    text = (tmp_path / "out" / ".quadpipe" / "copy.json").read_text()
    assert str(tmp_path.parent) not in text
    assert json.loads(text)["options"] == {"classes": None, "tokens": 64}


def test_mosaics_of_a_copy_are_prefixes(source, tmp_path):
    made = quadpipe.copy(source, tmp_path / "out", tokens=64, in_process=True)
    pairs = zip(quadpipe.Dataset(source).samples("val"), made.samples("val"), strict=True)
    for before, after in pairs:
        one, other = before.mosaic.leaves(40), after.mosaic.leaves(40)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(before.mosaic.gains[:16], after.mosaic.gains)
