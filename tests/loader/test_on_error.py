"""Damage of every kind, read with on_error="raise" and "skip"."""

import errno
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import quadpipe
from forging import make_dataset, members_of, remove_index, replace_member, reseal, tar_of
from quadpipe.errors import ConfigError, ShardError, UnreadableError
from quadpipe.loader import Batch, Loader, webdataset
from quadpipe.mosaic import dense_map
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.skipped import Skipped

SHARD = "train-000001.tar"
KEYS = [f"{index:010d}" for index in range(4, 8)]
"""The samples of the shard that is damaged."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


def offset_of(dataset: Path, key: str) -> int:
    return next(s.offset for s in quadpipe.Dataset(dataset).samples("train") if s.key == key)


def flip(dataset: Path, key: str, byte: int) -> None:
    """Change a byte of a sample, so that no checksum fits."""
    data = bytearray((dataset / SHARD).read_bytes())
    data[offset_of(dataset, key) + byte] ^= 0xFF
    (dataset / SHARD).write_bytes(data)


def without_index(damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(dataset: Path) -> None:
        damage(dataset)
        remove_index(dataset)

    return both


def cut(dataset: Path) -> None:
    tar = dataset / SHARD
    tar.write_bytes(tar.read_bytes()[:-1024])


def swap_keys(dataset: Path) -> None:
    """The last sample takes the key of the first."""
    members = [
        (name.replace(KEYS[3], KEYS[0]), data) for name, data in members_of(dataset / SHARD).items()
    ]
    reseal(dataset, SHARD, tar_of(members))


def leave_out(dataset: Path) -> None:
    """Remove one sample, which the shard list still counts."""
    members = [item for item in members_of(dataset / SHARD).items() if KEYS[3] not in item[0]]
    reseal(dataset, SHARD, tar_of(members))


DAMAGES = {
    "a header": (lambda d: flip(d, KEYS[1], 3), KEYS[1:2]),
    "a header, without an index": (without_index(lambda d: flip(d, KEYS[1], 3)), KEYS[1:]),
    "an array's header": (lambda d: flip(d, KEYS[1], 520), KEYS[1:2]),
    "a pixel": (lambda d: flip(d, KEYS[1], 700), KEYS[1:2]),
    "nodes": (
        lambda d: replace_member(
            d, SHARD, f"{KEYS[2]}.nodes.npy", npy_bytes(np.full((20, 4), 7, np.int32))
        ),
        KEYS[2:3],
    ),
    "a label": (lambda d: replace_member(d, SHARD, f"{KEYS[0]}.cls", b"2"), KEYS[:1]),
    "no label": (lambda d: replace_member(d, SHARD, f"{KEYS[0]}.cls", None), KEYS[:1]),
    "another size": (cut, KEYS),
    "no shard": (lambda d: (d / SHARD).unlink(), KEYS),
    "a folder": (lambda d: (d / SHARD).unlink() or (d / SHARD).mkdir(), KEYS),
    "a key twice": (swap_keys, KEYS[3:]),
}
"""Damage by name: the function, and the keys that it loses."""
BY_NAME = pytest.mark.parametrize(("damage", "lost"), DAMAGES.values(), ids=DAMAGES)


@BY_NAME
def test_reading_in_order_raises_or_skips_and_counts(whole, dataset, damage, lost):
    before = {s.key: s for s in quadpipe.Dataset(whole).samples("train")}
    damage(dataset)
    with pytest.raises(ShardError, match=SHARD):
        list(quadpipe.Dataset(dataset).samples("train"))
    opened = quadpipe.Dataset(dataset)
    found = list(opened.samples("train", on_error="skip"))
    assert [s.key for s in found] == [key for key in before if key not in lost]
    for sample in found:
        np.testing.assert_array_equal(sample.mosaic.tokens, before[sample.key].mosaic.tokens)
    assert opened.skipped.samples == len(lost)
    assert all(SHARD in message for message in opened.skipped.messages)
    plain = [sample["key"] for sample in webdataset(dataset, "train", on_error="skip")]
    assert plain == [sample.key for sample in found]
    with pytest.raises(ShardError, match=SHARD):
        list(webdataset(dataset, "train"))


def rows_of(batches: list[Batch]) -> list[tuple]:
    return [
        (tokens, boxes, int(label), float(weight), key)
        for b in batches
        for tokens, boxes, label, weight, key in zip(
            b.tokens.numpy(), b.boxes.numpy(), b.label, b.weight, b.keys, strict=True
        )
    ]


def check_rows(found: list[Batch], expected: list[Batch], lost: list[str]) -> None:
    """The rows are the expected ones but for the lost keys, which have a blank input instead."""
    for row, other in zip(rows_of(found), rows_of(expected), strict=True):
        if other[4] not in lost:
            np.testing.assert_array_equal(row[0], other[0])
            np.testing.assert_array_equal(row[1], other[1])
            assert row[2:] == other[2:]
            continue
        tokens, boxes, *rest = row
        assert rest == [0, 0.0, ""]
        assert not tokens.any()
        dense_map(np.zeros((len(boxes), 1)), boxes, (8, 8))  # raises unless they tile the image
    for batch, whole in zip(found, expected, strict=True):
        assert (batch.total, batch.first) == (whole.total, whole.first)
        assert batch.skipped == sum(key in lost for key in whole.keys)


@pytest.mark.parametrize("workers", [0, 2])
@BY_NAME
def test_the_loader_raises_or_keeps_the_place_of_skipped_samples(
    whole, dataset, damage, lost, workers
):
    damage(dataset)
    options: dict[str, Any] = {"batch_size": 5, "tokens": 13}
    with pytest.raises(ShardError, match=SHARD):
        list(Loader(dataset, "train", **options, workers=workers).epoch(0))
    expected = list(Loader(whole, "train", **options).epoch(0))
    loader = Loader(dataset, "train", **options, workers=workers, on_error="skip")
    check_rows(list(loader.epoch(0)), expected, lost)
    assert loader.skipped.samples == len(lost)
    assert all(SHARD in message for message in loader.skipped.messages)
    assert len(loader.skipped.messages) == 1


def test_a_shard_that_lacks_a_sample_gives_the_others(whole, dataset):
    leave_out(dataset)
    with pytest.raises(ShardError, match=f"{SHARD}: 3 samples, expected 4"):
        list(quadpipe.Dataset(dataset).samples("train"))
    with pytest.raises(ShardError, match=f"{SHARD}: 3 samples, expected 4"):
        list(Loader(dataset, batch_size=5).epoch(0))
    opened = quadpipe.Dataset(dataset)
    assert len(list(opened.samples("train", on_error="skip"))) == 15
    assert opened.skipped.samples == 1
    loader = Loader(dataset, batch_size=5, on_error="skip")
    batches = list(loader.epoch(0))
    assert sorted(key for b in batches for key in b.keys)[:2] == ["", "0000000000"]
    assert loader.skipped.samples == 1


def test_samples_beyond_the_listed_number_are_refused_and_not_read(dataset):
    extra = [(name.replace(KEYS[0], "0000000099"), data)
             for name, data in members_of(dataset / SHARD).items() if KEYS[0] in name]  # fmt: skip
    reseal(dataset, SHARD, tar_of([*members_of(dataset / SHARD).items(), *extra]))
    with pytest.raises(ShardError, match="0000000099: more than the 4 samples of its list"):
        list(quadpipe.Dataset(dataset).samples("train"))
    with pytest.raises(ShardError, match="0000000099: more than the 4 samples of its list"):
        list(Loader(dataset, batch_size=5).epoch(0))
    opened = quadpipe.Dataset(dataset)
    assert len(list(opened.samples("train", on_error="skip"))) == 16
    assert (opened.skipped.samples, len(opened.skipped.messages)) == (0, 1)
    loader = Loader(dataset, batch_size=5, on_error="skip")
    assert "0000000099" not in [key for batch in loader.epoch(0) for key in batch.keys]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_make_the_same_steps_whatever_is_damaged(whole, dataset, world_size):
    flip(dataset, "0000000005", 520)
    (dataset / "train-000003.tar").unlink()
    lost = ["0000000005", *(f"{index:010d}" for index in range(12, 16))]
    steps = []
    for rank in range(world_size):
        given: dict[str, Any] = {"batch_size": 5, "rank": rank, "world_size": world_size}
        expected = list(Loader(whole, "train", **given).epoch(1))
        loader = Loader(dataset, "train", **given, on_error="skip")
        batches = list(loader.epoch(1))
        assert len(batches) == len(expected) == 4
        # A damaged sample that only stands in for an empty slice is not lost.
        assert loader.skipped.samples == sum(batch.skipped for batch in batches)
        steps.append([(b.total, b.skipped, float(b.weight.sum())) for b in batches])
        for batch, other in zip(batches, expected, strict=True):
            assert len(batch.keys) == len(other.keys)
    for ranks in zip(*steps, strict=True):
        total = {total for total, _, _ in ranks}
        assert total == {sum(skipped + seen for _, skipped, seen in ranks)}
    assert sum(skipped for rank in steps for _, skipped, _ in rank) == len(lost)


@pytest.mark.parametrize("consumed", [5, 10, 16])
def test_resuming_among_damaged_samples_is_exact(dataset, consumed):
    flip(dataset, "0000000005", 520)
    (dataset / "train-000003.tar").unlink()
    batches = list(Loader(dataset, batch_size=5, on_error="skip").epoch(2))
    resumed = Loader(dataset, batch_size=5, workers=2, on_error="skip").epoch(2, consumed=consumed)
    left = batches[-(-consumed // 5) :]
    for row, other in zip(rows_of(list(resumed)), rows_of(left), strict=True):
        np.testing.assert_array_equal(row[0], other[0])
        np.testing.assert_array_equal(row[1], other[1])
        assert row[2:] == other[2:]


def test_blank_rows_of_a_dataset_without_labels_have_label_minus_one(tmp_path):
    dataset = make_dataset(tmp_path, use_labels=False, inputs=8)
    (dataset / "train-000000.tar").unlink()
    (batch,) = Loader(dataset, batch_size=8, on_error="skip").epoch(0)
    assert batch.label.tolist() == [-1] * 8
    assert batch.skipped == 4


@pytest.mark.parametrize("codec", ["png", "jpg"])
def test_damaged_samples_of_other_codecs_are_skipped(tmp_path, codec):
    dataset = make_dataset(tmp_path, codec=codec, patch_size=8, tokens=16)
    replace_member(dataset, SHARD, f"{KEYS[1]}.tokens.{codec}", b"no image")
    with pytest.raises(ShardError, match=rf"{SHARD}: {KEYS[1]}\.tokens\.{codec}: not a readable"):
        list(Loader(dataset, batch_size=5).epoch(0))
    loader = Loader(dataset, batch_size=5, on_error="skip")
    weights = [float(batch.weight.sum()) for batch in loader.epoch(0)]
    assert sum(weights) == 15


def test_damage_at_a_url_is_skipped_as_on_a_disk(whole, dataset):
    flip(dataset, KEYS[1], 3)
    (dataset / "train-000003.tar").unlink()
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/damaged", recursive=True)
    local = list(Loader(dataset, batch_size=5, on_error="skip").epoch(0))
    remote = Loader("memory://damaged", batch_size=5, workers=2, on_error="skip")
    for one, other in zip(remote.epoch(0), local, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.weight, other.weight)
    assert remote.skipped.samples == 5


def test_skips_are_counted_every_epoch_and_each_shard_is_reported_once(dataset, caplog):
    (dataset / SHARD).unlink()
    flip_target = "0000000001"
    replace_member(dataset, "train-000000.tar", f"{flip_target}.cls", b"x")
    loader = Loader(dataset, batch_size=5, on_error="skip")
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert loader.skipped.samples == 15
    assert caplog.text.count(f"{SHARD}: missing: the dataset is incomplete: 4 of 5 shards") == 1
    assert caplog.text.count("train-000000.tar: 0000000001.cls: b'x' is not a class") == 1


def test_intact_samples_are_not_skipped_where_files_cannot_be_opened(whole, monkeypatch):
    def exhausted(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    loader = Loader(whole, batch_size=5, on_error="skip")
    opened = quadpipe.Dataset(whole)
    opened.index("train")
    monkeypatch.setattr("quadpipe.files.local.mmap.mmap", exhausted)
    monkeypatch.setattr(Path, "open", exhausted)
    for read in (loader.epoch(0), opened.samples("train", on_error="skip")):
        with pytest.raises(UnreadableError, match="Too many open files; raise the limit"):
            next(read)
    assert loader.skipped.samples == opened.skipped.samples == 0


def test_no_more_than_twenty_messages_are_kept():
    skipped = Skipped()
    for number in range(30):
        skipped.add(f"{number}.tar", ShardError(f"{number}"), 2)
    assert skipped.samples == 60
    assert skipped.messages == [f"{number}" for number in range(20)]


def test_a_dataset_can_be_pickled_and_the_copy_counts_its_own_skips(dataset):
    (dataset / SHARD).unlink()
    opened = quadpipe.Dataset(dataset)
    list(opened.samples("train", on_error="skip"))
    copy = pickle.loads(pickle.dumps(opened))
    assert (opened.skipped.samples, copy.skipped.samples) == (4, 0)
    list(copy.samples("train", on_error="skip"))
    assert copy.skipped.samples == 4


def test_on_error_is_raise_or_skip(whole):
    for read in (
        lambda: Loader(whole, batch_size=5, on_error="ignore"),
        lambda: list(quadpipe.Dataset(whole).samples("train", on_error="ignore")),
        lambda: webdataset(whole, on_error="ignore"),
    ):
        with pytest.raises(ConfigError, match="on_error 'ignore' is not one of raise, skip"):
            read()


def test_a_batch_larger_than_memory_is_refused(whole, monkeypatch):
    loader = Loader(whole, batch_size=16)
    monkeypatch.setattr(loader._memory, "_take", lambda *_: np.empty(1 << 60, np.uint8))
    with pytest.raises(
        ConfigError, match="a batch of 256 tokens is 12,288 bytes, more than the available"
    ):
        list(loader.epoch(0))
