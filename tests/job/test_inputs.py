"""Inputs with any name, and inputs that vanish, change or fail while the job runs."""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_runs import SMALL
from permissions import permissions_that_count

import quadpipe
from quadpipe.errors import JobError, SourceError
from quadpipe.job import Progress
from quadpipe.names import text_to_path
from quadpipe.shards.verify import verify

OPTIONS = SMALL | {"samples_per_shard": 3}


def tokenize(source: Path, out: Path, **options: Any) -> quadpipe.Dataset:
    return quadpipe.tokenize(source, out, **OPTIONS | options)


class Planned(Progress):
    """Calls a function between planning and the first read of an input."""

    def __init__(self, change: Callable[[], object]) -> None:
        self.change = change

    def planned(self, preview: object) -> None:
        self.change()


@pytest.fixture
def images(tmp_path, jpeg) -> Path:
    """Ten images in folder `many` and one in `one`."""
    root = tmp_path / "images"
    for number in range(11):
        folder = root / ("one" if number == 4 else "many")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, (80, 70)))
    return root


@pytest.fixture(autouse=True)
def pauses(monkeypatch) -> list[float]:
    """The pauses before retries, which are recorded and not waited for."""
    waited: list[float] = []
    monkeypatch.setattr("quadpipe.retries.time", SimpleNamespace(sleep=waited.append))
    return waited


NAMES = [
    b"new\nline.jpg",
    b"return\r.jpg",
    b"\xff\xfe\x80.jpg",
    b"half a character \xe2\x82.jpg",
    "gr\u00fcn \u2028 \u202e \U0001f600.jpg".encode(),
    b"100%.jpg",
    b"%41.jpg",
    b"%2525%00.jpg",
    b"a..b.jpg",
    b"a...jpg",
    b" .jpg",
    b"\x01\x1b[31m\x7f.jpg",
    b"-rf.jpg",
    b"~.jpg",
    b"*?[a]{b}$HOME`id`.jpg",
    b'quotes"\'\\".jpg',
    b"a,b\tc.jpg",
    b"x" * 251 + b".jpg",
    b"\xe2\x82\xac" * 83 + b"\xff\xff.jpg",
    b"dots./spaces /trailing. .jpg",
    b"/".join([b"deep" * 60] * 14) + b"/x.jpg",
]


@pytest.mark.fault(
    "file names with newlines, bytes that are not UTF-8, dots, percent signs, 255 bytes",
    "samples; `path` converts back to the name",
)
@pytest.mark.parametrize("labelled", [True, False])
def test_file_names_of_any_bytes_become_paths_that_convert_back(labelled, tmp_path, jpeg):
    root = os.fsencode(tmp_path / "images")
    prefix = b"class \xff%\n/" if labelled else b""
    written = {}
    for number, name in enumerate(NAMES):
        path = os.path.join(root, prefix + name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        written[prefix + name] = jpeg(number, (80, 70))
        with open(path, "wb") as file:
            file.write(written[prefix + name])
    dataset = tokenize(tmp_path / "images", tmp_path / "out", use_labels=labelled)
    samples = list(dataset.samples("train"))
    assert Counter(text_to_path(s.info["path"]) for s in samples) == Counter(written.keys())
    for sample in samples:
        assert sample.info["path"].isprintable() or "\u202e" in sample.info["path"]
        with open(os.path.join(root, text_to_path(sample.info["path"])), "rb") as file:
            assert file.read() == written[text_to_path(sample.info["path"])]
    assert dataset.manifest.classes == (["class %FF%25%0A"] if labelled else None)
    assert list(verify(dataset)) == []


def test_hidden_files_and_other_extensions_are_skipped_and_counted(images):
    for name in ("..jpg", ".jpg", "...jpg", "x.jpg.", "x.jpg ", "xjpg", "x.jpg\n"):
        (images / "many" / name).write_bytes(b"")
    preview = quadpipe.job.Job(
        images, images.parent / "out", quadpipe.job.JobConfig.from_options(**OPTIONS)
    ).preview()
    assert preview.plan.inputs == 11
    assert preview.skipped == {"hidden": 3, "not an image's name": 4}


def test_folders_too_deep_for_the_system_are_named(images, tmp_path):
    here = os.open(images / "many", os.O_RDONLY)
    for _ in range(20):  # further than a path can name
        os.mkdir("d" * 250, dir_fd=here)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(SourceError, match=r"cannot list .*: File name too long; make it readable"):
        tokenize(images, tmp_path / "out")


def become_nothing(path: Path) -> None:
    path.unlink()


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.jpg")


def become_a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def lose_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def have_a_file_for_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.write_bytes(b"")


@pytest.mark.fault(
    "inputs vanish between plan and work, or become a folder, a pipe, a dangling link",
    "their shards fail and are named, exit code 1; restored, the next run continues",
)
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (become_nothing, "No such file or directory"),
        (become_a_folder, "not a plain file"),
        (become_a_pipe, "not a plain file"),
        (become_a_link_to_nothing, "No such file or directory"),
        (become_a_link_to_itself, "Too many levels of symbolic links"),
        (lose_its_folder, "No such file or directory"),
        (have_a_file_for_its_folder, "Not a directory"),
    ],
)
def test_an_input_that_cannot_be_read_fails_its_shard_and_no_other(
    change, cause, images, tmp_path, files_of
):
    tokenize(images, tmp_path / "whole")
    kept = shutil.copytree(images, tmp_path / "kept")
    path = images / "one" / "04.jpg"
    message = rf"1 of 4 shards could not be made(.|\n)*shard train .*one/04.jpg in .*: {cause}"
    with pytest.raises(JobError, match=message):
        tokenize(images, tmp_path / "out", progress=Planned(lambda: change(path)))
    assert not (tmp_path / "out" / "dataset.json").exists()
    whole = files_of(tmp_path / "whole")
    made = {n: d for n, d in files_of(tmp_path / "out").items() if n.endswith(".tar")}
    assert len(made) == 3
    assert made.items() <= whole.items()

    shutil.rmtree(images)
    shutil.copytree(kept, images)
    tokenize(images, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole


@pytest.mark.fault(
    "inputs change between plan and work",
    "the new bytes are read, or rejected",
)
@pytest.mark.parametrize("damaged", [False, True])
def test_inputs_that_change_after_planning_are_read_as_they_are(
    damaged, images, tmp_path, files_of, jpeg
):
    def change() -> None:
        for path in (images / "many").iterdir():
            path.write_bytes(b"no image" if damaged else jpeg(int(path.stem) + 50, (90, 90)))

    options: dict[str, Any] = {"max_rejected": "100%"}
    tokenize(images, tmp_path / "out", progress=Planned(change), **options)
    tokenize(images, tmp_path / "after", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "after")
    assert len(list(quadpipe.Dataset(tmp_path / "out").samples("train"))) == (1 if damaged else 11)


def test_files_added_after_planning_change_nothing(images, tmp_path, files_of, jpeg):
    tokenize(images, tmp_path / "whole")
    late = images / "many" / "late.jpg"
    tokenize(images, tmp_path / "out", progress=Planned(lambda: late.write_bytes(jpeg(99))))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.fault(
    "a folder loses its read permission between plan and work",
    "its shards fail and are named; restored, the next run continues",
)
def test_a_folder_that_loses_its_permission_fails_its_shards_and_no_other(
    images, tmp_path, files_of
):
    tokenize(images, tmp_path / "whole")
    folder = images / "one"
    message = r"1 of 4 shards could not be made(.|\n)*one/04.jpg in .*: Permission denied; fix it"
    with permissions_that_count():
        try:
            with pytest.raises(JobError, match=message):
                tokenize(images, tmp_path / "out", progress=Planned(lambda: folder.chmod(0)))
            with pytest.raises(SourceError, match="cannot list .*one.*: Permission denied; make"):
                tokenize(images, tmp_path / "other")
            assert not (tmp_path / "other").exists()
        finally:
            folder.chmod(0o700)
        tokenize(images, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.fault(
    "I/O errors and short reads that end after two retries",
    "the bytes of an undisturbed run",
)
@pytest.mark.parametrize("failing", ["open", "pread", "fstat", "short read"])
def test_transient_read_errors_do_not_change_the_bytes(
    failing, images, tmp_path, files_of, monkeypatch, pauses
):
    tokenize(images, tmp_path / "whole")
    failures: Counter[object] = Counter()
    function = "pread" if failing == "short read" else failing
    real = getattr(os, function)

    def unreliable(file: Any, *arguments: object, **options: Any) -> object:
        """Fails twice for each image, then works."""
        path = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else file
        name = os.fsencode(path)
        if not name.endswith(b".jpg") or failures[name] == 2:
            return real(file, *arguments, **options)
        failures[name] += 1
        if failing == "short read":
            return real(file, *arguments)[:-1]
        raise OSError(errno.EIO if failures[name] == 1 else errno.ESTALE, "a storage hiccup")

    monkeypatch.setattr(os, function, unreliable)
    tokenize(images, tmp_path / "out")
    monkeypatch.undo()
    assert sorted(failures.values()) == [2] * 11
    assert len(pauses) == 22
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
