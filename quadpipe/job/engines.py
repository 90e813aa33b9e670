"""Engines, which run the shards: this process, or Ray. Both run the same function.

An engine yields each shard with its report, or with the error that it failed with.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any

from quadpipe.errors import ConfigError, JobError, OutputError, QuadpipeError
from quadpipe.job.cpus import usable_cpus
from quadpipe.job.decoding import Decoder
from quadpipe.job.isolation import IsolatedDecoder, WatchedDecoder
from quadpipe.job.plan import Plan, ShardId
from quadpipe.job.pool import PooledScorer, cpus_of_scorers, open_pool
from quadpipe.job.run_config import RunConfig
from quadpipe.job.shard import ShardReport, Site, make_shard

Outcome = tuple[ShardId, ShardReport | QuadpipeError]

# Retries of a shard that lost its worker, and the pause before each: Ray detects a dead node late.
_RETRIES = 3
_SECONDS_BEFORE_RETRY = 2.0
# Enough that CPUs do not wait for the driver, few enough to bound memory.
_IN_FLIGHT_PER_CPU = 2
# Tasks pass file names, not images; by default Ray reserves a third of the memory.
_OBJECT_STORE_BYTES = 100 * 2**20
_SECONDS_FOR_REMOVAL = 5.0
_SECONDS_BETWEEN_REMOVALS = 0.05


Engine = Callable[[Iterator[ShardId]], Generator[Outcome, None, None]]


@contextmanager
def in_process(plan: Plan, site: Site, *, resumed: bool) -> Iterator[Engine]:
    """One shard after the other, in this process. Internal errors are raised at once.

    resumed: the first shard may be the one that killed the last run.
    """

    isolated = resumed

    def work(shard: ShardId) -> ShardReport:
        nonlocal isolated
        decoder: type[Decoder] = IsolatedDecoder if isolated else Decoder
        # With this option any shard may hold such an input.
        isolated = isolated and plan.config.run.retry_rejected
        return make_shard(plan, site, shard, decoder=decoder)

    yield partial(_one_by_one, work)


class _LostError(JobError):
    """A worker, or the machine it was on, died with its shard."""


@contextmanager
def on_ray(plan: Plan, site: Site) -> Iterator[Engine]:
    """One Ray task per shard, a bounded number in flight; the pool of scorers is started first.

    A shard whose worker is lost is retried with its inputs decoded in a child process, since one of
    them may have been the cause. ConfigError when Ray cannot be started, the cluster cannot be
    joined, or it cannot hold the scorers.
    """
    run = plan.config.run
    with _ray(run, _object_store_bytes(plan, site)) as (ray, private), ExitStack() as ending:
        pool = None
        if run.pooled:
            pool = ending.enter_context(open_pool(ray, plan, site.code, private=private))
        slots = _slots(ray, run, pool, private=private)
        task = ray.remote(num_cpus=1, max_retries=0)(make_shard)
        shared = ray.put(plan), ray.put(replace(site, code=None) if pool else site)

        def start(shard: ShardId, lost: bool) -> Any:
            scorer = pool and pool.starting_at(shard.index)
            decoder = IsolatedDecoder if lost else WatchedDecoder
            return task.remote(*shared, shard, scorer, decoder)

        yield partial(_on_workers, ray, slots, start)


@contextmanager
def open_engine(
    run: RunConfig, work: Callable[[Any, ShardId], ShardReport], shared: Any
) -> Iterator[Engine]:
    """The engine that `run` asks for, for work that needs neither scorers nor decoders.

    work: makes a shard, given what is shared by all.
    """
    if run.in_process:
        yield partial(_one_by_one, partial(work, shared))
        return
    with _ray(run, _OBJECT_STORE_BYTES) as (ray, private):
        slots = _slots(ray, run, None, private=private)
        task = ray.remote(num_cpus=1, max_retries=0)(work)
        given = ray.put(shared)
        yield partial(_on_workers, ray, slots, lambda shard, lost: task.remote(given, shard))


def make_all(make: Engine, shards: list[ShardId], note: Callable[[ShardId, Any], None]) -> None:
    """Make the shards; JobError names those that could not be made.

    note: is called with each shard and its report or error.
    """
    failed = []
    with closing(make(iter(shards))) as outcomes:
        for shard, outcome in outcomes:
            note(shard, outcome)
            if isinstance(outcome, OutputError):
                raise outcome  # the next shard would fail too
            if not isinstance(outcome, ShardReport):
                failed.append(f"shard {shard}: {outcome}")
    if failed:
        listed = "\n".join(failed[:20] + [f"and {len(failed) - 20} more"] * (len(failed) > 20))
        raise JobError(
            f"{len(failed)} of {len(shards)} shards could not be made; the others are kept. "
            f"Fix the cause and rerun the same command\n{listed}"
        )


def _one_by_one(
    work: Callable[[ShardId], ShardReport], shards: Iterator[ShardId]
) -> Generator[Outcome, None, None]:
    """In this process. Internal errors are raised at once."""
    for shard in shards:
        try:
            yield shard, work(shard)
        except QuadpipeError as error:
            yield shard, error
        except MemoryError:
            yield shard, JobError("out of memory; use smaller images or fewer --views")


def _on_workers(
    ray: Any, slots: int, start: Callable[[ShardId, bool], Any], shards: Iterator[ShardId]
) -> Generator[Outcome, None, None]:
    """On Ray, at most `slots` shards at a time; those that lose their worker are retried.

    start: starts a shard, given whether it has lost a worker before.
    """
    # Running tasks are not cancelled when this ends: Ray ends the tasks of a driver that
    # leaves, and cancelling a task that is about to finish can crash the driver.
    running: dict[Any, ShardId] = {}
    losses: Counter[ShardId] = Counter()
    lost: deque[tuple[float, ShardId]] = deque()  # retry times, in order

    def due() -> Iterator[ShardId]:
        while lost and lost[0][0] <= time.monotonic():
            yield lost.popleft()[1]

    while True:
        for shard in islice(chain(due(), shards), slots - len(running)):
            running[start(shard, losses[shard] > 0)] = shard
        if not running and not lost:
            return
        full = len(running) >= slots
        wait = max(0.0, lost[0][0] - time.monotonic()) if lost and not full else None
        if not running:
            time.sleep(wait or 0.0)
            continue
        done, _ = ray.wait(list(running), timeout=wait)
        for reference in done:
            shard, outcome = running.pop(reference), _outcome(ray, reference)
            losses[shard] += isinstance(outcome, _LostError)
            if isinstance(outcome, _LostError) and losses[shard] <= _RETRIES:
                lost.append((time.monotonic() + _SECONDS_BEFORE_RETRY, shard))
            else:
                yield shard, outcome


def _outcome(ray: Any, reference: Any) -> ShardReport | QuadpipeError:
    try:
        report: ShardReport = ray.get(reference)
        return report
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, QuadpipeError):
            return cause
        unexpected = JobError(f"{type(cause).__name__}: {cause}; details are in the log")
        unexpected.add_note("".join(traceback.format_exception(error)))
        return unexpected
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return _LostError(f"its worker was lost {_RETRIES + 1} times: {lines[0]}")


def _reach(address: str) -> None:
    """Raise OSError or ValueError if nothing listens there; Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is `auto` or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _object_store_bytes(plan: Plan, site: Site) -> int:
    """Memory for the network and for the batches that are sent to scorers."""
    run, dataset = plan.config.run, plan.config.dataset
    weights = site.code.weights if site.code else None
    room = _OBJECT_STORE_BYTES + 2 * len(weights or b"")
    if not run.pooled:
        return room
    height, width = plan.config.tokenizer.image_size
    batch = dataset.score_batch * dataset.views * height * width * 3
    return room + (PooledScorer.batches_out + 2) * batch * _local_workers(run)


def _slots(ray: Any, run: RunConfig, pool: PooledScorer | None, *, private: bool) -> int:
    """How many tasks to keep in flight; ConfigError when scorers have taken all CPUs."""
    cpus = int(ray.cluster_resources().get("CPU", 1)) - (pool.cpus if pool else 0)
    if cpus < 1:
        raise ConfigError(
            "the scorers take all CPUs of the cluster; start fewer --scorers, or add a node"
        )
    if pool or (run.workers and not private):
        # Tasks that wait for a scorer release their CPU: more tasks would hold more images.
        return run.workers or cpus
    # A private Ray has as many CPUs as workers, so tasks can queue.
    return cpus * _IN_FLIGHT_PER_CPU


def _local_workers(run: RunConfig) -> int:
    return run.workers or usable_cpus()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _session_folder() -> Iterator[str]:
    """A folder for the files of a private Ray: logs, sockets, spilled objects.

    It is removed with this Ray. Its path is short, because paths of sockets are limited to about a
    hundred characters.
    """
    folder = tempfile.mkdtemp(prefix="quadpipe-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))  # noqa: S108
    try:
        yield folder
    finally:
        deadline = time.monotonic() + _SECONDS_FOR_REMOVAL
        while os.path.exists(folder) and time.monotonic() < deadline:
            # A process of Ray that is ending may still write a log.
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(_SECONDS_BETWEEN_REMOVALS if os.path.exists(folder) else 0)


@contextmanager
def _ray(run: RunConfig, object_store_bytes: int) -> Iterator[tuple[Any, bool]]:
    """Ray, and whether it is private.

    Without an address, a private Ray is started on this machine; it ends with the job and leaves
    nothing on the disk. A Ray that this process has started itself is used and left running.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray as untyped_ray

    ray: Any = untyped_ray
    ours = not ray.is_initialized()
    with ExitStack() as ending:
        if ours:
            _start_ray(ray, run, object_store_bytes, ending)
        elif run.address:
            raise ConfigError("this process has started Ray already; omit address")
        yield ray, ours and not run.address


def _start_ray(ray: Any, run: RunConfig, object_store_bytes: int, ending: ExitStack) -> None:
    """Start a private Ray, or join a cluster; `ending` undoes it. ConfigError when it fails."""
    local: dict[str, Any] = {}
    try:
        if not run.address:
            local = {
                "num_cpus": _local_workers(run) + cpus_of_scorers(run),
                "include_dashboard": False,
                "object_store_memory": object_store_bytes,
                "_temp_dir": ending.enter_context(_session_folder()),
            }
        elif run.address != "auto":
            _reach(run.address)
        ending.callback(ray.shutdown)
        with _signals_kept():
            ray.init(
                address=run.address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                **local,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"no Ray at {run.address}: {lines[0]}; start one with `ray start --head`, or omit "
            f"--address"
            if run.address
            else f"Ray cannot be started here: {lines[0]}; try --in-process"
        ) from error
