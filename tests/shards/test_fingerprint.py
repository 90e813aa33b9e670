"""The fingerprint of a dataset, and what tells revisions with files of the same sizes apart."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import run_cli

from forging import edit_json, make_dataset
from quadpipe import Dataset, __version__
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Cache
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.run_folder import RunFolder
from quadpipe.shards.verify import verify

TRAINED: dict[str, Any] = {
    "model": "nano",
    "epochs": 1,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("first"), name="One", license="mit")


@pytest.fixture(scope="module")
def second(tmp_path_factory) -> Path:
    """Another revision: the same inputs in another order, files of the same names and sizes."""
    return make_dataset(tmp_path_factory.mktemp("second"), seed=1, name="One", license="mit")


def sizes(dataset: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in dataset.glob("*.*") if path.is_file()}


def test_two_revisions_have_files_of_the_same_sizes(first, second):
    assert sizes(first) == sizes(second)


def test_the_fingerprint_is_over_samples_tokenizer_codec_and_classes(first, second, tmp_path):
    expected = Dataset(first).manifest.fingerprint
    assert json.loads((first / "dataset.json").read_text())["fingerprint"] == expected
    assert Dataset(second).manifest.fingerprint != expected
    changed = Path(shutil.copytree(first, tmp_path / "changed"))
    edit_json(changed / "dataset.json", name="Two", license=None, source="elsewhere", revision=7)
    edit_json(changed / "dataset.json", quadpipe="9.9", splits__train__index_sha256=None)
    assert Dataset(changed).manifest.fingerprint == expected
    for change in (
        {"classes": ["left", "wrong"]},
        {"tokenizer__crop_pct": 0.5},
        {"tokenizer__of_a_later_version": 1},
        {"splits__val__shard_list_sha256": "0" * 64},
    ):
        again = Path(shutil.copytree(first, tmp_path / next(iter(change))))
        edit_json(again / "dataset.json", **change)
        with pytest.raises(ShardError, match=f"its fingerprint is {expected}, and that of what"):
            Dataset(again)
        edit_json(again / "dataset.json", fingerprint=None)
        assert Dataset(again).manifest.fingerprint != expected


def test_the_fingerprint_of_an_earlier_version_is_computed(first, tmp_path):
    earlier = Path(shutil.copytree(first, tmp_path / "earlier"))
    edit_json(earlier / "dataset.json", fingerprint=None, quadpipe=None)
    manifest = Dataset(earlier).manifest
    assert manifest.fingerprint == Dataset(first).manifest.fingerprint
    assert manifest.quadpipe is None
    assert Dataset(first).manifest.quadpipe == __version__
    assert list(verify(Dataset(earlier))) == []


def test_a_dataset_is_opened_only_with_the_expected_fingerprint(first, second):
    fingerprint = Dataset(first).manifest.fingerprint
    for given in (fingerprint, fingerprint[:12], fingerprint.upper()):
        assert Dataset(first, expect=given).manifest.fingerprint == fingerprint
        with pytest.raises(ShardError, match=f"not the expected dataset: .* {fingerprint[:12]}"):
            Dataset(second, expect=given)
    for given in ("", fingerprint[:11], f"{fingerprint}0", "not-a-fingerprint"):
        with pytest.raises(ConfigError, match="is not a fingerprint: give at least 12"):
            Dataset(first, expect=given)


def test_commands_stop_when_the_fingerprint_is_not_the_expected_one(first, second, tmp_path):
    fingerprint = Dataset(first).manifest.fingerprint
    assert f"fingerprint {fingerprint}\n" in run_cli("info", first).stdout
    assert run_cli("verify", first, "--expect", fingerprint[:16]).returncode == 0
    train(first, tmp_path / "run", expect=fingerprint[:12], tokens=16, **TRAINED)
    for command in (
        ("verify", second),
        ("train", second, "--out", tmp_path / "other"),
        ("eval", tmp_path / "run", second),
    ):
        done = run_cli(*command, "--expect", fingerprint)
        assert done.returncode == 1, done.stderr
        assert "is not the expected dataset" in done.stderr
    assert not (tmp_path / "other").exists()
    assert RunFolder(tmp_path / "run").config().fingerprint == fingerprint


def test_a_run_is_not_resumed_on_another_revision(first, second, tmp_path):
    train(first, tmp_path / "run", tokens=16, **TRAINED)
    with pytest.raises(ConfigError, match=r"was started differently: .*shard_lists"):
        train(second, tmp_path / "run", tokens=16, resume=True, **TRAINED)


def test_a_cache_keeps_two_revisions_apart(first, second, tmp_path):
    cache = Cache(folder=tmp_path / "cache", bytes=10**7)
    for dataset in (first, second, first):
        url = f"local://{dataset}"  # any URL but file:// is read as a remote one
        cached = [
            sample.mosaic.tokens.tobytes() for sample in Dataset(url, cache=cache).samples("val")
        ]
        assert cached == [
            sample.mosaic.tokens.tobytes() for sample in Dataset(dataset).samples("val")
        ]


def test_shards_of_another_revision_are_found_by_readers_and_verify(first, second, tmp_path):
    mixed = Path(shutil.copytree(first, tmp_path / "mixed"))
    shutil.copy(second / "train-000001.tar", mixed / "train-000001.tar")
    (finding,) = list(verify(Dataset(mixed)))[:1]
    assert "its checksum is not the one in train's shard list" in finding
    with pytest.raises(ShardError, match="checksum mismatch"):
        list(Loader(mixed, "train", batch_size=4).epoch(0))
