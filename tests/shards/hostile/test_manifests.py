"""Manifests and other files of a dataset that were made to do harm are refused by every reader."""

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import MEGABYTE, findings, refused

import quadpipe
from forging import (
    READERS,
    edit_manifest,
    rewrite_shard_list,
)
from quadpipe.errors import ShardError
from quadpipe.files import LocalFolder


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"", b"5", b'{"views":5}', b"NaN"])
def test_invalid_markers_are_not_used(whole, dataset, data):
    for path in (dataset / ".quadpipe/markers/train").rglob("*.json"):
        path.write_bytes(data)
    for name in ("loader", "loader without its compiled reader"):
        READERS[name](dataset)
    assert len([line for line in findings(dataset) if "markers/train" in line]) == 4


def set_manifest(text: bytes) -> Callable[[Path], None]:
    def write(dataset: Path) -> None:
        (dataset / "dataset.json").write_bytes(text)

    return write


def in_manifest(**changes: Any) -> Callable[[Path], None]:
    return lambda dataset: edit_manifest(dataset, **changes)


def doubled(dataset: Path) -> None:
    """Every key twice, the first time with a value of another kind."""
    text = (dataset / "dataset.json").read_text()
    keys = ",".join(f"{json.dumps(key)}:[7]" for key in json.loads(text))
    (dataset / "dataset.json").write_text("{" + keys + "," + text.removeprefix("{"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_manifest(tokenizer__image_size=[2**40, 2**40]), "has a side above 16,384"),
        (in_manifest(tokenizer__image_size=[10**400, 32]), "has a side above 16,384"),
        (in_manifest(tokenizer__image_size=[-32, 32]), "height -32 is not above 0"),
        (in_manifest(tokenizer__image_size=[16384, 16384], tokenizer__patch_size=1,
                     tokenizer__max_patch_size=1), "more than 1,048,576; use a larger patch_size"),
        (in_manifest(tokenizer__patch_size=0), "patch_size 0 is not above 0"),
        (in_manifest(tokenizer__tokens=10**18), "1000000000000000000 tokens cannot tile"),
        (in_manifest(tokenizer__tokens=-5), "-5 tokens cannot tile"),
        (in_manifest(tokenizer__crop_pct=10**400), "crop_pct must be a number in range"),
        (in_manifest(tokenizer__crop_pct=float("nan")), "crop_pct must be a finite number"),
        (in_manifest(tokenizer__seed=2**64), "is not from 0 to"),
        (in_manifest(tokenizer__thresholds=[[8, 10**400]]), "thresholds must be a number in ra"),
        (in_manifest(samples_per_shard=0), "samples_per_shard 0 is out of range"),
        (in_manifest(splits__val__views=10**12, splits__val__rejected=4, splits__val__samples=0),
         "views 1000000000000 is above 100"),
        (in_manifest(splits__train__samples=10**400), "are not 1 views of"),
        (in_manifest(splits__train__shard_list="https://example.org/x"), "is not the name of its"),
        (in_manifest(splits__train__shard_list="/etc/passwd"), "is not the name of its"),
        (in_manifest(classes=["left", None]), "classes must be a list of names"),
        (in_manifest(classes=["left", {"a": 1}]), "classes must be a list of names"),
        (in_manifest(classes={"left": 0, "right": 1}), "classes must be a list of names"),
        (in_manifest(classes="ab"), "classes must be a list of names"),
        (in_manifest(classes=["left", "\ud800"]), "classes must be text in UTF-8"),
        (in_manifest(imaging_library={"name": "Pillow"}), "imaging_library needs a name"),
        (in_manifest(codec={"name": ["raw"]}), "name must be text"),
        (in_manifest(name={"a": 1}), "name must be text"),
        (set_manifest(b'{"format_version":"1.0","revision":1' + b"0" * 5000 + b"}"), ""),
        (set_manifest(b'{"a":' * 100_000), "cannot be used"),
        (set_manifest(b"\xff\xfe{"), "cannot be used"),
        (set_manifest(b""), "cannot be used"),
        (set_manifest(b"[1]"), "cannot be used"),
    ],
)  # fmt: skip
def test_manifests_with_impossible_values_are_refused_when_opened(dataset, change, message):
    change(dataset)
    refused(dataset, rf"dataset\.json cannot be used: .*{message}|dataset\.json {message}")
    with pytest.raises(ShardError):
        quadpipe.Dataset(dataset)


def test_the_last_value_of_a_duplicate_key_counts(dataset):
    doubled(dataset)
    assert findings(dataset) == []
    assert len(list(quadpipe.Dataset(dataset).samples("train"))) == 16


def test_a_manifest_of_the_largest_images_takes_little_memory(dataset):
    edit_manifest(
        dataset, tokenizer__image_size=[16384, 16384], tokenizer__patch_size=16,
        tokenizer__max_patch_size=16384, tokenizer__tokens=2**20,
        splits__train__gains_sha256=None, splits__val__gains_sha256=None,
    )  # fmt: skip
    tracemalloc.start()
    try:
        for read in READERS.values():
            with pytest.raises(ShardError, match=r"train-00000\d\.tar: .*tokens\.npy: holds "):
                read(dataset)
        assert len(findings(dataset)) >= 5
        # The boxes of a million patches; a sample of these images would be a gigabyte.
        assert tracemalloc.get_traced_memory()[1] < 100 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 10**12}, "1000000000000 samples, more than the 4 of a shard"),
        ({"samples": 100}, "100 samples, more than the 4 of a shard"),
        ({"samples": 10**400}, "samples, more than the 4 of a shard"),
        ({"bytes": 10**30}, "has more bytes than a file can have"),
        ({"bytes": 2**61}, "expected 2305843009213693952"),
        ({"samples": 5.0}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"view": -1}, "is not a shard of view -1 of train"),
        ({"view": 10**400}, "is not a shard of view 1"),
        ({"name": "/etc/passwd"}, "is not a shard of view 0 of train"),
        ({"name": "https://example.org/train-000000.tar"}, "is not a shard of view 0 of train"),
        ({"name": "train-000000.tar\n"}, "is not a shard of view 0 of train"),
        (
            {"name": "train-\u0660\u0660\u0660\u0660\u0660\u0660.tar"},
            "is not a shard of view 0 of train",
        ),
        ({"name": "val-000000.tar"}, "is not a shard of view 0 of train"),
        ({"name": "train-000009.tar"}, r"train-000009\.tar: (missing|no such file)|cannot read .*"),
        ({"sha256": "\ud800"}, "sha256 must be text in UTF-8"),
    ],
)
def test_shard_lists_with_impossible_values_are_refused(dataset, change, message):
    rewrite_shard_list(dataset, lambda rows: rows[0].update(change), "train")
    refused(dataset, message)
    assert findings(dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "line 1: "),
        (b'{"name":' * 400, "line 1: "),
        (b'{"samples":' + b"9" * 5000 + b"}", "too many for 4 shards|line 1: "),
        (b"\xff\xfe\n", "line 1: "),
        (b"NaN\n", "line 1: NaN|line 1: nan"),
        (b"", "holds 0 shards"),
        (b"\n" * 100, "line 1: "),
        (b"\0" * 1000, "line 1: "),
    ],
)
def test_invalid_shard_lists_are_refused(dataset, text, message):
    (dataset / "train.shards.jsonl").write_bytes(text)
    rewrite_digest(dataset)
    refused(dataset, rf"train\.shards\.jsonl,? .*({message}|too many for 4 shards)")
    assert findings(dataset)


def rewrite_digest(dataset: Path) -> None:
    digest = hashlib.sha256((dataset / "train.shards.jsonl").read_bytes()).hexdigest()
    edit_manifest(dataset, splits__train__shard_list_sha256=digest)


def test_a_shard_list_of_a_gigabyte_is_not_read(dataset):
    with (dataset / "train.shards.jsonl").open("r+b") as file:
        file.truncate(10**9)
    refused(dataset, "has 1000000000 bytes, too many for 4 shards")
    assert any("too many for 4 shards" in line for line in findings(dataset))


def test_no_reader_reads_the_card(dataset):
    (dataset / "README.md").write_text(
        "---\n!!python/object/apply:os.system [touch was-run]\n---\n"
    )
    for read in READERS.values():
        read(dataset)
    assert findings(dataset) == []


@pytest.mark.parametrize("name", [".quadpipe/plan.json", ".quadpipe/rejected.jsonl"])
@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"5", b'{"codec":1' + b"0" * 5000])
def test_invalid_plans_and_rejects_are_findings(dataset, name, data):
    (dataset / name).write_bytes(data + b"\n")
    assert len(findings(dataset)) == 1
    for read in READERS.values():
        read(dataset)


def test_an_unreadable_marker_is_a_finding(dataset, monkeypatch):
    real = LocalFolder.read

    def fail(folder: LocalFolder, name: str) -> bytes:
        if "/markers/" in name or "plan" in name:
            raise ShardError(f"cannot read {name}: Permission denied")
        return real(folder, name)

    monkeypatch.setattr(LocalFolder, "read", fail)
    lines = findings(dataset)
    assert len(lines) == 6
    assert all("Permission denied" in line for line in lines)
    for read in READERS.values():
        read(dataset)
