"""`croissant.json`, as mlcroissant 1.1.1 validates and reads it."""

import json
from dataclasses import replace
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import quadpipe
from forging import make_dataset
from quadpipe.shards import croissant as room
from quadpipe.shards.croissant import CONTEXT, croissant, read_croissant
from quadpipe.shards.reader import Dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder = make_dataset(tmp_path_factory.mktemp("croissant"), views=2, name="Noise", preview=16)
    return Dataset(folder)


@pytest.fixture
def document(dataset) -> dict[str, Any]:
    return json.loads((Path(dataset.folder.root) / "croissant.json").read_bytes())


def test_it_is_written_by_the_job_and_by_copies_alike(dataset, tmp_path):
    written = (Path(dataset.folder.root) / "croissant.json").read_bytes()
    assert read_croissant(dataset.folder, dataset.manifest) == written
    quadpipe.copy(dataset.folder.root, tmp_path / "whole")
    assert (tmp_path / "whole/croissant.json").read_bytes() == written
    quadpipe.copy(dataset.folder.root, tmp_path / "named", name="Other")
    assert json.loads((tmp_path / "named/croissant.json").read_bytes())["name"] == "Other"
    smaller = quadpipe.copy(dataset.folder.root, tmp_path / "made", tokens=10, in_process=True)
    assert smaller.manifest.fingerprint in (tmp_path / "made/croissant.json").read_text()


def test_all_shards_and_lists_have_their_checksums(dataset, document):
    root = Path(dataset.folder.root)
    files = {
        each["contentUrl"]: each["sha256"]
        for each in document["distribution"]
        if each["@type"] == "cr:FileObject"
    }
    assert files == {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in root.iterdir()
        if path.suffix in (".tar", ".jsonl")
    }


def test_each_member_is_a_set_of_files_in_the_shards(dataset, document):
    sets = {e["@id"]: e for e in document["distribution"] if e["@type"] == "cr:FileSet"}
    members = [*("tokens.npy", "nodes.npy", "importance.npy", "preview.jpg", "cls", "json")]
    assert set(sets) == {f"files/{split}/{name}" for split in ("train", "val") for name in members}
    inside = [each["@id"] for each in sets["files/train/cls"]["containedIn"]]
    assert inside == [shard.name for shard in dataset.shards("train")]
    assert sets["files/val/preview.jpg"]["encodingFormat"] == "image/jpeg"


def test_records_are_labels_classes_pictures_and_descriptions_by_key(document):
    sets = {each["@id"]: each for each in document["recordSet"]}
    kinds = ("preview.jpg", "cls", "json")
    assert set(sets) == {"classes", *(f"{s}-{kind}" for s in ("train", "val") for kind in kinds)}
    assert sets["classes"]["data"][1] == {"classes/cls": 1, "classes/name": "right"}
    label = sets["train-cls"]["field"][1]
    assert label["dataType"] == "sc:Integer"
    assert label["source"]["fileSet"] == {"@id": "files/train/cls"}


def test_kept_members_are_described_with_the_types_of_the_card(dataset):
    members = {
        "bbox.json": "boxes", "depth.npy": "bytes", "embedding.f16": "bytes", "id": "bytes",
        "original.json": "bytes", "seg.png": "mask", "txt": "bytes",
    }  # fmt: skip
    manifest = replace(dataset.manifest, members=members)
    document = json.loads(read_croissant(dataset.folder, manifest))
    sets = {e["@id"]: e for e in document["distribution"] if e["@type"] == "cr:FileSet"}
    assert {name: sets[f"files/train/{name}"]["encodingFormat"] for name in members} == {
        "bbox.json": "application/json",
        "depth.npy": "application/x-npy",
        "embedding.f16": "application/octet-stream",
        "id": "text/plain",
        "original.json": "application/json",
        "seg.png": "image/png",
        "txt": "text/plain",
    }
    records = {each["@id"]: each["field"][-1]["dataType"] for each in document["recordSet"]}
    found = {name: records.get(f"val-{name}") for name in members}
    assert found == {
        "bbox.json": "sc:Text",
        "depth.npy": None,
        "embedding.f16": None,
        "id": "sc:Integer",
        "original.json": "sc:Text",
        "seg.png": "sc:ImageObject",
        "txt": "sc:Text",
    }


def test_a_set_holds_no_member_whose_name_ends_like_its_own(document):
    sets = {e["@id"]: e["includes"] for e in document["distribution"] if "includes" in e}
    names = ["0000000012.json", "in/0000000012-v01.json", "0000000012.original.json"]
    found = [any(fnmatch(name, each) for each in sets["files/train/json"]) for name in names]
    assert found == [True, True, False]


def test_the_context_is_that_of_version_1_0(document):
    assert document["@context"] == CONTEXT
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    # mlcroissant looks for https://schema.org/containedIn then.
    assert "containedIn" not in CONTEXT
    assert CONTEXT["recordSet"] == "cr:recordSet"
    assert len(CONTEXT) == 36


def test_of_very_many_shards_only_the_lists_are_described(dataset, monkeypatch):
    monkeypatch.setattr(room, "MOST_SHARDS", 3)
    found = json.loads(read_croissant(dataset.folder, dataset.manifest))
    assert [each["@id"] for each in found["distribution"]] == [
        *("train.shards.jsonl", "val.shards.jsonl"),
    ]
    assert [each["@id"] for each in found["recordSet"]] == ["classes"]
    bare = json.loads(croissant(replace(dataset.manifest, classes=None), {}))
    assert bare["recordSet"] == []
