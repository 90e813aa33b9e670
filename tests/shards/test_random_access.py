"""Samples by number: a map-style dataset, with what each read takes."""

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from torch.utils.data import DataLoader, Subset

import quadpipe
from forging import make_dataset, remove_index
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Cache
from quadpipe.loader import Loader
from quadpipe.shards import shard_list
from quadpipe.shards.reader import Sample
from quadpipe.shards.summary import summarize


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """16 samples of train in 4 shards of 4, each in two views."""
    return make_dataset(tmp_path_factory.mktemp("whole"), views=2)


@pytest.fixture
def dataset(whole, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "shards"))


@pytest.fixture
def url(whole) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(whole), "/by-number", recursive=True)
    yield "memory://by-number"
    memory.rm("/by-number", recursive=True)


def test_opening_makes_no_object_per_shard(whole, monkeypatch):
    monkeypatch.setattr("quadpipe.shards.shard_list.ShardInfo", None)
    opened = quadpipe.Dataset(whole)
    assert len(opened["train"]) == 32
    assert Loader(opened, batch_size=4).steps(0) == 4
    with pytest.raises(TypeError):
        opened.shards("train")[0]


def test_objects_print_what_they_are_and_not_their_pixels(whole):
    opened = quadpipe.Dataset(whole)
    counts = "32 samples of train, 4 samples of val; 16 tokens per image"
    assert repr(opened) == f"<Dataset {whole}: {counts}>"
    assert repr(opened["train"].of_view(1)) == f"<SplitSamples {whole}, train, view 1: 16 samples>"
    loader = f"<Loader {whole}, train: 16 samples per epoch, batches of 4>"
    assert repr(Loader(opened, batch_size=4)) == loader
    sample = opened["train"][5]
    printed = repr(sample)
    assert printed.startswith(f"<Sample {sample.key}: label {sample.label}, {{")
    assert "up to 16 tokens per image, uint8 (" in printed
    assert "<Leaves: tokens uint8 (16, " in repr(sample.mosaic.leaves())
    assert len(printed) < 300


def described(sample: Sample) -> tuple[object, ...]:
    mosaic = sample.mosaic
    arrays = [array.tobytes() for array in (mosaic.tokens, mosaic.nodes, mosaic.importance)]
    return sample.key, sample.label, sample.info, sample.offset, *arrays


@pytest.mark.parametrize("view", [None, 0, 1])
@pytest.mark.parametrize("indexed", [True, False])
def test_samples_by_number_are_those_read_in_order(dataset, view, indexed):
    if not indexed:
        remove_index(dataset)
    opened = quadpipe.Dataset(dataset)
    expected = [described(sample) for sample in opened.samples("train", view)]
    samples: Any = opened["train"] if view is None else opened["train"].of_view(view)
    assert len(samples) == len(expected) == (32 if view is None else 16)
    assert [described(samples[number]) for number in range(len(samples))] == expected
    assert [described(sample) for sample in samples] == expected
    for number in (np.int64(13), -1, -len(samples)):
        assert described(samples[number]) == expected[number]
    for number in (len(samples), -len(samples) - 1):
        with pytest.raises(IndexError, match=rf"sample {number} of {len(samples)} of train"):
            samples[number]
    with pytest.raises(TypeError):
        samples["0"]


def test_a_split_or_view_that_does_not_exist_is_refused(whole):
    opened = quadpipe.Dataset(whole)
    with pytest.raises(ConfigError, match="has no split 'test'; it has train, val"):
        opened["test"]
    with pytest.raises(ConfigError, match="has no view 2 of train; it has 2, from 0"):
        opened["train"].of_view(2)
    with pytest.raises(TypeError):
        opened["train"].of_view(0.5)  # type: ignore[arg-type]


def leaves(batch: list[Sample]) -> tuple[list[str], np.ndarray]:
    return [s.key for s in batch], np.stack([s.mosaic.leaves(7).tokens for s in batch])


def test_workers_of_torch_read_it(whole):
    samples: Any = quadpipe.Dataset(whole)["train"].of_view(1)
    samples[0]
    loader = DataLoader(
        Subset(samples, range(3, 16)),
        batch_size=4,
        num_workers=1,
        collate_fn=leaves,
        multiprocessing_context="fork",
    )
    keys = [key for batch, _ in loader for key in batch]
    assert keys == [sample.key for sample in samples][3:]


def test_pickling_it_leaves_lists_and_shards_out(whole):
    samples = quadpipe.Dataset(whole)["train"]
    expected = described(samples[9])
    data = pickle.dumps(samples)
    assert b"ShardList" not in data
    assert described(pickle.loads(data)[9]) == expected


def test_each_read_is_compared_with_the_checksum(dataset):
    samples = quadpipe.Dataset(dataset)["train"]
    kept = samples[8]
    before = described(kept)
    path = dataset / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[kept.offset + 700] ^= 1
    with path.open("r+b") as file:  # in place: the shard is mapped
        file.write(data)
    with pytest.raises(ShardError, match=r"train-000001\.tar: .*checksum mismatch at byte"):
        samples[8]
    assert described(kept) == before
    samples[9]
    with path.open("r+b") as file:
        file.truncate(kept.offset + 100)
    with pytest.raises(ShardError, match=r"train-000001\.tar: was cut from"):
        samples[9]
    assert described(kept) == before


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_named_with_the_next_step(dataset, indexed):
    if not indexed:
        remove_index(dataset)
    samples = quadpipe.Dataset(dataset)["train"]
    (dataset / "train-000001.tar").unlink()
    samples[0]
    with pytest.raises(ShardError, match=r"train-000001\.tar: missing: .* 8 of 9 .* finish copy"):
        samples[8]


def test_a_shard_of_another_size_is_refused(dataset):
    with (dataset / "train-000001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ShardError, match=r"train-000001\.tar: \d+ bytes, expected \d+"):
        quadpipe.Dataset(dataset)["train"][8]


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, int]]:
    """Name and bytes of each part of a file that is read from fsspec's memory."""
    from fsspec.implementations.memory import MemoryFileSystem

    found: list[tuple[str, int]] = []
    real = MemoryFileSystem.cat_file

    def cat_file(self, path, start=None, end=None, **options):
        data = real(self, path, start=start, end=end, **options)
        found.append((path.rpartition("/")[2], len(data)))
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return found


def test_a_remote_sample_is_one_read_of_its_bytes(whole, url, reads, monkeypatch):
    samples = quadpipe.Dataset(url)["train"]
    reads.clear()
    monkeypatch.setattr("quadpipe.shards.reader.scan", None)  # no archive is parsed
    row = np.load(whole / "train.index.npy")[21]
    sample = samples[21]
    assert reads == [("train-v01-000002.tar", row["size"])]
    assert described(sample) == described(quadpipe.Dataset(whole)["train"][21])


def test_a_remote_shard_without_an_index_is_read_whole_once(dataset, reads):
    remove_index(dataset)
    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/not-indexed", recursive=True)
    samples = quadpipe.Dataset("memory://not-indexed")["train"]
    reads.clear()
    keys = [samples[number].key for number in (16, 18)]
    assert keys == ["0000000008", "0000000010"]
    (first, whole), *parts = reads
    assert (first, whole) == ("train-000002.tar", (dataset / first).stat().st_size)
    assert len(parts) == 2
    assert all(size < whole / 3 for _, size in parts)


def test_samples_are_read_from_the_cache_where_there_is_one(whole, url, reads, tmp_path):
    cache = Cache(folder=tmp_path, bytes=10**6)
    samples = pickle.loads(pickle.dumps(quadpipe.Dataset(url, cache=cache)["train"]))
    assert described(samples[21]) == described(quadpipe.Dataset(whole)["train"][21])
    assert [path.suffix for path in tmp_path.iterdir() if path.name != ".lock"] == [".tar"]
    reads.clear()
    samples[20], samples[22]
    assert reads == []


def test_info_reads_a_bounded_number_of_bytes(whole, url, reads, monkeypatch):
    expected = summarize(quadpipe.Dataset(url))
    assert sum(size for name, size in reads if "index" in name) == 0
    line = (whole / "train.shards.jsonl").read_bytes().index(b"\n")
    monkeypatch.setattr(shard_list, "FIRST_BYTES", 3 * line)
    monkeypatch.setattr("quadpipe.shards.summary.BYTES_LOOKED_AT", 1)
    reads.clear()
    found = summarize(quadpipe.Dataset(url))
    assert [(name, size) for name, size in reads if "shards" in name] == [
        ("train.shards.jsonl", 3 * line),
        ("val.shards.jsonl", (whole / "val.shards.jsonl").stat().st_size),
    ]
    assert {name for name, _ in reads} == {
        "dataset.json", "train.shards.jsonl", "val.shards.jsonl", "train-000000.tar",
        "val-000000.tar",
    }  # fmt: skip
    looked_at = [split.pop("looked_at") for split in found["splits"].values()]
    assert looked_at == [4, 4]
    for split in (*found["splits"].values(), *expected["splits"].values()):
        split.pop("scales")
        split.pop("looked_at", None)
    assert found == expected


def test_info_names_a_wrong_line_in_the_beginning_of_a_long_list(url, monkeypatch):
    memory = fsspec.filesystem("memory")
    data = memory.cat_file("/by-number/train.shards.jsonl")
    memory.pipe_file("/by-number/train.shards.jsonl", data.replace(b"train-v01", b"train-v02"))
    monkeypatch.setattr(shard_list, "FIRST_BYTES", 400)
    with pytest.raises(ShardError, match=r"train\.shards\.jsonl, line 2: .*; fetch it again"):
        summarize(quadpipe.Dataset(url))
