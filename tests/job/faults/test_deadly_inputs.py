"""Inputs that crash or hang their decoder."""

import errno
import json
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fault_runs import OPTIONS, check, run
from injection import Fault

import quadpipe
from quadpipe.errors import JobError
from quadpipe.files import LocalFolder
from quadpipe.job import isolation
from quadpipe.job.decoding import Encoded
from quadpipe.job.plan import ShardId, read_plan
from quadpipe.shards.verify import verify

SPOILED = "zebra/05.jpg"


DEADLY = {
    "crash": ("crashed_decoder", "the decoder crashes on it"),
    "spin": ("timeout", "decoding takes more than 1 seconds"),
    "sleep": ("timeout", "decoding takes more than 1 seconds"),
}


@pytest.mark.fault(
    "an input on which the decoder crashes (SIGSEGV), in a Ray worker and in process",
    "retried alone, rejected as `crashed_decoder`; all other samples are written; final",
)
@pytest.mark.fault(
    "an input on which the decoder hangs, busy or asleep, in a Ray worker",
    "retried alone, rejected as `timeout`; all other samples are written; final",
)
@pytest.mark.parametrize("do", ["crash", "spin", pytest.param("sleep", marks=pytest.mark.soak)])
def test_an_input_that_kills_its_decoder_is_rejected_alone(
    do, images, tmp_path, undisturbed, files_of, record_property, on_ray
):
    path, out = SPOILED, tmp_path / "out"
    fault = Fault(at=f"decoding {path}", do=do, seconds=1)
    allowed: dict[str, Any] = {"max_rejected": "1"}
    here: dict[str, Any] = {**OPTIONS, **allowed, "in_process": True}
    on_ray.inject(fault)
    quadpipe.tokenize(images, out, **OPTIONS, **allowed)
    reason, message = DEADLY[do]
    (reject,) = (out / ".quadpipe" / "rejected.jsonl").read_text().splitlines()
    expected = {"split": "train", "path": path, "reason": reason, "message": message}
    assert json.loads(reject) == expected
    dataset = quadpipe.Dataset(out)
    paths = [sample.info["path"] for sample in dataset.samples("train")]
    everything = {p.relative_to(images).as_posix() for p in images.rglob("*.jpg")}
    assert sorted(paths) == sorted(everything - {path})
    assert list(verify(dataset)) == []
    record_property("lost", len(everything - {path} - set(paths)))
    record_property("doubled", len(paths) - len(set(paths)))

    # The shard is lost: the decision is not, although nothing is wrong with the input now.
    before = files_of(out)
    tar = next(p for p in out.glob("*.tar") if _marker_rejects(out, p))
    tar.unlink()
    quadpipe.tokenize(images, out, **here)
    assert files_of(out) == before

    # In process the run itself dies of it, and the next one knows where.
    if do == "crash":
        alone = tmp_path / "alone"
        first = run(images, alone, "--in-process", fault=fault, **allowed)
        assert first.returncode == -signal.SIGSEGV
        check(run(images, alone, "--in-process", fault=fault, **allowed))
        assert files_of(alone) == before

    # Asked for it, the job tries the input again, and only its shard is rewritten.
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    quadpipe.tokenize(images, out, retry_rejected=True, **here)
    assert quadpipe.Dataset(out).manifest.revision == 2
    changed = {p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {tar.name}
    found, wanted = files_of(out), dict(undisturbed)
    for name in ("dataset.json", "README.md", "croissant.json"):  # of another revision
        found.pop(name), wanted.pop(name)
    assert found == wanted


def _marker_rejects(out: Path, tar: Path) -> bool:
    number = tar.stem.rpartition("-")[2]
    marker = json.loads((out / f".quadpipe/markers/train/0000/{number}.json").read_text())
    return bool(marker["rejected"])


@pytest.mark.fault(
    "a decoder's process is killed from outside repeatedly",
    "no reject: the shard fails and is named, exit code 1; the next run continues",
)
def test_a_kill_from_outside_does_not_reject_the_input(
    images, tmp_path, undisturbed, account, on_ray
):
    out = tmp_path / "out"
    on_ray.inject(Fault(at=f"decoding {SPOILED}", do="kill"))
    with pytest.raises(JobError, match="1 of 4 shards could not be made; the others are") as error:
        quadpipe.tokenize(images, out, **OPTIONS)
    assert f"while {SPOILED} was decoded alone, its process was stopped from outside" in str(
        error.value
    )
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


def test_several_crashing_inputs_are_rejected_one_per_run_in_process(images, tmp_path):
    out, fault = tmp_path / "out", Fault(at="decoding (zebra/05|flower/00).jpg", do="crash")
    allowed: dict[str, Any] = {"max_rejected": 2}
    for _ in range(2):
        done = run(images, out, "--in-process", fault=fault, **allowed)
        assert done.returncode == -signal.SIGSEGV
    check(run(images, out, "--in-process", fault=fault, **allowed))
    before = quadpipe.Dataset(out).manifest
    assert before.splits["train"].rejected == 2
    check(run(images, out, "--in-process", "--retry-rejected", fault=fault, **allowed))
    assert quadpipe.Dataset(out).manifest == before


@pytest.mark.fault(
    "the process that decodes an input alone is frozen from outside",
    "no reject: the shard fails and is named; the next run continues",
)
def test_a_frozen_process_does_not_reject_the_input(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    killed = run(images, out, "--in-process", fault=Fault(at="before write train-000000.tar"))
    assert killed.returncode == -signal.SIGKILL
    listing = (out / ".quadpipe" / "listing" / "train" / "0000" / "000000.jsonl").read_text()
    path, _ = json.loads(listing.splitlines()[0])
    fault = Fault(at=f"decoding {path}", do="stop", seconds=1)
    errors = check(run(images, out, "--in-process", fault=fault), 1)
    assert f"while {path} was decoded alone, its process was stopped from outside" in errors
    assert "put an empty file in its place" in errors
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


def test_the_process_that_decodes_imports_nothing_from_the_working_folder(
    images, tmp_path, monkeypatch
):
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "numpy.py").write_text("open('was-run', 'w')")
    quadpipe.tokenize(images, tmp_path / "out", in_process=True, **OPTIONS)
    monkeypatch.chdir(planted)
    plan = read_plan(LocalFolder(tmp_path / "out"))
    with closing(isolation.IsolatedDecoder(plan)) as decoder:
        data = (images / SPOILED).read_bytes()
        views = decoder(Encoded(ShardId(split="train", index=0), 0, SPOILED, data))
    assert views.pixels.shape == (1, 256, 256, 3)
    assert not (planted / "was-run").exists()


def test_a_machine_that_cannot_start_a_process_fails_the_shard(images, tmp_path, monkeypatch):
    quadpipe.tokenize(images, tmp_path / "out", in_process=True, **OPTIONS)
    plan = read_plan(LocalFolder(tmp_path / "out"))

    def none(*arguments: object, **options: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(JobError, match="cannot start a process to decode in .Resource temporarily"):
        isolation.IsolatedDecoder(plan)(Encoded(ShardId(split="train", index=0), 0, "x", b"x"))
