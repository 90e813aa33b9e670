"""Lists of paths: rows that name one image, and images outside the folder of their list."""

import csv
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_files import list_inputs, rows, write

from quadpipe.errors import SourceError
from quadpipe.sources import open_source
from quadpipe.sources.labels import read_labels
from quadpipe.sources.listing import Input
from quadpipe.sources.roots import LocalRoot
from quadpipe.sources.rows import PathList, read_rows


def test_a_csv_lists_paths_with_labels_relative_to_itself(tmp_path):
    write(tmp_path, "data/1.jpg", "data/2.jpg", "else/a, b.jpg")
    path = tmp_path / "data" / "list.csv"
    path.write_text(f'path,label\n2.jpg,b\n{tmp_path / "data" / "1.jpg"},a\n"../else/a, b.jpg",b\n')
    inputs = list_inputs(path)
    assert rows(inputs) == [("1.jpg", 0), ("2.jpg", 1), ("a, b.jpg", 1)]
    assert open_source(path).root == LocalRoot(tmp_path / "data")
    assert [open_source(path).read(inputs.splits["train"][i]) for i in range(3)] == [b"x"] * 3


def test_a_csv_may_have_paths_without_labels(tmp_path):
    write(tmp_path, "with blank.jpg")
    (tmp_path / "list.csv").write_text("with blank.jpg\n")
    assert rows(list_inputs(tmp_path / "list.csv", split="test"), "test") == [
        ("with blank.jpg", None)
    ]


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


def test_numbers_in_a_csv_are_indices(tmp_path):
    write(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("1.jpg,3\n2.jpg,0\n")
    inputs = list_inputs(tmp_path / "list.csv")
    assert inputs.classes == ["0", "1", "2", "3"]
    assert rows(inputs) == [("1.jpg", 3), ("2.jpg", 0)]


def test_a_csv_with_an_open_quote_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text('"' + "x" * 200_000 + "\n")
    with pytest.raises(SourceError, match="is not a CSV file: .*; check its quotes"):
        list_inputs(tmp_path / "list.csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,red\tround\nb.jpg,blue\n", ["red\tround", "blue"]),
        ('a.jpg,"red\tround"\nb.jpg,"blue\tsquare"\n', ["red\tround", "blue\tsquare"]),
        ("path,label\t\na.jpg,red\nb.jpg,blue\n", ["red", "blue"]),
        ("a.jpg\ttench, Tinca\nb.jpg\tgoldfish\n", ["tench, Tinca", "goldfish"]),
        ("path\tlabel\na.jpg\tx, y\nb.jpg\tz, w\n", ["x, y", "z, w"]),
        ('\ufeff"a.jpg"\t"x, y"\nb.jpg\tz\n', ["x, y", "z"]),
    ],
)
def test_a_delimiter_inside_a_cell_separates_nothing(text, expected, tmp_path):
    (tmp_path / "list.csv").write_text(text)
    assert [(row.path, row.label) for row in read_rows(tmp_path / "list.csv")] == [
        (b"a.jpg", expected[0].encode()),
        (b"b.jpg", expected[1].encode()),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\ttench, Tinca\nb.jpg\tgoldfish, x\n", "both could be .*; add a first row with the"),
        ("Path;label\na.jpg;cat\n", "list.csv has semicolons between its columns; save it with co"),
    ],
)
def test_columns_are_not_guessed(text, message, tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(SourceError, match=message):
        list_inputs(tmp_path / "list.csv")
    with pytest.raises(SourceError, match=message):
        read_labels(tmp_path / "list.csv")


def test_paths_through_links_are_resolved_as_the_system_does(tmp_path):
    write(tmp_path, "real/sub/x.jpg", data=b"sub")
    write(tmp_path, "real/p.jpg", data=b"real")
    write(tmp_path, "p.jpg", data=b"top")
    (tmp_path / "l").symlink_to(tmp_path / "real" / "sub")
    (tmp_path / "list.csv").write_text("l/../p.jpg\n")
    listing = list_inputs(tmp_path / "list.csv").splits["train"]
    assert open_source(tmp_path).read(listing[0]) == b"real"


def test_files_outside_the_folder_of_their_list_are_kept_by_name_and_row(tmp_path):
    for number, folder in enumerate(("alice", "bob", "carol", "data/in")):
        write(tmp_path, f"{folder}/x.jpg", data=b"%d" % number)
    path = tmp_path / "data" / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbf../bob/x.jpg,1\r\n\n"
        b"in/x.jpg,0\r\n"
        b"%b,1\r\n" % os.fsencode(tmp_path / "alice" / "x.jpg") + b'"../carol/x.jpg",0'
    )
    listing = list_inputs(path).splits["train"]
    entries = [listing[i] for i in range(4)]
    assert [entry.path for entry in entries] == ["in/x.jpg", "x.jpg", "x.jpg", "x.jpg"]
    assert [entry.row for entry in entries] == [None, 1, 3, 4]
    stored = [json.loads(json.dumps(entry.as_row())) for entry in entries]
    assert not any(name in str(stored) for name in ("alice", "bob", "carol", ".."))
    found = [open_source(path).read(Input.from_row(row)) for row in stored]
    assert found == [b"3", b"1", b"0", b"2"]


def test_a_list_that_has_changed_is_refused(tmp_path):
    """Even if the names still match: an earlier row may have been removed."""
    write(tmp_path, "a/x.jpg", "b/x.jpg", "b/y.jpg")
    path = tmp_path / "data" / "list.csv"
    write(tmp_path, "data/list.csv", data=b"../a/x.jpg\n../b/x.jpg\n")
    entry, source = list_inputs(path).splits["train"][1], open_source(path)
    assert source.read(entry) == b"x"
    path.write_bytes(b"../b/x.jpg\n../a/x.jpg\n")
    with pytest.raises(SourceError, match=r"was changed while the job ran; rerun the same"):
        source.read(entry)


@pytest.mark.parametrize("other", [b"../a/x.jpg\n", b"", b"../a/x.jpg\n../b/y.jpg\n", None])
def test_another_list_is_refused_when_its_rows_have_other_names(other, tmp_path):
    write(tmp_path, "a/x.jpg", "b/x.jpg", "b/y.jpg")
    path = tmp_path / "data" / "list.csv"
    write(tmp_path, "data/list.csv", data=b"../a/x.jpg\n../b/x.jpg\n")
    entry = list_inputs(path).splits["train"][1]
    if other is not None:
        path.write_bytes(other)
    source = open_source(path if other is not None else path.parent)
    with pytest.raises(SourceError, match=r"row 2 of .* does not name x\.jpg; give the list that"):
        source.read(entry)


def test_any_row_of_a_long_list_can_be_read(tmp_path):
    names = [f"{number}.jpg" for number in range(200)]
    write(tmp_path, *(f"else/{name}" for name in names))
    path = tmp_path / "data" / "list.csv"
    text = "path,label\n" + "".join(f"../else/{name},1\n\n" for name in names)
    write(tmp_path, "data/list.csv", data=text.encode())
    path_list = PathList.at(path)
    for number in (1, 2, 63, 64, 65, 66, 128, 129, 199, 200):
        assert path_list.path(number) == f"../else/{names[number - 1]}".encode()
    assert [path_list.path(number) for number in (-1, 0, 201, 10**12)] == [None] * 4


def test_a_file_outside_that_cannot_be_read_is_named_by_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.retries.PAUSES", ())
    write(tmp_path, "else/x.jpg")
    path = write(tmp_path, "data/list.csv", data=b"../else/x.jpg\n") / "data" / "list.csv"
    entry = list_inputs(path).splits["train"][0]
    (tmp_path / "else" / "x.jpg").unlink()
    source = open_source(path)
    message = r"cannot read x\.jpg, row 1 of .*list\.csv: No such file"
    with pytest.raises(SourceError, match=message):
        open_source(path).read(entry)
    path.unlink()
    with pytest.raises(SourceError, match=message):
        source.read(entry)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.booleans()), max_size=9))
def test_each_row_of_a_list_can_be_read_again_alone(rows):
    file = io.StringIO(newline="")
    for name, labelled in rows:
        text = os.fsdecode(name.translate(None, b"\0\t"))  # a tab would separate cells
        csv.writer(file).writerow([text, "1"] if labelled else [text])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.csv"
        path.write_bytes(file.getvalue().encode("utf-8", "surrogateescape"))
        path_list = PathList.at(path)
        for row in read_rows(path):
            assert path_list.path(row.number) == row.path


SPELLINGS = (
    "{root}//x.jpg",
    "/{root}/x.jpg",
    "./x.jpg",
    "sub/../x.jpg",
    "sub//..///x.jpg",
    "{root}/x.jpg",
    "link.jpg",
    "up/x.jpg",
)


@pytest.mark.parametrize("again", ["x.jpg", *SPELLINGS])
def test_an_image_that_is_listed_twice_is_kept_once(again, tmp_path):
    write(tmp_path, "x.jpg", "sub/y.jpg")
    (tmp_path / "link.jpg").symlink_to("x.jpg")
    (tmp_path / "up").symlink_to(tmp_path)
    path, again = tmp_path / "list.csv", again.format(root=tmp_path)
    path.write_text(f"x.jpg,a\nsub/y.jpg,b\n{again},a\n")
    inputs = list_inputs(path)
    assert len(inputs.splits["train"]) == 2
    assert ("sub/y.jpg", 1) in rows(inputs)
    assert inputs.skipped == {"a row of an image that is listed already": 1}
    path.write_text(f"x.jpg,a\nsub/y.jpg,b\n{again},b\n")
    with pytest.raises(SourceError, match="has two labels, '[ab]' and '[ab]'; keep one of them"):
        list_inputs(path)
    assert len(list_inputs(path, use_labels=False).splits["train"]) == 2


def test_an_image_outside_that_is_listed_twice_is_kept_once(tmp_path):
    write(tmp_path, "data/list.csv", "else/x.jpg", "other/x.jpg")
    path = tmp_path / "data" / "list.csv"
    path.write_text(
        f"../else/x.jpg\n../data/../else/x.jpg\n../other/x.jpg\n{tmp_path}/else/x.jpg\n"
    )
    inputs = list_inputs(path)
    assert [inputs.splits["train"][i].row for i in range(2)] == [1, 3]
    assert inputs.skipped == {"a row of an image that is listed already": 2}


@pytest.mark.parametrize(
    ("spelled", "shown"),
    [
        ("../data/sub/x.jpg", "sub/x.jpg"),
        ("{root}/mount/sub/x.jpg", "sub/x.jpg"),
        ("{root}/data/sub/x.jpg", "sub/x.jpg"),
        ("{root}/mount/link/y.jpg", "link/y.jpg"),
        ("{root}/else/y.jpg", "y.jpg"),
        ("link/y.jpg", "link/y.jpg"),
        ("./sub/./x.jpg", "sub/x.jpg"),
        ("link/../data/sub/x.jpg", "sub/x.jpg"),
        ("link/../else/y.jpg", "y.jpg"),
    ],
)
def test_recorded_paths_never_lead_upward(spelled, shown, tmp_path):
    write(tmp_path, "data/sub/x.jpg", "else/y.jpg")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "else")
    (tmp_path / "mount").symlink_to(tmp_path / "data")
    path = tmp_path / "mount" / "list.csv"
    path.write_text(spelled.format(root=tmp_path) + "\n")
    entry = list_inputs(path).splits["train"][0]
    assert entry.path == shown
    assert open_source(path).read(entry) == b"x"
