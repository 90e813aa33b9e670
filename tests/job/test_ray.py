"""The job on a private Ray: the same bytes as in process, whatever process dies."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import quadpipe
from quadpipe.errors import ConfigError

# Enough work that there is time to disturb it.
OPTIONS = ("--samples-per-shard", "1", "--views", "6")


@pytest.fixture(scope="module")
def undisturbed(image_folder, tmp_path_factory, files_of) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    quadpipe.tokenize(image_folder, out, samples_per_shard=1, views=6, in_process=True)
    return files_of(out)


def command(images: Path, out: Path, *options: str) -> list[str]:
    arguments = ("tokenize", "--in", str(images), "--out", str(out), *OPTIONS, *options)
    return [sys.executable, "-m", "quadpipe.cli", *arguments]


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_any_number_of_workers_gives_the_bytes_of_one_process(
    workers, image_folder, tmp_path, files_of, undisturbed
):
    done = subprocess.run(
        command(image_folder, tmp_path / "out", "--workers", str(workers)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert files_of(tmp_path / "out") == undisturbed
    assert "100% 23 of 23 images" in done.stderr
    assert "Started a local Ray" not in done.stderr


def wait_for_shards(out: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < count:
        assert process.poll() is None, "the job ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.fault("SIGKILL of the driver under Ray during the run", "the next run continues")
def test_a_job_whose_driver_was_killed_continues_to_the_same_bytes(
    image_folder, tmp_path, undisturbed, account
):
    out = tmp_path / "out"
    with subprocess.Popen(
        command(image_folder, out), stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_for_shards(out, 5, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "dataset.json").exists()
    subprocess.run(command(image_folder, out), check=True, capture_output=True)
    account(out, undisturbed)


@pytest.mark.fault("SIGKILL of all Ray workers during the run", "their shards are remade")
def test_a_killed_worker_is_replaced(image_folder, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    with subprocess.Popen(command(image_folder, out), stderr=subprocess.PIPE, text=True) as process:
        wait_for_shards(out, 3, process)
        descendants = psutil.Process(process.pid).children(recursive=True)
        # Ray's own agents are called ray:: too; a raylet without them ends.
        titles = ("ray::make_shard", "ray::IDLE")
        workers = [p for p in descendants if "".join(p.cmdline()[:1]).startswith(titles)]
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    account(out, undisturbed)


def test_an_error_in_a_worker_names_shard_and_cause(image_folder, tmp_path):
    paths = [path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.jpg")]
    listing = tmp_path / "list.csv"
    (tmp_path / "images").symlink_to(image_folder)
    gone = tmp_path / "gone.jpg"
    gone.write_bytes(b"")
    listing.write_text("".join(f"images/{path}\n" for path in paths) + "gone.jpg\n")
    program = """
import sys, os, quadpipe
from quadpipe.job import Progress
class Vanish(Progress):
    def planned(self, preview):
        os.unlink(sys.argv[2])
try:
    quadpipe.tokenize(sys.argv[1], sys.argv[3], samples_per_shard=8, progress=Vanish())
except quadpipe.errors.JobError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(listing), str(gone), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 of 3 shards could not be made; the others are kept" in done.stdout
    assert "cannot read gone.jpg" in done.stdout
    assert len(list((tmp_path / "out").glob("*.tar"))) == 2


def test_a_running_cluster_is_joined_and_left_running(
    image_folder, tmp_path, files_of, undisturbed
):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        given = command(image_folder, tmp_path / "out", "--address", cluster.address)
        done = subprocess.run(given, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / "out") == undisturbed
        # The cluster outlives the job, and serves the next.
        given = command(image_folder, tmp_path / "again", "--address", cluster.address)
        again = subprocess.run([*given, "--workers", "1"], capture_output=True, timeout=120)
        assert again.returncode == 0
        assert files_of(tmp_path / "again") == undisturbed
    finally:
        cluster.shutdown()


@pytest.fixture
def sessions(monkeypatch) -> Iterator[Path]:
    """Where Ray keeps its sessions; short, since paths of sockets must be."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_a_private_ray_has_the_cpus_of_the_process_and_leaves_no_files(
    image_folder, tmp_path, sessions
):
    program = """
import os, sys, ray, quadpipe
from quadpipe.job import Progress
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
class Look(Progress):
    def shard_done(self, report):
        sockets = list(__import__("pathlib").Path(sys.argv[3]).rglob("raylet"))
        print(ray.cluster_resources()["CPU"], len(sockets))
quadpipe.tokenize(sys.argv[1], sys.argv[2], limit=4, progress=Look())
"""
    arguments = [str(image_folder), str(tmp_path / "out"), str(sessions)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1.0 1\n"
    assert list(sessions.iterdir()) == []


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
    with subprocess.Popen(command(image_folder, out), stderr=subprocess.DEVNULL) as process:
        wait_for_shards(out, 3, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert [path.name for path in sessions.iterdir()] == ["ray"]
    assert (sessions / "ray" / "session_latest").resolve() == other
    assert len(list((sessions / "ray").iterdir())) == 2
    subprocess.run(command(image_folder, out), check=True, capture_output=True)
    account(out, undisturbed)
    assert [path.name for path in sessions.iterdir()] == ["ray"]


def test_an_unreachable_cluster_is_a_clear_error(image_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"no Ray at 127\.0\.0\.1:1: .*start one with `ray start"):
        quadpipe.tokenize(image_folder, tmp_path / "out", address="127.0.0.1:1")
