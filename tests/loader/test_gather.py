"""The compiled reader of samples against `shards.reader`, its slow twin, on good and bad data."""

import io
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_runs import tokenize_small

import quadpipe
from quadpipe.errors import ShardError
from quadpipe.loader import Loader
from quadpipe.loader.samples import Rows, SampleReader
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.tar import END, member_bytes


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gather") / "shards"
    tokenize_small(image_folder, out, limit=6, samples_per_shard=8)
    return out


@pytest.fixture(scope="module")
def part(shards) -> bytes:
    """The bytes of one sample."""
    sample = next(quadpipe.Dataset(shards).samples("train"))
    following = list(quadpipe.Dataset(shards).samples("train"))[1]
    return (shards / "train-000000.tar").read_bytes()[sample.offset : following.offset]


def read_both(shards: Path, part: bytes, tokens: int = 40) -> tuple[bool, Rows, Any]:
    """Whether the compiled reader took the sample; its row; the sample or error of the slow one."""
    dataset = quadpipe.Dataset(shards)
    reader = SampleReader(dataset, "train", 0)
    rows = Rows(np.zeros((tokens, 192), np.uint8), np.array([(tokens - 4) // 3]), 4)
    contents = np.frombuffer(part, np.uint8)
    address = contents.__array_interface__["data"][0]
    (done,) = reader._gather_usual(np.array([address]), np.array([len(part)]), rows)
    try:
        return bool(done), rows, dataset.parse_sample(memoryview(part))
    except ShardError as error:
        return bool(done), rows, error


def check_agreement(done: bool, rows: Rows, sample: Any, tokens: int = 40) -> None:
    if not done:
        return
    if isinstance(sample, ShardError):
        # The loader gives out nothing of the JSON member and does not parse it.
        assert ".json: " in str(sample)
        return
    leaves = sample.mosaic.leaves(tokens)
    np.testing.assert_array_equal(rows.tokens, leaves.tokens.reshape(tokens, -1))
    np.testing.assert_array_equal(rows.boxes, leaves.boxes)
    assert rows.labels[0] == sample.label
    assert rows.keys() == [sample.key]


@pytest.mark.parametrize("tokens", [4, 7, 25, 40])
def test_shards_of_quadpipe_are_read_by_the_compiled_reader(shards, part, tokens):
    done, rows, sample = read_both(shards, part, tokens)
    assert done
    check_agreement(done, rows, sample, tokens)


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_sample_is_never_read_as_another(shards, part, data):
    """Bytes outside the pixels changed, a piece cut out, or doubled."""
    # The tokens' pixels may hold anything; headers and all other members are 30 times smaller.
    first, last = 640, 640 + (4 + 4 * 12) * 192
    outside = st.one_of(st.integers(0, first - 1), st.integers(last, len(part) - 1))
    changed = bytearray(part)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(outside)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(part) // 512)) * 512
        length = data.draw(st.sampled_from([512, 1024, 10]))
        piece = changed[cut : cut + length]
        changed[cut : cut + length] = piece * data.draw(st.sampled_from([0, 2]))
    check_agreement(*read_both(shards, bytes(changed)))


def member(part: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(part + END)) as archive:
        (found,) = [m for m in archive.getmembers() if m.name.endswith(name)]
        return archive.extractfile(found).read()


def rebuilt(part: bytes, **changes: bytes | None) -> bytes:
    """The sample with some members replaced, by name with _ for the dot, or left out."""
    key = part[:10].decode()
    parts = []
    for name in ("tokens.npy", "nodes.npy", "importance.npy", "cls", "json"):
        content = changes.get(name.replace(".", "_"), member(part, name))
        if content is not None:
            parts.append(member_bytes(f"{key}.{name}", content))
    return b"".join(parts)


def changed_nodes(part: bytes, place: tuple[int, int], value: int) -> bytes:
    nodes = np.load(io.BytesIO(member(part, "nodes.npy"))).copy()
    nodes[place] = value
    return rebuilt(part, nodes_npy=npy_bytes(nodes))


@pytest.mark.parametrize(
    "change",
    [
        lambda part: changed_nodes(part, (0, 0), 1),
        lambda part: changed_nodes(part, (5, 1), 99),
        lambda part: changed_nodes(part, (5, 2), 3),
        lambda part: changed_nodes(part, (0, 3), 12),
        lambda part: changed_nodes(part, (0, 3), -2),
        lambda part: changed_nodes(part, (51, 3), 0),
        lambda part: rebuilt(part, cls=b"3"),
        lambda part: rebuilt(part, cls=b""),
        lambda part: rebuilt(part, cls=b"-1"),
        lambda part: rebuilt(part, cls=b"0000000000"),
        lambda part: rebuilt(part, cls=None),
        lambda part: rebuilt(part, tokens_npy=None),
        lambda part: rebuilt(part, nodes_npy=None),
        lambda part: rebuilt(part, importance_npy=None),
        lambda part: rebuilt(part, importance_npy=npy_bytes(np.full(12, np.nan, np.float32))),
        lambda part: rebuilt(part, importance_npy=npy_bytes(np.full(12, -np.inf, np.float32))),
        lambda part: rebuilt(part, importance_npy=npy_bytes(np.zeros(11, np.float32))),
        lambda part: rebuilt(part) + member_bytes("0000000009.cls", b"0"),
        lambda part: rebuilt(part) + member_bytes(f"{part[:10].decode()}.cls", b"0"),
        lambda part: part[:-512],
        lambda part: b"",
    ],
)
def test_an_invalid_sample_is_left_to_the_slow_reader(shards, part, change):
    done, _, sample = read_both(shards, change(part))
    assert not done
    assert isinstance(sample, ShardError)


@pytest.mark.parametrize("name", ["x" * 30, "a", "0000000000-v01"])
def test_keys_of_other_writers_are_read(shards, part, name):
    key = part[:10]
    renamed = b"".join(
        member_bytes(f"{name}.{suffix}", member(part, suffix))
        for suffix in ("extra", "json", "importance.npy", "cls", "nodes.npy", "tokens.npy")
        if suffix != "extra"
    )
    done, rows, sample = read_both(shards, renamed)
    assert done == (len(name) <= 20)
    assert sample.key == name != key.decode()
    check_agreement(done, rows, sample)


@pytest.mark.parametrize(
    "names", [["caption.txt"], ["boxes.npy", "a", "b.c.d", "x" * 89], ["cls2"]]
)
@pytest.mark.parametrize("before", [False, True])
def test_unknown_members_are_skipped_by_the_compiled_reader(shards, part, names, before):
    unknown = b"".join(member_bytes(f"{part[:10].decode()}.{name}", b"some text") for name in names)
    done, rows, sample = read_both(shards, unknown + part if before else part + unknown)
    assert done
    assert sample.extra == dict.fromkeys(names, b"some text")
    check_agreement(done, rows, sample)


@pytest.mark.parametrize("names", [["a", "a"], ["a\tb"], ["x" * 89, "x" * 89], ["json"]], ids=str)
def test_unknown_members_that_the_slow_reader_refuses_are_refused(shards, part, names):
    unknown = b"".join(member_bytes(f"{part[:10].decode()}.{name}", b"") for name in names)
    done, _, sample = read_both(shards, part + unknown)
    assert not done
    assert isinstance(sample, ShardError)


def test_a_sample_with_very_many_members_is_read_by_the_slow_reader(shards, part):
    key = part[:10].decode()
    many = b"".join(member_bytes(f"{key}.{number}", b"") for number in range(100))
    done, _, sample = read_both(shards, part + many)
    assert not done
    assert len(sample.extra) == 100


def test_a_header_of_another_numpy_version_is_read_by_the_slow_reader(shards, part):
    nodes = np.load(io.BytesIO(member(part, "nodes.npy")))
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (52, 4), }".ljust(85) + b"\n"
    other = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + nodes.tobytes()
    done, _, sample = read_both(shards, rebuilt(part, nodes_npy=other))
    assert not done
    assert sample.mosaic.budget == 40


def test_a_shard_truncated_after_it_was_indexed_is_refused(shards, tmp_path):
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    tar = copy / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[: -30 * 512])
    with pytest.raises(ShardError, match=r"train-000000\.tar: 77824 bytes, expected 93184"):
        list(Loader(copy, batch_size=6).epoch(0))


def test_a_remote_shard_truncated_while_it_is_read_is_refused(shards):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/cut", recursive=True)
    batches = Loader("memory://cut", batch_size=2).epoch(0)
    next(batches)
    memory.pipe_file("/cut/train-000000.tar", memory.cat_file("/cut/train-000000.tar")[:600])
    with pytest.raises(ShardError, match=r"train-000000\.tar: cut short"):
        list(batches)


def test_memory_of_a_batch_is_reused_only_after_its_release(shards):
    loader = Loader(shards, batch_size=2)
    held = list(loader.epoch(0))
    copies = [batch.tokens.clone() for batch in held]
    for epoch in range(1, 4):
        for _ in loader.epoch(epoch):
            pass
    for batch, copy in zip(held, copies, strict=True):
        assert (batch.tokens == copy).all()
    addresses = set()
    for epoch in range(6):
        for batch in loader.epoch(epoch):
            addresses.add(batch.tokens.data_ptr())
    assert len(addresses) <= 2  # the loop holds one while the next is read


def test_tensors_made_of_a_batch_keep_its_memory(shards):
    """No batch may be written into memory that still belongs to another batch."""
    loader = Loader(shards, batch_size=2)
    views = {
        "a slice": lambda batch: batch.tokens[1:, 3:5],
        "an array": lambda batch: batch.tokens.numpy(),
        "an array of a slice": lambda batch: batch.tokens[0].numpy()[2:],
        "a reshaped view": lambda batch: batch.tokens.flatten(),
    }
    for name, view in views.items():
        held = [view(batch) for batch in loader.epoch(0)]
        before = [bytes(np.asarray(part).tobytes()) for part in held]
        for epoch in (1, 2, 3):
            list(loader.epoch(epoch))
        assert [bytes(np.asarray(part).tobytes()) for part in held] == before, name


def test_a_shard_that_shrinks_while_it_is_mapped_is_an_error_or_a_skip(shards, tmp_path):
    """Reading beyond the end of a mapped file would end the process (SIGBUS)."""
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    strict = Loader(copy, batch_size=2)
    lenient = Loader(copy, batch_size=2, on_error="skip")
    samples = quadpipe.Dataset(copy).samples("train")
    for reading in (strict.epoch(0), lenient.epoch(0), samples):
        next(reading)
    with (copy / "train-000000.tar").open("r+b") as file:
        file.truncate(600)
    message = r"train-000000\.tar: was cut from 93184 to 600 bytes"
    with pytest.raises(ShardError, match=message):
        list(strict.epoch(1))
    batches = list(lenient.epoch(1))
    assert [batch.skipped for batch in batches] == [2, 2, 2]
    assert lenient.skipped.samples == 6
    with pytest.raises(ShardError, match=r"train-000000\.tar: .*checksum mismatch"):
        list(samples)


def test_prefetch_threads_pass_errors_on(shards, tmp_path):
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    tar = copy / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    index = quadpipe.Dataset(shards).index("train")
    assert index is not None
    offset = index["offset"][3]
    data[offset + 3] ^= 1
    tar.write_bytes(data)
    for workers in (0, 2):
        with pytest.raises(ShardError, match=f"checksum mismatch at byte {offset}:"):
            list(Loader(copy, batch_size=2, workers=workers).epoch(0))
