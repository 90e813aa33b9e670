"""A Ray cluster on this machine that the jobs of many tests run on, and its processes."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import Fault, wait_for

from quadpipe.job import Progress

CPUS = 2
SECONDS = 300  # for a test: a tenth of it where nothing hangs

# A node that dies is noticed in a second, not in half a minute; processes that no job needs are
# not started.
_QUICK: dict[str, Any] = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 5000,
    "health_check_failure_threshold": 3,
    "prestart_worker_first_driver": False,
}
_HEAD: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False, "_system_config": _QUICK}


class SharedRay:
    """A cluster of one node, which tests may add others to.

    The processes of its workers reach the fault that was last given to `inject`.
    """

    def __init__(self, faults: Path) -> None:
        from ray.cluster_utils import Cluster

        self._faults = faults
        self.inject(Fault())
        with _environment(Fault(file=str(faults)).variables()):
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS} | _HEAD)

    @property
    def address(self) -> str:
        address: str = self.cluster.address
        return address

    def inject(self, fault: Fault) -> None:
        """Replace the fault in workers, those that are running too."""
        new = self._faults.with_suffix(".new")
        new.write_text(fault.to_json())
        new.rename(self._faults)

    def add_node(self, fault: Fault | None = None, **options: Any) -> Any:
        """A node whose workers reach a fault of their own."""
        fault = fault or Fault(file=str(self._faults))
        with _environment(fault.variables()):
            return self.cluster.add_node(**options)

    def restore(self) -> None:
        """As at the start: one node, without a fault."""
        import ray

        self.inject(Fault())
        for node in list(self.cluster.worker_nodes):
            self.remove_node(node)
        wait_for(lambda: ray.cluster_resources().get("CPU") == CPUS)

    def remove_node(self, node: Any) -> None:
        """As if its machine had died."""
        self.cluster.remove_node(node, allow_graceful=False)

    def processes(self, *titles: str) -> list[psutil.Process]:
        """The workers of all nodes whose titles start with one of these."""
        found = []
        for node in self.cluster.list_all_nodes():
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for child in raylet.children():
                try:
                    if child.cmdline()[:1] and child.cmdline()[0].startswith(titles):
                        found.append(child)
                except psutil.Error:
                    continue
        return found

    def shutdown(self) -> None:
        self.cluster.shutdown()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    shared = SharedRay(tmp_path_factory.mktemp("ray") / "fault.json")
    yield shared
    shared.shutdown()


@pytest.fixture(scope="module")
def joined(shared_ray: SharedRay) -> Iterator[SharedRay]:
    """The jobs of this process run on the shared Ray. Its workers are kept between tests."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("quadpipe.job.engines._SECONDS_BEFORE_RETRY", 0.1)
        ray.init(address=shared_ray.address, logging_level=logging.ERROR, log_to_driver=False)
        yield shared_ray
        ray.shutdown()
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def on_ray(joined: SharedRay) -> Iterator[SharedRay]:
    """The same, without faults and nodes of other tests. A job that hangs fails its test."""

    def hung(*given: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    try:
        yield joined
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        joined.restore()


class After(Progress):
    """Acts once, when this many shards are done."""

    def __init__(self, shards: int, act: Callable[[], object]) -> None:
        self._left, self._act = shards, act

    def shard_done(self, report: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()
