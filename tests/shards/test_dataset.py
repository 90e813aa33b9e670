"""Reading and verifying finished datasets, and what damage is found."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from refusals import findings

import quadpipe
from forging import edit_manifest, members_of, reseal, rewrite_shard_list, tar_of
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import LocalFolder
from quadpipe.loader import Loader
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.summary import summarize
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "shards"
    quadpipe.tokenize(
        image_folder, out, in_process=True, samples_per_shard=4, val_share=0.2, views=2, name="x"
    )
    return out


@pytest.fixture
def dataset(finished, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "shards"))


def test_a_whole_dataset_has_no_findings(dataset):
    assert findings(dataset) == []
    shutil.rmtree(dataset / ".quadpipe")
    assert findings(dataset) == []


def test_samples_hold_mosaics_labels_and_where_they_come_from(finished, image_folder):
    dataset = quadpipe.Dataset(finished)
    classes = ["flower", "temple", "zebra"]
    assert dataset.manifest.classes == classes
    samples = list(dataset.samples("train", view=0))
    assert [sample.key for sample in samples] == [f"{index:010d}" for index in range(18)]
    for sample in samples:
        path = image_folder / sample.info["path"]
        assert sample.info["class"] == path.parent.name
        assert sample.label == classes.index(path.parent.name)
        tokenizer = quadpipe.Tokenizer()
        expected = tokenizer.tokenize(tokenizer.prepare_file(path.read_bytes())[None])[0]
        np.testing.assert_array_equal(sample.mosaic.tokens, expected.tokens)
        np.testing.assert_array_equal(sample.mosaic.nodes, expected.nodes)
    assert len(list(dataset.samples("train"))) == 36
    assert len(list(dataset.samples("val"))) == 5
    views = list(dataset.samples("train", view=1))
    assert [sample.key for sample in views] == [f"{index:010d}-v01" for index in range(18)]
    assert all(sample.info["view"] == 1 for sample in views)
    with pytest.raises(ConfigError, match="has no split 'test'; it has train, val"):
        next(dataset.samples("test"))


def test_webdataset_reads_the_shards_where_quadpipe_cannot_be_imported(finished):
    program = """
import json, sys
sys.modules["quadpipe"] = None
import numpy as np, webdataset as wds
samples = list(wds.WebDataset(sys.argv[1:], shardshuffle=False).decode())
try:
    import quadpipe
except ImportError:
    print(json.dumps([
        [s["__key__"], s["tokens.npy"].sum().item(), s["nodes.npy"].tolist(),
         s["importance.npy"].tolist(), s["cls"], s["json"]] for s in samples]))
"""
    tars = sorted(str(path) for path in finished.glob("train-0*.tar"))
    done = subprocess.run(
        [sys.executable, "-c", program, *tars], capture_output=True, text=True, check=True
    )
    expected = [
        [
            sample.key,
            int(sample.mosaic.tokens.sum()),
            sample.mosaic.nodes.tolist(),
            sample.mosaic.importance.tolist(),
            sample.label,
            sample.info,
        ]
        for sample in quadpipe.Dataset(finished).samples("train", view=0)
    ]
    assert json.loads(done.stdout) == expected


def test_the_summary_counts_samples_bytes_and_scales(finished):
    summary = summarize(quadpipe.Dataset(finished))
    assert summary["budgets"] == list(range(16, 101, 3))
    assert summary["splits"]["train"]["samples"] == 36
    tars = sum(path.stat().st_size for path in finished.glob("val-*.tar"))
    assert summary["splits"]["val"]["bytes"] == tars
    for share in ("tokens", "area"):
        total = sum(scale[share] for scale in summary["splits"]["train"]["scales"].values())
        assert total == pytest.approx(1, abs=1e-3)
    json.dumps(summary)


def flip_bit(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_an_incomplete_copy_is_reported_in_one_line(dataset):
    for name in ("train-000002.tar", "train-v01-000002.tar", "train-000004.tar", "val-000001.tar"):
        (dataset / name).unlink()
    (line,) = findings(dataset)
    assert "the dataset is incomplete: 8 of 12 shards" in line
    assert "train-000002.tar, train-v01-000002.tar, train-000004.tar and 1 more are" in line
    assert "finish copying it" in line
    assert "delete" not in line


def test_shards_are_not_extra_in_a_copy_without_shard_lists(dataset):
    for path in [*dataset.glob("train-00*.tar"), *dataset.glob("*.shards.jsonl")]:
        path.unlink()
    (line,) = findings(dataset)
    assert "the dataset is incomplete: 7 of 12 shards; train.shards.jsonl, val" in line


def test_a_lost_shard_list_is_reported_missing_and_its_shards_are_not_extra(dataset):
    (dataset / "train.shards.jsonl").unlink()
    (line,) = findings(dataset)
    assert line == f"{dataset / 'train.shards.jsonl'}: missing; fetch it again"
    assert "12 shards" in missing_text(dataset)


def missing_text(dataset: Path) -> str:
    """How readers report a missing shard."""
    return quadpipe.Dataset(dataset).missing


def test_reading_a_missing_shard_reports_how_many_shards_are_present(dataset):
    for name in ("val-000000.tar", "val-000001.tar"):
        (dataset / name).unlink()
    opened = quadpipe.Dataset(dataset)
    message = r"val-000000\.tar: missing: the dataset is incomplete: 10 of 12 shards; finish"
    for read in (
        lambda: list(opened.samples("val")),
        lambda: summarize(opened),
        lambda: list(Loader(opened, "val", batch_size=2, shuffle=False).epoch(0)),
    ):
        with pytest.raises(ShardError, match=message):
            read()


def test_findings_end_with_the_next_step(dataset):
    flip_bit(dataset / "train-000001.tar", 700)
    shutil.copy(dataset / "val-000000.tar", dataset / "val-000009.tar")
    (dataset / ".quadpipe/markers/val/0000/000000.json").write_text("{}")
    advice = {line.rpartition("/")[2].split(":")[0]: line for line in findings(dataset)}
    assert advice["train-000001.tar"].endswith("or delete it and rerun the quadpipe tokenize "
                                               "command that wrote it")  # fmt: skip
    assert advice["val-000009.tar"].endswith("extra file: not in the manifest, readers ignore it")
    assert advice["000000.json"].endswith("not a readable marker: 'rejected'; fetch it again")


def test_one_flipped_bit_is_found_wherever_it_is(dataset):
    tar = dataset / "train-000001.tar"
    rng = np.random.default_rng(0)
    for position in rng.integers(0, tar.stat().st_size, 20).tolist():
        flip_bit(tar, position, position % 8)
        assert any("train-000001.tar: its checksum" in line for line in findings(dataset))
        flip_bit(tar, position, position % 8)
    assert findings(dataset) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "val-000000.tar").unlink(), "val-000000.tar: missing"),
        (
            lambda d: shutil.copy(d / "val-000000.tar", d / "val-000009.tar"),
            "val-000009.tar: extra",
        ),
        (
            lambda d: (d / "val-000000.tar").write_bytes(
                (d / "val-000000.tar").read_bytes()[:-512]
            ),
            "val-000000.tar: [0-9]+ bytes, expected",
        ),
        (lambda d: flip_bit(d / "val.shards.jsonl", 10), "val.shards.jsonl was changed"),
        (
            lambda d: (d / ".quadpipe/rejected.jsonl").write_text("{}\n"),
            "rejected.jsonl: 1 lines, expected 0",
        ),
        (
            lambda d: (d / ".quadpipe/markers/val/0000/000000.json").write_text("{}"),
            "not a readable marker",
        ),
    ],
)
def test_damage_is_found(dataset, damage, message):
    damage(dataset)
    found = findings(dataset)
    assert any(re.search(message, line) for line in found), found


def swapped_steps(data: bytes) -> bytes:
    nodes = np.frombuffer(data[-128 * 16 :], "<i4").reshape(-1, 4).copy()
    nodes[nodes[:, 3] == 0, 3] = 27
    return npy_bytes(nodes)


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("cls", lambda d: b"3", "cls: b'3' is not a class index below 3"),
        ("cls", lambda d: b"-1", "cls: b'-1' is not a class index"),
        ("cls", lambda d: None, "cls: missing"),
        ("json", lambda d: b"{", "json: not JSON"),
        ("json", lambda d: b"[]", "json: not a JSON object"),
        ("json", lambda d: d.replace(b'"path"', b'"pith"'), "json: has no path, or no box"),
        ("json", lambda d: d.replace(b'"box":[', b'"box":[1e400,'), "json: has no path, or no box"),
        ("nodes.npy", swapped_steps, "nodes.npy: the split steps are not 0 to 27"),
        ("nodes.npy", lambda d: d[:-4], "nodes.npy: holds 2044 bytes of data, expected 2048"),
        ("tokens.npy", lambda d: npy_bytes(np.zeros((1, 16, 16, 3), "u1")), r"holds \|u1 \[1,"),
        ("importance.npy", lambda d: npy_bytes(np.full(28, np.nan, "<f4")), "not finite"),
    ],
)
def test_samples_that_do_not_fit_the_manifest_are_refused_by_shard_and_key(
    dataset, field, change, message
):
    name = "val-000000.tar"
    changed = []
    for member, data in members_of(dataset / name).items():
        if member == f"0000000002.{field}":
            data = change(data)
        if data is not None:
            changed.append((member, data))
    reseal(dataset, name, tar_of(changed))
    with pytest.raises(ShardError, match=rf"val-000000\.tar: 0000000002[.:].*{message}"):
        list(quadpipe.Dataset(dataset).samples("val"))
    assert len(findings(dataset)) == 1


def test_unknown_members_are_ignored(dataset):
    members = members_of(dataset / "val-000001.tar")
    key = next(iter(members)).partition(".")[0]
    extra = [*members.items(), (f"{key}.caption.txt", b"a temple")]
    reseal(dataset, "val-000001.tar", tar_of(extra))
    assert findings(dataset) == []


def test_duplicate_keys_and_members_are_refused(dataset):
    members = list(members_of(dataset / "val-000000.tar").items())
    reseal(dataset, "val-000000.tar", tar_of(members[:15] + members[:5]))
    with pytest.raises(ShardError, match="0000000000: two samples have this key"):
        list(quadpipe.Dataset(dataset).samples("val"))
    reseal(dataset, "val-000000.tar", tar_of([members[0], *members]))
    with pytest.raises(ShardError, match="two members have the same name"):
        list(quadpipe.Dataset(dataset).samples("val"))


def test_samples_of_another_shard_are_found(dataset):
    members = [
        (name.replace("0000000004", "0000000009"), data)
        for name, data in members_of(dataset / "val-000001.tar").items()
    ]
    reseal(dataset, "val-000001.tar", tar_of(members))
    assert any("0000000009 does not belong to this shard" in line for line in findings(dataset))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "2.0"}, r"is written in format 2\.0; this quadpipe reads format 1\.0"),
        ({"format_version": 1}, "is written in format 1;"),
        ({"classes": None}, "'classes' is missing"),
        ({"classes": [1, 2]}, "classes must be a list of names, not"),
        ({"tokenizer__tokens": 99}, "99 tokens cannot tile"),
        ({"tokenizer__tokens": 100.0}, "tokens must be a whole number, not 100.0"),
        ({"tokenizer__image_size": [2**20, 2**20]}, "has a side above 16,384"),
        ({"tokenizer": 5}, "5 is not an object"),
        ({"scorer": {}}, "scorer needs a name, label_aware"),
        ({"imaging_library": []}, "imaging_library needs a name"),
        ({"samples_per_shard": 10**10}, "samples_per_shard 10000000000 is out of range"),
        ({"splits": {}}, "it has no splits"),
        ({"splits": 5}, "it has no splits"),
        ({"splits__train": [1]}, r"train: \[1\] is not an object"),
        ({"name": "\ud800"}, "name must be text in UTF-8"),
        ({"codec__name": "exe"}, "codec 'exe' is not one of"),
        ({"splits__train__samples": 7}, "7 samples are not 2 views of 18 - 0 inputs"),
        ({"splits__train__bytes": -1}, "train: bytes -1 is below 0"),
        ({"splits__dev": {}}, "split 'dev' is not one of train, val, test"),
    ],
)
def test_invalid_manifests_are_refused(dataset, changes, message):
    edit_manifest(dataset, **changes)
    with pytest.raises(ShardError, match=message):
        quadpipe.Dataset(dataset)


def test_a_later_minor_version_is_read(dataset):
    edit_manifest(dataset, format_version="1.7", something_new={"x": 1}, tokenizer__new_option=1)
    edit_manifest(dataset, splits__train__new=2, codec__new=3, scorer__name="of-another-version")
    opened = quadpipe.Dataset(dataset)
    assert opened.manifest.format_version == "1.7"
    assert len(list(opened.samples("train"))) == 36


def test_a_deeply_nested_manifest_is_refused(dataset):
    (dataset / "dataset.json").write_text("[" * 200_000)
    with pytest.raises(ShardError, match="cannot be used"):
        quadpipe.Dataset(dataset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bytes": None}, "bytes must be a whole number, not None"),
        ({"name": 5}, "name must be text, not 5"),
        ({"name": "val-" + "9" * 5000 + ".tar"}, "is not a shard of view 0 of val"),
        (
            {"name": "../evil-000000.tar"},
            r"'\.\./evil-000000\.tar' is not a shard of view 0 of val",
        ),
        ({"view": 2.5}, "view must be a whole number, not 2.5"),
        ({"samples": 0}, "has no samples or no bytes"),
        ({"sha256": None}, "sha256 must be text"),
    ],
)
def test_lines_of_a_shard_list_are_checked(dataset, change, message):
    rewrite_shard_list(dataset, lambda rows: rows[0].update(change))
    with pytest.raises(ShardError, match=rf"val\.shards\.jsonl, line 1: .*{message}"):
        quadpipe.Dataset(dataset).shards("val")
    assert any("val.shards.jsonl, line 1" in line for line in findings(dataset))


def test_a_shard_listed_twice_or_with_other_totals_is_refused(dataset):
    rewrite_shard_list(dataset, lambda rows: rows.__setitem__(1, rows[0]))
    with pytest.raises(ShardError, match="names a shard twice"):
        quadpipe.Dataset(dataset).shards("val")
    rewrite_shard_list(dataset, lambda rows: rows.pop())
    edit_manifest(dataset, splits__val__shards=2)
    with pytest.raises(ShardError, match="holds 1 shard, 4 samples, .* has 2, 4"):
        quadpipe.Dataset(dataset).shards("val")


@pytest.mark.parametrize("name", ["../outside.jsonl", "/etc/passwd", "a\\b", "x/../../y"])
def test_names_outside_the_dataset_are_refused(dataset, name):
    edit_manifest(dataset, splits__val__shard_list=name)
    with pytest.raises(ShardError, match="val: .* is not the name of its shard list"):
        quadpipe.Dataset(dataset)
    with pytest.raises(ShardError, match="is not the name of a file in a dataset"):
        LocalFolder(dataset).read(name)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ShardError, match="is not a finished dataset: it has no dataset.json"):
        quadpipe.Dataset(tmp_path)
    with pytest.raises(ConfigError, match="nosuch://x cannot be opened: Protocol not known"):
        quadpipe.Dataset("nosuch://x")
    with pytest.raises(ShardError, match="memory://nowhere is not a finished dataset"):
        quadpipe.Dataset("memory://nowhere")
    with pytest.raises(ConfigError, match="s3://bucket/x is a URL; give a local folder"):
        LocalFolder("s3://bucket/x")


def test_a_dataset_at_a_url_is_read_and_verified(finished):
    remote = fsspec.filesystem("memory")
    remote.put(str(finished), "/published", recursive=True)
    dataset = quadpipe.Dataset("memory://published")
    assert list(verify(dataset)) == []
    local = quadpipe.Dataset(finished).samples("val")
    for one, other in zip(dataset.samples("val"), local, strict=True):
        assert one.info == other.info
        np.testing.assert_array_equal(one.mosaic.tokens, other.mosaic.tokens)
    remote.rm_file("/published/val-000000.tar")
    assert list(verify(dataset)) == ["memory://published/val-000000.tar: missing; fetch it again"]
