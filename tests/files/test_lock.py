"""One writer per folder: locks that are held, taken over, and left behind by dead processes."""

import os
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from injection import wait_for

from quadpipe.errors import OutputError, ShardError
from quadpipe.files import LocalFolder, lock


def test_a_driver_whose_lock_was_taken_over_commits_nothing_more(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    folder = LocalFolder(tmp_path)
    with folder.lock("lock"):
        first: Any = lock.read_holder(folder, "lock.json")
        wait_for(lambda: lock.read_holder(folder, "lock.json").beat > first.beat)
        folder.write("before", b"")
        lock._write(folder, "lock.json", replace(first, token="other", host="far"))
        with pytest.raises(OutputError, match="lost the write lock of .*: process .* on far"):
            folder.write("after", b"")
        time.sleep(0.2)
        assert lock.read_holder(folder, "lock.json").token == "other"
    assert lock.read_holder(folder, "lock.json").token == "other"
    assert (tmp_path / "before").exists()
    assert not (tmp_path / "after").exists()


def test_a_driver_that_wakes_up_late_does_not_take_its_lock_back(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
    folder = LocalFolder(tmp_path)
    with folder.lock("lock"):
        folder.remove_folder("nothing")
        (tmp_path / "lock.json").unlink()  # another one has taken it, finished and let go
        time.sleep(0.2)
        assert not (tmp_path / "lock.json").exists()
        for write in (
            lambda: folder.write("after", b""),
            lambda: folder.remove("after"),
            lambda: folder.remove_folder("after"),
        ):
            with pytest.raises(OutputError, match="its run has ended"):
                write()


def test_an_interrupted_claim_is_released(tmp_path, monkeypatch):
    folder = LocalFolder(tmp_path)

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(lock, "time", SimpleNamespace(sleep=interrupted))
        with pytest.raises(KeyboardInterrupt):
            with lock.held(folder, "lock.json", alone_here=False, settle=1):
                pass
    with lock.held(folder, "lock.json", alone_here=False):
        with pytest.raises(OutputError, match="another quadpipe .process"):
            with lock.held(folder, "lock.json", alone_here=False):
                pass


def test_a_holder_whose_process_cannot_be_inspected_is_watched(tmp_path, monkeypatch):
    folder = LocalFolder(tmp_path)
    holder = replace(lock.Holder.here(), process=os.getppid(), token="t")
    lock._write(folder, "lock.json", holder)
    monkeypatch.setattr(lock, "_start_of", lambda process: "")
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.3)
    started = time.monotonic()
    with lock.held(folder, "lock.json", alone_here=False):
        assert time.monotonic() - started >= 0.3


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"token": "t"}'])
def test_a_half_written_claim_does_not_block(left, tmp_path):
    (tmp_path / "lock.json").write_text(left)
    with LocalFolder(tmp_path).lock("lock"):
        pass


def test_an_unreadable_claim_is_an_error(tmp_path, monkeypatch):
    def fail(folder: LocalFolder, name: str) -> bytes:
        raise ShardError("cannot read lock.json: Input/output error")

    monkeypatch.setattr(LocalFolder, "get", fail)
    with pytest.raises(
        OutputError, match="cannot read the write lock of .*: cannot read lock.json"
    ):
        with LocalFolder(tmp_path).lock("lock"):
            pass


def test_another_user_of_the_group_may_take_over_a_lock(tmp_path):
    before = os.umask(0o002)
    try:
        with LocalFolder(tmp_path).lock("lock"):
            assert (tmp_path / "lock.json").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)
