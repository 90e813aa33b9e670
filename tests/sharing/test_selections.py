"""Parts of datasets, several as one, and other labels: without the images."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run_cli

import quadpipe
from forging import edit_manifest, make_dataset, members_of, put_index
from quadpipe import Dataset
from quadpipe.errors import ConfigError, JobError, QuadpipeError, SourceError
from quadpipe.job.config import TEXTS
from quadpipe.loader import Loader
from quadpipe.shards.reader import Sample
from quadpipe.shards.verify import verify
from quadpipe.sharing import CopyPreview, CopyProgress
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.selection import select


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """16 images to train on and 4 to validate, half of them `left`, half `right`; two views."""
    return make_dataset(tmp_path_factory.mktemp("noise"), views=2, name="Noise", license="mit")


@pytest.fixture(scope="module")
def animals(image_folder, tmp_path_factory) -> Path:
    """23 photographs in other classes, tokenized in the same way; one view less of each."""
    out = tmp_path_factory.mktemp("animals") / "shards"
    quadpipe.tokenize(
        image_folder, out, image_size=32, patch_size=4, max_patch_size=16, tokens=16, crop_pct=1.0,
        samples_per_shard=5, in_process=True, views=2, license="cc0",
    )  # fmt: skip
    return out


def copy(*sources: Path, out: Path, **options: Any) -> Dataset:
    made = quadpipe.copy(sources, out, in_process=True, **options)
    assert list(verify(made)) == []
    for split in made.manifest.splits:
        keys = [sample.key for sample in made.samples(split, view=0)]
        assert len(set(keys)) == len(keys)
    Loader(made, "train", batch_size=4).epoch(0)
    return made


def pixels(dataset: Dataset, split: str = "train", view: int = 0) -> list[bytes]:
    return [sample.mosaic.tokens.tobytes() for sample in dataset.samples(split, view)]


def named(sample: Sample) -> str:
    """The stored name of the class, which must be that of the label."""
    name: str = sample.info["class"]
    return name


def test_images_of_some_classes_are_copied_with_new_numbers(noise, tmp_path):
    before = Dataset(noise)
    made = copy(noise, out=tmp_path / "out", classes="right")
    assert made.manifest.classes == ["right"]
    assert (made.manifest.name, made.manifest.license) == ("Noise", "mit")
    kept = [s for s in before.samples("train", view=0) if named(s) == "right"]
    found = list(made.samples("train", view=0))
    assert [s.mosaic.tokens.tobytes() for s in found] == [s.mosaic.tokens.tobytes() for s in kept]
    assert [s.info for s in found] == [s.info for s in kept]
    assert [s.key for s in found] == [f"{number:010d}" for number in range(len(kept))]
    assert {s.label for s in found} == {0}
    assert [s.key for s in made.samples("train", view=1)] == [f"{s.key}-v01" for s in found]
    assert [shard.samples for shard in made.shards("val")] == [2]


def test_the_order_of_given_classes_is_that_of_their_indices(noise, tmp_path, monkeypatch):
    (tmp_path / "names.txt").write_text("right\nleft\n")
    for number, given in enumerate(("right,left", str(tmp_path / "names.txt"))):
        made = copy(noise, out=tmp_path / f"out{number}", classes=given)
        assert made.manifest.classes == ["right", "left"]
        for sample in made.samples("train"):
            assert made.manifest.classes[sample.label or 0] == named(sample)
    assert Dataset(tmp_path / "out1").manifest.fingerprint == made.manifest.fingerprint
    with pytest.raises(ConfigError, match=r"has no class 'wrong'; its 2 classes are left, right"):
        copy(noise, out=tmp_path / "x", classes="left,wrong")
    comma = Path(shutil.copytree(noise, tmp_path / "comma"))
    edit_manifest(comma, classes=["left, black", "right"])
    with pytest.raises(ConfigError, match="no class 'left'; .*; give a file for names with commas"):
        copy(comma, out=tmp_path / "x", classes="left, black")
    monkeypatch.chdir(tmp_path)
    Path("left").write_text("right\n")
    assert CopyConfig(classes="./left").class_names() == ["right"]
    with pytest.raises(ConfigError, match=r"'left' is a file here, and a class of .*give ./left"):
        copy(noise, out=tmp_path / "x", classes="left")
    with pytest.raises(ConfigError, match="is asked for a class twice"):
        copy(noise, out=tmp_path / "x", classes="left,left")


def test_images_are_drawn_by_the_seed_and_smaller_draws_are_parts_of_larger_ones(noise, tmp_path):
    drawn = {}
    for count in (3, 8):
        drawn[count] = pixels(copy(noise, out=tmp_path / str(count), samples=count))
        assert len(drawn[count]) == count
    assert set(drawn[3]) < set(drawn[8])
    everything = pixels(Dataset(noise))
    assert drawn[8] == [image for image in everything if image in set(drawn[8])]  # in their order
    other = pixels(copy(noise, out=tmp_path / "other", samples=8, seed=1))
    assert set(other) != set(drawn[8])
    assert len(pixels(copy(noise, out=tmp_path / "more", samples=99), "val")) == 4


def test_a_draw_of_more_images_than_there_are_is_said(noise):
    selection = select([Dataset(noise)], CopyConfig(samples=16), None)
    assert selection.notes == ("val has 4 images, fewer than --samples 16; all are copied",)


def test_every_image_is_drawn_equally_often(noise):
    counts = Counter[int]()
    for seed in range(400):
        selection = select([Dataset(noise)], CopyConfig(samples=4, seed=seed), None)
        assert selection.drawn is not None
        counts.update(selection.drawn["train"].numbers.tolist())
    assert counts.total() == 1600
    assert sorted(counts) == list(range(16))
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    assert chi_square < 40  # 15 degrees of freedom: exceeded once in 2,000 seeds


def test_the_first_shards_are_copied_as_they_are(noise, tmp_path):
    made = copy(noise, out=tmp_path / "out", shards=2)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert names == [
        "train-000000.tar", "train-000001.tar", "train-v01-000000.tar", "train-v01-000001.tar",
        "val-000000.tar",
    ]  # fmt: skip
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (noise / name).read_bytes()
    assert made.manifest.splits["train"].inputs == 8
    with pytest.raises(ConfigError, match="shards are taken whole; omit classes and samples"):
        copy(noise, out=tmp_path / "x", shards=2, samples=3)


def test_a_part_can_have_fewer_tokens_too(noise, tmp_path):
    at_once = copy(noise, out=tmp_path / "a", classes="left", samples=5, tokens=10)
    copy(noise, out=tmp_path / "b", classes="left", samples=5)
    assert copy(tmp_path / "b", out=tmp_path / "c", tokens=10).manifest.fingerprint == (
        at_once.manifest.fingerprint
    )


def test_two_datasets_are_joined_by_the_names_of_their_classes(noise, animals, tmp_path):
    made = copy(noise, animals, out=tmp_path / "out")
    assert made.manifest.classes == ["left", "right", "flower", "temple", "zebra"]
    assert made.manifest.samples_per_shard == 4
    found = list(made.samples("train", view=0))
    assert len(found) == 16 + 23
    for sample in made.samples("train"):
        assert made.manifest.classes[sample.label or 0] == named(sample)
    both = [pixels(Dataset(noise)), pixels(Dataset(animals))]
    assert Counter(pixels(made)) == Counter(both[0] + both[1])
    # In their own order, and spread evenly: each shard has some of both.
    tokens = pixels(made)
    for images in both:
        assert [image for image in tokens if image in set(images)] == images
    shards = [tokens[start : start + 4] for start in range(0, 36, 4)]
    assert all(0 < len(set(shard) & set(both[0])) < 4 for shard in shards)
    parents = [(p["fingerprint"], p["license"]) for p in made.manifest.parents]
    assert parents == [
        (Dataset(place).manifest.fingerprint, text)
        for place, text in ((noise, "mit"), (animals, "cc0"))
    ]
    assert made.manifest.license is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("Made from: ") == 2
    assert "license mit" in card
    assert "license cc0" in card


def test_a_split_without_images_of_the_classes_is_said(noise, animals):
    selection = select([Dataset(noise), Dataset(animals)], CopyConfig(classes="zebra"), None)
    assert list(selection.splits) == ["train"]
    assert selection.notes == ("val has no image of these classes; the copy has no val",)


def test_previews_that_not_all_sources_have_are_said_to_be_left_out(noise, animals, tmp_path):
    class Stop(CopyProgress):
        def planned(self, preview: CopyPreview) -> None:
            raise InterruptedError(*preview.notes)

    other = Path(shutil.copytree(animals, tmp_path / "other"))
    edit_manifest(other, preview=32)
    with pytest.raises(InterruptedError, match="not all sources have previews of one size; the"):
        quadpipe.copy([noise, other], tmp_path / "x", in_process=True, progress=Stop())


def test_shared_classes_have_one_index(noise, animals, tmp_path):
    part = copy(noise, out=tmp_path / "part", classes="right", samples=3)
    made = copy(part_of(part), animals, out=tmp_path / "a", license="mit")
    again = copy(noise, Path(tmp_path / "a"), out=tmp_path / "b", classes="zebra,right")
    assert again.manifest.classes == ["zebra", "right"]
    labels = Counter(sample.label for sample in again.samples("train", view=0))
    assert labels == {0: 7, 1: 8 + 3}
    assert made.manifest.license == "mit"


def part_of(dataset: Dataset) -> Path:
    return Path(str(dataset.folder))


def test_datasets_that_were_made_differently_are_not_joined(noise, animals, tmp_path):
    other = make_dataset(tmp_path / "other", crop_pct=0.9, scorer="pixel-blur", views=2)
    with pytest.raises(ConfigError, match="made differently: crop_pct 1.0 and 0.9; scorer sal"):
        copy(noise, other, out=tmp_path / "x")
    less = copy(noise, out=tmp_path / "less", tokens=10)
    with pytest.raises(ConfigError, match="made differently: tokens 16 and 10"):
        copy(noise, part_of(less), out=tmp_path / "x")
    joined = copy(noise, part_of(less), out=tmp_path / "joined", tokens=10)
    assert joined.manifest.splits["train"].inputs == 32
    with pytest.raises(ConfigError, match="hold a dataset twice; give it once"):
        copy(noise, noise, out=tmp_path / "x")
    single = make_dataset(tmp_path / "single", seed=1)
    with pytest.raises(ConfigError, match="has 2 views of train, .* has 1; give --views 1"):
        copy(noise, single, out=tmp_path / "x")
    joined = copy(noise, single, out=tmp_path / "views", views=1)
    assert [joined.manifest.splits[name].views for name in ("train", "val")] == [1, 1]
    assert joined.manifest.splits["train"].samples == 32
    bare = make_dataset(tmp_path / "bare", use_labels=False, views=2)
    with pytest.raises(ConfigError, match="bare/shards has no labels; give it some with --labels"):
        copy(noise, bare, out=tmp_path / "x")
    prints = [Dataset(place).manifest.fingerprint[:12] for place in (noise, animals)]
    for expect, message in (
        (prints[0], "expect names 1 fingerprint for 2 datasets"),
        (",".join(reversed(prints)), "fingerprint"),
    ):
        with pytest.raises(QuadpipeError, match=message):
            copy(noise, animals, out=tmp_path / "x", expect=expect)
    assert not (tmp_path / "x").exists()
    copy(noise, animals, out=tmp_path / "expected", expect=",".join(prints))


def test_labels_are_replaced_without_touching_pixels(noise, tmp_path):
    rows = {s.info["path"]: ("odd", "even")[int(s.info["path"][-6:-4]) % 2 == 0]
            for split in ("train", "val") for s in Dataset(noise).samples(split)}  # fmt: skip
    listing = tmp_path / "labels.csv"
    listing.write_text("".join(f"{path},{label}\n" for path, label in rows.items()))
    made = copy(noise, out=tmp_path / "out", labels=listing)
    assert made.manifest.classes == ["even", "odd"]
    assert pixels(made) == pixels(Dataset(noise))
    for sample in made.samples("train"):
        assert (
            made.manifest.classes[sample.label or 0] == named(sample) == rows[sample.info["path"]]
        )
    assert made.manifest.fingerprint != Dataset(noise).manifest.fingerprint
    assert select([Dataset(noise)], CopyConfig(), listing).notes == ()
    listing.write_text(listing.read_text().partition("\n")[2])
    with pytest.raises(
        SourceError, match=r"1 of 20 images in .* have no class, .*; add them to .*"
    ):
        copy(noise, out=tmp_path / "x", labels=listing)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="--labels is for one source and all of its classes"):
        copy(noise, out=tmp_path / "y", labels=listing, classes="left")
    with pytest.raises(SourceError):
        copy(noise, out=tmp_path / "y", labels="")


def test_classes_without_an_image_are_none_of_a_copy_and_numbers_are_indices(noise, tmp_path):
    listing = tmp_path / "labels.csv"
    paths = [s.info["path"] for split in ("train", "val") for s in Dataset(noise).samples(split, 0)]
    below = [path.partition("/")[2] for path in paths]  # as `tokenize` finds them too
    others = "elsewhere.png,unused\n"
    listing.write_text(others + "".join(f"{path},one\n" for path in below))
    selection = select([Dataset(noise)], CopyConfig(samples=3), listing)
    assert selection.classes == ["one"]
    assert selection.notes == ("all images are of one class, 'one'",)
    found = select([Dataset(noise)], CopyConfig(), listing)
    assert found.notes[0] == f"1 row of {listing} names no image, such as 'elsewhere.png'"
    listing.write_text("".join(f"{path},{2 * (n % 2)}\n" for n, path in enumerate(paths)))
    made = copy(noise, out=tmp_path / "out", labels=listing, samples=5)
    assert made.manifest.classes == ["0", "1", "2"]
    assert select([Dataset(noise)], CopyConfig(), listing).notes == (
        "1 of 3 classes have no image",
    )


def test_labels_are_added_to_a_dataset_without(tmp_path, files_of):
    bare = make_dataset(tmp_path / "bare", use_labels=False)
    labelled = make_dataset(tmp_path / "labelled")
    listing = tmp_path / "labels.csv"
    names = {s.info["path"]: named(s) for split in ("train", "val")
             for s in Dataset(labelled).samples(split)}  # fmt: skip
    listing.write_text("".join(f"{path},{label}\n" for path, label in names.items()))
    copy(bare, out=tmp_path / "out", labels=listing)
    found, expected = files_of(tmp_path / "out"), files_of(labelled)
    for name in expected:
        if name.endswith((".tar", ".npy", ".shards.jsonl")):
            assert found[name] == expected[name], name


def test_name_license_and_source_change_no_shard(noise, tmp_path):
    made = quadpipe.copy(noise, tmp_path / "out", name="Two", source="https://example.org")
    assert (made.manifest.name, made.manifest.license) == ("Two", "mit")
    assert made.manifest.fingerprint == Dataset(noise).manifest.fingerprint
    assert made.manifest.parents == ()
    assert 'pretty_name: "Two"' in (tmp_path / "out" / "README.md").read_text()
    assert members_of(tmp_path / "out/val-000000.tar") == members_of(noise / "val-000000.tar")
    made = quadpipe.copy(noise, tmp_path / "other", license="cc0-1.0")
    assert made.manifest.parents == (Dataset(noise).manifest.as_parent(),)
    assert "license mit" in (tmp_path / "other" / "README.md").read_text()
    for name in TEXTS:
        with pytest.raises(ConfigError, match=f"{name} is empty; give a text, or omit it"):
            quadpipe.copy(noise, tmp_path / "x", **{name: " "})  # type: ignore[arg-type]


def test_a_dataset_without_an_index_is_drawn_from(noise, tmp_path):
    old = Path(shutil.copytree(noise, tmp_path / "old"))
    for split in ("train", "val"):
        (old / f"{split}.index.npy").unlink()
        edit_manifest(old, **{f"splits__{split}__index_sha256": None})
    given: dict[str, Any] = {"classes": "right", "samples": 5}
    one, other = copy(old, out=tmp_path / "a", **given), copy(noise, out=tmp_path / "b", **given)
    assert one.manifest.fingerprint == other.manifest.fingerprint


def test_labels_that_are_not_those_of_the_index_are_refused(noise, tmp_path):
    forged = Path(shutil.copytree(noise, tmp_path / "forged"))
    index = np.load(forged / "train.index.npy")
    index["label"] = 1 - index["label"]
    put_index(forged, "train", index)
    with pytest.raises(JobError, match="has another label in the index; run quadpipe verify on it"):
        copy(forged, out=tmp_path / "out", classes="left")


def test_samples_of_a_url_are_read_in_parts(noise, s3, proxy, tmp_path):
    quadpipe.copy(noise, "s3://bucket/parts/data")
    proxy.sent = 0
    made = quadpipe.copy("s3://bucket/parts/data", tmp_path / "x", samples=1, in_process=True)
    whole = sum(path.stat().st_size for path in noise.glob("*.tar"))
    assert proxy.sent < whole / 4
    assert np.isin(pixels(made), pixels(Dataset(noise))).all()


def test_classes_may_be_a_list(noise, tmp_path):
    one, other = (
        copy(noise, out=tmp_path / f"{type(given)}", classes=given) for given in ("left", ["left"])
    )
    assert one.manifest.classes == ["left"]
    assert one.manifest.fingerprint == other.manifest.fingerprint


def test_the_command_takes_all_of_it(noise, animals, tmp_path):
    done = run_cli(
        "copy", noise, animals, tmp_path / "out", "--classes", "left,zebra", "--samples", 9,
        "--tokens", 10, "--name", "Both", "--license", "mit", "--in-process",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Dataset(tmp_path / "out")
    assert made.manifest.classes == ["left", "zebra"]
    assert made.manifest.splits["train"].inputs == 9
    assert made.manifest.tokenizer.tokens == 10
    alone = run_cli("copy", noise)
    assert alone.returncode == 2
    assert f"{noise} is given alone; give SOURCES and a DESTINATION" in alone.stderr
    refused = run_cli("copy", noise, tmp_path / "out2", "--classes", "wrong", "--in-process")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
