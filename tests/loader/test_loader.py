import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn
import numpy as np
import pytest
import torch

import quadpipe
from forging import edit_manifest, remove_index
from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Loader, webdataset


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("loader") / "shards"
    options: dict[str, Any] = {
        "samples_per_shard": 4,
        "val_share": 0.2,
        "views": 2,
        "in_process": True,
    }
    quadpipe.tokenize(image_folder, out, **options)
    return out


def keys(shards: Path, epoch: int = 0, consumed: int = 0, **options: Any) -> list[list[str]]:
    loader = Loader(shards, "train", **{"batch_size": 5, **options})
    return [batch.keys for batch in loader.epoch(epoch, consumed=consumed)]


def test_batches_hold_the_leaves_of_the_samples(shards):
    dataset = quadpipe.Dataset(shards)
    samples = {sample.key: sample for sample in dataset.samples("train", view=0)}
    for tokens in (16, 64, 100):
        loader = Loader(dataset, "train", batch_size=7, tokens=tokens)
        assert loader.steps(0) == 3
        for batch in loader.epoch(0):
            assert batch.tokens.dtype == torch.uint8
            assert batch.boxes.dtype == torch.int16
            assert batch.label.dtype == torch.int64
            for row, key in enumerate(batch.keys):
                leaves = samples[key].mosaic.leaves(tokens)
                np.testing.assert_array_equal(batch.tokens[row], leaves.tokens)
                np.testing.assert_array_equal(batch.boxes[row], leaves.boxes)
                assert batch.label[row] == samples[key].label


def test_an_epoch_reads_every_sample_once_and_the_last_batch_is_short(shards):
    batches = keys(shards)
    assert [len(batch) for batch in batches] == [5, 5, 5, 3]
    assert len({key for batch in batches for key in batch}) == 18
    assert [len(batch) for batch in keys(shards, drop_last=True)] == [5, 5, 5]
    assert keys(shards, epoch=2) != batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_ranks_and_workers_do_not_change_the_order(shards, world_size, workers):
    slices = [
        keys(shards, rank=rank, world_size=world_size, workers=workers)
        for rank in range(world_size)
    ]
    together = [[key for part in step for key in part] for step in zip(*slices, strict=True)]
    assert together == keys(shards)


@pytest.mark.parametrize("consumed", [0, 5, 15, 18])
def test_an_epoch_resumes_after_any_batch(shards, consumed):
    assert keys(shards, consumed=consumed, workers=2) == keys(shards)[-(-consumed // 5) :]


def test_more_ranks_than_samples_make_the_same_steps_with_weight_zero(shards):
    total = torch.zeros(4)
    for rank in range(7):
        loader = Loader(shards, "train", batch_size=5, rank=rank, world_size=7)
        batches = list(loader.epoch(0))
        assert len(batches) == 4
        assert all(len(batch.keys) >= 1 for batch in batches)
        total += torch.stack([batch.weight.sum() for batch in batches])
        assert [batch.total for batch in batches] == [5, 5, 5, 3]
    assert total.tolist() == [5, 5, 5, 3]


def test_epochs_alternate_between_the_views(shards):
    assert all("-v01" not in key for batch in keys(shards, epoch=2) for key in batch)
    assert all(key.endswith("-v01") for batch in keys(shards, epoch=3) for key in batch)


def test_shards_at_a_url_or_without_an_index_give_the_same_batches(shards, tmp_path):
    bare = Path(shutil.copytree(shards, tmp_path / "bare"))
    remove_index(bare)
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/with", recursive=True)
    memory.put(str(bare), "/without", recursive=True)
    expected = list(Loader(shards, "train", batch_size=5).epoch(0))
    for place in (bare, "memory://with", "memory://without"):
        found = list(Loader(place, "train", batch_size=5).epoch(0))
        for one, other in zip(expected, found, strict=True):
            assert one.keys == other.keys
            assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("codec", ["jpg", "png"])
def test_other_codecs_are_read(image_folder, tmp_path, codec):
    quadpipe.tokenize(image_folder, tmp_path / "out", codec=codec, in_process=True, limit=4)
    batch = next(Loader(tmp_path / "out", "train", batch_size=4, tokens=64).epoch(0))
    samples = {s.key: s for s in quadpipe.Dataset(tmp_path / "out").samples("train")}
    for row, key in enumerate(batch.keys):
        np.testing.assert_array_equal(batch.tokens[row], samples[key].mosaic.leaves(64).tokens)


def test_samples_without_labels_have_label_minus_one(image_folder, tmp_path):
    quadpipe.tokenize(image_folder, tmp_path / "out", use_labels=False, in_process=True, limit=3)
    assert next(Loader(tmp_path / "out", batch_size=3).epoch(0)).label.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 99}, "use 97 or 100"),
        ({"tokens": 196}, "holds 100 tokens, not 196; use at most 100"),
        ({"batch_size": 0}, "batch size must be above 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2"),
        ({"batch_size": 19, "drop_last": True}, "has 18 samples, too few for a batch of 19"),
        ({"split": "test"}, "has no split 'test'"),
    ],
)
def test_invalid_loader_options_are_refused(shards, options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(shards, **{"batch_size": 5, **options})


def test_resuming_with_another_batch_size_is_refused(shards):
    with pytest.raises(ConfigError, match="7 samples are not a whole number of batches of 5"):
        next(Loader(shards, batch_size=5).epoch(0, consumed=7))


def test_a_plain_webdataset_pipeline_gives_the_same_leaves(shards):
    samples = {s["key"]: s for s in webdataset(shards, "train", tokens=64)}
    loader = Loader(shards, "train", batch_size=18, tokens=64)
    batch = next(loader.epoch(0))
    assert set(samples) == set(batch.keys)
    for row, key in enumerate(batch.keys):
        np.testing.assert_array_equal(samples[key]["tokens"], batch.tokens[row])
        np.testing.assert_array_equal(samples[key]["boxes"], batch.boxes[row])
        assert samples[key]["label"] == batch.label[row]


def test_a_plain_pipeline_works_in_spawned_workers_of_a_dataloader(shards):
    expected = sorted(sample["key"] for sample in webdataset(shards, "train"))
    loader = torch.utils.data.DataLoader(
        webdataset(shards, "train", shardshuffle=10),
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
    )
    assert sorted(sample["key"] for sample in loader) == expected


class AsyncFiles(fsspec.asyn.AsyncFileSystem):
    """Like s3fs and other file systems, it has connections of an event loop."""

    protocol = "asyncfiles"

    async def _info(self, path: str, **options: Any) -> dict:
        if not Path(path).exists():
            raise FileNotFoundError(path)
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    async def _cat_file(self, path: str, start=None, end=None, **options: Any) -> bytes:
        return Path(path).read_bytes()[start:end]

    def _open(self, path: str, mode: str = "rb", **options: Any):
        return open(path, mode)


def test_remote_shards_are_read_by_threads(shards):
    fsspec.register_implementation("asyncfiles", AsyncFiles, clobber=True)
    expected = list(Loader(shards, "train", batch_size=5).epoch(0))
    remote = Loader(f"asyncfiles://{shards}", "train", batch_size=5, workers=2)
    for one, other in zip(expected, remote.epoch(0), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.tokens, other.tokens)


def test_views_of_unequal_counts_are_refused(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    path = copy / "train.shards.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:2]:
        row["view"], row["name"] = 1, f"train-v01-{90 + rows.index(row):06d}.tar"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_manifest(copy, splits__train__shard_list_sha256=digest)
    with pytest.raises(ShardError, match="the views have "):
        list(Loader(copy, "train", batch_size=5).epoch(0))


def test_idle_ranks_are_reported_once(shards, caplog):
    for rank in range(3):
        Loader(shards, "train", batch_size=2, rank=rank, world_size=3)
    assert caplog.text.count("batches of 2 samples for 3 ranks") == 1
