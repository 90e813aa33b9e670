import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from job_runs import tokenize_small

import quadpipe
from forging import make_dataset, members_of, reseal, tar_of
from quadpipe.cli import commands
from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import LocalFolder
from quadpipe.shards.excerpt import first_samples, spread_samples
from quadpipe.shards.format import REJECTED
from quadpipe.shards.statistics import (
    class_balance,
    rejects_by_reason,
    statistics,
    summarize_counts,
)
from quadpipe.shards.tables import classes_table


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory) -> Path:
    """18 and 5 photographs, 3 classes and one without images; two inputs are rejected."""
    folder = tmp_path_factory.mktemp("statistics")
    shutil.copytree(image_folder, folder / "images")
    (folder / "images" / "zebra" / "empty.jpg").write_bytes(b"")
    (folder / "images" / "zebra" / "text.jpg").write_text("hello")
    (folder / "classes.txt").write_text("flower\ntemple\nzebra\nyak\n")
    tokenize_small(
        folder / "images", folder / "shards", samples_per_shard=4, val_share=0.2,
        classes=folder / "classes.txt", max_rejected="2",
    )  # fmt: skip
    return folder / "shards"


@pytest.fixture
def dataset(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "shards"))


def test_classes_are_counted_in_the_index_without_reading_shards(dataset, monkeypatch):
    opened = quadpipe.Dataset(dataset)
    labels = {
        split: Counter(sample.label for sample in opened.samples(split))
        for split in opened.manifest.splits
    }
    found = statistics(opened)
    for split, counts in labels.items():
        balance = found[split]["classes"]
        assert balance["counts"] == [counts[index] for index in range(4)]
        assert balance["empty"] == balance["counts"].count(0) >= 1
        assert balance["largest"] == max(counts.values())
        assert balance["imbalance"] == round(max(counts.values()) / min(counts.values()), 2)
    for path in dataset.glob("*.tar"):
        path.unlink()
    monkeypatch.setattr("quadpipe.shards.statistics._ROWS_AT_ONCE", 3)
    assert class_balance(quadpipe.Dataset(dataset), "train") == found["train"]["classes"]


def test_rejects_are_counted_by_reason_and_unknown_in_a_copy(dataset):
    counts: Counter[str] = Counter()
    for found in statistics(quadpipe.Dataset(dataset)).values():
        counts.update(found["rejected"])
    assert counts == {"empty": 1, "not_an_image": 1}
    (dataset / REJECTED).unlink()
    assert rejects_by_reason(quadpipe.Dataset(dataset)) is None
    assert "this is a copy without its provenance" in info(dataset, "--stats")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 lines of train, expected"),
        ("[]\n", "not a list of rejects"),
        ("{\n", "not a list of rejects"),
        ('{"split": "best", "reason": "empty"}\n', "not a list of rejects: 'best'"),
        ('{"split": "train", "reason": 3}\n', "a reason is not a short text"),
    ],
)
def test_a_list_of_rejects_that_does_not_fit_is_refused(dataset, content, message):
    (dataset / REJECTED).write_text(content)
    with pytest.raises(ShardError, match=message):
        rejects_by_reason(quadpipe.Dataset(dataset))


def test_sizes_are_those_of_the_originals_after_orientation(finished):
    found = statistics(quadpipe.Dataset(finished))["train"]["originals"]
    assert found["width"] == dict.fromkeys(("smallest", "10%", "50%", "90%", "largest"), 200)
    assert found["height"]["smallest"] == found["height"]["largest"] == 150
    assert found["enlarged"] == 0
    assert found["of"] == quadpipe.Dataset(finished).manifest.splits["train"].samples


def test_tokens_at_a_mean_are_those_of_the_whole_split(finished):
    opened = quadpipe.Dataset(finished)
    limits = CountLimits.of(opened.manifest.geometry, opened.manifest.tokenizer.tokens)
    found = statistics(opened)
    for mean, quantiles in found["val"]["tokens"]["means"].items():
        assert quantiles == summarize_counts(opened, int(mean), limits)["val"]
    assert len(found["train"]["tokens"]["means"]) == 4


def test_of_a_large_dataset_some_samples_are_read_at_equal_distances(finished, monkeypatch):
    opened = quadpipe.Dataset(finished)
    keys = [sample.key for sample in opened.samples("train")]
    assert [sample.key for sample in spread_samples(opened, "train", 5)] == [
        keys[i * len(keys) // 5] for i in range(5)
    ]
    assert [sample.key for sample in spread_samples(opened, "train", 1000)] == keys
    monkeypatch.setattr("quadpipe.shards.statistics._MOST_LOOKED_AT", 3)
    monkeypatch.setattr("quadpipe.shards.statistics._GAINS_READ", 0)
    some = statistics(opened)["train"]
    assert (some["originals"]["of"], some["tokens"]["of"]) == (3, 3)
    whole = statistics(opened, whole=True)["train"]
    assert (whole["originals"]["of"], whole["tokens"]["of"]) == (len(keys), len(keys))


def test_samples_come_from_at_most_sixteen_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.shards.excerpt._MOST_SHARDS", 2)
    opened = quadpipe.Dataset(make_dataset(tmp_path))
    keys = [int(sample.key) for sample in spread_samples(opened, "train", 16)]
    assert keys == [0, 1, 2, 3, 8, 9, 10, 11]


def test_from_a_web_server_the_bytes_that_are_looked_at_are_limited(tmp_path, monkeypatch):
    opened = quadpipe.Dataset(make_dataset(tmp_path))
    limit = opened.manifest.splits["train"].bytes * 5 // 8
    monkeypatch.setattr("quadpipe.shards.statistics._BYTES_LOOKED_AT", limit)
    monkeypatch.setattr(LocalFolder, "serves_parts", False)
    read: dict[str, int] = {}
    real = LocalFolder.beginning

    def noted(folder: LocalFolder, name: str, size: int) -> memoryview:
        read[name] = size
        return real(folder, name, size)

    monkeypatch.setattr(LocalFolder, "beginning", noted)
    assert statistics(opened)["train"]["originals"]["of"] == 8
    assert 0 < sum(size for name, size in read.items() if name.startswith("train-0")) <= limit


def test_a_shard_that_is_read_whole_has_the_number_of_samples_of_its_line(tmp_path):
    shards = make_dataset(tmp_path)
    name = "train-000001.tar"
    members = list(members_of(shards / name).items())
    reseal(shards, name, tar_of(members[: len(members) // 4 * 3]))
    message = r"train-000001\.tar: 3 samples, expected 4"
    with pytest.raises(ShardError, match=message):
        list(first_samples(quadpipe.Dataset(shards), "train", 2**20))


def test_a_changed_sample_is_refused_where_it_is_looked_at(tmp_path):
    shards = make_dataset(tmp_path)
    data = bytearray((shards / "train-000001.tar").read_bytes())
    data[700] ^= 1
    (shards / "train-000001.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"train-000001\.tar: 0000000004: checksum mismatch"):
        statistics(quadpipe.Dataset(shards))
    (shards / "train-000001.tar").write_bytes(data[:-512])
    with pytest.raises(ShardError, match=r"train-000001\.tar: \d+ bytes, expected"):
        statistics(quadpipe.Dataset(shards))
    (shards / "train-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000001\.tar: missing: the dataset is incomplete"):
        statistics(quadpipe.Dataset(shards))


def test_a_dataset_without_labels_index_and_gains_has_the_other_statistics(dataset):
    opened = quadpipe.Dataset(dataset)
    bare = {
        name: replace(info, index_sha256=None, gains_sha256=None)
        for name, info in opened.manifest.splits.items()
    }
    opened.manifest = replace(opened.manifest, splits=bare)
    found = statistics(opened)["train"]
    assert found["classes"] is None
    assert found["originals"]["width"]["smallest"] == 200
    assert found["tokens"]["of"] == opened.manifest.splits["train"].samples


def test_of_many_classes_the_largest_and_the_smallest_are_listed():
    counts = [number * 7 % 20 for number in range(20)]
    names = [f"class {number}" for number in range(20)]
    found = classes_table({"val": {"classes": {"counts": counts}}}, "val", names)
    assert [int(images) for _, images, _ in found.rows] == [
        19, 18, 17, 16, 15, 14, 5, 4, 3, 2, 1, 0
    ]  # fmt: skip
    assert found.rows[-1] == ("class 0", "0", "0.0%")
    assert found.note == "8 classes between these not shown"


def info(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(commands, ["info", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_info_prints_statistics_as_text_or_json(finished):
    code, text = info(finished, "--stats")
    assert code == 0
    for part in ("images per class", "yak", "rejected", "val, 22", "val, width"):
        assert part in text
    summary = json.loads(info(finished, "--stats", "--all", "--json")[1])
    assert summary["statistics"]["train"]["classes"]["empty"] >= 1
    assert summary["class_names"] == ["flower", "temple", "zebra", "yak"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "--all"), "--all is for --stats; give both"),
        (("x", "y", "z"), "info compares two datasets, not 3"),
        (("x", "y", "--stats"), "--stats and --mean-tokens are for one dataset"),
    ],
)
def test_info_refuses_options_that_do_nothing(arguments, message):
    done = CliRunner().invoke(commands, ["info", *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
