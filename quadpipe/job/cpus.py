"""The number of CPUs that this process may use, which may be fewer than the machine has."""

import os
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def usable_cpus(groups: Path = _GROUPS, mounted: Path = _MOUNTED) -> int:
    """The CPUs that this process is bound to, or the quota of its control groups, rounded up.

    At least 1. groups, mounted: where Linux lists the groups, and their limits.
    """
    quotas = [ceil(quota) for quota in _quotas(groups, mounted)]
    return max(1, min([_bound_cpus(), *quotas]))


def _bound_cpus() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """The limits, in CPUs, of the groups of this process and of all groups around them.

    Inside a container the path of a group may be that of the host; what is not mounted is
    ignored.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folders, read = ("", "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            folders, read = (controllers, "cpu"), _quota_v1
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for folder in folders:
            for group in (inside, *inside.parents):
                with suppress(OSError, ValueError):  # no such group, or no limit
                    yield read(mounted / folder / group)


def _quota_v2(group: Path) -> float:
    """`cpu.max` holds `max 100000` without a limit."""
    quota, period = (group / "cpu.max").read_text().split()
    return int(quota) / int(period)


def _quota_v1(group: Path) -> float:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    if quota < 0:
        raise ValueError("no limit")
    return quota / int((group / "cpu.cfs_period_us").read_text())
