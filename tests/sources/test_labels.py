"""Class names and indices: numbers, names, and `--classes`."""

from pathlib import Path
from typing import Any

import pytest
from source_files import list_inputs, rows, write

from quadpipe.errors import ConfigError, SourceError
from quadpipe.sources import ClassNames, read_class_names


def test_labels_come_from_a_file_by_path_or_name(tmp_path):
    images = write(tmp_path / "val", "x/1.jpg", "2.jpg", "3.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n1.jpg,dog\n2.jpg,cat\n3.jpg,dog\nunused.jpg,fox\n")
    inputs = list_inputs(images, labels=labels)
    assert inputs.classes == ["cat", "dog"]
    assert rows(inputs) == [("2.jpg", 0), ("3.jpg", 1), ("x/1.jpg", 1)]


@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_labels_that_are_all_numbers_are_class_indices(tmp_path, separator):
    images = write(tmp_path / "val", "1.jpg", "2.jpg")
    (tmp_path / "val.txt").write_text(f"1.jpg{separator}10\n2.jpg{separator}2\n")
    inputs = list_inputs(images, labels=tmp_path / "val.txt")
    assert inputs.classes == [str(n) for n in range(11)]
    assert rows(inputs) == [("1.jpg", 10), ("2.jpg", 2)]


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


def test_labels_of_split_folders_match_with_or_without_the_split(tmp_path):
    images = write(tmp_path / "images", "train/a/1.jpg", "val/a/1.jpg", "val/b/2.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("train/a/1.jpg,x\na/1.jpg,y\n2.jpg,z\n", "utf-8-sig")
    inputs = list_inputs(images, labels=labels)
    assert inputs.classes == ["x", "y", "z"]
    assert rows(inputs) == [("train/a/1.jpg", 0)]
    assert rows(inputs, "val") == [("val/a/1.jpg", 1), ("val/b/2.jpg", 2)]


def test_a_file_name_of_several_images_is_refused_as_their_label(tmp_path):
    images = write(tmp_path / "images", "a/1.jpg", "b/1.jpg", "b/2.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("1.jpg,x\n2.jpg,y\n")
    message = r"labels.csv: '1.jpg' is the name of a/1.jpg and of b/1.jpg; write their paths"
    with pytest.raises(SourceError, match=message):
        list_inputs(images, labels=labels)
    labels.write_text("1.jpg,x\n2.jpg,y\nb/1.jpg,y\n")
    assert rows(list_inputs(images, labels=labels)) == [
        ("a/1.jpg", 0),
        ("b/1.jpg", 1),
        ("b/2.jpg", 1),
    ]


def test_rows_without_an_image_are_counted(tmp_path):
    images = write(tmp_path / "images", "1.jpg", "2.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("1.jpg,x\n2.jpg,y\n3.jpg,y\nc/4.jpg,x\n")
    (warning,) = list_inputs(images, labels=labels).warnings
    assert warning == f"2 rows of {labels} name no image, such as '3.jpg'"


def test_labels_may_hold_any_bytes(tmp_path):
    images = write(tmp_path / "images", "1.jpg")
    (tmp_path / "labels.csv").write_bytes(b"1.jpg,\xff\n")
    assert list_inputs(images, labels=tmp_path / "labels.csv").classes == ["%FF"]


def listed(tmp_path, labels):
    """A list of one image for each label."""
    names = [f"{number:03d}.jpg" for number in range(len(labels))]
    write(tmp_path, *names)
    path = tmp_path / "list.csv"
    path.write_text("".join(f"{n},{label}\n" for n, label in zip(names, labels, strict=True)))
    return path


def count_classes(source: Path, **options: Any) -> int:
    return len(list_inputs(source, **options).classes or ())


def test_indices_without_images_are_a_warning(tmp_path):
    inputs = list_inputs(listed(tmp_path, [1, 2, 3, 4]))
    assert inputs.classes == ["0", "1", "2", "3", "4"]
    assert inputs.unused_classes == 1
    (warning,) = inputs.warnings
    assert "indices from 0 to 4, and 1 of these have no images: 0; if that is not" in warning
    inputs = list_inputs(listed(tmp_path, [9, 2, 2, 7]))
    assert inputs.unused_classes == 7
    assert "7 of these have no images: 0, 1, 3, ..;" in inputs.warnings[0]
    inputs = list_inputs(listed(tmp_path, [0, 2, 1, 0]))
    assert (inputs.unused_classes, inputs.warnings) == (0, [])


@pytest.mark.parametrize(
    ("labels", "accepted"),
    [
        ((0, 21_840), True),
        ((0, 32_767), True),
        ((0, 32_768), False),
        ((0, 999_999), False),
        ((3, 10**6), False),
        ((10**9, 10**30), False),
        (("9" * 5000, 1), False),
    ],
)
def test_numbers_with_gaps_are_refused_above_32768_classes(labels, accepted, tmp_path):
    path = listed(tmp_path, labels)
    if accepted:
        assert count_classes(path) == labels[1] + 1
        return
    message = "numbers but not class indices from 0: there are 2 different ones; give --classes"
    with pytest.raises(SourceError, match=message):
        list_inputs(path)


def test_many_classes_without_gaps_are_indices(tmp_path):
    assert count_classes(listed(tmp_path, range(100))) == 100
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{number}.jpg,{number}\n" for number in range(0, 80_000, 2)))
    write(tmp_path / "images", *(f"{number}.jpg" for number in (0, 2, 30_000)))
    assert count_classes(tmp_path / "images", labels=labels) == 30_001


def names(*names):
    return ClassNames(names=[name.encode() for name in names], file="names.txt")


def test_given_classes_decide_the_indices_of_folders(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/ant/1.jpg", "val/cat/1.jpg")
    inputs = list_inputs(tmp_path, classes=names("zebra", "cat", "dog", "ant"))
    assert inputs.classes == ["zebra", "cat", "dog", "ant"]
    assert rows(inputs) == [("train/ant/1.jpg", 3), ("train/cat/1.jpg", 1)]
    assert rows(inputs, "val") == [("val/cat/1.jpg", 1)]
    assert (inputs.unused_classes, inputs.warnings) == (2, [])


@pytest.mark.parametrize(
    ("labels", "given", "indices"),
    [
        ("ba", "bca", [0, 2]),
        ("31", "abcd", [3, 1]),
        (("7", "1000000"), ("1000000", "7"), [1, 0]),  # ids, which the file lists
        ("20", "0123", [2, 0]),
    ],
)
def test_labels_are_among_the_given_names_or_are_indices_of_them(labels, given, indices, tmp_path):
    path = listed(tmp_path, labels)
    inputs = list_inputs(path, classes=names(*given))
    assert inputs.classes == list(given)
    assert [label for _, label in rows(inputs)] == indices


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ("ax", "ab", "1 of 2 classes are not among the 2 names in names.txt, such as 'x'; add"),
        ("a1", "ab", "1 of 2 classes are not among the 2 names in names.txt, such as '1'; add"),
        ("12", "ab", "label '2' is not an index of the 2 names in names.txt, which count from 0"),
        ("12", "0123456789x", None),
        ("12", "120", "numbers that are names in names.txt and also indices of other names"),
    ],
)
def test_labels_that_do_not_fit_the_given_classes_are_refused(labels, given, message, tmp_path):
    path = listed(tmp_path, labels)
    if message is None:
        assert count_classes(path, classes=names(*given)) == len(given)
        return
    with pytest.raises(SourceError, match=message):
        list_inputs(path, classes=names(*given))


def test_folder_names_are_class_names_even_if_they_are_numbers(tmp_path):
    write(tmp_path, "0/1.jpg", "1/1.jpg")
    assert list_inputs(tmp_path, classes=names("1", "0")).classes == ["1", "0"]
    with pytest.raises(SourceError, match="2 of 2 classes are not among the 3 names"):
        list_inputs(tmp_path, classes=names("a", "b", "c"))


def test_classes_without_labels_are_refused(tmp_path):
    write(tmp_path, "1.jpg")
    with pytest.raises(ConfigError, match="--classes is for images with labels, .* has none"):
        list_inputs(tmp_path, classes=names("a"))
    with pytest.raises(ConfigError, match="--classes and --no-labels exclude each other"):
        list_inputs(tmp_path, classes=names("a"), use_labels=False)


def test_class_names_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\n a b\r\n\xff%\n\n")
    assert read_class_names(path).names == [b"cat", b" a b", b"\xff%"]
    write(tmp_path / "images", b"\xff%/1.jpg")
    inputs = list_inputs(tmp_path / "images", classes=read_class_names(path))
    assert inputs.classes == ["cat", " a b", "%FF%25"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no class names; write one per line"),
        (b"a\n\nb\n", "names.txt, line 2 is empty; write one name per line"),
        (b"a\nb\na\n", "names.txt names class 'a' twice"),
        (None, "cannot read .*names.txt"),
    ],
)
def test_files_of_class_names_that_cannot_be_used_are_refused(data, message, tmp_path):
    if data is not None:
        (tmp_path / "names.txt").write_bytes(data)
    with pytest.raises(SourceError, match=message):
        read_class_names(tmp_path / "names.txt")
