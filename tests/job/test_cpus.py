"""How many workers a job takes: the CPUs that it may use."""

import os
from pathlib import Path

import pytest

from quadpipe.job.cpus import usable_cpus


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def many(monkeypatch) -> None:
    """The process is bound to none of 64 CPUs."""
    monkeypatch.setattr("quadpipe.job.cpus._bound_cpus", lambda: 64)


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [("max 100000", 64), ("400000 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("", 64)],
)
def test_the_quota_of_cgroup_v2_is_rounded_up(limit, cpus, tmp_path):
    write(tmp_path / "groups", "0::/pod/job\n")
    write(tmp_path / "mounted" / "pod" / "job" / "cpu.max", limit)
    assert usable_cpus(tmp_path / "groups", tmp_path / "mounted") == cpus


@pytest.mark.parametrize(
    ("quota", "cpus"), [("-1", 64), ("300000", 3), ("250000", 3), ("5000", 1), ("9900000", 64)]
)
@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_the_quota_of_cgroup_v1_is_rounded_up(quota, cpus, folder, tmp_path):
    write(tmp_path / "groups", "5:memory:/a\n4:cpu,cpuacct:/slurm/job\n")
    group = tmp_path / "mounted" / folder / "slurm" / "job"
    write(group / "cpu.cfs_quota_us", quota + "\n")
    write(group / "cpu.cfs_period_us", "100000\n")
    assert usable_cpus(tmp_path / "groups", tmp_path / "mounted") == cpus


def test_the_tightest_quota_of_nested_cgroups_counts(tmp_path):
    write(tmp_path / "groups", "0::/pod/job\n")
    write(tmp_path / "mounted" / "pod" / "job" / "cpu.max", "800000 100000")
    write(tmp_path / "mounted" / "pod" / "cpu.max", "200000 100000")
    assert usable_cpus(tmp_path / "groups", tmp_path / "mounted") == 2


def test_a_cgroup_path_of_the_host_is_not_used_in_a_container(tmp_path):
    write(tmp_path / "groups", "0::/kubepods/burstable/pod1\n")
    write(tmp_path / "mounted" / "cpu.max", "300000 100000")
    assert usable_cpus(tmp_path / "groups", tmp_path / "mounted") == 3


def test_a_system_without_cgroups_has_no_quota(tmp_path):
    assert usable_cpus(tmp_path / "nothing", tmp_path) == 64


def test_the_cpu_affinity_of_the_process_counts(tmp_path, monkeypatch):
    monkeypatch.undo()
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(bound)})
    try:
        assert usable_cpus(tmp_path / "nothing", tmp_path) == 1
    finally:
        os.sched_setaffinity(0, bound)
