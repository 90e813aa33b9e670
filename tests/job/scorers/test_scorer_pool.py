"""Scorers in separate actors: placement, kills, hangs and refusals."""

import signal
import subprocess

import psutil
import pytest
from injection import wait_for
from job_runs import command

import quadpipe
from quadpipe.errors import ConfigError


def actors_of(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "".join(child.cmdline()[:1]).startswith("ray::ScorerActor"):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.fault("SIGKILL of a scorer's actor during the run", "Ray starts another one")
def test_a_scorer_that_is_killed_is_replaced(images, options, tmp_path, undisturbed, account):
    out = tmp_path / "out"
    given = command(images, out, options, "--workers", "2", "--scorers", "1")
    with subprocess.Popen(given, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(out.glob("*.tar"))) >= 3, process)
        (first,) = actors_of(process)
        first.send_signal(signal.SIGKILL)
        wait_for(lambda: any(actor.pid != first.pid for actor in actors_of(process)), process)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    account(out, undisturbed)


@pytest.mark.fault("SIGKILL of a scorer's actor while it starts", "it is restarted")
def test_a_scorer_that_dies_while_it_starts_is_started_again(
    images, options, tmp_path, undisturbed, account
):
    out = tmp_path / "out"
    given = command(images, out, options, "--workers", "1", "--scorers", "2")
    with subprocess.Popen(given, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: actors_of(process), process)
        actors_of(process)[0].send_signal(signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    account(out, undisturbed)


@pytest.mark.fault("a scorer's actor hangs (SIGSTOP)", "its batches go to another one")
def test_batches_of_a_scorer_that_hangs_go_to_another(
    images, options, tmp_path, undisturbed, account
):
    out = tmp_path / "out"
    given = command(images, out, options, "--workers", "1", "--scorers", "2")
    with subprocess.Popen(given, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: len(list(out.glob("*.tar"))) >= 2, process)
        stopped = actors_of(process)[0]
        stopped.send_signal(signal.SIGSTOP)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    account(out, undisturbed)


@pytest.mark.fault(
    "the machine of the scorer, and one of workers, die during the run; another machine joins",
    "the batches wait for the new one",
)
def test_batches_wait_for_another_node_when_that_of_the_scorer_dies(
    images, options, tmp_path, undisturbed, account
):
    """Only one node has the accelerator, for which a resource stands in; first a node of workers
    is killed, then that of the scorer, and another takes its place."""
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        workers = cluster.add_node(num_cpus=1)
        accelerator = cluster.add_node(num_cpus=1, resources={"accelerator": 1})
        given = command(
            images, out, options,
            "--address", cluster.address, "--scorer-resource", "accelerator",
        )  # fmt: skip
        with subprocess.Popen(given, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: len(list(out.glob("*.tar"))) >= 2, process)
            cluster.remove_node(workers, allow_graceful=False)
            cluster.remove_node(accelerator, allow_graceful=False)
            cluster.add_node(num_cpus=1, resources={"accelerator": 1})
            _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
        account(out, undisturbed)
        log = next((out / ".quadpipe" / "logs").glob("*.jsonl")).read_text()
        assert '"event": "done"' in log
    finally:
        cluster.shutdown()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--gpus-per-scorer", "0.5"), "each of 1 scorers needs 0.5 GPU, this machine has 0 GPU"),
        (("--scorer-resource", "tpu=2"), "needs 2 tpu and 1 CPU, this machine has 0 tpu and"),
    ],
)
def test_scorers_that_no_node_can_hold_are_refused_at_once(
    more, message, images, options, tmp_path
):
    given = command(images, tmp_path / "out", options, *more)
    done = subprocess.run(given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_resource_is_named_after_the_wait(images, options, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        given = command(
            images, tmp_path / "out", options, "--address", cluster.address,
            "--scorer-resource", "accelerator", "--scorer-wait", "2",
        )  # fmt: skip
        done = subprocess.run(given, capture_output=True, text=True, timeout=120)
    finally:
        cluster.shutdown()
    assert done.returncode == 2
    assert "0 of 1 scorers started within 2 seconds: each of 1 scorers needs 1 accelerator and" in (
        done.stderr
    )
    assert "the cluster has 0 accelerator and 2 CPU in all" in done.stderr


def test_a_pool_that_is_refused_leaves_the_output_as_it_was(images, options, tmp_path, files_of):
    out = tmp_path / "out"
    given = command(images, out, options, "--gpus-per-scorer", "0.5")
    assert subprocess.run(given, capture_output=True).returncode == 2
    quadpipe.tokenize(images, out, in_process=True, **options)


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
