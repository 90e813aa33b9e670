"""The file of gains: its contents, the damage it finds, and datasets without one."""

import hashlib
import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from forging import edit_manifest, make_dataset, remove_index
from quadpipe import Dataset
from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Loader
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.gains import sample_gains
from quadpipe.shards.tar import member_bytes, read_members
from quadpipe.shards.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("whole"), views=2)


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def put_gains(dataset: Path, gains: np.ndarray) -> None:
    """Write these gains of the split train, with the checksum that the manifest then names."""
    data = npy_bytes(gains.astype("<f4"))
    (dataset / "train.gains.npy").write_bytes(data)
    edit_manifest(dataset, splits__train__gains_sha256=hashlib.sha256(data).hexdigest())


def test_gains_open_with_numpy_alone_in_the_order_of_the_index(whole):
    gains = np.load(whole / "train.gains.npy", mmap_mode="r")
    assert gains.dtype == np.float32
    samples = list(Dataset(whole).samples("train"))
    assert gains.shape == (len(samples), 4) == (32, 4)
    for row, sample in zip(gains, samples, strict=True):
        np.testing.assert_array_equal(row, sample.mosaic.gains)
    manifest = json.loads((whole / "dataset.json").read_text())
    sha256 = hashlib.sha256((whole / "train.gains.npy").read_bytes()).hexdigest()
    assert manifest["splits"]["train"]["gains_sha256"] == sha256


def test_patches_of_one_size_have_no_gains(tmp_path):
    dataset = Dataset(make_dataset(tmp_path, scorer="uniform", tokens=64, max_patch_size=4))
    assert dataset.gains("train").shape == (16, 0)
    assert list(verify(dataset)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"train\.gains\.npy: missing; fetch it again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "bytes, expected"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "was changed: its checksum"),
    ],
)
def test_damaged_gains_are_found(dataset, damage, message):
    damage(dataset / "train.gains.npy")
    with pytest.raises(ShardError, match=message):
        Dataset(dataset).gains("train")
    with pytest.raises(ShardError, match=message):
        raise ShardError("\n".join(verify(Dataset(dataset))))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_numbers_that_are_not_gains_are_refused(dataset, value, monkeypatch):
    monkeypatch.setattr("quadpipe.shards.gains._ROWS_AT_ONCE", 2)
    gains = Dataset(dataset).gains("train").copy()
    gains[3, 2] = value
    put_gains(dataset, gains)
    with pytest.raises(ShardError, match=r"train\.gains\.npy: not gains; report it"):
        Dataset(dataset).gains("train")


def test_gains_that_are_not_those_of_the_samples_are_found(dataset):
    gains = Dataset(dataset).gains("train").copy()
    gains[9] += 1
    put_gains(dataset, gains)
    (finding,) = verify(Dataset(dataset))
    assert "has other gains than the file of gains; report it to the publisher" in finding


@pytest.mark.parametrize("damage", [None, b"", b"x" * 384])
def test_running_tokenize_again_adds_the_gains_of_an_old_dataset(tmp_path, files_of, damage):
    dataset = make_dataset(tmp_path, views=2)
    expected = files_of(dataset)
    for split in ("train", "val"):
        (dataset / f"{split}.gains.npy").unlink()
        edit_manifest(dataset, **{f"splits__{split}__gains_sha256": None})
    for path in (dataset / ".quadpipe/markers").rglob("*.gains.npy"):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
    make_dataset(tmp_path, views=2)
    found = files_of(dataset)
    for name in ("train.gains.npy", "val.gains.npy", "train.index.npy"):
        assert found[name] == expected[name]


def damage_importance(dataset: Path, change: bytes) -> Path:
    """Change the last importance of the third sample of the first shard; the tar."""
    tar = dataset / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    members = list(read_members(memoryview(bytes(data))))
    importances = [(at, len(c)) for name, at, c in members if name.endswith(".importance.npy")]
    at, size = importances[2]
    end = at + 512 + size
    data[end - 4 : end] = change
    tar.write_bytes(data)
    return tar


def test_gains_of_a_damaged_sample_are_not_used(dataset):
    for split in ("train", "val"):
        edit_manifest(dataset, **{f"splits__{split}__gains_sha256": None})
    damage_importance(dataset, np.float32(np.nan).tobytes())
    with pytest.raises(ShardError, match="train-000000.tar: 00000000.*checksum mismatch"):
        Dataset(dataset).gains("train")
    remove_index(dataset, "train")
    with pytest.raises(ShardError, match="importance.npy: holds numbers that are not finite"):
        Dataset(dataset).gains("train")


def test_the_merge_takes_no_gains_from_a_damaged_sample(tmp_path):
    dataset = make_dataset(tmp_path)
    tar = damage_importance(dataset, np.float32(1e9).tobytes())
    (dataset / "dataset.json").unlink()
    for path in (dataset / ".quadpipe/markers").rglob("*.gains.npy"):
        path.unlink()
    with pytest.raises(ShardError, match=r"000000\.tar: .*checksum mismatch.*; remove it and"):
        make_dataset(tmp_path)
    tar.unlink()
    make_dataset(tmp_path)
    assert list(verify(Dataset(dataset))) == []


def test_members_of_others_are_not_taken_for_importances():
    own = npy_bytes(np.array([3, 2], "<f4"))
    foreign = npy_bytes(np.array([9, 9], "<f4"))
    members = [("1.depth.importance.npy", foreign), ("1.importance.npy", own)]
    part = b"".join(member_bytes(name, data) for name, data in members)
    assert sample_gains(memoryview(part), 2).tolist() == [3, 2]


def test_without_a_file_of_gains_no_shard_can_be_skipped(dataset):
    remove_index(dataset)
    (dataset / "train-000001.tar").unlink()
    message = r'01.tar: missing: .*finish copying .*every sample, also with on_error="skip", since'
    with pytest.raises(ShardError, match=message):
        next(Loader(dataset, batch_size=4, mean_tokens=13, on_error="skip").epoch(0))


def test_a_remote_dataset_without_gains_is_not_read_as_a_whole(dataset):
    edit_manifest(dataset, splits__train__gains_sha256=None)
    fsspec.filesystem("memory").put(str(dataset), "/without-gains", recursive=True)
    with pytest.raises(ConfigError, match="has no file of gains.*rerun the quadpipe tokenize"):
        Dataset("memory://without-gains").gains("train")
