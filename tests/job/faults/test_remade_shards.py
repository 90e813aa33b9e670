"""Shards that are made a second time."""

import shutil
import signal
from typing import Any

import pytest
from fault_runs import OPTIONS, run
from injection import Fault

import quadpipe
from quadpipe.shards.verify import verify


@pytest.mark.fault("--retry-rejected when nothing has changed", "the same bytes, the same revision")
def test_a_retry_that_changes_nothing_keeps_the_revision(images, tmp_path, files_of, account):
    (images / "zebra" / "bad.jpg").write_bytes(b"no image")
    options: dict[str, Any] = {**OPTIONS, "max_rejected": "1", "in_process": True}
    quadpipe.tokenize(images, tmp_path / "out", **options)
    before = files_of(tmp_path / "out")
    quadpipe.tokenize(images, tmp_path / "out", retry_rejected=True, **options)
    account(tmp_path / "out", before)


def test_a_retry_without_rejects_does_nothing(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    quadpipe.tokenize(images, out, in_process=True, retry_rejected=True, **OPTIONS)
    account(out, undisturbed)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_a_retry_keeps_an_edited_card_and_rewrites_an_unedited_one(images, tmp_path, jpeg):
    bad, out = images / "zebra" / "bad.jpg", tmp_path / "out"
    options: dict[str, Any] = {**OPTIONS, "max_rejected": "1", "in_process": True}
    for edited in (False, True):
        bad.write_bytes(b"no image")
        shutil.rmtree(out, ignore_errors=True)
        quadpipe.tokenize(images, out, **options)
        before = (out / "README.md").read_text() + ("\nMy notes.\n" if edited else "")
        (out / "README.md").write_text(before)
        bad.write_bytes(jpeg(3))
        quadpipe.tokenize(images, out, retry_rejected=True, **options)
        assert ((out / "README.md").read_text() == before) is edited


@pytest.mark.fault(
    "a shard of a published dataset is lost, its input has changed, the run that remakes it is "
    "killed between tar and marker",
    "never published with another list: the next run remakes the shard and raises the revision",
)
@pytest.mark.parametrize("point", ["after rename train-000001.tar", "after commit .*000001.json"])
def test_a_remade_shard_is_not_mistaken_for_the_one_before(point, images, tmp_path, jpeg):
    out = tmp_path / "out"
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    paths = [s.info["path"] for s in quadpipe.Dataset(out).samples("train")]
    (out / "train-000001.tar").unlink()
    (images / paths[3]).write_bytes(jpeg(99, (120, 100)))  # as many bytes in the shard
    killed = run(images, out, "--in-process", fault=Fault(at=point))
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    dataset = quadpipe.Dataset(out)
    assert list(verify(dataset)) == []
    assert dataset.manifest.revision == 2


def test_a_shard_with_tars_of_two_runs_is_made_again(images, tmp_path, jpeg):
    out, fault = tmp_path / "out", Fault(at="before write dataset.json")
    killed = run(images, out, "--in-process", fault=fault, views=2)
    assert killed.returncode == -signal.SIGKILL
    (out / "train-v01-000000.tar").unlink()
    for path in images.rglob("*.jpg"):
        path.write_bytes(jpeg(int(path.stem) + 50, (120, 100)))
    fault = Fault(at="after rename train-000000.tar")
    assert run(images, out, "--in-process", fault=fault, views=2).returncode == -signal.SIGKILL
    quadpipe.tokenize(images, out, in_process=True, views=2, **OPTIONS)
    assert list(verify(quadpipe.Dataset(out))) == []


def test_a_damaged_manifest_keeps_its_revision(images, tmp_path, files_of, jpeg):
    (images / "zebra" / "bad.jpg").write_bytes(b"no image")
    out, options = tmp_path / "out", {**OPTIONS, "max_rejected": "1", "in_process": True}
    quadpipe.tokenize(images, out, **options)
    (images / "zebra" / "bad.jpg").write_bytes(jpeg(3))
    quadpipe.tokenize(images, out, retry_rejected=True, **options)
    before = files_of(out)
    (out / "dataset.json").write_bytes(before["dataset.json"].replace(b"{", b"[", 1))
    quadpipe.tokenize(images, out, **options)
    assert files_of(out) == before
    assert quadpipe.Dataset(out).manifest.revision == 2
