"""Network scorers in Ray actors of their own, on the machines that have the GPUs.

The actors start before the work and are waited for. A task keeps at most two batches out, so that
it decodes while they are scored. Ray restarts an actor that dies, if there is room, and its batch
is retried; a batch of an actor that does not answer goes to another one. Scoring is
a pure function, so none of this shows in the bytes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, JobError, QuadpipeError
from quadpipe.geometry import Geometry
from quadpipe.job.plan import Plan
from quadpipe.job.run_config import RunConfig
from quadpipe.job.shard import local_scorer
from quadpipe.scorers import Scorer, ScorerCode

# Retries of a batch that kills its actor. Ray uses up its own retries before it detects that a
# node has died.
_RETRIES = 3
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_BETWEEN_TRIES = 0.5
_SECONDS_OF_SILENCE = 60.0
_CONTROL = "control"


class ScorerActor:
    """One copy of the network.

    Its plan and network come with every call, as references that the driver keeps alive, so that
    a restarted actor has them too.
    """

    def __init__(self) -> None:
        self._scorer: Scorer | None = None

    def start(self, shared: list[Any]) -> None:
        """Build the network; raises what building does."""
        if self._scorer is None:
            import ray

            plan, code = ray.get(shared)
            self._scorer = local_scorer(plan, code)

    def score(
        self, shared: list[Any], images: np.ndarray, hints: Sequence[Any]
    ) -> list[np.ndarray]:
        self.start(shared)
        assert self._scorer
        return self._scorer.score(images, hints)

    def ping(self) -> None:
        """Answers while a batch is scored: it runs in another thread."""


class PooledScorer(Scorer):
    """Replaces the scorer in a task by the actors of the pool; can be sent to other machines."""

    name = "pooled"
    summary = "sends images to the scorers of a pool"
    cost = "sending images"
    batches_out = 2

    def __init__(
        self,
        geometry: Geometry,
        actors: list[Any],
        shared: list[Any],
        *,
        timeout: float,
        cpus: float,
    ) -> None:
        super().__init__(geometry)
        self.cpus = int(cpus)
        self._actors = actors
        self._shared = shared
        self._timeout = timeout
        self._sent = 0

    def starting_at(self, turn: int) -> "PooledScorer":
        """The same pool, starting with another actor, so that tasks spread their batches."""
        other = copy(self)
        other._sent = turn
        return other

    def submit(
        self, images: np.ndarray, hints: Sequence[Any] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        import ray

        turn = self._sent
        self._sent += 1
        arguments = ray.put(images), [] if hints is None else list(hints)
        sent = self._send(turn, arguments)
        return lambda: self._receive(turn, sent, arguments)

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        return self.submit(images, hints)()

    def _send(self, turn: int, arguments: tuple[Any, list[Any]]) -> tuple[Any, Any]:
        """Give a batch to an actor; the actor and the reference to its maps."""
        now = time.monotonic()
        there = [a for a in self._actors if _silent_until.get(_name(a), 0) < now] or self._actors
        actor = there[turn % len(there)]
        return actor, actor.score.remote(self._shared, *arguments)

    def _receive(
        self, turn: int, sent: tuple[Any, Any], arguments: tuple[Any, list[Any]]
    ) -> list[np.ndarray]:
        """Wait for a batch; JobError when it is lost too often, or no actor answers."""
        import ray

        losses = 0
        while True:
            actor, pending = sent
            try:
                if ray.wait([pending], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
                    maps: list[np.ndarray] = ray.get(pending)
                    return maps
                if _first_answering(ray, [actor]) is not None:
                    continue  # busy
            except ray.exceptions.RayTaskError as error:
                raise _failure(error) from error
            except ray.exceptions.RayError as error:
                losses += 1
                if losses > _RETRIES:
                    raise JobError(f"a batch was lost with {losses} scorers: {error}") from error
            _silent_until[_name(actor)] = time.monotonic() + _SECONDS_OF_SILENCE
            self._await_answer(ray)
            sent = self._send(turn, arguments)

    def _await_answer(self, ray: Any) -> None:
        """Wait until an actor answers, busy or not; JobError when none does for too long."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            actor = _first_answering(ray, self._actors)
            if actor is not None:
                _silent_until.pop(_name(actor), None)
                return
            time.sleep(_SECONDS_BETWEEN_TRIES)
        raise JobError(
            f"none of {len(self._actors)} scorers has answered for {self._timeout:.0f} seconds; "
            f"bring their machines back and rerun the same command"
        )


# When actors that did not answer may get batches, for all tasks of this process.
_silent_until: dict[str, float] = {}


def _name(actor: Any) -> str:
    name: str = actor._actor_id.hex()
    return name


def _first_answering(ray: Any, actors: list[Any]) -> Any:
    """The first actor that answers a ping; None when none does in time."""
    calls = {a.ping.options(concurrency_group=_CONTROL).remote(): a for a in actors}
    deadline = time.monotonic() + _SECONDS_BETWEEN_LOOKS
    waiting = list(calls)
    while waiting and (left := deadline - time.monotonic()) > 0:
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left)
        for call in done:
            try:
                ray.get(call)
                return calls[call]
            except ray.exceptions.RayError:
                continue
    return None


def cpus_of_scorers(run: RunConfig) -> int:
    """CPUs that a pool takes on a private Ray: one for each scorer that has no GPU."""
    return 0 if not run.pooled or run.gpus_per_scorer else run.scorers or 1


@contextmanager
def open_pool(
    ray: Any, plan: Plan, code: ScorerCode | None, *, private: bool
) -> Iterator[PooledScorer]:
    """Start the actors and wait until all of them have built their network; end them afterwards.

    ConfigError when they cannot be placed in time, naming what is missing, or cannot be built.
    """
    run = plan.config.run
    wanted = run.scorer_resources() | (
        {"GPU": run.gpus_per_scorer} if run.gpus_per_scorer else {"CPU": 1.0}
    )
    there = ray.cluster_resources()
    count = run.scorers or _fitting(wanted, there)
    needs = f"each of {count} scorers needs " + _listed(wanted)
    has = _listed({name: there.get(name, 0) for name in wanted})
    if private and any(there.get(name, 0) < count * amount for name, amount in wanted.items()):
        raise ConfigError(
            f"{needs}, this machine has {has}; start fewer --scorers, or join a cluster with "
            f"--address"
        )
    actor = ray.remote(
        num_cpus=wanted.get("CPU", 0),
        num_gpus=run.gpus_per_scorer,
        resources=run.scorer_resources(),
        max_restarts=-1,
        concurrency_groups={_CONTROL: 1},
    )(ScorerActor)
    shared = [ray.put(plan), ray.put(code)]
    actors = [actor.remote() for _ in range(count)]
    try:
        started = _start(ray, actors, shared, run.scorer_timeout)
        if started < count:
            raise ConfigError(
                f"{started} of {count} scorers started within {run.scorer_timeout} seconds: "
                f"{needs}, the cluster has {has} in all; start fewer --scorers, add nodes, or give "
                f"a longer --scorer-wait"
            )
        geometry, cpus = plan.config.tokenizer.geometry, count * wanted.get("CPU", 0)
        yield PooledScorer(geometry, actors, shared, timeout=run.scorer_timeout, cpus=cpus)
    finally:
        # A Ray that goes on after the job would keep them, since its workers know them. One that
        # has ended must not hide why, and `kill` would start another one.
        for actor in actors if ray.is_initialized() else []:
            with suppress(ray.exceptions.RayError, ConnectionError):
                ray.kill(actor)


def _start(ray: Any, actors: list[Any], shared: list[Any], timeout: float) -> int:
    """The number of actors that have built their network in time; actors that die are retried.

    Raises what building raises.
    """
    deadline = time.monotonic() + timeout
    waiting = {actor.start.remote(shared): actor for actor in actors}
    while waiting and (left := deadline - time.monotonic()) > 0:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        for call in done:
            actor = waiting.pop(call)
            try:
                ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise _failure(error) from error
            except ray.exceptions.RayError:
                time.sleep(_SECONDS_BETWEEN_TRIES)
                waiting[actor.start.remote(shared)] = actor
    return len(actors) - len(waiting)


def _listed(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _fitting(wanted: dict[str, float], there: dict[str, float]) -> int:
    """The number of scorers that the scarce resources hold, at least one."""
    scarce = [name for name in wanted if name != "CPU"] or ["CPU"]
    return max(1, min(int(there.get(name, 0) / wanted[name]) for name in scarce))


def _failure(error: Any) -> QuadpipeError:
    """What an actor raised, or that it was lost."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, QuadpipeError):
        return cause
    lines = str(cause or error).strip().splitlines() or [type(error).__name__]
    return JobError(f"a scorer failed: {lines[-1]}")
