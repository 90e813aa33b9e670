"""The job on Ray, private or not: the same bytes as in process, whatever process dies."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import job_runs
import pytest
from injection import started, wait_for
from ray_runs import After

import quadpipe
from quadpipe.errors import ConfigError, JobError
from quadpipe.job import Preview, Progress, engines

# Enough work that there is time to disturb it.
OPTIONS: dict[str, Any] = {"samples_per_shard": 1, "views": 6}


@pytest.fixture(scope="module")
def undisturbed(image_folder, tmp_path_factory, files_of) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    quadpipe.tokenize(image_folder, out, in_process=True, **OPTIONS)
    return files_of(out)


def command(images: Path, out: Path, *more: str) -> list[str]:
    return job_runs.command(images, out, OPTIONS, *more)


def wait_for_shards(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < count:
        assert process.poll() is None, "the job ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_unreachable_cluster_is_a_clear_error(image_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no Ray at 127\.0\.0\.1:1: .*start one with `ray start"):
        quadpipe.tokenize(image_folder, tmp_path / "out", address="127.0.0.1:1")


@pytest.mark.fault("SIGKILL of the driver under Ray during the run", "the next run continues")
def test_a_job_whose_driver_was_killed_continues_to_the_same_bytes(
    image_folder, tmp_path, undisturbed, account
):
    out = tmp_path / "out"
    with started(
        command(image_folder, out), stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_for_shards(out, 5, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "dataset.json").exists()
    quadpipe.tokenize(image_folder, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


# The command on one CPU, which also prints the CPUs of its Ray, and the Rays among the sessions.
LOOK = """
import os, pathlib, ray
from quadpipe.cli import main
from quadpipe.cli.progress import TerminalProgress

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
done = TerminalProgress.shard_done

def look(progress, report):
    rays = list(pathlib.Path(os.environ["RAY_TMPDIR"]).rglob("raylet"))
    print(ray.cluster_resources()["CPU"], "CPU,", len(rays), "Ray", flush=True)
    done(progress, report)

TerminalProgress.shard_done = look
main()
"""


@pytest.fixture
def sessions(monkeypatch) -> Iterator[Path]:
    """Where Ray keeps its sessions; short, since paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.mark.fault(
    "Ctrl-C under Ray during the run", "exit code 130; the private Ray leaves nothing in /tmp"
)
def test_an_interrupted_private_ray_leaves_no_files_and_touches_no_other_ray(
    image_folder, tmp_path, sessions, undisturbed, account
):
    other = sessions / "ray" / "session_of_another"
    other.mkdir(parents=True)
    (sessions / "ray" / "session_latest").symlink_to(other)
    out = tmp_path / "out"
    with started(command(image_folder, out), stderr=subprocess.DEVNULL) as process:
        wait_for_shards(out, 3, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert [path.name for path in sessions.iterdir()] == ["ray"]
    assert (sessions / "ray" / "session_latest").resolve() == other
    assert len(list((sessions / "ray").iterdir())) == 2

    done = subprocess.run(
        [sys.executable, "-c", LOOK, *command(image_folder, out)[3:]],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    account(out, undisturbed)
    assert [path.name for path in sessions.iterdir()] == ["ray"]
    assert "100% 23 of 23 images" in done.stderr
    assert "Started a local Ray" not in done.stderr
    assert done.stdout.startswith("1.0 CPU, 1 Ray\n")  # the CPUs that the process may use


@pytest.mark.fault("SIGKILL of all Ray workers during the run", "their shards are remade")
def test_a_killed_worker_is_replaced(image_folder, tmp_path, undisturbed, account, on_ray):
    killed = []

    def kill() -> None:
        wait_for(lambda: on_ray.processes("ray::make_shard"))  # one at least has a shard
        # Ray's own agents are called ray:: too; a raylet without them ends.
        for worker in on_ray.processes("ray::make_shard", "ray::IDLE"):
            os.kill(worker.pid, signal.SIGKILL)
            killed.append(worker)

    quadpipe.tokenize(image_folder, tmp_path / "out", progress=After(3, kill), **OPTIONS)
    assert killed
    account(tmp_path / "out", undisturbed)


def test_an_error_in_a_worker_names_shard_and_cause(image_folder, tmp_path, on_ray):
    paths = [path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.jpg")]
    listing = tmp_path / "list.csv"
    (tmp_path / "images").symlink_to(image_folder)
    gone = tmp_path / "gone.jpg"
    gone.write_bytes(b"")
    listing.write_text("".join(f"images/{path}\n" for path in paths) + "gone.jpg\n")

    class Vanish(Progress):
        def planned(self, preview: Preview) -> None:
            gone.unlink()

    out = tmp_path / "out"
    with pytest.raises(JobError, match="1 of 3 shards could not be made; the others are") as error:
        quadpipe.tokenize(listing, out, samples_per_shard=8, progress=Vanish())
    assert "cannot read gone.jpg" in str(error.value)
    assert len(list(out.glob("*.tar"))) == 2


def test_an_unexpected_error_fails_its_shard(on_ray):
    """Its traceback goes to the log."""
    import ray

    @ray.remote
    def fail() -> None:
        raise ZeroDivisionError("by nought")

    error = engines._outcome(ray, fail.remote())
    assert isinstance(error, JobError)
    assert str(error) == "ZeroDivisionError: by nought; details are in the log"
    assert "ZeroDivisionError" in error.__notes__[0]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_running_cluster_is_joined_and_left_running(
    workers, image_folder, tmp_path, files_of, undisturbed, on_ray
):
    given = command(image_folder, tmp_path / "out", "--address", on_ray.address)
    done = subprocess.run(
        [*given, "--workers", str(workers)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == undisturbed
    # The cluster outlives the job, and serves the next.
    quadpipe.tokenize(image_folder, tmp_path / "again", **OPTIONS)
    assert files_of(tmp_path / "again") == undisturbed
