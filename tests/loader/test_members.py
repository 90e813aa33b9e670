"""Kept members in batches, and the flips of boxes and masks."""

import io
import json
import shutil
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from painted import KEPT, OPTIONS, assert_painted, inside, make_source, put_together
from PIL import Image

import quadpipe
from forging import edit_manifest, members_of, reseal, tar_of
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Cache
from quadpipe.loader import Augmentation, Loader
from quadpipe.loader.annotations import flip_boxes, flip_masks, read_boxes, read_masks
from quadpipe.shards.verify import verify

NAMES = ("txt", "bbox.json", "seg.png", "json")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("members")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quadpipe.tokenize(make_source(root / "source"), root / "out", views=2, **OPTIONS | KEPT)
    return root / "out"


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_batches_have_the_members_that_are_asked_for(codec, shards, tmp_path):
    if codec == "png":
        quadpipe.copy(shards, tmp_path / "png", codec="png", in_process=True)
        shards = tmp_path / "png"
    samples = {sample.key: sample for sample in quadpipe.Dataset(shards).samples("train")}
    seen = []
    for epoch in range(2):
        for batch in Loader(shards, batch_size=3, members=NAMES, workers=2).epoch(epoch):
            assert list(batch.members) == list(NAMES)
            for row, key in enumerate(batch.keys):
                for name in NAMES[:-1]:
                    assert batch.members[name][row] == samples[key].extra.get(name)
                assert json.loads(batch.text("json")[row] or "") == samples[key].info
            seen += batch.text("txt")
    expected = [f"caption {number}" if number != 1 else None for number in range(8)] * 2
    assert sorted(map(str, seen)) == sorted(map(str, expected))
    assert next(iter(Loader(shards, batch_size=3).epoch(0))).members == {}


def test_ranks_share_the_members_of_a_batch(shards):
    def batches(**options):
        return list(Loader(shards, batch_size=4, members=("txt",), **options).epoch(0))

    whole = [batch.members["txt"] for batch in batches()]
    ranks = [batches(rank=rank, world_size=3) for rank in range(3)]
    parts = [
        [text for batch in step for text in batch.members["txt"]]
        for step in zip(*ranks, strict=True)
    ]
    assert parts == whole


def test_members_of_a_url_are_read_through_the_cache(shards, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/members", recursive=True)
    cache = Cache(folder=tmp_path / "cache", bytes=10**9)
    url = quadpipe.Dataset("memory://members", cache=cache)
    here, there = (
        [batch.members for batch in Loader(place, batch_size=3, members=NAMES).epoch(0)]
        for place in (shards, url)
    )
    bare = Loader("memory://members", batch_size=3, members=NAMES)
    assert here == there == [batch.members for batch in bare.epoch(0)]


def test_a_skipped_sample_has_no_members(shards, tmp_path):
    damaged = Path(shutil.copytree(shards, tmp_path / "damaged"))
    data = (damaged / "train-000000.tar").read_bytes()
    (damaged / "train-000000.tar").write_bytes(data.replace(b"caption 0", b"caption 9"))
    assert any("its checksum is not" in line for line in verify(quadpipe.Dataset(damaged)))
    loader = Loader(damaged, batch_size=8, members=("txt",), on_error="skip", shuffle=False)
    (batch,) = loader.epoch(0)
    assert batch.skipped == 1
    assert batch.members["txt"] == [None, None, *(b"caption %d" % n for n in range(2, 8))]
    with pytest.raises(ShardError, match=r"train-000000\.tar: 0000000000"):
        list(Loader(damaged, batch_size=8, members=("txt",)).epoch(0))


def test_names_that_the_dataset_does_not_have_are_refused(shards, tmp_path):
    message = r"no member 'text'; use tokens\.npy, .*, json, bbox\.json, .*, txt, or keep"
    with pytest.raises(ConfigError, match=message):
        Loader(shards, batch_size=3, members=("text",))
    old = Path(shutil.copytree(shards, tmp_path / "old"))
    edit_manifest(old, members=None)
    assert quadpipe.Dataset(old).manifest.members is None
    (batch,) = Loader(old, batch_size=8, members="txt").epoch(0)
    assert batch.members["txt"].count(None) == 1
    for members in ({"../txt": "bytes"}, {"txt": 5}):
        edit_manifest(old, members=members)
        with pytest.raises(ShardError, match="members needs names of members, and a kind of each"):
            quadpipe.Dataset(old)
    edit_manifest(old, members={"txt": "of a later version"})
    assert quadpipe.Dataset(old).manifest.members == {"txt": "of a later version"}


def test_samples_of_a_mixture_may_come_from_a_dataset_without_the_member(shards, tmp_path):
    source = make_source(tmp_path / "source", count=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quadpipe.tokenize(source, tmp_path / "bare", seed=1, **OPTIONS)
    both = [shards, tmp_path / "bare"]
    for each in (both, both[::-1]):
        (batch,) = Loader(each, batch_size=12, members=("txt",)).epoch(0)
        assert batch.members["txt"].count(None) == 1 + 4
    with pytest.raises(ConfigError, match=r"samples of .*/out and .*/bare have no member 'text'"):
        Loader(both, batch_size=3, members=("text",))


def test_text_that_is_not_utf8_names_its_sample(shards, tmp_path):
    source = Path(shutil.copytree(shards, tmp_path / "source"))
    name = "train-000000.tar"
    changed = [
        (member, b"caf\xe9" if member == "0000000000.txt" else data)
        for member, data in members_of(source / name).items()
    ]
    reseal(source, name, tar_of(changed))
    (batch,) = Loader(source, batch_size=8, members=("txt",), shuffle=False).epoch(0)
    assert batch.members["txt"][0] == b"caf\xe9"
    with pytest.raises(ShardError, match=r"0000000000\.txt is not text in UTF-8"):
        batch.text("txt")
    with pytest.raises(ConfigError, match=r"no member 'json'; give Loader members=\('json',\)"):
        batch.text("json")


def test_batches_have_the_previews_of_a_dataset_with_previews(tmp_path):
    warnings.simplefilter("ignore")
    source = make_source(tmp_path / "source", count=3)
    quadpipe.tokenize(source, tmp_path / "out", preview=16, **OPTIONS)
    (batch,) = Loader(tmp_path / "out", batch_size=3, members=("preview.jpg",)).epoch(0)
    for content in batch.members["preview.jpg"]:
        assert max(Image.open(io.BytesIO(content or b"")).size) == 16


@pytest.mark.parametrize("world_size", [1, 3])
def test_boxes_and_masks_are_flipped_as_the_tokens(world_size, shards):
    augmentation = Augmentation(flip=0.5)
    flipped = 0
    for rank in range(world_size):
        loader = Loader(shards, batch_size=8, members=NAMES, rank=rank, world_size=world_size)
        for epoch in range(2):
            for batch in loader.epoch(epoch):
                generator = torch.Generator().manual_seed(epoch)
                total, first = batch.total, batch.first
                chosen = augmentation.flips(len(batch.keys), generator, total=total, first=first)
                tokens, grid, _ = augmentation(
                    batch.tokens, batch.boxes, 6, generator, total=total, first=first
                )
                boxes = flip_boxes(read_boxes(batch.members["bbox.json"]), chosen, 48)
                masks = flip_masks(read_masks(batch.members["seg.png"], (48, 48)), chosen)
                for row in range(len(batch.keys)):
                    image = put_together(tokens[row].numpy(), grid[row].numpy())
                    box, corner = boxes[row].tolist()
                    assert_painted(image, box)
                    assert masks[row] is not None
                    np.testing.assert_array_equal(masks[row], inside(box, (48, 48)) * 7)
                    assert np.isnan(corner).all() or (np.array(corner) >= 0).all()
                flipped += int(chosen.sum())
    assert 2 < flipped < 14
    assert not Augmentation(flip=0).flips(5, torch.Generator()).any()


def test_members_that_are_not_boxes_or_masks_are_refused():
    assert [tuple(boxes.shape) for boxes in read_boxes([None, b"[]", b"[null]"])] == [
        (0, 4), (0, 4), (1, 4)
    ]  # fmt: skip
    assert read_masks([None], (8, 8)) == [None]
    huge, deep = b"[[0,0,1,1%b]]" % (b"0" * 400), b"[" * 99_999
    for content in (b"{", b"{}", b"5", b'["abcd"]', b"[[1,2,3]]", b"[[1,2,3,4],[5]]", huge, deep,
                    b"[[[0,0],[1,1]]]", b"[[0,0,true,1]]"):  # fmt: skip
        with pytest.raises(ShardError, match="not a list of boxes, but"):
            read_boxes([content])
    with pytest.raises(ShardError, match="a mask is not a readable PNG"):
        read_masks([b"x"], (8, 8))
