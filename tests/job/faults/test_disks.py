"""Disks that are full or read-only."""

import subprocess
from pathlib import Path

import pytest
from fault_runs import OPTIONS, check, command, run
from injection import Fault, started, wait_for

import quadpipe


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
    "the disk is full", "exit code 1 with a message; with free space the next run continues"
)
@pytest.mark.parametrize(
    "engine", [("--in-process",), pytest.param(("--workers", "1"), marks=pytest.mark.soak)]
)
def test_a_full_disk_loses_nothing(engine, images, tmp_path, small_disk, undisturbed, account):
    out, filler = small_disk / "out", small_disk / "filler"
    # It fits by the estimate, since the disk fills up while the job runs.
    fault = Fault(at="before rename train-000001.tar", do="stop", once=str(tmp_path / "once"))
    with started(
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
    quadpipe.tokenize(images, out, in_process=True, **OPTIONS)
    account(out, undisturbed)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


@pytest.mark.fault("the output is read-only", "exit code 1 with a message; nothing is written")
def test_a_read_only_output_is_refused(images, tmp_path, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    errors = check(run(images, small_disk / "out", "--in-process"), 1)
    assert "Read-only file system; choose a folder that can be written" in errors
