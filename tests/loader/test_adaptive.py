"""Batches in which every image has its own number of tokens."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forging import make_dataset, remove_index
from quadpipe import Dataset
from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Batch, Loader


@pytest.fixture(scope="module", params=["raw", "jpg"])
def shards(request, tmp_path_factory) -> Path:
    options: dict[str, Any] = (
        {"patch_size": 8, "max_patch_size": 32} if request.param == "jpg" else {}
    )
    size = 64 if request.param == "jpg" else 32
    return make_dataset(
        tmp_path_factory.mktemp("shards"), views=2, tokens=25, codec=request.param,
        image_size=size, scorer="pixel-blur", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def roots(shards) -> int:
    return Dataset(shards).manifest.geometry.roots


def images_of(batch: Batch) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Key, tokens and boxes of each image."""
    lengths = lengths_of(batch).tolist()
    parts = zip(batch.keys, batch.tokens.split(lengths), batch.boxes.split(lengths), strict=True)
    return [(key, tokens.numpy(), boxes.numpy()) for key, tokens, boxes in parts]


def lengths_of(batch: Batch) -> torch.Tensor:
    assert batch.lengths is not None
    return batch.lengths


def all_images(loaders: list[Loader], epoch: int = 0) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The images of an epoch in their order; loaders: one for each rank."""
    found = []
    for slices in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
        for batch in slices:
            found += [i for i, w in zip(images_of(batch), batch.weight, strict=True) if w]
    return found


def assert_same(found, expected):
    assert [key for key, *_ in found] == [key for key, *_ in expected]
    for (_, *arrays), (_, *others) in zip(found, expected, strict=True):
        for array, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_batch_has_the_mean_and_every_image_a_prefix(shards, epoch):
    loader = Loader(
        shards, batch_size=5, mean_tokens=12, min_tokens=7, max_tokens=22, gain_discount=0
    )
    mosaics = {s.key: s.mosaic for s in Dataset(shards).samples("train", view=epoch)}
    counts = []
    for batch in loader.epoch(epoch):
        lengths = lengths_of(batch)
        assert len(lengths) * 12 - 2 <= len(batch.tokens) <= len(lengths) * 12
        assert len(batch.tokens) == len(batch.boxes) == lengths.sum()
        counts += lengths.tolist()
        least = np.inf
        largest_left = -np.inf
        for key, tokens, boxes in images_of(batch):
            leaves = mosaics[key].leaves(len(tokens))
            np.testing.assert_array_equal(tokens, leaves.tokens)
            np.testing.assert_array_equal(boxes, leaves.boxes)
            splits, gains = (len(tokens) - 4) // 3, mosaics[key].gains
            if splits > 1:
                least = min(least, gains[splits - 1])
            if splits < 6:
                largest_left = max(largest_left, gains[splits])
        assert least >= largest_left
    assert len(set(counts)) > 1
    assert min(counts) >= 7
    assert max(counts) <= 22


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_threads_do_not_change_the_batches(shards, world_size, workers):
    options: dict[str, Any] = {"batch_size": 5, "mean_tokens": "10,13,16"}
    alone = all_images([Loader(shards, **options)])
    ranks = [
        Loader(shards, **options, rank=rank, world_size=world_size, workers=workers)
        for rank in range(world_size)
    ]
    assert_same(all_images(ranks), alone)


def test_an_epoch_continues_where_it_was_left(shards):
    loader = Loader(shards, batch_size=3, mean_tokens="10,16", min_tokens=7)
    whole = list(loader.epoch(1))
    rest = list(loader.epoch(1, consumed=6))
    assert len(rest) == len(whole) - 2
    for batch, other in zip(rest, whole[2:], strict=True):
        assert batch.keys == other.keys
        assert torch.equal(lengths_of(batch), lengths_of(other))
        assert torch.equal(batch.tokens, other.tokens)


def test_means_are_drawn_per_batch(shards):
    loader = Loader(shards, batch_size=2, mean_tokens="10,16,22", seed=5)
    means = {len(batch.tokens) / len(batch.keys) for batch in loader.epoch(0)}
    assert means == {10, 16, 22}


def test_a_threshold_decides_for_each_image_alone(shards, roots):
    gains = {s.key: s.mosaic.gains for s in Dataset(shards).samples("train", 0)}
    threshold = float(np.median(np.stack(list(gains.values()))))
    loader = Loader(
        shards, batch_size=5, threshold=threshold, min_tokens=7, max_tokens=22, gain_discount=0
    )
    for key, tokens, _ in all_images([loader]):
        splits = int((gains[key] >= threshold).sum())
        assert len(tokens) == min(max(roots + 3 * splits, 7), 22)


def test_datasets_without_a_file_of_gains_give_the_same_batches(shards, tmp_path, caplog):
    old = Path(shutil.copytree(shards, tmp_path / "old"))
    remove_index(old)
    options: dict[str, Any] = {"batch_size": 5, "mean_tokens": 13}
    assert_same(all_images([Loader(old, **options)]), all_images([Loader(shards, **options)]))
    assert "has no file of gains; reading all its shards" in caplog.text


def test_a_damaged_sample_keeps_its_number_of_tokens(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    options: dict[str, Any] = {"batch_size": 16, "mean_tokens": 13, "seed": 2}
    (whole,) = Loader(shards, **options).epoch(0)
    dataset = Dataset(copy)
    index = dataset.index("train")
    assert index is not None
    row = index[2]
    tar = copy / dataset.shards("train")[row["shard"]].name
    data = bytearray(tar.read_bytes())
    data[row["offset"] + 700] ^= 1
    tar.write_bytes(data)
    (batch,) = Loader(copy, **options, on_error="skip").epoch(0)
    assert batch.skipped == 1
    assert torch.equal(lengths_of(batch), lengths_of(whole))
    at = int(torch.argmin(batch.weight))
    for number, ((_, tokens, boxes), other) in enumerate(
        zip(images_of(batch), images_of(whole), strict=True)
    ):
        if number == at:
            assert not tokens.any()
            assert (4 ** boxes[:, 2].astype(int)).sum() == 64
        else:
            np.testing.assert_array_equal(tokens, other[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 13, "mean_tokens": 13}, "give one of tokens, mean_tokens and threshold"),
        ({"threshold": 0.5, "mean_tokens": 13}, "give one of tokens, mean_tokens and threshold"),
        ({"min_tokens": 7}, "min_tokens, max_tokens and gain_discount are for mean_tokens"),
        ({"mean_tokens": 40}, "a mean of 40 tokens is not from 4 to 25"),
        ({"mean_tokens": 8, "min_tokens": 10}, "a mean of 8 tokens is not from 10 to 25"),
        ({"mean_tokens": 8, "max_tokens": 28}, "from 4 to 28 tokens per image is not a range"),
    ],
)
def test_counts_that_the_shards_do_not_hold_are_refused(shards, options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(shards, batch_size=4, **options)


def test_changed_gains_are_refused(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    data = bytearray((copy / "train.gains.npy").read_bytes())
    data[-1] ^= 1
    (copy / "train.gains.npy").write_bytes(data)
    with pytest.raises(ShardError, match=r"train\.gains\.npy was changed: its checksum"):
        Loader(copy, batch_size=4, mean_tokens=13)
