import errno
import os
from pathlib import Path

import numpy as np
import pytest

from quadpipe.errors import OutputError, ShardError, UnreadableError
from quadpipe.files import LocalFolder, most_open, open_folder


def test_files_appear_whole_or_not_at_all(tmp_path):
    folder = LocalFolder(tmp_path / "new")
    with pytest.raises(ZeroDivisionError), folder.staged("a/b.bin") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not folder.exists("a/b.bin")
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file()] == []
    folder.write("a/b.bin", b"whole")
    assert folder.read("a/b.bin") == b"whole"
    assert bytes(folder.contents("a/b.bin")[:]) == b"whole"
    starts, stops = np.array([1, 0]), np.array([3, 1])
    contents, begins = folder.open_ranges("a/b.bin")(starts, stops)
    assert [bytes(contents[begin : begin + 1]) for begin in begins] == [b"h", b"w"]


def test_a_write_that_fails_is_named_with_the_next_step(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot write .*x: No space left on device; free some"):
        LocalFolder(tmp_path).write("x", b"data")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\b", "a\0b", ""])
def test_names_outside_the_folder_are_refused(tmp_path, name):
    for folder in (LocalFolder(tmp_path), open_folder("memory://data")):
        with pytest.raises(ShardError, match="is not the name of a file in a dataset"):
            folder.read(name)


def test_missing_files_are_named(tmp_path):
    for folder in (LocalFolder(tmp_path), open_folder("memory://data")):
        assert not folder.exists("gone.tar")
        for read in (folder.read, folder.contents, folder.sha256):
            with pytest.raises(ShardError, match="cannot read .*gone.tar"):
                read("gone.tar")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_file_that_the_process_cannot_open_now_is_not_called_damaged(tmp_path, monkeypatch, code):
    folder = LocalFolder(tmp_path)
    folder.write("a.tar", b"intact")

    def exhausted(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr("quadpipe.files.local.mmap.mmap", exhausted)
        with pytest.raises(UnreadableError, match=r"a\.tar: .*; (raise|close|free) "):
            folder.open_ranges("a.tar")
    monkeypatch.setattr(Path, "open", exhausted)
    for read in (folder.read, folder.contents, folder.sha256, folder.open_ranges):
        with pytest.raises(UnreadableError, match=r"a\.tar: .*; (raise|close|free) "):
            read("a.tar")


def test_a_quarter_of_the_files_that_may_be_open_is_kept_open(monkeypatch):
    for limit, expected in ((1024, 128), (64, 16), (1, 1)):
        monkeypatch.setattr("quadpipe.files.local.resource.getrlimit", lambda _: (limit, limit))  # noqa: B023
        assert most_open(128) == expected


def test_a_lock_is_exclusive_is_released_and_needs_a_file_system_with_locks(tmp_path, monkeypatch):
    folder = LocalFolder(tmp_path)
    with (
        folder.lock("lock"),
        pytest.raises(OutputError, match="another quadpipe .process .* is writing to"),
    ):
        with folder.lock("lock"):
            pass
    with folder.lock("lock"):
        pass

    def none(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("quadpipe.files.local.fcntl.flock", none)
    with pytest.raises(OutputError, match="cannot be locked .*choose a folder on a file system"):
        with folder.lock("lock"):
            pass


def test_hidden_files_at_the_top_are_not_listed(tmp_path):
    folder = LocalFolder(tmp_path)
    for name in (".quadpipe/plan.json", ".git/x", "a.tar", "data/.b"):
        folder.write(name, b"x")
    assert folder.names() == ["a.tar", "data/.b"]
