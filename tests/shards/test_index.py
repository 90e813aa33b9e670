"""The index of samples: its contents, the damage it finds, and datasets without one."""

import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xxhash

import quadpipe
from forging import edit_manifest, make_dataset, put_index, remove_index
from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Loader, webdataset
from quadpipe.shards.index import ROW, scan
from quadpipe.shards.marker import Marker
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("whole"), views=2)


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def test_the_index_opens_with_numpy_alone_and_holds_the_offsets_of_samples(whole):
    rows = np.load(whole / "train.index.npy", mmap_mode="r")
    assert rows.dtype == ROW
    manifest = json.loads((whole / "dataset.json").read_text())
    sha256 = hashlib.sha256((whole / "train.index.npy").read_bytes()).hexdigest()
    assert manifest["splits"]["train"]["index_sha256"] == sha256
    lines = [json.loads(line) for line in (whole / "train.shards.jsonl").read_text().splitlines()]
    samples = list(quadpipe.Dataset(whole).samples("train"))
    assert len(rows) == len(samples) == 32
    for row, sample in zip(rows, samples, strict=True):
        line = lines[row["shard"]]
        assert line["view"] == sample.info["view"]
        tar = (whole / line["name"]).read_bytes()
        part = tar[row["offset"] : row["offset"] + row["size"]]
        assert part.startswith(sample.key.encode() + b".")
        assert xxhash.xxh3_64_intdigest(part) == row["checksum"]
        assert row["label"] == sample.label
        assert row["offset"] == sample.offset


def blacken(dataset: Path, name: str = "train-000001.tar") -> None:
    """Set the pixels of every sample to 0 and its label to 0; sizes and headers stay."""
    data = bytearray((dataset / name).read_bytes())
    for row in scan(memoryview(bytes(data)), quadpipe.Dataset(dataset).shards("train")[2])[0]:
        first = int(row["offset"]) + 640
        data[first : first + 20 * 4 * 4 * 3] = bytes(20 * 4 * 4 * 3)
    (dataset / name).write_bytes(data)


def test_changed_pixels_of_the_right_size_are_refused_or_skipped(dataset):
    expected = [batch.keys for batch in Loader(dataset, batch_size=4).epoch(0)]
    blacken(dataset)
    for read in (
        lambda: list(Loader(dataset, batch_size=4).epoch(0)),
        lambda: list(quadpipe.Dataset(dataset).samples("train")),
        lambda: list(webdataset(dataset)),
    ):
        with pytest.raises(ShardError, match=r"train-000001\.tar: .*checksum mismatch at byte"):
            read()
    loader = Loader(dataset, batch_size=4, on_error="skip")
    batches = list(loader.epoch(0))
    assert sum(batch.skipped for batch in batches) == loader.skipped.samples == 4
    lost = {f"{number:010d}" for number in range(4, 8)}
    for batch, keys in zip(batches, expected, strict=True):
        assert batch.keys == ["" if key in lost else key for key in keys]


def test_local_samples_are_compared_with_checksums_on_the_first_read(dataset):
    once, always = (Loader(dataset, batch_size=4, verify=verify) for verify in ("first", "always"))
    for loader in (once, always):
        for epoch in (0, 2):
            list(loader.epoch(epoch))
    blacken(dataset)
    list(once.epoch(4))
    with pytest.raises(ShardError, match="checksum mismatch"):
        list(always.epoch(4))
    list(Loader(dataset, batch_size=4, verify="never").epoch(0))
    with pytest.raises(ConfigError, match="verify 'often' is not one of first, always, never"):
        Loader(dataset, batch_size=4, verify="often")


def test_samples_left_out_of_the_first_epoch_are_compared_with_checksums_later(dataset):
    loader = Loader(dataset, batch_size=4)
    seen = {key for batch in loader.epoch(0, consumed=8) for key in batch.keys}
    blacken(dataset)
    assert not {f"{number:010d}" for number in range(4, 8)} <= seen
    with pytest.raises(ShardError, match="checksum mismatch"):
        list(loader.epoch(2))


def test_remote_samples_are_compared_with_checksums_on_every_read(dataset):
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/republished", recursive=True)
    loader = Loader("memory://republished", batch_size=4)
    list(loader.epoch(0))
    # Another team's training set of the same sizes under the same names.
    blacken(dataset)
    memory.put(str(dataset / "train-000001.tar"), "/republished/train-000001.tar")
    with pytest.raises(ShardError, match=r"train-000001\.tar: .*checksum mismatch at byte"):
        list(loader.epoch(2))


def test_tars_of_another_dataset_with_the_same_sizes_are_refused(dataset, tmp_path):
    other = make_dataset(tmp_path / "other", views=2, seed=1)
    ours, theirs = dataset / "train-000000.tar", other / "train-000000.tar"
    assert ours.stat().st_size == theirs.stat().st_size
    shutil.copy(theirs, ours)
    with pytest.raises(ShardError, match="checksum mismatch"):
        list(Loader(dataset, batch_size=4).epoch(0))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"train\.index\.npy: missing; fetch it again"),
        (lambda path: path.write_bytes(b""), r"train\.index\.npy: 0 bytes, expected [0-9]+"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\7"),
            r"train\.index\.npy was changed: its checksum is not the one in dataset\.json",
        ),
    ],
)
def test_a_damaged_index_is_refused(dataset, damage, message):
    damage(dataset / "train.index.npy")
    for read in (
        lambda: Loader(dataset, batch_size=4),
        lambda: list(quadpipe.Dataset(dataset).samples("train")),
    ):
        with pytest.raises(ShardError, match=message):
            read()


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [("shard", 5, 7), ("shard", 0, -1), ("offset", 1, 512), ("offset", 0, -512), ("offset", 4, 1),
     ("size", 2, 512), ("size", 31, 2**31 - 1), ("size", 2, -512)],
)  # fmt: skip
def test_an_index_that_does_not_fit_the_shard_list_is_refused(dataset, column, row, value):
    rows = np.load(dataset / "train.index.npy")
    rows[column][row] = value
    put_index(dataset, "train", rows)
    with pytest.raises(ShardError, match=r"train\.index\.npy does not fit the shard list of train"):
        Loader(dataset, batch_size=4)


def test_an_index_with_a_sample_of_negative_size_is_refused(dataset):
    rows = np.load(dataset / "train.index.npy")
    rows["size"][0] += rows["size"][1] + 512
    rows["offset"][1] = rows["size"][0]
    rows["size"][1] = -512
    put_index(dataset, "train", rows)
    with pytest.raises(ShardError, match=r"train\.index\.npy does not fit the shard list of train"):
        Loader(dataset, batch_size=4)


def test_a_checksum_of_zero_means_no_checksum(dataset):
    rows = np.load(dataset / "train.index.npy")
    rows["checksum"] = 0
    put_index(dataset, "train", rows)
    assert len(list(Loader(dataset, batch_size=4).epoch(0))) == 4
    assert len(list(quadpipe.Dataset(dataset).samples("train"))) == 32
    assert list(verify(quadpipe.Dataset(dataset))) == []


@pytest.mark.parametrize("samples", [0, -1, 10**13])
def test_a_marker_that_claims_other_samples_than_it_lists_is_not_readable(dataset, samples):
    path = dataset / ".quadpipe/markers/train/0000/000000.json"
    marker = json.loads(path.read_text())
    marker["inputs"] = samples
    for view in marker["views"]:
        view["samples"] = samples
        if samples == 0:
            view |= {"offsets": [], "checksums": [], "labels": []}
        else:
            del view["checksums"], view["labels"]
    path.write_text(json.dumps(marker))
    with pytest.raises(ShardError, match="not a readable marker"):
        Marker.parse(path.read_bytes())
    (finding,) = {line.partition(": not")[0] for line in verify(quadpipe.Dataset(dataset))}
    assert finding.endswith("000000.json")


def test_wrong_offsets_in_the_index_lose_only_their_samples(dataset):
    rows = np.load(dataset / "train.index.npy")
    rows["size"][0] += 512
    rows["offset"][1] += 512
    rows["size"][1] -= 512
    rows["checksum"][:2] = 0  # checksums are optional
    put_index(dataset, "train", rows)
    with pytest.raises(ShardError, match=r"train-000000\.tar: "):
        list(Loader(dataset, batch_size=4).epoch(0))
    loader = Loader(dataset, batch_size=4, on_error="skip")
    assert sum(batch.skipped for batch in loader.epoch(0)) == 2


def test_the_reading_of_a_large_index_is_announced(dataset, caplog, monkeypatch):
    quadpipe.Dataset(dataset).index("train")
    assert "reading" not in caplog.text
    monkeypatch.setattr("quadpipe.shards.arrays._LARGE", 100)
    quadpipe.Dataset(dataset).index("train")
    assert "train.index.npy, 1.1 kB, to compare its checksum" in caplog.text


def test_a_dataset_without_an_index_loads_with_one_warning(dataset, caplog):
    expected = [batch.keys for batch in Loader(dataset, batch_size=4).epoch(0)]
    remove_index(dataset)
    opened = quadpipe.Dataset(dataset)
    assert [batch.keys for batch in Loader(opened, batch_size=4).epoch(0)] == expected
    assert len(list(Loader(opened, "val", batch_size=4).epoch(0))) == 1
    assert len(list(opened.samples("train"))) == 32
    assert caplog.text.count("has no checksums of samples") == 1
    blacken(dataset)  # nothing there to find it with
    list(Loader(dataset, batch_size=4).epoch(0))


def strip_markers(dataset: Path) -> None:
    """Make markers like those of versions that wrote neither gains nor index."""
    for path in (dataset / ".quadpipe/markers").rglob("*.json"):
        marker = json.loads(path.read_text())
        for view in marker["views"]:
            del view["checksums"], view["labels"]
        path.with_suffix(".gains.npy").unlink()
        path.write_text(json.dumps(marker))


def test_running_tokenize_again_adds_the_index_of_an_old_dataset(tmp_path, files_of):
    dataset = make_dataset(tmp_path, views=2)
    expected = files_of(dataset)
    remove_index(dataset)
    strip_markers(dataset)
    make_dataset(tmp_path, views=2)
    found = files_of(dataset)
    assert json.loads(found.pop("dataset.json"))["revision"] == 2
    for name in expected.keys() - {"dataset.json", "croissant.json"}:  # of another revision
        if "markers" not in name:
            assert found[name] == expected[name], name


def test_a_job_of_an_old_version_is_finished_with_the_same_bytes(tmp_path, files_of):
    dataset = make_dataset(tmp_path, views=2)
    expected = files_of(dataset)
    strip_markers(dataset)
    for name in ("dataset.json", "train.index.npy", "train-000001.tar"):
        (dataset / name).unlink()
    make_dataset(tmp_path, views=2)
    found = files_of(dataset)
    for name in expected:
        if "markers" not in name:
            assert found[name] == expected[name], name


def test_an_old_tar_whose_samples_lack_labels_is_refused(tmp_path):
    dataset = make_dataset(tmp_path)
    strip_markers(dataset)
    (dataset / "dataset.json").unlink()
    tar = dataset / "train-000001.tar"
    tar.write_bytes(tar.read_bytes().replace(b".cls\0", b".sls\0"))
    with pytest.raises(ShardError, match=r"train-000001\.tar: .*; remove it and rerun the same"):
        make_dataset(tmp_path)


def test_a_manifest_of_a_later_version_and_one_of_an_earlier_are_read(dataset):
    edit_manifest(dataset, license=None, name=None, source=None, later={"x": 1})
    edit_manifest(dataset, splits__train__later=1)
    assert len(list(quadpipe.Dataset(dataset).samples("train"))) == 32
    edit_manifest(dataset, samples_per_shard=None)
    with pytest.raises(ShardError, match="'samples_per_shard' is missing"):
        quadpipe.Dataset(dataset)
