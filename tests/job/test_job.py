"""The job in process: what it writes, that its bytes repeat, and how it fails."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_runs import SMALL, tokenize
from PIL import Image

import quadpipe
from forging import edit_manifest
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import (
    ConfigError,
    SourceError,
    TooManyRejectsError,
)
from quadpipe.images.library import imaging_library
from quadpipe.job import Job, JobConfig, Progress, decoding, isolation
from quadpipe.shards.verify import verify


def test_every_input_is_accounted_for(image_folder, tmp_path):
    manifest = tokenize(image_folder, tmp_path / "out").manifest
    split = manifest.splits["train"]
    assert (split.inputs, split.samples, split.rejected, split.shards) == (23, 23, 0, 6)
    paths = sorted(s.info["path"] for s in quadpipe.Dataset(tmp_path / "out").samples("train"))
    expected = sorted(p.relative_to(image_folder).as_posix() for p in image_folder.rglob("*.jpg"))
    assert paths == expected


def test_inputs_are_shuffled_by_the_seed(image_folder, tmp_path):
    def order(seed: int) -> list[str]:
        out = tmp_path / str(seed)
        return [s.info["path"] for s in tokenize(image_folder, out, seed=seed).samples("train")]

    first, second = order(0), order(1)
    assert sorted(first) == sorted(second)
    assert first != second != sorted(second)


def test_leaves_at_a_smaller_budget_equal_those_tokenized_at_it(image_folder, tmp_path):
    large = tokenize(image_folder, tmp_path / "196", tokens=196, limit=5)
    for budget in (64, 100):
        small = tokenize(image_folder, tmp_path / str(budget), tokens=budget, limit=5)
        for one, other in zip(large.samples("train"), small.samples("train"), strict=True):
            ours, theirs = one.mosaic.leaves(budget), other.mosaic.leaves()
            np.testing.assert_array_equal(ours.boxes, theirs.boxes)
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_view_0_does_not_depend_on_the_number_of_views(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "1")
    tokenize(image_folder, tmp_path / "3", views=3)
    one, three = files_of(tmp_path / "1"), files_of(tmp_path / "3")
    for name in one:
        if name.endswith(".tar"):
            assert one[name] == three[name]
    assert sum(name.endswith(".tar") for name in three) == 18


def test_views_are_for_training_and_differ(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", views=2, val_share=0.2)
    assert dataset.manifest.splits["val"].views == 1
    boxes = {tuple(s.info["box"]) for s in dataset.samples("train", view=1)}
    assert len(boxes) == 18
    again = tokenize(image_folder, tmp_path / "again", views=2, val_share=0.2)
    assert [s.info for s in again.samples("train")] == [s.info for s in dataset.samples("train")]


def test_the_val_share_is_drawn_and_taken_from_train(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", val_share=0.3)
    val = {s.info["path"] for s in dataset.samples("val")}
    train = {s.info["path"] for s in dataset.samples("train")}
    assert len(val) == 7
    assert not val & train
    assert len(val | train) == 23


def test_datasets_without_labels_have_no_cls(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", use_labels=False, limit=3)
    assert dataset.manifest.classes is None
    assert all(s.label is None and "class" not in s.info for s in dataset.samples("train"))
    assert b".cls" not in (tmp_path / "out" / "train-000000.tar").read_bytes()


@pytest.mark.parametrize("codec", ["jpg", "png"])
def test_image_codecs_give_datasets_that_verify(image_folder, tmp_path, codec):
    dataset = tokenize(image_folder, tmp_path / "out", codec=codec, limit=3)
    assert list(verify(dataset)) == []
    raw = tokenize(image_folder, tmp_path / "raw", limit=3)
    for one, other in zip(dataset.samples("train"), raw.samples("train"), strict=True):
        difference = one.mosaic.tokens.astype(int) - other.mosaic.tokens
        assert abs(difference).mean() < (3 if codec == "jpg" else 1e-9)


# Raise TOKENIZER_VERSION when these have to change. The images are of exactly the size, in a format
# without compression, so `raw` holds for every imaging library; the encoders of the others differ.


PINNED = {
    "raw": "020cdd08c1c25451ca3e141358f8d137a98572b9d3b06dce1383288c09ca59a2",
    "png": "099a87b4d3611cafc6ffbf474e18b0223f0494394de5f950def1d5f2027cef22",
    "jpg": "43fdc32dde2856dffd6345b2e7f39c23d91df0228443c71e39c167782c5fe114",
}


ENCODERS = {"version": "12.1.1.post0", "jpeg": "libjpeg-turbo 2.1.5", "zlib": "zlib 1.2.13"}


@pytest.mark.parametrize("codec", PINNED)
def test_bytes_are_pinned(codec, tmp_path):
    if codec != "raw" and not ENCODERS.items() <= imaging_library().items():
        pytest.skip(f"pinned for {ENCODERS}")
    values = np.arange(128 * 128 * 3, dtype=np.int64)
    for number in range(3):
        pixels = (values * (number + 3) // 7 % 256).astype(np.uint8).reshape(128, 128, 3)
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.ppm")
    options: dict[str, Any] = {"image_size": 128, "tokens": 40, "crop_pct": 1.0, "codec": codec}
    tokenize(tmp_path / "images", tmp_path / "out", scorer="pixel-blur", **options)
    digest = hashlib.sha256((tmp_path / "out" / "train-000000.tar").read_bytes()).hexdigest()
    assert digest == PINNED[codec]


def test_the_same_input_gives_the_same_bytes_again(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "a", views=2)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    tokenize(Path(moved), tmp_path / "b", views=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_rejects_are_counted_and_named(images, tmp_path, jpeg):
    good = jpeg(0)
    for name, data in {
        "empty.jpg": b"",
        "text.png": b"not an image",
        "truncated.jpg": good[: len(good) // 2],
        "renamed.png": good,  # a JPEG under another name is fine
        "drawing.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }.items():
        (images / "zebra" / name).write_bytes(data)
    dataset = tokenize(images, tmp_path / "out", max_rejected="4", views=2)
    split = dataset.manifest.splits["train"]
    assert (split.inputs, split.rejected, split.samples) == (28, 4, 48)
    lines = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    rejects = {row["path"]: row["reason"] for row in map(json.loads, lines)}
    assert rejects == {
        "zebra/empty.jpg": "empty",
        "zebra/text.png": "not_an_image",
        "zebra/truncated.jpg": "truncated",
        "zebra/drawing.jpg": "no_decoder",
    }
    assert list(verify(dataset)) == []


def test_too_many_rejects_keep_the_manifest_from_being_written(images, tmp_path, files_of):
    (images / "zebra" / "bad.jpg").write_bytes(b"")
    first = r"the first is zebra/bad\.jpg \(empty: .*\); see .*rejected\.jsonl"
    message = rf"1 of 24 inputs were rejected \(1 empty\), more than 0; {first}"
    with pytest.raises(TooManyRejectsError, match=message):
        tokenize(images, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    made = []

    class Count(Progress):
        def shard_done(self, report) -> None:
            made.append(report)

    tokenize(images, tmp_path / "out", max_rejected="1", progress=Count())
    assert made == []
    tokenize(images, tmp_path / "whole", max_rejected="100%")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_shard_of_rejects_has_a_marker_and_no_tar(images, tmp_path):
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"")
    dataset = tokenize(images, tmp_path / "out", max_rejected="100%")
    assert dataset.manifest.splits["train"].shards == 0
    assert list((tmp_path / "out").glob("*.tar")) == []
    assert len(list((tmp_path / "out" / ".quadpipe" / "markers").rglob("*.json"))) == 6
    assert list(verify(dataset)) == []


def test_a_val_share_that_cannot_be_drawn_is_refused(image_folder, tmp_path):
    with pytest.raises(ConfigError, match="--val-share 0.01 of 23 inputs leaves a split empty"):
        tokenize(image_folder, tmp_path / "out", val_share=0.01)
    with pytest.raises(ConfigError, match="draws from training inputs, but there are splits test"):
        tokenize(image_folder, tmp_path / "out", val_share=0.2, split="test")
    with pytest.raises(SourceError, match="does not exist"):
        tokenize(tmp_path / "nowhere", tmp_path / "out")


def test_tars_of_images_keep_their_order(image_folder, tmp_path, jpeg):
    (tmp_path / "tars").mkdir()
    for t in range(2):
        with tarfile.open(tmp_path / "tars" / f"{t}.tar", "w") as tar:
            for n in range(3):
                for field, data in (("jpg", jpeg(3 * t + n)), ("cls", str(n).encode())):
                    info = tarfile.TarInfo(f"s{n}.{field}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    dataset = tokenize(tmp_path / "tars", tmp_path / "out")
    samples = list(dataset.samples("train"))
    paths = [s.info["path"] for s in samples]
    assert paths == [f"{t}.tar/s{n}.jpg" for t in range(2) for n in range(3)]
    assert [s.label for s in samples] == [0, 1, 2, 0, 1, 2]


def test_the_pixel_limit_of_the_plan_holds_wherever_images_are_decoded(image_folder, tmp_path):
    """The photographs have 30,000 pixels."""
    small = SMALL | {"limit": 4}
    given = small | {"max_pixels": 29_999, "max_rejected": "100%"}
    for more in ({}, {"retry_rejected": True}):  # the second decodes in child processes
        dataset = tokenize(image_folder, tmp_path / "out", **given, **more)
        assert dataset.manifest.splits["train"].rejected == 4
        assert dataset.manifest.tokenizer.max_pixels == 29_999
    rejected = (tmp_path / "out" / ".quadpipe" / "rejected.jsonl").read_text()
    assert rejected.count("200 x 150 pixels, more than 29,999") == 4
    dataset = tokenize(image_folder, tmp_path / "fits", **small, max_pixels=30_000)
    assert dataset.manifest.splits["train"].samples == 4
    assert len(exhibits(dataset, "train", 4, image_folder)) == 4
    edit_manifest(tmp_path / "fits", tokenizer__max_pixels=29_999)
    with pytest.raises(SourceError, match="too_many_pixels"):
        exhibits(quadpipe.Dataset(tmp_path / "fits"), "train", 4, image_folder)


def test_larger_images_are_given_more_time(image_folder, tmp_path):
    plans = {
        pixels: Job(image_folder, tmp_path, JobConfig.from_options(max_pixels=pixels)).plan
        for pixels in (1000**2, 300 * 1000**2)
    }
    seconds = [isolation.decode_seconds(plan) for plan in plans.values()]
    assert seconds == [60, 240]


def test_squashing_keeps_the_whole_of_every_image(image_folder, tmp_path):
    dataset = tokenize(image_folder, tmp_path / "out", resize="squash", limit=3)
    for sample in dataset.samples("train"):
        assert sample.info["box"] == [0, 0, 200, 150]
        path = image_folder / sample.info["path"]
        whole = Image.open(path).resize((256, 256), Image.Resampling.BICUBIC)
        image = quadpipe.Tokenizer(crop_pct=1.0)(np.asarray(whole))
        np.testing.assert_array_equal(sample.mosaic.tokens, image.tokens)


def test_large_jpegs_are_decoded_at_a_reduced_size(jpeg, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    large = Image.open(io.BytesIO(jpeg(0, (400, 300)))).resize((2400, 1800))
    large.save(tmp_path / "images" / "large.jpg")
    asked = []
    real = decoding.EncodedImage.decode

    def decode(self, reduction: int = 1) -> Image.Image:
        asked.append(reduction)
        return real(self, reduction)

    monkeypatch.setattr(decoding.EncodedImage, "decode", decode)
    tokenize(tmp_path / "images", tmp_path / "out")
    assert asked == [2]


def test_the_seed_changes_views_and_the_val_share(image_folder, tmp_path):
    def drawn(seed: int) -> tuple[set, dict]:
        options: dict[str, Any] = {"seed": seed, "views": 2, "val_share": 0.3}
        dataset = tokenize(image_folder, tmp_path / str(seed), **options)
        boxes = {s.info["path"]: tuple(s.info["box"]) for s in dataset.samples("train", view=1)}
        return {s.info["path"] for s in dataset.samples("val")}, boxes

    (val, boxes), (other_val, other_boxes) = drawn(0), drawn(1)
    assert val != other_val
    shared = boxes.keys() & other_boxes.keys()
    assert sum(boxes[path] != other_boxes[path] for path in shared) > len(shared) / 2


def test_views_without_a_training_split_are_refused(image_folder, tmp_path):
    with pytest.raises(ConfigError, match="--views is for a split train, there is only test"):
        tokenize(image_folder, tmp_path / "out", views=2, split="test")
