"""Who runs the shards: this process, or Ray. Both run the same function.

An engine yields each shard with its report, or with the error that kept it from being made.
"""

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from quadpipe.errors import ConfigError, JobError, QuadpipeError
from quadpipe.files import Folder
from quadpipe.job.plan import Plan, ShardId
from quadpipe.job.shard import Report

Work = Callable[[Plan, Path, Folder, ShardId], Report]
Outcome = tuple[ShardId, Report | QuadpipeError]

# Ray starts a task that lost its process again, so many times.
_RETRIES = 3
# Enough that no CPU waits for the driver, few enough that memory does not grow with the job.
_IN_FLIGHT_PER_CPU = 2
# Tasks pass file names, not images; Ray would set aside a third of the memory.
_OBJECT_STORE_BYTES = 100 * 2**20


def run_in_process(
    work: Work, plan: Plan, source: Path, out: Folder, shards: Iterator[ShardId]
) -> Generator[Outcome, None, None]:
    """One shard after the other, here. Errors that are not for users surface at once."""
    for shard in shards:
        try:
            yield shard, work(plan, source, out, shard)
        except QuadpipeError as error:
            yield shard, error
        except MemoryError:
            yield shard, JobError("out of memory; use smaller images or fewer --views")


def run_on_ray(
    work: Work,
    plan: Plan,
    source: Path,
    out: Folder,
    shards: Iterator[ShardId],
    *,
    workers: int | None,
    address: str | None,
) -> Generator[Outcome, None, None]:
    """One Ray task a shard, a bounded number in flight.

    ConfigError when Ray cannot be started or the cluster cannot be joined.
    """
    with _ray(workers, address) as (ray, slots):
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(work)
        shared = ray.put(plan)
        # What is still running when this ends is not cancelled: Ray ends the tasks of a driver that
        # leaves, and cancelling one that is about to finish can bring the driver down.
        running: dict[Any, ShardId] = {}
        while True:
            for shard in islice(shards, slots - len(running)):
                running[task.remote(shared, source, out, shard)] = shard
            if not running:
                return
            done, _ = ray.wait(list(running))
            for reference in done:
                yield running.pop(reference), _outcome(ray, reference)


def _outcome(ray: Any, reference: Any) -> Report | QuadpipeError:
    try:
        report: Report = ray.get(reference)
        return report
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, QuadpipeError):
            return cause
        unexpected = JobError(f"{type(cause).__name__}: {cause}; details are in the log")
        unexpected.add_note(error.traceback_str)
        return unexpected
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return JobError(f"its worker was lost and could not be replaced: {lines[0]}")


def _reach(address: str) -> None:
    """Raise OSError or ValueError where nothing listens; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is `auto` or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _ray(workers: int | None, address: str | None) -> Iterator[tuple[Any, int]]:
    """Ray, and how many tasks to keep in flight.

    Without an address a private Ray on this machine that ends with the job. A Ray that this
    process has started itself is used and left running.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray as untyped_ray

    ray: Any = untyped_ray
    ours = not ray.is_initialized()
    if ours:
        local: dict[str, Any] = {
            "num_cpus": workers or os.cpu_count(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
        try:
            if address and address != "auto":
                _reach(address)
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if address else local),
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"no Ray at {address}: {lines[0]}; start one with `ray start --head`, or leave "
                f"out --address"
                if address
                else f"Ray cannot be started here: {lines[0]}; try --in-process"
            ) from error
    elif address:
        raise ConfigError("this process has started Ray already; leave out address")
    try:
        # A private Ray has as many CPUs as workers; elsewhere workers bounds what is in flight.
        private = ours and not address
        cpus = int(ray.cluster_resources().get("CPU", 1))
        yield ray, workers if workers and not private else cpus * _IN_FLIGHT_PER_CPU
    finally:
        if ours:
            ray.shutdown()
