"""Members of a sample beyond those of the format: unknown ones, and a new entry of the table."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quadpipe
from forging import make_dataset, reseal
from quadpipe.errors import ShardError
from quadpipe.loader import Loader
from quadpipe.shards.format import Codec
from quadpipe.shards.members import MEMBERS, Member
from quadpipe.shards.reader import Sample
from quadpipe.shards.tar import read_members
from quadpipe.shards.writer import ShardWriter

SHARD = "train-000000.tar"


@pytest.fixture
def dataset(tmp_path) -> Path:
    return make_dataset(tmp_path)


def rewrite(dataset: Path, extra: dict[str, Any]) -> bytes:
    """Write the samples of the first shard again, with other members added to each."""
    opened = quadpipe.Dataset(dataset)
    file = io.BytesIO()
    writer = ShardWriter(file, Codec(patch_size=4))
    for sample in opened.read_shard(opened.shards("train")[0]):
        writer.add(sample.key, sample.mosaic, sample.label, sample.info, sample.extra | extra)
    writer.close()
    return file.getvalue()


def first(dataset: Path) -> Sample:
    return next(quadpipe.Dataset(dataset).samples("train"))


def test_a_shard_that_is_read_and_written_has_the_same_bytes(dataset):
    assert rewrite(dataset, {}) == (dataset / SHARD).read_bytes()


def test_unknown_members_are_bytes_and_are_written_last(dataset):
    assert first(dataset).extra == {}
    extra = {"scene.txt": b"a cat", "boxes.npy": b"1 2", "tokens": b"no codec"}
    reseal(dataset, SHARD, rewrite(dataset, extra))
    assert first(dataset).extra == extra
    assert rewrite(dataset, {}) == (dataset / SHARD).read_bytes()
    names = [name[11:] for name, _, _ in read_members((dataset / SHARD).read_bytes())]
    assert names[4:8] == ["json", "boxes.npy", "scene.txt", "tokens"]
    assert [len(batch.keys) for batch in Loader(dataset, "train", batch_size=16).epoch(0)] == [16]


def test_a_new_member_is_one_entry_of_the_table(dataset, monkeypatch):
    def check(caption, manifest):
        if len(caption) > 20:
            raise ShardError("a caption is longer than 20 characters")

    caption = Member(
        encode=lambda text, codec: text.encode(),
        decode=lambda data, manifest: bytes(data).decode(),
        check=check,
        optional=True,
    )
    monkeypatch.setitem(MEMBERS, "caption.txt", caption)
    reseal(dataset, SHARD, rewrite(dataset, {"caption.txt": "a black cat"}))
    captions = [
        sample.extra.get("caption.txt") for sample in quadpipe.Dataset(dataset).samples("train")
    ]
    assert captions == ["a black cat"] * 4 + [None] * 12
    tokens = [batch.tokens for batch in Loader(dataset, "train", batch_size=16).epoch(0)]
    assert np.any(tokens[0].numpy())
    reseal(dataset, SHARD, rewrite(dataset, {"caption.txt": "a black cat on a white sofa"}))
    with pytest.raises(ShardError, match=r"0000000000\.caption\.txt: a caption is longer"):
        first(dataset)
