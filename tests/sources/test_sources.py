"""Folders of images as a source, and how an input is read."""

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import list_inputs, rows, write

from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.names import path_to_text, text_to_path
from quadpipe.sources import open_source
from quadpipe.sources.listing import Input, Span


def test_classes_are_the_top_folders_however_deep_the_images_are(tmp_path):
    write(tmp_path, "b/2.JPEG", "a/deep/down/1.png", "a/0.webp", "c/x.tiff")
    inputs = list_inputs(tmp_path)
    assert inputs.classes == ["a", "b", "c"]
    assert rows(inputs) == [
        ("a/0.webp", 0),
        ("a/deep/down/1.png", 0),
        ("b/2.JPEG", 1),
        ("c/x.tiff", 2),
    ]
    assert not inputs.ordered


def test_paths_are_sorted_by_their_bytes_as_a_whole(tmp_path):
    write(tmp_path, "a/1.jpg", "a.b/1.jpg", "a0/1.jpg", "a-/1.jpg")
    paths = [path for path, _ in rows(list_inputs(tmp_path))]
    assert (
        paths == sorted(paths, key=str.encode) == ["a-/1.jpg", "a.b/1.jpg", "a/1.jpg", "a0/1.jpg"]
    )


def test_split_folders_become_splits_and_share_their_classes(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/c/1.jpg", "validation/b/1.jpg", "validation/c/1.jpg")
    inputs = list_inputs(tmp_path)
    assert list(inputs.splits) == ["train", "val"]
    assert inputs.classes == ["a", "b", "c"]
    assert rows(inputs, "val") == [("validation/b/1.jpg", 1), ("validation/c/1.jpg", 2)]


@pytest.mark.parametrize("name", ["Train", "TRAIN", "training"])
@pytest.mark.parametrize("other", ["val", "valid", "Validation", "testing", "TEST"])
def test_split_folders_may_have_other_names_and_capitals(name, other, tmp_path):
    write(tmp_path, f"{name}/a/1.jpg", f"{other}/b/1.jpg")
    inputs = list_inputs(tmp_path)
    assert list(inputs.splits) == ["train", "test" if other.lower()[0] == "t" else "val"]
    assert inputs.classes == ["a", "b"]


@pytest.mark.parametrize(
    "other", ["__MACOSX/train/._1.jpg", "annotations/a/1.xml", "notes/.1.jpg", "val/readme"]
)
def test_top_folders_without_images_beside_splits_are_skipped_and_counted(other, tmp_path):
    write(tmp_path, "train/a/1.jpg", "valid/b/1.jpg", other, "LICENSE")
    (tmp_path / "empty").mkdir()
    inputs = list_inputs(tmp_path)
    assert list(inputs.splits) == ["train", "val"]
    assert inputs.classes == ["a", "b"]
    assert inputs.skipped == {"a folder without images": 2, "not an image's name": 1}


@pytest.mark.parametrize("other", ["extra/deep/1.jpg", "1.jpg"])
def test_split_folders_beside_other_images_are_refused_without_split(other, tmp_path):
    write(tmp_path, "train/1.jpg", "Val/1.jpg", other)
    message = (
        rf"folders named as splits \(Val, train\) and other images beside them "
        rf"\({other.partition('/')[0]}\): move the others away to read the splits, or give --split "
    )
    for use_labels in (True, False):
        with pytest.raises(SourceError, match=message):
            list_inputs(tmp_path, use_labels=use_labels)
    if "/" in other:
        inputs = list_inputs(tmp_path, split="train")
        assert list(inputs.splits) == ["train"]
        assert inputs.classes == ["Val", "extra", "train"]
        assert inputs.warnings == ["top folders named as splits are classes: Val, train"]


def test_an_empty_folder_named_as_a_split_leaves_classes_as_they_are(tmp_path):
    write(tmp_path, "bus/1.jpg", "car/1.jpg")
    (tmp_path / "test").mkdir()
    assert list_inputs(tmp_path).classes == ["bus", "car"]
    assert list(list_inputs(tmp_path).splits) == ["train"]


def test_a_single_class_is_a_warning(tmp_path):
    write(tmp_path, "imagenet/n01/1.jpg", "imagenet/n02/1.jpg")
    (warning,) = list_inputs(tmp_path).warnings
    assert "all images are of one class, 'imagenet'; if its folder holds the folders" in warning
    assert list_inputs(tmp_path / "imagenet").warnings == []


@pytest.mark.parametrize("name", ["ILSVRC2012_devkit.tar.gz", "train/zz.tgz", "zz.tar.xz"])
def test_compressed_archives_beside_images_are_skipped_and_counted(name, tmp_path):
    write(tmp_path, "train/a/1.jpg", "val/a/1.jpg", name)
    inputs = list_inputs(tmp_path)
    assert list(inputs.splits) == ["train", "val"]
    assert inputs.skipped == {"a compressed archive": 1}


@pytest.mark.parametrize("name", ["bbox.tar", "zz.tar", "annotations/bbox.tar", "zz/bbox.TAR"])
def test_a_plain_tar_beside_images_is_refused(name, tmp_path):
    write(tmp_path, "train/a/1.jpg", "val/a/1.jpg", name)
    with pytest.raises(SourceError, match="point --in at a folder that holds one of the two"):
        list_inputs(tmp_path)


def test_a_flat_folder_has_no_labels(tmp_path):
    inputs = list_inputs(write(tmp_path, "1.jpg", "2.jpg"))
    assert inputs.classes is None
    assert rows(inputs) == [("1.jpg", None), ("2.jpg", None)]


def test_photographs_in_formats_that_are_not_read_are_counted_apart(tmp_path):
    write(tmp_path, "a/1.HEIC", "a/2.heic", "a/3.nef", "a/notes.txt")
    cause = "which cannot be read (convert it to JPEG)"
    with pytest.raises(SourceError, match=r"no images found .* 2 \.heic, which cannot be read"):
        list_inputs(tmp_path)
    write(tmp_path, "a/4.jpg")
    assert list_inputs(tmp_path).skipped == {
        f".heic, {cause}": 2,
        f".nef, {cause}": 1,
        "not an image's name": 1,
    }


def test_other_files_are_counted_as_skipped(tmp_path):
    write(tmp_path, "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert list_inputs(tmp_path).skipped == {
        "not an image's name": 1,
        "hidden": 2,
        "a broken link or no plain file": 2,
    }


def test_links_are_followed_but_not_in_cycles(tmp_path):
    images = write(tmp_path / "images", "a/1.jpg")
    (images / "b").symlink_to(write(tmp_path / "elsewhere", "2.jpg"))
    (images / "a" / "up").symlink_to(images)
    inputs = list_inputs(images)
    assert rows(inputs) == [("a/1.jpg", 0), ("b/2.jpg", 1)]
    assert inputs.skipped == {"a link in a circle": 1}
    assert inputs.read_twice == 0


def test_images_behind_links_to_other_folders_of_the_source_are_counted(tmp_path):
    write(tmp_path, "a/1.jpg", "a/notes.txt", "a/2.jpg", "b/3.jpg", "c/4.jpg", ".pool/5.jpg")
    (tmp_path / "b" / "linked").symlink_to("../a")
    (tmp_path / "c" / "3.jpg").symlink_to("../b/3.jpg")
    (tmp_path / "c" / "pool").symlink_to("../.pool")  # is hidden in its own place
    inputs = list_inputs(tmp_path)
    assert len(inputs.splits["train"]) == 8
    assert inputs.read_twice == 3
    (warning,) = inputs.warnings
    assert "3 files read more than once, through links" in warning
    assert warning.endswith("the first is b/linked/1.jpg")


def test_links_from_one_split_into_another_are_counted(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    (tmp_path / "val").symlink_to("train")
    assert list_inputs(tmp_path).read_twice == 2


def test_file_names_may_hold_any_bytes(tmp_path):
    names = [b"a/new\nline.jpg", b"a/\xff\xfe.jpg", b"a/100%.jpg", "a/grün.jpg".encode()]
    write(tmp_path, *names, data=b"pixels")
    inputs = list_inputs(tmp_path)
    assert [path for path, _ in rows(inputs)] == [
        "a/100%25.jpg",
        "a/gr\u00fcn.jpg",
        "a/new%0Aline.jpg",
        "a/%FF%FE.jpg",
    ]
    for index in range(4):
        assert open_source(tmp_path).read(inputs.splits["train"][index]) == b"pixels"


@given(st.binary(min_size=1, max_size=40))
def test_paths_as_text_can_be_printed_and_converted_back(path):
    text = path_to_text(path)
    assert text_to_path(text) == path
    assert text.encode()  # no surrogates
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" for c in text)


def test_labels_can_be_left_out(tmp_path):
    inputs = list_inputs(write(tmp_path, "a/1.jpg", "2.jpg"), use_labels=False)
    assert inputs.classes is None
    assert len(inputs.splits["train"]) == 2


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ((), {}, "no images found in .*skipped: nothing"),
        (("a.txt",), {}, "no images found in .*not an image"),
        (("a/1.jpg", "2.jpg"), {}, "1 of 2 images .* have no class, the first is 2.jpg; put"),
        (("train/1.jpg",), {"split": "val"}, r"has split folders \(train\); leave out --split"),
        (("val/1.jpg", "validation/1.jpg"), {}, "both val and validation"),
        (("x.tar.gz",), {}, "x.tar.gz is compressed; unpack it"),
        (("a.tar", "z/1.jpg"), {}, r"holds tars and images \(z/1.jpg\); point --in at a folder"),
        (("a/1.jpg", "z.tar"), {}, r"holds images and tars \(z.tar\); point --in at a folder"),
        (("x.tar", "y.tar.gz"), {}, "y.tar.gz is compressed; unpack it"),
        (("x.tar",), {}, "cannot read .*x.tar"),
        (("a/1.jpg",), {"labels": Path("nowhere.csv")}, "cannot read nowhere.csv"),
        (("a/1.jpg",), {"labels": Path("x"), "use_labels": False}, "exclude each other"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(tmp_path, files, options, message):
    write(tmp_path, *files)
    with pytest.raises((SourceError, ConfigError), match=message):
        list_inputs(tmp_path, **options)


def test_sources_of_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist; give a folder"):
        list_inputs(tmp_path / "nowhere")
    write(tmp_path, "x.zip")
    with pytest.raises(SourceError, match=r"is not a folder, a \.csv list or a \.tar"):
        list_inputs(tmp_path / "x.zip")


def test_reading_is_retried_and_then_fails_with_the_path(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("quadpipe.retries.time.sleep", pauses.append)
    with pytest.raises(SourceError, match=r"cannot read gone\.jpg .*No such file"):
        open_source(tmp_path).read(Input("gone.jpg", None))
    assert pauses == sorted(pauses)
    assert len(pauses) == 4
    write(tmp_path, "short.tar")
    with pytest.raises(SourceError, match="1 of 100 bytes could be read"):
        open_source(tmp_path).read(Input("short.tar/a.jpg", None, Span("short.tar", 0, 100)))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    before = os.listdir("/dev/fd")
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(SourceError, match="not a plain file"):
            open_source(tmp_path).read(Input(name, None))
    assert os.listdir("/dev/fd") == before


def test_reading_recovers_from_transient_errors(tmp_path, monkeypatch):
    def come_back(pause: float) -> None:
        write(tmp_path, "late.jpg", data=b"here")

    monkeypatch.setattr("quadpipe.retries.time.sleep", come_back)
    assert open_source(tmp_path).read(Input("late.jpg", None)) == b"here"


def test_a_file_too_large_for_an_image_is_a_reject(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(RejectError, match="too_many_bytes: 2,147,483,648 bytes"):
        open_source(tmp_path).read(Input("huge.jpg", None))


def test_a_link_to_itself_is_counted(tmp_path):
    write(tmp_path, "a/1.jpg")
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "self").symlink_to("self")
    assert list_inputs(tmp_path).skipped == {"a broken link or no plain file": 2}


def test_listing_a_flat_folder_takes_little_more_memory_than_its_names(tmp_path):
    for number in range(5000):
        (tmp_path / f"{number:08d}.jpg").touch()
    tracemalloc.start()
    try:
        inputs = list_inputs(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(inputs.splits["train"]) == 5000
    assert peak < 5000 * 150  # a name takes 45 bytes in Python, and a list doubles when it is full
