"""Members of tars and columns of lists that are kept beside the images."""

import json
from pathlib import Path

import pytest
from source_files import list_inputs, make_tar, rows, write

from quadpipe.errors import ConfigError, SourceError
from quadpipe.names import MAX_KEPT_BYTES, is_format_member
from quadpipe.shards.format import Codec
from quadpipe.shards.members import sample_members
from quadpipe.sources import open_source
from quadpipe.sources.kept import stored_names
from quadpipe.sources.listing import Input


def read_all(location: Path, **wanted: str) -> list[dict[str, bytes]]:
    """The kept members of each input, read by what its line of the stored listing says."""
    names = {name.replace("__", "."): kind for name, kind in wanted.items()}
    source = open_source(location)
    listing = source.list(wanted=names).splits["train"]
    stored = [json.loads(json.dumps(listing[i].as_row())) for i in range(len(listing))]
    return [source.read_all(Input.from_row(row))[1] for row in stored]


def test_members_of_tars_are_read_with_their_images(tmp_path):
    make_tar(
        tmp_path / "x.tar",
        *(("a.txt", b"one"), ("a.JPG", b"A"), ("a.json", b"{}"), ("a.cls", b"0"), ("a.id", b"7")),
        *(("b.jpg", b"B"), ("b.cls", b"1"), ("b.JSON", b"[]"), ("b.id", b"")),
    )
    kept = read_all(tmp_path, txt="bytes", json="bytes", cls="bytes")
    assert kept == [
        {"txt": b"one", "original.json": b"{}", "original.cls": b"0"},
        {"original.json": b"[]", "original.cls": b"1"},
    ]
    inputs = list_inputs(tmp_path, wanted={"txt": "bytes", "json": "bytes"})
    assert inputs.kept.kinds == {"txt": "bytes", "original.json": "bytes"}
    assert inputs.kept.notes == [
        "not kept: id (2); --keep id keeps them (boxes: --boxes, masks: --masks)",
        "txt is missing in 1 of 2 images",
    ]
    assert inputs.kept.bytes == 7
    assert rows(inputs) == [("x.tar/a.JPG", 0), ("x.tar/b.jpg", 1)]


def test_what_is_not_kept_is_counted_by_name_without_the_label(tmp_path):
    members = [(f"a.{letter}", b"x") for letter in "bcdefghi"]
    make_tar(
        tmp_path / "x.tar",
        *(("a.jpg", b"A"), ("a.png", b"A"), ("a.cls", b"0"), *members),
        *(("b.jpg", b"B"), ("b.cls", b"0"), ("b.i", b"x"), ("c.i", b"no image")),
    )
    (note,) = list_inputs(tmp_path).kept.notes
    assert note == (
        "not kept: i (2), b (1), c (1), d (1), e (1), f (1) and 2 more; "
        "--keep i,b,c,d,e,f keeps them (boxes: --boxes, masks: --masks)"
    )


def test_names_of_members_are_not_counted_without_end(tmp_path):
    members = [(f"shot 10.{n:04d}.{kind}", b"x") for n in range(1100) for kind in ("txt", "jpg")]
    make_tar(tmp_path / "x.tar", *members)
    kept = list_inputs(tmp_path).kept
    assert kept.notes[0].startswith("not kept: other names (")
    assert len(kept.others) == 1001


def test_a_member_far_from_its_image_is_read_alone(tmp_path, monkeypatch):
    make_tar(
        tmp_path / "x.tar", ("a.txt", b"one"), ("a.bin", bytes(100_000)), ("a.jpg", b"A")
    )  # fmt: skip
    assert read_all(tmp_path, txt="bytes") == [{"txt": b"one"}]
    read = []
    source = open_source(tmp_path)
    real = type(source.root).read

    def noted(root, path, offset=0, size=None):
        read.append(size)
        return real(root, path, offset, size)

    monkeypatch.setattr(type(source.root), "read", noted)
    assert source.read_all(source.list(wanted={"txt": "bytes"}).splits["train"][0])[0] == b"A"
    assert read == [1, 3]
    make_tar(tmp_path / "x.tar", ("a.txt", b"one"), ("a.jpg", b"A"))
    read.clear()
    assert source.read_all(source.list(wanted={"txt": "bytes"}).splits["train"][0])[0] == b"A"
    assert read == [1024 + 1]


def test_a_mask_is_not_taken_for_the_image(tmp_path):
    make_tar(tmp_path / "x.tar", ("a.png", b"mask"), ("a.rgb.png", b"A"), ("a.seg.png", b"x"))
    inputs = list_inputs(tmp_path, wanted={"png": "mask", "seg.png": "bytes"})
    assert rows(inputs) == [("x.tar/a.rgb.png", None)]
    assert inputs.skipped == {}
    kept = read_all(tmp_path, png="mask", seg__png="bytes")
    assert kept == [{"png": b"mask", "seg.png": b"x"}]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("a.txt", "a.TXT"), r"sample d/a has 2 members txt: d/a\.txt, d/a\.TXT; rename or remove"),
        (("a.txt", "a.txt"), r"members txt: d/a\.txt, d/a\.txt"),
        (("a.cls", "a.Cls"), "members cls"),
        (("a.json", "a.json"), "members json"),
    ],
)
def test_two_members_of_a_sample_with_one_name_are_refused_if_they_are_read(
    members, message, tmp_path
):
    make_tar(tmp_path / "x.tar", *((f"d/{name}", b"1") for name in ("a.jpg", *members)))
    with pytest.raises(SourceError, match=rf"x\.tar: .*{message}"):
        list_inputs(tmp_path, wanted={"txt": "bytes"})


def test_two_members_of_a_sample_with_one_name_are_counted_if_they_are_not_read(tmp_path):
    names = ("a.jpg", "a.cls", "a.json", "a.JSON", "a.txt", "a.TXT", "a.txt", "a.JPG")
    make_tar(tmp_path / "x.tar", *((name, b"1") for name in names))
    assert list_inputs(tmp_path).skipped == {
        "another member of a sample with the same name": 3,
        "another image of a sample (--masks keeps masks)": 1,
    }


LIST = """path,label,caption,Photo ID,bbox
1.jpg,ant,"one, two",,"[[0, 0, 1, 1]]"
2.jpg,bee,,7,[]
../else/3.jpg,bee, drei ,8,
"""


def make_list(folder: Path, text: str = LIST) -> Path:
    write(folder, "data/1.jpg", "data/2.jpg", "else/3.jpg")
    write(folder, "data/list.csv", data=text.encode())
    return folder / "data" / "list.csv"


def test_columns_of_a_list_become_members(tmp_path):
    path = make_list(tmp_path)
    kept = read_all(path, caption="bytes", bbox="boxes")
    assert kept == [
        {"caption.txt": b"one, two", "bbox.json": b"[[0, 0, 1, 1]]"},
        {"bbox.json": b"[]"},
        {"caption.txt": b"drei"},
    ]
    inputs = list_inputs(path, wanted={"caption": "bytes", "bbox": "boxes"})
    assert rows(inputs) == [("1.jpg", 0), ("2.jpg", 1), ("3.jpg", 1)]
    assert inputs.kept.kinds == {"caption.txt": "bytes", "bbox.json": "boxes"}
    assert inputs.kept.notes == [
        "not kept: photo id (2); rename them to keep them",
        "caption.txt is missing in 1 of 3 images",
        "bbox.json is missing in 1 of 3 images",
    ]


@pytest.mark.parametrize(
    ("header", "labels", "kept"),
    [
        ("path,caption,class", [1, 0], {"caption.txt": b"x"}),
        ("path,caption,cls2", [None, None], {"caption.txt": b"x"}),
        ("path,caption", [None, None], {"caption.txt": b"x"}),
        ("PATH,Label", [0, 0], {"label.txt": b"x"}),
    ],
)
def test_the_label_is_in_its_column_or_in_the_second_of_two_that_is_not_kept(
    header, labels, kept, tmp_path
):
    third = [",b", ",a"] if header.count(",") == 2 else ["", ""]
    path = make_list(tmp_path, f"{header}\n1.jpg,x{third[0]}\n2.jpg,x{third[1]}\n")
    name = "label" if "Label" in header else "caption"
    assert read_all(path, **{name: "bytes"})[0] == kept
    inputs = list_inputs(path, wanted={name: "bytes"})
    assert [label for _, label in rows(inputs)] == labels


def test_a_second_column_of_another_name_gives_the_classes_with_a_warning(tmp_path):
    path = make_list(tmp_path, "path,caption\n1.jpg,a cat\n2.jpg,a dog\n")
    inputs = list_inputs(path)
    assert inputs.classes == ["a cat", "a dog"]
    (warning,) = inputs.warnings
    assert "the classes are the values of column 'caption', the only one beside path" in warning
    assert list_inputs(path, use_labels=False).warnings == []
    assert list_inputs(path, wanted={"caption": "bytes"}).warnings == []
    for header in ("path,class\n", ""):
        path = make_list(tmp_path, f"{header}1.jpg,a cat\n2.jpg,a dog\n")
        assert list_inputs(path).warnings == []


def test_missing_cells_are_counted_once_for_an_image_in_several_rows(tmp_path):
    again = "1.jpg,a,,1\n./1.jpg,a,,1\n2.jpg,a,x,\n"
    path = make_list(tmp_path, f"path,label,caption,id\n{again}")
    kept = list_inputs(path, wanted={"caption": "bytes"}).kept
    assert kept.notes == [
        "not kept: id (1); --keep id keeps them (boxes: --boxes, masks: --masks)",
        "caption.txt is missing in 1 of 2 images",
    ]
    assert kept.bytes == 1


def test_long_cells_are_kept_and_an_open_quote_takes_no_rows(tmp_path):
    path = make_list(tmp_path, f"path,label,caption\n1.jpg,a,{'x' * 200_000}\n2.jpg,a,y\n")
    assert list_inputs(path, wanted={"caption": "bytes"}).kept.bytes == 200_001
    path = make_list(tmp_path, 'path,label,caption\n1.jpg,a,"x\n2.jpg,a,y\n')
    with pytest.raises(SourceError, match="is not a CSV file: .*; check its quotes"):
        list_inputs(path)


def test_tables_with_extra_columns_need_a_header_and_whole_rows(tmp_path):
    for text, message in (
        ("1.jpg,1,x\n", "row 1: 3 columns; .* or a first row that names the columns"),
        ("path,label,caption\n1.jpg,1\n", "row 1: 2 columns, the first row names 3"),
        ("path,label,caption\n1.jpg,1,a,b\n", "row 1: 4 columns, .* put quotes around cells"),
        ("path,caption,Caption\n1.jpg,1,a\n", "has two columns 'caption'; rename one"),
        ("path,label,caption\n1.jpg,1,a\n1.jpg,1,b\n", "'1.jpg' is in two rows with another cap"),
    ):
        with pytest.raises(SourceError, match=message):
            list_inputs(make_list(tmp_path, text), wanted={"caption": "bytes"})
    path = make_list(tmp_path)
    path.write_bytes(b"path,label,caption\n1.jpg,1,caf\xe9\n")
    with pytest.raises(SourceError, match=r"row 1: caption is not text in UTF-8; save the file"):
        list_inputs(path, wanted={"caption": "bytes"})
    assert len(list_inputs(path).splits["train"]) == 1


def test_names_that_no_image_has_are_refused(tmp_path):
    (tmp_path / "tars").mkdir()
    make_tar(tmp_path / "tars" / "x.tar", ("a.jpg", b"A"), ("a.txt", b"x"))
    with pytest.raises(SourceError, match="no image in .* has 'text'; there is txt"):
        list_inputs(tmp_path / "tars", wanted={"text": "bytes"})
    with pytest.raises(SourceError, match="has 'text'; there is bbox, caption, photo id"):
        list_inputs(make_list(tmp_path), wanted={"text": "bytes"})
    with pytest.raises(ConfigError, match="is a folder of images; omit them"):
        list_inputs(write(tmp_path / "images", "a/1.jpg"), wanted={"txt": "bytes"})


def test_a_member_that_is_too_large_is_refused_before_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.sources.kept.MAX_KEPT_BYTES", 3)
    make_tar(tmp_path / "x.tar", ("a.jpg", b"AAAA"), ("a.txt", b"long"))
    with pytest.raises(SourceError, match=r"x\.tar: a\.jpg: txt has 4 bytes, more than the 3 of"):
        list_inputs(tmp_path, wanted={"txt": "bytes"})
    with pytest.raises(SourceError, match=r"list\.csv, row 1: caption has 8 bytes"):
        list_inputs(make_list(tmp_path), wanted={"caption": "bytes"})


def test_a_cell_above_the_limit_of_members_is_refused_as_such(tmp_path):
    path = make_list(tmp_path, f"path,label,caption\n1.jpg,a,{'x' * (MAX_KEPT_BYTES + 1)}\n")
    with pytest.raises(SourceError, match="row 1: caption has 16,777,217 bytes"):
        list_inputs(path, wanted={"caption": "bytes"})


def test_kept_members_do_not_take_names_of_the_format():
    for codec in ("raw", "jpg", "png"):
        for name in sample_members(Codec(name=codec, patch_size=8), labels=True):
            assert is_format_member(name)
    wanted = dict.fromkeys(("json", "tokens.x", "preview.jpg", "txt"), "bytes")
    assert stored_names(wanted, columns=False) == {
        "json": "original.json",
        "tokens.x": "original.tokens.x",
        "preview.jpg": "original.preview.jpg",
        "txt": "txt",
    }
    assert stored_names({"json": "bytes", "a.b": "bytes"}, columns=True) == {
        "json": "json.txt",
        "a.b": "a.b",
    }


@pytest.mark.parametrize(
    ("wanted", "columns", "message"),
    [
        ({"json": "bytes", "original.json": "bytes"}, False, "both be kept as original.json"),
        ({"a": "bytes", "a.txt": "bytes"}, True, "a and a.txt would both be kept as a.txt"),
        ({"bbox.txt": "boxes"}, False, r"--boxes bbox\.txt: give .* ends in \.json"),
        ({"seg.jpg": "mask"}, False, r"--masks seg\.jpg: give a member .* ends in \.png"),
        ({"seg": "mask"}, True, "--masks is for tars"),
        ({"tokens." + "x" * 70: "bytes"}, False, "too long for the name of a member"),
    ],
)
def test_names_that_cannot_be_kept_are_refused(wanted, columns, message):
    with pytest.raises(ConfigError, match=message):
        stored_names(wanted, columns=columns)


@pytest.mark.parametrize(
    "place", [5, None, [1], [1, 2, 3], [1.5, 2], ["1", 2], [True, 2], {"a": 1}]
)
def test_a_stored_listing_with_other_places_is_refused(place):
    with pytest.raises(TypeError):
        Input.from_row(["a.jpg", 0, "x.tar", 0, 1, {"txt": place}])
    with pytest.raises(TypeError):
        Input.from_row(["a.jpg", 0, "x.tar", 0, 1, {"../txt": [1, 2]}])
    with pytest.raises(TypeError):
        Input.from_row(["a.jpg", 0, {"txt": [1, 2]}])
