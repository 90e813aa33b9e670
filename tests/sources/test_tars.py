"""WebDataset tars as a source."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from source_files import list_inputs, make_tar, rows, write

from quadpipe.errors import ConfigError, SourceError
from quadpipe.sources import open_source
from quadpipe.sources.listing import Input
from quadpipe.sources.roots import LocalRoot


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
    assert [open_source(tmp_path).read(listing[i]) for i in range(3)] == [b"X", b"Z", b"Y"]
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
    assert open_source(tar).root == LocalRoot(tmp_path)


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
    assert inputs.skipped == {"another image of a sample (--masks keeps masks)": 2}
    assert inputs.warnings == []


@pytest.mark.parametrize("extension", ["rgb.jpg", "bmp", "TIFF", "left.JPEG", "gif", "ppm"])
def test_the_last_extension_of_a_member_says_whether_it_is_an_image(extension, tmp_path):
    make_tar(
        tmp_path / "x.tar",
        *(("._a.jpg", b"-"), (f"a.{extension}", b"A"), ("._a.cls", b"-"), ("a.cls", b"1")),
        *(("b.txt", b"B"), ("c.heic", b"C"), ("d.cls", b"0"), ("d.jpg.txt", b"D")),
    )
    inputs = list_inputs(tmp_path)
    assert rows(inputs) == [(f"x.tar/a.{extension}", 1)]
    assert inputs.skipped == {"a sample without an image": 3, "hidden": 2}


@pytest.mark.parametrize(
    ("members", "chosen"),
    [
        (("a.bmp", "a.jpg"), "a.jpg"),
        (("a.seg.png", "a.gif"), "a.gif"),
        (("a.seg.png", "a.webp", "a.jpg"), "a.webp"),
        (("a.depth.png", "a.rgb.jpg"), "a.depth.png"),
    ],
)
def test_of_several_images_of_a_sample_the_one_with_a_plain_extension_is_read(
    members, chosen, tmp_path
):
    make_tar(tmp_path / "x.tar", *((name, b"x") for name in members))
    inputs = list_inputs(tmp_path)
    assert rows(inputs) == [(f"x.tar/{chosen}", None)]
    assert inputs.skipped == {"another image of a sample (--masks keeps masks)": len(members) - 1}
    unsure = "1 sample with several images, none with a plain extension such as .jpg: the first"
    expected = [unsure] if chosen == "a.depth.png" else []
    assert [warning.partition(" is read")[0] for warning in inputs.warnings] == expected


def test_tars_are_refused_if_only_some_name_a_split(tmp_path):
    for name in ("imagenet-Train-0.tar", "imagenet-valid-0.tar", "more-0.tar"):
        make_tar(tmp_path / name, ("a.jpg", b"A"))
    message = r"1 of 3 tars in .* name no split, such as more-0\.tar, and others do, such as image"
    with pytest.raises(SourceError, match=message):
        list_inputs(tmp_path)
    assert list(list_inputs(tmp_path, split="train").splits) == ["train"]
    (tmp_path / "more-0.tar").unlink()
    assert list(list_inputs(tmp_path).splits) == ["train", "val"]


def test_a_tar_behind_a_link_to_another_one_is_counted(tmp_path):
    make_tar(tmp_path / "a.tar", ("a.jpg", b"A"))
    (tmp_path / "b.tar").symlink_to("a.tar")
    inputs = list_inputs(tmp_path)
    assert inputs.read_twice == 1
    assert "1 file read more than once" in inputs.warnings[0]
