import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.sources import Inputs, list_inputs, read_input, source_root
from quadpipe.sources.listing import Input, Span
from quadpipe.sources.names import path_to_text, text_to_path


def write(root: Path, *names: str | bytes, data: bytes = b"x") -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return root


def rows(inputs: Inputs, split: str = "train") -> list[tuple[str, int | None]]:
    listing = inputs.splits[split]
    return [(listing[i].path, listing[i].label) for i in range(len(listing))]


def test_classes_are_the_first_folders_however_deep_the_images_lie(tmp_path):
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


def test_folders_are_no_splits_when_one_of_them_is_a_class(tmp_path):
    write(tmp_path, "train/1.jpg", "bus/1.jpg")
    assert list_inputs(tmp_path).classes == ["bus", "train"]


def test_a_flat_folder_has_no_labels(tmp_path):
    inputs = list_inputs(write(tmp_path, "1.jpg", "2.jpg"))
    assert inputs.classes is None
    assert rows(inputs) == [("1.jpg", None), ("2.jpg", None)]


def test_other_files_are_counted_as_skipped(tmp_path):
    write(tmp_path, "a/1.jpg", "a/notes.txt", "a/.hidden.jpg", ".git/x.jpg")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    assert list_inputs(tmp_path).skipped == {
        "not an image's name": 1,
        "hidden": 2,
        "a broken link or no plain file": 2,
    }


def test_links_are_followed_but_not_in_circles(tmp_path):
    images = write(tmp_path / "images", "a/1.jpg")
    (images / "b").symlink_to(write(tmp_path / "elsewhere", "2.jpg"))
    (images / "a" / "up").symlink_to(images)
    inputs = list_inputs(images)
    assert rows(inputs) == [("a/1.jpg", 0), ("b/2.jpg", 1)]
    assert inputs.skipped == {"a link in a circle": 1}


def test_names_may_hold_any_bytes(tmp_path):
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
        assert read_input(tmp_path, inputs.splits["train"][index]) == b"pixels"


@given(st.binary(min_size=1, max_size=40))
def test_paths_as_text_can_be_printed_and_turned_back(path):
    text = path_to_text(path)
    assert text_to_path(text) == path
    assert text.encode()  # no surrogates
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u2028\u2029" for c in text)


def test_labels_come_from_a_file_by_path_or_name(tmp_path):
    images = write(tmp_path / "val", "x/1.jpg", "2.jpg", "3.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1.jpg,dog\n2.jpg,cat\n3.jpg,dog\nunused.jpg,fox\n")
    inputs = list_inputs(images, labels=labels)
    assert inputs.classes == ["cat", "dog"]
    assert rows(inputs) == [("2.jpg", 0), ("3.jpg", 1), ("x/1.jpg", 1)]


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_labels_that_are_all_numbers_are_the_indices_themselves(tmp_path, separator):
    images = write(tmp_path / "val", "1.jpg", "2.jpg")
    (tmp_path / "val.txt").write_text(f"1.jpg{separator}10\n2.jpg{separator}2\n")
    inputs = list_inputs(images, labels=tmp_path / "val.txt")
    assert inputs.classes == [str(n) for n in range(11)]
    assert rows(inputs) == [("1.jpg", 10), ("2.jpg", 2)]


def test_labels_can_be_left_out(tmp_path):
    inputs = list_inputs(write(tmp_path, "a/1.jpg", "2.jpg"), use_labels=False)
    assert inputs.classes is None
    assert len(inputs.splits["train"]) == 2


def test_a_csv_lists_paths_with_labels_relative_to_itself(tmp_path):
    write(tmp_path, "data/1.jpg", "data/2.jpg", "else/a, b.jpg")
    csv = tmp_path / "data" / "list.csv"
    csv.write_text(f'path,label\n2.jpg,b\n{tmp_path / "data" / "1.jpg"},a\n"../else/a, b.jpg",b\n')
    inputs = list_inputs(csv)
    assert rows(inputs) == [("../else/a, b.jpg", 1), ("1.jpg", 0), ("2.jpg", 1)]
    assert source_root(csv) == tmp_path / "data"
    assert read_input(source_root(csv), inputs.splits["train"][0]) == b"x"


def test_a_csv_may_have_paths_alone(tmp_path):
    write(tmp_path, "with blank.jpg")
    (tmp_path / "list.csv").write_text("with blank.jpg\n")
    assert rows(list_inputs(tmp_path / "list.csv", split="test"), "test") == [
        ("with blank.jpg", None)
    ]


def make_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_tars_are_listed_in_the_order_found(tmp_path):
    make_tar(
        tmp_path / "b-0.tar", ("z.jpg", b"Z"), ("z.cls", b"2\n"), ("y.cls", b"0"), ("y.png", b"Y")
    )
    make_tar(
        tmp_path / "a-0.tar", ("d/x.json", json.dumps({"label": 1}).encode()), ("d/x.jpeg", b"X")
    )
    inputs = list_inputs(tmp_path)
    assert inputs.ordered
    assert inputs.classes == ["0", "1", "2"]
    assert rows(inputs) == [("a-0.tar/d/x.jpeg", 1), ("b-0.tar/z.jpg", 2), ("b-0.tar/y.png", 0)]
    listing = inputs.splits["train"]
    assert [read_input(tmp_path, listing[i]) for i in range(3)] == [b"X", b"Z", b"Y"]
    assert Input.from_row(json.loads(json.dumps(listing[1].as_row()))) == listing[1]


def test_tars_named_by_split_become_splits(tmp_path):
    make_tar(tmp_path / "imagenet-train-000.tar", ("a.jpg", b"A"))
    make_tar(tmp_path / "imagenet-val-000.tar", ("b.jpg", b"B"))
    assert list(list_inputs(tmp_path).splits) == ["train", "val"]
    assert list(list_inputs(tmp_path, split="test").splits) == ["test"]


def test_one_tar_is_a_source_and_text_labels_are_sorted(tmp_path):
    tar = make_tar(
        tmp_path / "x.tar",
        *(("a.jpg", b"A"), ("a.json", b'{"class": "zebra"}'), ("README", b"")),
        *(("b.jpg", b"B"), ("b.json", b'{"class": "ant"}')),
    )
    inputs = list_inputs(tar)
    assert inputs.classes == ["ant", "zebra"]
    assert rows(inputs) == [("x.tar/a.jpg", 1), ("x.tar/b.jpg", 0)]
    assert inputs.skipped == {"a sample without an image": 1}
    assert source_root(tar) == tmp_path


def test_links_in_tars_are_skipped(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        info = tarfile.TarInfo("good.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"g"))
    inputs = list_inputs(tmp_path)
    assert rows(inputs) == [("x.tar/good.jpg", None)]


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,1\nb.jpg\n", "1 of 2 rows have no label"),
        ("a.jpg,1,2\n", "row 1: 3 columns"),
        ("missing.jpg\n", "'missing.jpg' is not a file below"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, text, message):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        list_inputs(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,a\n1.jpg,b\n", "'1.jpg' has two labels"),
        ("1.jpg,\n", "'1.jpg' has no label"),
        ("", "holds no `path,label` rows"),
        ("1.jpg,a\n", "1 of 2 images .* have no class, the first is 2.jpg; add them to"),
        ("3.jpg,a\n", "names none of the 2 images"),
    ],
)
def test_label_files_that_do_not_fit_are_refused(tmp_path, text, message):
    images = write(tmp_path / "images", "1.jpg", "2.jpg")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        list_inputs(images, labels=tmp_path / "labels.csv")


def test_sources_of_no_known_kind_are_refused(tmp_path):
    with pytest.raises(SourceError, match="does not exist; give a folder"):
        list_inputs(tmp_path / "nowhere")
    write(tmp_path, "x.zip")
    with pytest.raises(SourceError, match=r"is no folder, no \.csv list and no \.tar"):
        list_inputs(tmp_path / "x.zip")


def test_tars_where_only_some_samples_have_labels_are_refused(tmp_path):
    make_tar(tmp_path / "x.tar", ("a.jpg", b"A"), ("a.cls", b"1"), ("b.jpg", b"B"))
    with pytest.raises(SourceError, match="1 of 2 samples .* have no label; give --no-labels"):
        list_inputs(tmp_path)
    assert list_inputs(tmp_path, use_labels=False).classes is None
    labels = write(tmp_path, "labels.csv") / "labels.csv"
    with pytest.raises(ConfigError, match="--labels is for a folder of images"):
        list_inputs(tmp_path, labels=labels)


def test_a_label_that_is_not_json_is_refused(tmp_path):
    make_tar(tmp_path / "x.tar", ("a.jpg", b"A"), ("a.json", b"{"))
    with pytest.raises(SourceError, match=r"a\.json is not JSON"):
        list_inputs(tmp_path)


def test_reading_is_tried_again_and_then_fails_with_the_path(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("quadpipe.patience.time.sleep", pauses.append)
    with pytest.raises(SourceError, match=r"cannot read gone\.jpg .*No such file"):
        read_input(tmp_path, Input("gone.jpg", None))
    assert pauses == sorted(pauses)
    assert len(pauses) == 4
    write(tmp_path, "short.tar")
    with pytest.raises(SourceError, match="1 of 100 bytes could be read"):
        read_input(tmp_path, Input("short.tar/a.jpg", None, Span("short.tar", 0, 100)))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    before = os.listdir("/dev/fd")
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(SourceError, match="not a plain file"):
            read_input(tmp_path, Input(name, None))
    assert os.listdir("/dev/fd") == before


def test_reading_recovers_from_errors_that_pass(tmp_path, monkeypatch):
    def come_back(pause: float) -> None:
        write(tmp_path, "late.jpg", data=b"here")

    monkeypatch.setattr("quadpipe.patience.time.sleep", come_back)
    assert read_input(tmp_path, Input("late.jpg", None)) == b"here"


def test_a_file_too_large_for_an_image_is_a_reject(tmp_path):
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(RejectError, match="too_many_bytes: 2,147,483,648 bytes"):
        read_input(tmp_path, Input("huge.jpg", None))


def damaged(tar: Path, change) -> Path:
    data = bytearray(tar.read_bytes())
    tar.write_bytes(bytes(change(data) or data))
    return tar


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.__setitem__(1024 * 3 + 5, 255),  # a byte of a header in the middle
        lambda data: data[: 1024 * 3],  # cut between members
        lambda data: data[: 1024 * 3 + 100],  # cut in a header
        lambda data: data[: 1024 * 3 + 700],  # cut in a member
    ],
)
def test_damaged_tars_lose_nothing_silently(tmp_path, change):
    members = [(f"{n}.jpg", b"x" * 512) for n in range(6)]
    damaged(make_tar(tmp_path / "x.tar", *members), change)
    with pytest.raises(SourceError, match=r"cannot read .*x\.tar: .*; fetch it again"):
        list_inputs(tmp_path)


def test_a_second_image_of_a_sample_is_counted(tmp_path):
    make_tar(tmp_path / "x.tar", ("a.jpg", b"A"), ("a.png", b"B"), ("a.seg.png", b"C"))
    inputs = list_inputs(tmp_path)
    assert rows(inputs) == [("x.tar/a.jpg", None)]
    assert inputs.skipped == {"another image of a sample": 1}


def test_labels_of_split_folders_go_by_any_of_their_paths(tmp_path):
    images = write(tmp_path / "images", "train/a/1.jpg", "val/a/1.jpg", "val/b/2.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("train/a/1.jpg,x\na/1.jpg,y\n2.jpg,z\n", "utf-8-sig")
    inputs = list_inputs(images, labels=labels)
    assert inputs.classes == ["x", "y", "z"]
    assert rows(inputs) == [("train/a/1.jpg", 0)]
    assert rows(inputs, "val") == [("val/a/1.jpg", 1), ("val/b/2.jpg", 2)]


def test_numbers_in_a_csv_are_indices(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("1.jpg,3\n2.jpg,0\n")
    inputs = list_inputs(tmp_path / "list.csv")
    assert inputs.classes == ["0", "1", "2", "3"]
    assert rows(inputs) == [("1.jpg", 3), ("2.jpg", 0)]


def test_labels_may_hold_any_bytes(tmp_path):
    images = write(tmp_path / "images", "1.jpg")
    (tmp_path / "labels.csv").write_bytes(b"1.jpg,\xff\n")
    assert list_inputs(images, labels=tmp_path / "labels.csv").classes == ["%FF"]


def test_a_csv_with_an_open_quote_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text('"' + "x" * 200_000 + "\n")
    with pytest.raises(SourceError, match="is no CSV: .*; check its quotes"):
        list_inputs(tmp_path / "list.csv")


def test_a_path_through_a_link_means_what_the_system_says(tmp_path):
    write(tmp_path, "real/sub/x.jpg", data=b"sub")
    write(tmp_path, "real/p.jpg", data=b"real")
    write(tmp_path, "p.jpg", data=b"top")
    (tmp_path / "l").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "list.csv").write_text("l/../p.jpg\n")
    listing = list_inputs(tmp_path / "list.csv").splits["train"]
    assert read_input(tmp_path, listing[0]) == b"real"


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
