"""Scorers in separate actors: placement, kills, hangs and refusals."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from injection import wait_for
from job_runs import command
from ray_runs import After, SharedRay

import quadpipe
from quadpipe.errors import ConfigError, JobError
from quadpipe.job.pool import open_pool
from quadpipe.job.run_config import RunConfig

OWN = """
import os, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 32, stride=32)
        torch.nn.init.constant_(self.conv.weight, 0.01)
        torch.nn.init.zeros_(self.conv.bias)

    def forward(self, images):
        if len(images) > 1 and os.path.exists("broken"):
            raise RuntimeError("the network is broken")
        return self.conv(images)

def make():
    return Net(), 32
"""


def test_a_users_network_runs_in_process_and_in_the_pool(images, tmp_path, files_of, monkeypatch):
    """Its module is in the working folder, where every process finds it."""
    (tmp_path / "own_net.py").write_text(OWN)
    given: dict[str, Any] = {"scorer": "feature", "backbone": "own_net:make", "max_rejected": "5"}
    pool = command(images, tmp_path / "pool", given, "--workers", "1", "--scorers", "1")
    # A network that fails makes the shard fail, with its cause.
    (tmp_path / "broken").touch()
    done = subprocess.run(pool, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "shard train 000000: backbone own_net:make failed on images" in done.stderr
    assert "RuntimeError: the network is broken; fix it" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "broken").unlink()
    done = subprocess.run(pool, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    quadpipe.tokenize(images, tmp_path / "process", in_process=True, **given)
    assert files_of(tmp_path / "process") == files_of(tmp_path / "pool")


@pytest.fixture
def pool_ray(on_ray) -> Iterator[SharedRay]:
    """The shared Ray; the job must end the scorers that it has started."""
    yield on_ray
    wait_for(lambda: not actors_of(on_ray))


def actors_of(shared: SharedRay) -> list[psutil.Process]:
    return shared.processes("ray::ScorerActor")


def test_tasks_give_the_bytes_of_one_process(
    images, options, tmp_path, account, undisturbed, on_ray
):
    quadpipe.tokenize(images, tmp_path / "out", **options)
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault("SIGKILL of a scorer's actor while it starts", "it is restarted")
@pytest.mark.fault("SIGKILL of a scorer's actor during the run", "Ray starts another one")
def test_a_scorer_that_is_killed_is_replaced(
    images, options, tmp_path, undisturbed, account, pool_ray
):
    killed = []

    def kill() -> None:
        def new() -> list[psutil.Process]:
            return [actor for actor in actors_of(pool_ray) if actor not in killed]

        wait_for(new)
        killed.append(new()[0])
        killed[-1].kill()

    starting = threading.Thread(target=kill)
    starting.start()
    quadpipe.tokenize(images, tmp_path / "out", scorers=1, progress=After(3, kill), **options)
    starting.join()
    assert len(killed) == 2
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault("a scorer's actor hangs (SIGSTOP)", "its batches go to another one")
def test_batches_of_a_scorer_that_hangs_go_to_another(
    images, options, tmp_path, undisturbed, account, pool_ray
):
    stopped = []

    def stop() -> None:
        stopped.append(actors_of(pool_ray)[0])
        stopped[0].suspend()

    pool_ray.add_node(num_cpus=1)
    try:
        quadpipe.tokenize(images, tmp_path / "out", scorers=2, progress=After(2, stop), **options)
        assert stopped[0].status() == psutil.STATUS_STOPPED  # to the end
    finally:
        for actor in stopped:
            actor.kill()  # it cannot end by itself
    account(tmp_path / "out", undisturbed)


@pytest.mark.fault(
    "the machine of the scorer, and one of workers, die during the run; another machine joins",
    "the batches wait for the new one",
)
def test_batches_wait_for_another_node_when_that_of_the_scorer_dies(
    images, options, tmp_path, undisturbed, account, pool_ray
):
    """Only one node has the accelerator, for which a resource stands in; it and a node of workers
    are killed, then another takes its place."""
    accelerator: dict[str, Any] = {"num_cpus": 1, "resources": {"accelerator": 1}}
    nodes = [pool_ray.add_node(num_cpus=1), pool_ray.add_node(**accelerator)]

    def die() -> None:
        for node in nodes:
            pool_ray.remove_node(node)
        pool_ray.add_node(**accelerator)

    out = tmp_path / "out"
    resource: dict[str, Any] = {"scorer_resource": "accelerator"}
    quadpipe.tokenize(images, out, progress=After(2, die), **resource, **options)
    account(out, undisturbed)
    log = next((out / ".quadpipe" / "logs").glob("*.jsonl")).read_text()
    assert '"event": "done"' in log


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"gpus_per_scorer": 0.5},
            "each of 1 scorers needs 0.5 GPU, this machine has 0 GPU",
        ),
        ({"scorer_resource": "tpu=2"}, "needs 2 tpu and 1 CPU, this machine has 0 tpu and"),
    ],
)
def test_scorers_that_this_machine_cannot_hold_are_refused_at_once(
    more, message, images, options, tmp_path, joined, monkeypatch
):
    """By a private Ray, as which the shared one is used; the output stays as it was."""
    import ray

    monkeypatch.setattr("quadpipe.job.engines._ray", lambda *given: nullcontext((ray, True)))
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=message):
        quadpipe.tokenize(images, out, **more, **options)
    assert not (out / ".quadpipe" / "plan.json").exists()
    quadpipe.tokenize(images, out, in_process=True, **options)


def test_a_missing_resource_is_named_after_the_wait(images, options, tmp_path, pool_ray):
    lacking: dict[str, Any] = {"scorer_resource": "accelerator", "scorer_wait": 1}
    with pytest.raises(ConfigError, match="0 of 1 scorers started within 1 seconds: ") as error:
        quadpipe.tokenize(images, tmp_path / "out", **lacking, **options)
    assert "each of 1 scorers needs 1 accelerator and 1 CPU" in str(error.value)
    assert "the cluster has 0 accelerator and 2 CPU in all" in str(error.value)


@pytest.mark.parametrize(("left", "tried"), [(False, 0), (True, 2)])
def test_a_ray_that_has_ended_does_not_hide_why(left, tried, monkeypatch):
    """Its actors cannot be ended, and trying to would start another Ray."""
    import ray

    def lost(*given: object) -> int:
        raise JobError("the real cause")

    killed = []

    def kill(actor: object) -> None:
        killed.append(actor)
        raise ray.exceptions.ActorHandleNotFoundError("the handle is of another Ray")

    fake = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 2.0},
        put=lambda value: value,
        remote=lambda **given: lambda kind: SimpleNamespace(remote=kind),
        is_initialized=lambda: left,
        kill=kill,
        exceptions=ray.exceptions,
    )
    monkeypatch.setattr("quadpipe.job.pool._start", lost)
    plan: Any = SimpleNamespace(config=SimpleNamespace(run=RunConfig(scorers=2)))
    with (
        pytest.raises(JobError, match="the real cause"),
        open_pool(fake, plan, None, private=False),
    ):
        pass
    assert len(killed) == tried


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorers": 0, "scorer": "feature"}, "scorers 0 is below 1"),
        ({"gpus_per_scorer": 1.5, "scorer": "feature"}, "gpus_per_scorer 1.5 is neither a share"),
        ({"gpus_per_scorer": -1.0, "scorer": "feature"}, "gpus_per_scorer -1 is neither a share"),
        ({"scorer_wait": 0, "scorer": "feature"}, "scorer_wait 0 is below 1"),
        ({"scorer_resource": "GPU=1", "scorer": "feature"}, "GPUs are asked for with gpus_per_sc"),
        ({"scorer_resource": "memory=9", "scorer": "feature"}, "'memory=9' is not NAME or NAME"),
        ({"scorer_resource": "a=0.00001", "scorer": "feature"}, "is not NAME or NAME=AMOUNT"),
        ({"gpus_per_scorer": 0.00001, "scorer": "feature"}, "1e-05 is neither a share of a GPU"),
        ({"scorer_wait": 9, "scorer": "feature"}, "scorer_wait is for scorers in Ray actors"),
        ({"scorer_resource": "a=b", "scorer": "feature"}, "'a=b' is not NAME or NAME=AMOUNT"),
        ({"scorers": 1, "in_process": True, "scorer": "feature"}, "in_process scores here, with"),
        ({"scorers": 1}, "scorer saliency has no network to run in actors; omit"),
        ({"score_batch": 0}, "score_batch 0 is not from 1 to 1,024"),
    ],
)
def test_invalid_pools_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.job.JobConfig.from_options(**options)
