"""Processes killed, stopped and broken at named points: nothing lost, nothing twice.

Each row of the table in docs/reliability.md is a test marked `fault`, most of them here.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import injection
import pytest
from injection import Fault, wait_for

import quadpipe
from quadpipe.errors import JobError
from quadpipe.files import LocalFolder, lock
from quadpipe.job import decoding
from quadpipe.job.plan import ShardId, read_plan
from quadpipe.shards.verify import verify

OPTIONS = {"samples_per_shard": 3, "tokens": 40}
NONE = Fault()
GO_ON = "the next run goes on; bytes of an undisturbed run"


@pytest.fixture
def images(tmp_path, jpeg) -> Path:
    """Eleven photographs in two classes."""
    root = tmp_path / "images"
    for number in range(11):
        folder = root / ("flower", "zebra")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, (120, 100)))
    return root


@pytest.fixture
def undisturbed(images, tmp_path, files_of) -> dict[str, bytes]:
    quadpipe.tokenize(images, tmp_path / "undisturbed", in_process=True, **OPTIONS)
    return files_of(tmp_path / "undisturbed")


def command(images: Path, out: Path | str, *more: str, **options: object) -> list[str]:
    given = [
        word
        for name, value in {**OPTIONS, **options}.items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    arguments = ("tokenize", "--in", str(images), "--out", str(out), *given, *more)
    return [sys.executable, "-m", "quadpipe.cli", *arguments]


def run(
    images: Path, out: Path, *more: str, fault: Fault = NONE, **options: object
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(images, out, *more, **options),
        env=fault.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(done: subprocess.CompletedProcess, code: int = 0) -> str:
    """What a run that ended with this code says."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_nothing_that_is_installed_sets_the_hook():
    repository = Path(__file__).parents[2]
    for top in ("quadpipe", "cli", "model"):
        for path in (repository / top).rglob("*.py"):
            assert "faults.hook" not in path.read_text(), path
    program = "import quadpipe.job.run; from quadpipe import faults; print(faults.hook)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "None\n"


@pytest.mark.fault(
    "SIGKILL before and after every write, sync, rename and removal of every file, and in the "
    "middle of images and tars, in process",
    GO_ON,
)
@pytest.mark.fault(
    "SIGKILL at every such point while rejected inputs are tried again",
    "the next run goes on; bytes, and revision, of an undisturbed run",
)
@pytest.mark.parametrize("retry", [False, True])
def test_a_kill_at_any_point_loses_nothing(retry, tmp_path, jpeg, record_property):
    images = tmp_path / "images"
    for number in range(6):
        folder = images / ("flower", "zebra")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number, (90, 80)))
    (images / "zebra" / "spoiled.jpg").write_bytes(b"no image")
    (images / "mended").write_bytes(jpeg(7, (90, 80)))
    options = {"samples_per_shard": 3, "tokens": 40, "val_share": 0.15}
    options |= {"retry_rejected": True} if retry else {"views": 2}
    done = subprocess.run(
        [
            *(sys.executable, str(Path(injection.__file__).with_name("everywhere.py"))),
            *(str(images), str(tmp_path / "work"), json.dumps(options)),
        ],
        env=NONE.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if not row["killed"]] == []
    assert [row for row in rows if row["status"] or row["differing"] or row["temporary"]] == []
    points = {row["point"] for row in rows}
    kinds = ["dataset.json", "train.shards.jsonl", ".tar", "markers/train/"]
    for name in [*kinds, *(["withdrawn.json"] if retry else ["plan.json", "rejected.jsonl"])]:
        for moment in ("before write", "after write", "before sync", "before rename"):
            assert any(p.startswith(moment) and name in p for p in points), (moment, name)
    # Of a run that goes on, the first shard is decoded in a child process.
    assert retry or any(point.startswith("decoding zebra/") for point in points)
    assert len(rows) > 50
    record_property("lost", sum(row["lost"] for row in rows))
    record_property("doubled", sum(row["doubled"] for row in rows))


@pytest.mark.fault("SIGKILL of a Ray worker in mid-tar", "its shard is made again")
def test_a_worker_killed_in_mid_tar_is_replaced(images, tmp_path, undisturbed, account):
    fault = Fault(at="before write train-.*tar", skip=1, once=str(tmp_path / "once"))
    check(run(images, tmp_path / "out", "--workers", "2", fault=fault))
    assert (tmp_path / "once").exists()
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault(
    "SIGKILL of a Ray worker between the rename of a tar and its marker",
    "its shard is made again",
)
def test_a_worker_killed_before_its_marker_is_replaced(images, tmp_path, undisturbed, account):
    fault = Fault(at="after rename train-.*tar", once=str(tmp_path / "once"))
    check(run(images, tmp_path / "out", "--workers", "2", fault=fault))
    assert (tmp_path / "once").exists()
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault("SIGKILL of the driver under Ray before the plan is renamed", GO_ON)
@pytest.mark.fault("SIGKILL of the driver under Ray in the middle of the merge", GO_ON)
@pytest.mark.parametrize("point", ["rename .quadpipe/plan.json", "write dataset.json"])
def test_a_driver_killed_at_a_commit_goes_on(point, images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    done = run(images, out, "--workers", "2", fault=Fault(at=f"before {point}"))
    assert done.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    check(run(images, out, "--workers", "2"))
    account(out, undisturbed)


@pytest.mark.fault(
    "the driver is killed, its worker wakes up after another run has begun",
    "the worker sees that the lock is another run's, and commits nothing",
)
def test_an_orphaned_worker_writes_nothing_into_the_next_run(
    images, tmp_path, undisturbed, account
):
    out = tmp_path / "out"
    # The orphan is a run of its own here, stopped before a commit; its driver is it itself.
    stopped = Fault(at="before rename train-000001.tar", do="stop")
    with subprocess.Popen(
        command(images, out, "--in-process"), env=stopped.environment(), stderr=subprocess.PIPE
    ) as orphan:
        wait_for(lambda: _state(orphan.pid) == "T")
        holder = out / ".quadpipe" / "logs" / "lock.json"
        # What the kernel does for a driver that has died, and the next driver then.
        (out / ".quadpipe" / "logs" / "lock").unlink()
        holder.unlink()
        with LocalFolder(out).lock(".quadpipe/logs/lock"):
            before = sorted(path.name for path in out.iterdir())
            orphan.send_signal(signal.SIGCONT)
            _, errors = orphan.communicate(timeout=60)
            assert orphan.returncode == 1
            assert b"lost the write lock of" in errors
            assert sorted(path.name for path in out.iterdir()) == before
    check(run(images, out, "--in-process"))
    account(out, undisturbed)


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.fault(
    "the machine of a Ray worker dies (its raylet and workers are killed), two nodes",
    "its shards are made on the other machines",
)
def test_a_node_that_dies_is_done_without(images, tmp_path, undisturbed, account):
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        # Its workers stop at their first tar, so that it surely dies with a shard.
        fault = Fault(at="before write train-.*tar", do="sleep", once=str(tmp_path / "once"))
        os.environ.update(
            {name: fault.environment()[name] for name in ("PYTHONPATH", injection.VARIABLE)}
        )
        try:
            node = cluster.add_node(num_cpus=1)
        finally:
            for name in ("PYTHONPATH", injection.VARIABLE):
                os.environ.pop(name)
        given = command(images, out, "--address", cluster.address)
        with subprocess.Popen(given, stderr=subprocess.PIPE, text=True) as process:
            wait_for((tmp_path / "once").exists, process)
            cluster.remove_node(node, allow_graceful=False)
            _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    finally:
        cluster.shutdown()
    account(out, undisturbed)


SPOILED = "zebra/05.jpg"


DEADLY = {
    "crash": ("crashed_decoder", "the decoder crashes on it"),
    "spin": ("timeout", "decoding takes more than 1 seconds"),
    "sleep": ("timeout", "decoding takes more than 1 seconds"),
}


@pytest.mark.fault(
    "an input on which the decoder crashes (SIGSEGV), in a Ray worker and in process",
    "tried alone, rejected as `crashed_decoder`; all other samples are there; decided for good",
)
@pytest.mark.fault(
    "an input on which the decoder hangs, busy or asleep, in a Ray worker",
    "tried alone, rejected as `timeout`; all other samples are there; decided for good",
)
@pytest.mark.parametrize("do", ["crash", "spin", pytest.param("sleep", marks=pytest.mark.soak)])
def test_an_input_that_kills_its_decoder_is_rejected_alone(
    do, images, tmp_path, undisturbed, files_of, record_property
):
    path, out = SPOILED, tmp_path / "out"
    fault = Fault(at=f"decoding {path}", do=do, seconds=1)
    allowed = {"max_rejected": 1}
    check(run(images, out, "--workers", "2", fault=fault, **allowed))
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
    check(run(images, out, "--in-process", **allowed))
    assert files_of(out) == before

    # In process the run itself dies of it, and the next one knows where.
    if do == "crash":
        alone = tmp_path / "alone"
        first = run(images, alone, "--in-process", fault=fault, **allowed)
        assert first.returncode == -signal.SIGSEGV
        check(run(images, alone, "--in-process", fault=fault, **allowed))
        assert files_of(alone) == before

    # Asked for it, the job tries the input again, and only its shard is written anew.
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    check(run(images, out, "--in-process", "--retry-rejected", **allowed))
    assert quadpipe.Dataset(out).manifest.revision == 2
    changed = {p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {tar.name}
    found, wanted = files_of(out), dict(undisturbed)
    for name in ("dataset.json", "README.md"):
        found.pop(name), wanted.pop(name)
    assert found == wanted


def _marker_rejects(out: Path, tar: Path) -> bool:
    number = tar.stem.rpartition("-")[2]
    marker = json.loads((out / f".quadpipe/markers/train/0000/{number}.json").read_text())
    return bool(marker["rejected"])


@pytest.mark.fault(
    "a decoder's process is killed from outside again and again",
    "no reject: the shard fails and is named, exit code 1; the next run goes on",
)
def test_a_kill_from_outside_is_no_fault_of_the_input(images, tmp_path, undisturbed, account):
    path, out = SPOILED, tmp_path / "out"
    fault = Fault(at=f"decoding {path}", do="kill")
    says = check(run(images, out, "--workers", "2", fault=fault), 1)
    assert f"while {path} was decoded alone, its process was stopped from outside" in says
    assert "1 of 4 shards could not be made; the others are kept" in says
    check(run(images, out, "--in-process"))
    account(out, undisturbed)


@pytest.mark.fault("--retry-rejected when nothing has changed", "the same bytes, the same revision")
def test_a_retry_that_changes_nothing_is_no_revision(images, tmp_path, files_of, account):
    (images / "zebra" / "bad.jpg").write_bytes(b"no image")
    options = {**OPTIONS, "max_rejected": "1", "in_process": True}
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


def test_an_edited_card_survives_a_retry_and_ours_is_written_anew(images, tmp_path, jpeg):
    bad, out = images / "zebra" / "bad.jpg", tmp_path / "out"
    options = {**OPTIONS, "max_rejected": "1", "in_process": True}
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
    "two drivers on one output at once", "the first goes on, the second is refused with its name"
)
def test_of_two_drivers_one_wins(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    slow = Fault(at="before rename train-000000.tar", do="stop")
    with subprocess.Popen(
        command(images, out, "--in-process"), env=slow.environment(), stderr=subprocess.PIPE
    ) as first:
        wait_for(lambda: _state(first.pid) == "T")
        says = check(run(images, out, "--in-process"), 1)
        assert f"another quadpipe (process {first.pid} on " in says
        assert "wait for it to end, or choose another --out" in says
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    account(out, undisturbed)


def holder_elsewhere(out: Path) -> lock.Holder:
    """As a process on another machine, or of this one before it was started anew, would write."""
    path = out / ".quadpipe" / "logs" / "lock.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.Holder(token="t", host="far", machine="another boot", process=1, started="1")
    lock._write(LocalFolder(out), ".quadpipe/logs/lock.json", holder)
    return holder


@pytest.mark.fault(
    "the lock is held on another machine that goes on counting", "the second driver is refused"
)
def test_a_lock_of_another_machine_is_respected_while_it_beats(images, tmp_path):
    out = tmp_path / "out"
    holder = holder_elsewhere(out)
    given = command(images, out, "--in-process")
    env = Fault(heartbeat=0.2, stale=20).environment()
    with subprocess.Popen(given, env=env, stderr=subprocess.PIPE, text=True) as second:
        beat = 0
        while second.poll() is None:
            beat += 1
            there = replace(holder, beat=beat)
            lock._write(LocalFolder(out), ".quadpipe/logs/lock.json", there)
            time.sleep(0.05)
        errors = second.stderr.read()
    assert second.returncode == 1
    assert "another quadpipe (process 1 on far) is writing to" in errors
    assert not (out / ".quadpipe" / "plan.json").exists()


@pytest.mark.fault(
    "the machine that holds the lock is silent", "after a minute the lock is taken over"
)
def test_a_lock_of_a_silent_machine_is_taken_over(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    holder_elsewhere(out)
    started = time.monotonic()
    check(run(images, out, "--in-process", fault=Fault(heartbeat=0.4, stale=2)))
    assert time.monotonic() - started >= 2
    account(out, undisturbed)
    assert not (out / ".quadpipe" / "logs" / "lock.json").exists()


@pytest.mark.fault(
    "Ctrl-C, or SIGTERM, once", "says how to go on, exit code 130; bytes of an undisturbed run then"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_ends_in_order(number, images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    slow = Fault(at="before rename train-000001.tar", do="sleep", once=str(tmp_path / "once"))
    with subprocess.Popen(
        command(images, out, "--workers", "1"), env=slow.environment(), stderr=subprocess.PIPE
    ) as process:
        wait_for((tmp_path / "once").exists, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"quadpipe: interrupted; rerun the same command to continue" in errors
    assert b"Traceback" not in errors
    check(run(images, out, "--in-process"))
    account(out, undisturbed)


@pytest.mark.fault("Ctrl-C twice", "leaves at once, exit code 130; the next run goes on")
def test_a_second_interrupt_leaves_at_once(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    # The way out after the first one takes for ever.
    slow = Fault(at="before removal .quadpipe/logs/lock.json", do="sleep")
    first = Fault(at="before rename train-000001.tar", do="sleep", once=str(tmp_path / "once"))
    with subprocess.Popen(
        command(images, out, "--in-process"),
        env=Fault(at=f"{slow.at}|{first.at}", do="doze").environment(),
        stderr=subprocess.PIPE,
    ) as process:
        wait_for(lambda: (out / "train-000000.tar").exists(), process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=5)
    assert process.returncode == 130
    check(run(images, out, "--in-process"))
    account(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.fault(
    "the disk is full", "exit code 1, says so; with space again the next run goes on"
)
@pytest.mark.parametrize(
    "engine", [("--in-process",), pytest.param(("--workers", "1"), marks=pytest.mark.soak)]
)
def test_a_full_disk_loses_nothing(engine, images, tmp_path, small_disk, undisturbed, account):
    out, filler = small_disk / "out", small_disk / "filler"
    # It fits by the estimate, since the disk fills up while the job runs.
    fault = Fault(at="before rename train-000001.tar", do="stop", once=str(tmp_path / "once"))
    with subprocess.Popen(
        command(images, out, *engine), env=fault.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((tmp_path / "once").exists, process)
        fill(filler)
        subprocess.run(["pkill", "-CONT", "-f", "make_shard|quadpipe.cli"], check=False)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left on device; free some space and rerun the same command" in errors
    assert "Traceback" not in errors
    filler.unlink()
    check(run(images, out, "--in-process"))
    account(out, undisturbed)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.fault("the output is read-only", "exit code 1, says so; nothing is written")
def test_a_read_only_output_is_refused(images, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    says = check(run(images, small_disk / "out", "--in-process"), 1)
    assert "Read-only file system; choose an --out that can be written" in says


@pytest.mark.fault(
    "a shard of a published dataset is lost, its input has changed, the run that makes it again is "
    "killed between tar and marker",
    "never published with another list: the next run makes the shard again, the revision rises",
)
@pytest.mark.parametrize("point", ["after rename train-000001.tar", "after commit .*000001.json"])
def test_a_shard_made_again_is_not_taken_for_the_one_before(point, images, tmp_path, jpeg):
    out = tmp_path / "out"
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    paths = [s.info["path"] for s in quadpipe.Dataset(out).samples("train")]
    (out / "train-000001.tar").unlink()
    (images / paths[3]).write_bytes(jpeg(99, (120, 100)))  # as many bytes in the shard
    killed = run(images, out, "--in-process", fault=Fault(at=point))
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    check(run(images, out, "--in-process"))
    dataset = quadpipe.Dataset(out)
    assert list(verify(dataset)) == []
    assert dataset.manifest.revision == 2


def test_a_shard_with_tars_of_two_tries_is_made_again(images, tmp_path, jpeg):
    out, options = tmp_path / "out", {"views": 2}
    killed = run(
        images, out, "--in-process", fault=Fault(at="before write dataset.json"), **options
    )
    assert killed.returncode == -signal.SIGKILL
    (out / "train-v01-000000.tar").unlink()
    for path in images.rglob("*.jpg"):
        path.write_bytes(jpeg(int(path.stem) + 50, (120, 100)))
    fault = Fault(at="after rename train-000000.tar")
    assert run(images, out, "--in-process", fault=fault, **options).returncode == -signal.SIGKILL
    check(run(images, out, "--in-process", **options))
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


def test_several_inputs_that_crash_are_tried_again_in_process(images, tmp_path):
    out, fault = (
        tmp_path / "out",
        Fault(at="decoding (zebra/05|flower/00|zebra/09).jpg", do="crash"),
    )
    allowed = {"max_rejected": 3}
    for _ in range(4):
        done = run(images, out, "--in-process", fault=fault, **allowed)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGSEGV
    before = quadpipe.Dataset(out).manifest
    assert before.splits["train"].rejected == 3
    check(run(images, out, "--in-process", "--retry-rejected", fault=fault, **allowed))
    assert quadpipe.Dataset(out).manifest == before


@pytest.mark.fault(
    "the process that decodes an input alone is frozen from outside",
    "no reject: the shard fails and is named; the next run goes on",
)
def test_a_frozen_process_is_no_fault_of_the_input(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    killed = run(images, out, "--in-process", fault=Fault(at="before write train-000000.tar"))
    assert killed.returncode == -signal.SIGKILL
    listing = (out / ".quadpipe" / "listing" / "train" / "0000" / "000000.jsonl").read_text()
    path, _ = json.loads(listing.splitlines()[0])
    fault = Fault(at=f"decoding {path}", do="stop", seconds=1)
    says = check(run(images, out, "--in-process", fault=fault), 1)
    assert f"while {path} was decoded alone, its process was stopped from outside" in says
    assert "put an empty file in its place" in says
    check(run(images, out, "--in-process"))
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
    with closing(decoding.IsolatedDecoder(plan)) as decoder:
        data = (images / SPOILED).read_bytes()
        views = decoder(ShardId(split="train", index=0), 0, SPOILED, data)
    assert views.pixels.shape == (1, 256, 256, 3)
    assert not (planted / "was-run").exists()


def test_a_machine_without_room_for_a_process_fails_the_shard(images, tmp_path, monkeypatch):
    quadpipe.tokenize(images, tmp_path / "out", in_process=True, **OPTIONS)
    plan = read_plan(LocalFolder(tmp_path / "out"))

    def none(*arguments: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", none)
    with pytest.raises(JobError, match="cannot start a process to decode in .Resource temporarily"):
        decoding.IsolatedDecoder(plan)(ShardId(split="train", index=0), 0, "x", b"x")


def test_an_interrupt_says_130_to_nobody_too(images, tmp_path):
    """What reads the messages may be interrupted first."""
    slow = Fault(at="before rename train-000001.tar", do="doze", once=str(tmp_path / "once"))
    given = command(images, tmp_path / "out", "--in-process")
    with subprocess.Popen(given, env=slow.environment(), stderr=subprocess.PIPE) as process:
        wait_for((tmp_path / "once").exists, process)
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
