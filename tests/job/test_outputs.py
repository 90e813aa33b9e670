"""Outputs that cannot be written, and shards that fail."""

import errno
import shutil
from typing import Any

import pytest
from job_runs import tokenize
from permissions import permissions_that_count

import quadpipe
from quadpipe.errors import (
    ConfigError,
    JobError,
    OutputError,
)
from quadpipe.job import Job, JobConfig, Progress
from quadpipe.job import shard as shard_module


def test_a_shard_that_cannot_be_read_is_named_and_the_others_are_kept(
    images, tmp_path, monkeypatch, files_of
):
    monkeypatch.setattr("quadpipe.retries.time.sleep", lambda seconds: None)
    tokenize(images, tmp_path / "whole")
    vanished = images / "flower" / "00.jpg"
    data = vanished.read_bytes()

    class Vanish(Progress):
        def planned(self, preview) -> None:
            vanished.unlink()

    message = r"1 of 6 shards could not be made; .*\nshard train 00000\d: cannot read flower/00"
    with pytest.raises(JobError, match=message):
        tokenize(images, tmp_path / "out", progress=Vanish())
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5
    vanished.write_bytes(data)
    tokenize(images, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_two_jobs_do_not_write_to_one_output(image_folder, tmp_path):
    refused = []

    class Second(Progress):
        def planned(self, preview) -> None:
            with pytest.raises(OutputError, match=r"another quadpipe \(process \d+ on "):
                tokenize(image_folder, tmp_path / "out")
            refused.append(True)

    tokenize(image_folder, tmp_path / "out", progress=Second())
    assert refused == [True]


def test_outputs_with_other_files_are_refused_and_unchanged(image_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(
        OutputError, match=r"is not empty \(thesis.tex\) and holds no quadpipe plan"
    ):
        tokenize(image_folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match=r"thesis\.tex is a file; choose a new or empty folder"):
        tokenize(image_folder, tmp_path / "thesis.tex")


@pytest.mark.fault(
    "the output may not be written to", "exit code 1 with a message; nothing is written"
)
def test_an_output_without_permission_is_refused(image_folder, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with permissions_that_count():
            with pytest.raises(OutputError, match="Permission denied; choose a path"):
                tokenize(image_folder, tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_job_and_loses_nothing(image_folder, tmp_path, monkeypatch, files_of):
    real = shard_module.ShardWriter.add
    calls = []

    def full(self, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(shard_module.ShardWriter, "add", full)
        with pytest.raises(OutputError, match="No space left on device; free some space and rerun"):
            tokenize(image_folder, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2
    tokenize(image_folder, tmp_path / "out")
    tokenize(image_folder, tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_job_larger_than_the_free_space_is_refused_before_it_starts(
    image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("quadpipe.files.LocalFolder.free_bytes", lambda self: 1_000_000)
    with pytest.raises(OutputError, match="has 1,000,000 bytes free, the job will write about"):
        tokenize(image_folder, tmp_path / "out")
    assert not (tmp_path / "out" / ".quadpipe" / "plan.json").exists()


def test_the_estimate_of_raw_bytes_is_close(image_folder, tmp_path):
    job = Job(image_folder, tmp_path / "out", JobConfig.from_options(in_process=True, views=2))
    preview = job.preview()
    assert preview.write_samples == 46
    dataset = job.run()
    assert preview.write_bytes == pytest.approx(dataset.manifest.splits["train"].bytes, rel=0.03)
    assert job.preview().write_bytes == 0


def test_another_imaging_library_is_refused(image_folder, tmp_path, monkeypatch):
    other = {"name": "Pillow", "version": "1.0", "jpeg": "libjpeg 6b"}
    monkeypatch.setattr(shard_module, "imaging_library", lambda: other)
    with pytest.raises(JobError, match=r"has Pillow 1\.0 .libjpeg 6b., the plan was made with"):
        tokenize(image_folder, tmp_path / "out")


def test_the_same_output_path_twice_in_one_process_is_two_jobs(image_folder, tmp_path, files_of):
    tokenize(image_folder, tmp_path / "out", seed=0)
    shutil.rmtree(tmp_path / "out")
    tokenize(image_folder, tmp_path / "out", seed=5)
    tokenize(image_folder, tmp_path / "fresh", seed=5)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_an_output_inside_the_input_is_refused(image_folder):
    with pytest.raises(ConfigError, match="is inside --in .*; choose a folder beside it"):
        tokenize(image_folder, image_folder / "shards")
    assert not (image_folder / "shards").exists()


def test_a_memory_error_fails_its_shard(image_folder, tmp_path, monkeypatch):
    def fail(self, images, maps):
        raise MemoryError

    monkeypatch.setattr(quadpipe.Tokenizer, "cut", fail)
    with pytest.raises(JobError, match="6 of 6 shards could not be made.*\n.*out of memory"):
        tokenize(image_folder, tmp_path / "out")


def test_an_unwritable_log_does_not_stop_the_job(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("quadpipe.job.log.time.strftime", lambda *a: "no/such/folder")
    tokenize(image_folder, tmp_path / "out")
    assert (tmp_path / "out" / "dataset.json").exists()
