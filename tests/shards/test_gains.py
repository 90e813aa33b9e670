"""The file of gains: its contents, the damage it finds, and datasets without one."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from forging import edit_manifest, make_dataset
from quadpipe import Dataset
from quadpipe.errors import ShardError
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.marker import Marker
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
def test_numbers_that_are_not_gains_are_refused(dataset, value):
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


def test_running_tokenize_again_adds_the_gains_of_an_old_dataset(tmp_path, files_of):
    dataset = make_dataset(tmp_path)
    expected = files_of(dataset)
    for split in ("train", "val"):
        (dataset / f"{split}.gains.npy").unlink()
        edit_manifest(dataset, **{f"splits__{split}__gains_sha256": None})
    for path in (dataset / ".quadpipe/markers").rglob("*.json"):
        marker = json.loads(path.read_text())
        for view in marker["views"]:
            del view["gains"]
        path.write_text(json.dumps(marker))
    make_dataset(tmp_path)
    found = files_of(dataset)
    for name in ("train.gains.npy", "val.gains.npy", "train.index.npy"):
        assert found[name] == expected[name]


@pytest.mark.parametrize("text", ["?", "AAA=", 7])
def test_a_marker_with_unreadable_gains_is_refused(dataset, text):
    marker = json.loads((dataset / ".quadpipe/markers/train/0000/000000.json").read_text())
    marker["views"][0]["gains"] = text
    with pytest.raises(ShardError, match="not a readable marker"):
        Marker.parse(json.dumps(marker).encode())
