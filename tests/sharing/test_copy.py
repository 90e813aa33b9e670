"""Whole copies of datasets: checked on the way, continued after a kill, nothing else destroyed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run_cli
from injection import killed_everywhere

import quadpipe
from forging import make_dataset, remove_index
from quadpipe.errors import ConfigError, OutputError, ShardError
from quadpipe.job.reproduce import Reproducer
from quadpipe.model import train
from quadpipe.shards.verify import verify
from quadpipe.sharing import CopyPreview, CopyProgress


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("source"), views=2, name="Noise")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """Another dataset: shards of the same names and sizes with other bytes, and more of them."""
    return make_dataset(tmp_path_factory.mktemp("earlier"), inputs=29, views=2, seed=1)


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith(".quadpipe/")}


@pytest.fixture(scope="module")
def expected(source, files_of) -> dict[str, bytes]:
    return visible(files_of(source))


def test_a_copy_has_the_bytes_of_its_source_and_no_provenance(source, expected, files_of, tmp_path):
    made = quadpipe.copy(
        source, tmp_path / "out", expect=quadpipe.Dataset(source).manifest.fingerprint
    )
    assert list(verify(made)) == []
    found = files_of(tmp_path / "out")
    assert visible(found) == expected
    assert found.keys() - expected.keys() == {".quadpipe/copy.json"}
    assert str(source) not in found[".quadpipe/copy.json"].decode()


def test_unknown_options_are_refused_by_name(source, tmp_path):
    for act in (
        lambda: quadpipe.copy(source, tmp_path / "out", tokns=16),
        lambda: train(source, tmp_path / "out", tokns=16),
        lambda: quadpipe.Tokenizer(tokns=16),
    ):
        with pytest.raises(ConfigError, match="unknown option tokns; use .*tokens"):
            act()
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_an_earlier_version_is_copied(source, tmp_path, files_of):
    old = Path(shutil.copytree(source, tmp_path / "old"))
    remove_index(old)
    quadpipe.copy(old, tmp_path / "out")
    assert visible(files_of(tmp_path / "out")) == visible(files_of(old))


def test_what_is_there_already_is_kept_and_what_is_damaged_is_replaced(
    source, expected, files_of, tmp_path
):
    out = tmp_path / "out"
    quadpipe.copy(source, out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    quadpipe.copy(source, out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("[!.]*")} == times
    data = bytearray((out / "train-000001.tar").read_bytes())
    data[700] ^= 1  # the size stays
    (out / "train-000001.tar").write_bytes(data)
    quadpipe.copy(source, out)
    assert visible(files_of(out)) == expected
    changed = {
        path.name for path in out.glob("[!.]*") if path.stat().st_mtime_ns != times[path.name]
    }
    assert changed == {"train-000001.tar", "dataset.json"}


def test_an_interrupted_copy_of_another_tool_is_finished(source, expected, files_of, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("dataset.json", "train.shards.jsonl", "train-000002.tar"):
        shutil.copy(source / name, out)
    (out / "notes.txt").write_text("mine")
    quadpipe.copy(source, out)
    assert visible(files_of(out)) == expected | {"notes.txt": b"mine"}


@pytest.mark.fault(
    "SIGKILL at every point of a copy that replaces another dataset",
    "the old dataset, none, or the new one; the next run finishes it",
)
def test_a_kill_at_any_point_leaves_one_whole_dataset_or_none(tmp_path, record_property):
    check_kills(tmp_path, {}, record_property)


def check_kills(work: Path, options: dict[str, Any], record_property: Any) -> None:
    source = make_dataset(work / "source", samples_per_shard=8)
    earlier = make_dataset(work / "earlier", inputs=25, samples_per_shard=8, seed=1)
    rows = killed_everywhere("copies.py", source, earlier, work, json.dumps(options))
    old, new = (quadpipe.Dataset(place).manifest.fingerprint for place in (earlier, work / "whole"))
    assert {row["seen"] for row in rows} == {old, None, new}
    points = {row["point"] for row in rows}
    assert {"before removal dataset.json", "before rename dataset.json"} <= points
    assert "before removal val-000001.tar" in points  # of the earlier dataset only
    assert len(rows) > 30
    record_property("lost", sum(row["lost"] for row in rows))
    record_property("doubled", sum(row["doubled"] for row in rows))


@pytest.mark.fault(
    "SIGKILL at every point of a copy with fewer tokens that replaces another dataset",
    "the old dataset, none, or the new one; the next run finishes it",
)
def test_a_kill_at_any_point_of_a_smaller_copy_loses_nothing(tmp_path, record_property):
    check_kills(tmp_path, {"tokens": 10, "in_process": True}, record_property)


def test_another_dataset_is_replaced_only_on_request(source, earlier, expected, files_of, tmp_path):
    out = tmp_path / "out"
    quadpipe.copy(earlier, out)
    assert (out / "train-000003.tar").stat().st_size == (source / "train-000003.tar").stat().st_size
    before = files_of(out)
    with pytest.raises(
        OutputError, match="holds another dataset, fingerprint [0-9a-f]{64}; .*--re"
    ):
        quadpipe.copy(source, out)
    assert files_of(out) == before
    quadpipe.copy(source, out, replace=True)
    assert visible(files_of(out)) == expected


def test_what_a_copy_must_not_destroy_is_refused(source, earlier, files_of, tmp_path):
    before = files_of(earlier)
    with pytest.raises(OutputError, match="is the output of quadpipe tokenize"):
        quadpipe.copy(source, earlier, replace=True)
    assert files_of(earlier) == before
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "train-000000.tar").write_bytes(b"mine")
    with pytest.raises(
        OutputError, match=r"is not empty \(train-000000.tar\) and holds no dataset"
    ):
        quadpipe.copy(source, tmp_path / "tars", replace=True)
    for place in (source, source / "below", source.parent, f"{source.parent}/x/../shards"):
        with pytest.raises(ConfigError, match="are not apart"):
            quadpipe.copy(source, place)
    with pytest.raises(ConfigError, match="is made by this process; omit address"):
        quadpipe.copy(source, tmp_path / "out", address="auto")
    with pytest.raises(ShardError, match="is not the expected dataset"):
        quadpipe.copy(source, tmp_path / "out", expect="0" * 12)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_of_the_source_never_appears(source, tmp_path):
    damaged = Path(shutil.copytree(source, tmp_path / "damaged"))
    data = bytearray((damaged / "train-000002.tar").read_bytes())
    data[700] ^= 1
    (damaged / "train-000002.tar").write_bytes(data)
    with pytest.raises(ShardError, match=r"train-000002.tar arrived twice with another checksum"):
        quadpipe.copy(damaged, tmp_path / "out")
    assert not (tmp_path / "out" / "train-000002.tar").exists()
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list((tmp_path / "out" / ".quadpipe").rglob("*.tar*"))


def test_a_source_with_missing_files_is_reported(source, tmp_path):
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    (broken / "train-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"000002.tar: .*the dataset is incomplete: 8 of 9 shards"):
        quadpipe.copy(broken, tmp_path / "out")
    (broken / "val.index.npy").unlink()
    with pytest.raises(ShardError, match=r"val.index.npy: missing: the dataset is incomplete"):
        quadpipe.copy(broken, tmp_path / "out")


def test_provenance_is_copied_on_request_without_logs(source, files_of, tmp_path):
    made = quadpipe.copy(source, tmp_path / "out", provenance=True)
    assert list(verify(made)) == []
    found = files_of(tmp_path / "out")
    assert {name: found[name] for name in files_of(source)} == files_of(source)
    assert not list((tmp_path / "out" / ".quadpipe" / "logs").glob("*.jsonl"))
    ((count, differing),) = Reproducer(made, source.parent / "images").check(1, seed=0)
    assert count
    assert differing == []
    plan = tmp_path / "out" / ".quadpipe" / "plan.json"
    forged = json.loads(plan.read_bytes())
    forged["splits"]["train"]["shards"] = 10**15  # the manifest counts them
    plan.write_text(json.dumps(forged))
    quadpipe.copy(tmp_path / "out", tmp_path / "again", provenance=True)
    quadpipe.copy(source, tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"has no .quadpipe/plan.json: .*; omit --provenance"):
        quadpipe.copy(tmp_path / "bare", tmp_path / "other", provenance=True)
    assert not (tmp_path / "other").exists()


def test_progress_counts_every_byte_once(source, tmp_path):
    class Counted(CopyProgress):
        def __init__(self) -> None:
            self.total, self.count = 0, 0

        def planned(self, preview: CopyPreview) -> None:
            self.total = preview.bytes

        def advanced(self, count: int) -> None:
            self.count += count

    for _ in range(2):
        progress = Counted()
        quadpipe.copy(source, tmp_path / "out", progress=progress)
        assert progress.count == progress.total > 200_000


def test_a_full_disk_is_reported_before_anything_is_copied(source, tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.files.local.LocalFolder.free_bytes", lambda self: 1000)
    with pytest.raises(OutputError, match="has 1,000 bytes free, the copy needs about 2"):
        quadpipe.copy(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_command_prints_the_fingerprint_and_progress(source, tmp_path):
    done = run_cli("copy", source, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    fingerprint = quadpipe.Dataset(source).manifest.fingerprint
    assert f"36 samples in 9 shards, fingerprint {fingerprint}" in done.stdout
    assert "copy     36 samples in 9 shards" in done.stderr
    assert "100%" in done.stderr
    refused = run_cli("copy", source, tmp_path / "out", "--expect", "0" * 12)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
