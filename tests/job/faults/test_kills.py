"""Processes killed, stopped and broken at named points: no sample is lost or duplicated.

Each row of the table in docs/reliability.md is a test marked `fault`, most of them here.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fault_runs import OPTIONS, check, command, run
from injection import Fault, killed_everywhere, started, wait_for
from ray_runs import After

import quadpipe
from quadpipe.files import LocalFolder, lock

CONTINUES = "the next run continues; bytes of an undisturbed run"


def test_installed_code_never_sets_the_fault_hook():
    repository = Path(__file__).parents[3]
    for top in ("quadpipe", "cli", "model"):
        for path in (repository / top).rglob("*.py"):
            assert "faults.hook" not in path.read_text(), path
    program = "import quadpipe.job.run; from quadpipe import faults; print(faults.hook)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "None\n"


@pytest.mark.fault(
    "SIGKILL before and after every write, sync, rename and removal of every file, and in the "
    "middle of images and tars, in process",
    CONTINUES,
)
@pytest.mark.fault(
    "SIGKILL at every such point while rejected inputs are retried",
    "the next run continues; bytes, and revision, of an undisturbed run",
)
@pytest.mark.parametrize("retry", [False, True])
def test_a_kill_at_any_point_loses_nothing(retry, tmp_path, jpeg, record_property):
    images = tmp_path / "images"
    for number in range(6):
        folder = images / ("flower", "zebra")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number, (90, 80)))
    (images / "zebra" / "spoiled.jpg").write_bytes(b"no image")
    (images / "repaired").write_bytes(jpeg(7, (90, 80)))
    options = {"samples_per_shard": 3, "tokens": 40, "val_share": 0.15}
    options |= {"retry_rejected": True} if retry else {"views": 2}
    rows = killed_everywhere("everywhere.py", images, tmp_path / "work", json.dumps(options))
    points = {row["point"] for row in rows}
    kinds = ["dataset.json", "train.shards.jsonl", ".tar", "markers/train/"]
    for name in [*kinds, *(["withdrawn.json"] if retry else ["plan.json", "rejected.jsonl"])]:
        for moment in ("before write", "after write", "before sync", "before rename"):
            assert any(p.startswith(moment) and name in p for p in points), (moment, name)
    # Of a run that continues, the first shard is decoded in a child process.
    assert retry or any(point.startswith("decoding zebra/") for point in points)
    assert len(rows) > 50
    record_property("lost", sum(row["lost"] for row in rows))
    record_property("doubled", sum(row["doubled"] for row in rows))


@pytest.mark.fault("SIGKILL of a Ray worker in the middle of a tar", "its shard is remade")
@pytest.mark.fault(
    "SIGKILL of a Ray worker between the rename of a tar and its marker",
    "its shard is remade",
)
@pytest.mark.parametrize(("at", "skip"), [("before write", 1), ("after rename", 0)])
def test_a_killed_worker_is_replaced(at, skip, images, tmp_path, undisturbed, account, on_ray):
    once = tmp_path / "once"
    on_ray.inject(Fault(at=f"{at} train-.*tar", skip=skip, once=str(once)))
    quadpipe.tokenize(images, tmp_path / "out", **OPTIONS)
    assert once.exists()
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault("SIGKILL of the driver under Ray before the plan is renamed", CONTINUES)
@pytest.mark.fault("SIGKILL of the driver under Ray in the middle of the merge", CONTINUES)
@pytest.mark.parametrize("point", ["rename .quadpipe/plan.json", "write dataset.json"])
def test_a_job_continues_after_its_driver_is_killed_at_a_commit(
    point, images, tmp_path, undisturbed, account, on_ray
):
    out = tmp_path / "out"
    done = run(images, out, "--address", on_ray.address, fault=Fault(at=f"before {point}"))
    assert done.returncode == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    quadpipe.tokenize(images, out, **OPTIONS)
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
    with started(
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
            assert b": process " in errors
            assert sorted(path.name for path in out.iterdir()) == before
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.fault(
    "the machine of a Ray worker dies (its raylet and workers are killed), two nodes",
    "its shards are made on the other machines",
)
def test_a_job_finishes_without_a_node_that_dies(images, tmp_path, undisturbed, account, on_ray):
    # Its workers stop at their first tar, so that it surely dies with a shard.
    once = tmp_path / "once"
    node = on_ray.add_node(Fault(at="before write train-.*tar", do="sleep", once=str(once)))

    def die() -> None:
        wait_for(once.exists)
        on_ray.remove_node(node)

    quadpipe.tokenize(images, tmp_path / "out", progress=After(1, die), **OPTIONS)
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault(
    "two drivers on one output at once", "the first continues, the second is refused with its name"
)
def test_of_two_drivers_the_second_is_refused(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    slow = Fault(at="before rename train-000000.tar", do="stop")
    with started(
        command(images, out, "--in-process"), env=slow.environment(), stderr=subprocess.PIPE
    ) as first:
        wait_for(lambda: _state(first.pid) == "T")
        errors = check(run(images, out, "--in-process"), 1)
        assert f"another quadpipe (process {first.pid} on " in errors
        assert "wait for it to end, or choose another place" in errors
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=60)
    assert first.returncode == 0
    account(out, undisturbed)


def holder_elsewhere(out: Path) -> lock.Holder:
    """As a process on another machine, or of this one before it was restarted, would write."""
    path = out / ".quadpipe" / "logs" / "lock.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.Holder(token="t", host="far", machine="another boot", process=1, started="1")
    lock._write(LocalFolder(out), ".quadpipe/logs/lock.json", holder)
    return holder


@pytest.mark.fault(
    "the lock is held on another machine that is alive", "the second driver is refused"
)
def test_a_lock_of_another_machine_is_respected_while_it_is_renewed(images, tmp_path):
    out = tmp_path / "out"
    holder = holder_elsewhere(out)
    given = command(images, out, "--in-process")
    env = Fault(heartbeat=0.2, stale=20).environment()
    with started(given, env=env, stderr=subprocess.PIPE, text=True) as second:
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
def test_a_lock_of_a_silent_machine_is_taken_over(
    images, tmp_path, undisturbed, account, monkeypatch
):
    out = tmp_path / "out"
    holder_elsewhere(out)
    waited: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(waited), sleep=waited.append)
    monkeypatch.setattr(lock, "time", clock)
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    assert sum(waited) >= 60
    account(out, undisturbed)
    assert not (out / ".quadpipe" / "logs" / "lock.json").exists()


@pytest.mark.fault(
    "Ctrl-C, or SIGTERM, once",
    "prints how to continue, exit code 130; then the bytes of an undisturbed run",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_stops_the_run_cleanly(
    number, images, tmp_path, undisturbed, account, on_ray
):
    out, once = tmp_path / "out", tmp_path / "once"
    on_ray.inject(Fault(at="before rename train-000001.tar", do="sleep", once=str(once)))
    given = command(images, out, "--address", on_ray.address)
    with started(given, stderr=subprocess.PIPE) as process:
        wait_for(once.exists, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"quadpipe: interrupted; rerun the same command to continue" in errors
    assert b"Traceback" not in errors
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


@pytest.mark.fault("Ctrl-C twice", "exits at once, exit code 130; the next run continues")
def test_a_second_interrupt_exits_at_once(images, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    # The way out after the first one takes for ever.
    places = "before removal .quadpipe/logs/lock.json|before rename train-000001.tar"
    with started(
        command(images, out, "--in-process"),
        env=Fault(at=places, do="doze").environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: (out / "train-000000.tar").exists(), process)
        process.send_signal(signal.SIGINT)
        assert any("interrupt once more to exit at once" in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out / ".quadpipe" / "logs" / "lock.json").exists()  # it did not wait for its removal
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


def test_an_interrupt_exits_with_130_when_nothing_reads_stderr(images, tmp_path):
    """The process that reads the messages may be interrupted first."""
    slow = Fault(at="before rename train-000001.tar", do="doze", once=str(tmp_path / "once"))
    given = command(images, tmp_path / "out", "--in-process")
    with started(given, env=slow.environment(), stderr=subprocess.PIPE) as process:
        wait_for((tmp_path / "once").exists, process)
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
