"""Scorers in the job: networks in the tasks and in a pool of actors give the same bytes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from injection import wait_for

import quadpipe
from quadpipe.errors import ConfigError, JobError

CLASSES = {"flower": "n11939491", "temple": "n03788195", "zebra": "n02391049"}


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory) -> Path:
    """The photographs under ImageNet's names of their classes, two of them broken."""
    root = tmp_path_factory.mktemp("named") / "images"
    for folder, name in CLASSES.items():
        shutil.copytree(image_folder / folder, root / name)
    for broken in sorted(root.rglob("*.jpg"))[3:5]:
        broken.write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def options(shufflenet_weights) -> dict[str, object]:
    return {
        "scorer": "feature",
        "scorer_weights": shufflenet_weights,
        "samples_per_shard": 3,
        "score_batch": 2,
        "views": 2,
        "max_rejected": "10%",
    }


@pytest.fixture(scope="module")
def undisturbed(images, options, tmp_path_factory, files_of) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    quadpipe.tokenize(images, out, in_process=True, **options)
    return files_of(out)


def command(images: Path, out: Path, options: dict[str, object], *more: str) -> list[str]:
    given = [
        word
        for name, value in options.items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    arguments = ("tokenize", "--in", str(images), "--out", str(out), *given, *more)
    return [sys.executable, "-m", "quadpipe.cli", *arguments]


def test_plan_and_manifest_say_what_scored(undisturbed, shufflenet_weights):
    import hashlib

    import torch

    scorer = json.loads(undisturbed["dataset.json"])["scorer"]
    assert scorer == {
        "name": "feature",
        "parameters": {
            "backbone": "shufflenet-v2-x0.5",
            "distance": "mse",
            "dtype": "float32",
            "stride": 32,
        },
        "weights_sha256": hashlib.sha256(shufflenet_weights.read_bytes()).hexdigest(),
        "label_aware": False,
        "torch": torch.__version__.partition("+")[0],
        "device": "cpu",
    }
    plan = json.loads(undisturbed[".quadpipe/plan.json"])
    assert plan["scorer"] == scorer
    assert plan["dataset"]["score_batch"] == 2


def test_importances_are_those_of_the_python_tokenizer(images, options, undisturbed, tmp_path):
    for name, data in undisturbed.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    weights = options["scorer_weights"]
    tokenizer = quadpipe.Tokenizer(scorer="feature", scorer_weights=weights)
    for number, sample in enumerate(quadpipe.Dataset(tmp_path).samples("train")):
        if sample.info["view"] or number > 5:
            continue
        image = tokenizer.prepare_file((images / sample.info["path"]).read_bytes())
        (mosaic,) = tokenizer.tokenize(image[None])
        np.testing.assert_array_equal(mosaic.importance, sample.mosaic.importance)


@pytest.mark.parametrize("more", [("--workers", "2"), ("--workers", "1", "--scorers", "2")])
def test_tasks_and_pool_give_the_bytes_of_one_process(
    more, images, options, tmp_path, files_of, undisturbed
):
    done = subprocess.run(
        command(images, tmp_path / "out", options, *more), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "out") == undisturbed


def actors_of(process: subprocess.Popen) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "".join(child.cmdline()[:1]).startswith("ray::ScorerActor"):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.fault("SIGKILL of a scorer's actor in mid-run", "Ray starts another one")
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


@pytest.mark.fault("SIGKILL of a scorer's actor that starts", "it is started again")
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
def test_a_scorer_that_hangs_is_left_alone(images, options, tmp_path, undisturbed, account):
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
    "the machine of the scorer, and one of workers, die in mid-run; another machine joins",
    "the batches wait for the new one",
)
def test_two_nodes_one_accelerator_and_a_node_that_dies(
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
def test_scorers_that_have_no_place_are_refused_at_once(more, message, images, options, tmp_path):
    given = command(images, tmp_path / "out", options, *more)
    done = subprocess.run(given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cluster_without_the_resource_is_named_after_the_wait(images, options, tmp_path):
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


OWN = """
import os, torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 32, stride=32)
        torch.nn.init.constant_(self.conv.weight, 0.01)
        torch.nn.init.zeros_(self.conv.bias)

    def forward(self, images):
        if len(images) > 1 and os.path.exists(os.environ.get("FAIL", "/nowhere")):
            raise RuntimeError("the network is broken")
        return self.conv(images)

def make():
    return Net(), 32
"""


def test_a_network_of_ones_own_runs_in_workers_and_pool(images, tmp_path, files_of, monkeypatch):
    """Named in the working folder, and found there by every process."""
    (tmp_path / "own_net.py").write_text(OWN)
    given = {"scorer": "feature", "backbone": "own_net:make", "max_rejected": 5}
    outs = [tmp_path / name for name in ("process", "workers", "pool")]
    kinds = [("--in-process",), ("--workers", "1"), ("--workers", "1", "--scorers", "1")]
    for out, more in zip(outs, kinds, strict=True):
        done = subprocess.run(
            command(images, out, given, *more), capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert files_of(outs[0]) == files_of(outs[1]) == files_of(outs[2])
    # What fails fails the shard, with its cause.
    monkeypatch.setenv("FAIL", str(tmp_path))
    for number, more in enumerate(kinds):
        done = subprocess.run(
            command(images, tmp_path / f"broken{number}", given, *more),
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 1
        assert "shard train 000000: backbone own_net:make failed on images" in done.stderr
        assert "RuntimeError: the network is broken; fix it" in done.stderr
        assert "Traceback" not in done.stderr


def test_an_error_that_nobody_expected_is_a_shard_that_failed():
    """Under Ray too, and its traceback goes to the log."""
    program = """
import ray
from quadpipe.job.engines import _outcome

@ray.remote
def fail():
    raise ZeroDivisionError("by nought")

ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False)
error = _outcome(ray, fail.remote())
print(type(error).__name__, error, "ZeroDivisionError" in error.__notes__[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "JobError ZeroDivisionError: by nought; details are in the log True" in done.stdout


def test_a_pool_that_is_refused_leaves_the_output_as_it_was(images, options, tmp_path, files_of):
    out = tmp_path / "out"
    given = command(images, out, options, "--gpus-per-scorer", "0.5")
    assert subprocess.run(given, capture_output=True).returncode == 2
    quadpipe.tokenize(images, out, in_process=True, **options)


def test_other_weights_are_another_plan(images, options, tmp_path, shufflenet_weights):
    import torch

    out = tmp_path / "out"
    once = {**options, "limit": 2}
    quadpipe.tokenize(images, out, in_process=True, **once)
    state = torch.load(shufflenet_weights, weights_only=True)
    state["conv5.1.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"planned differently: scorer\.weights_sha256 was"):
        quadpipe.tokenize(
            images, out, in_process=True, **once | {"scorer_weights": tmp_path / "other.pth"}
        )


def test_another_torch_is_refused_where_it_would_change_bytes(
    images, options, tmp_path, monkeypatch
):
    from quadpipe.scorers import NetworkScorer

    out = tmp_path / "out"
    job = quadpipe.job.Job(
        images,
        out,
        quadpipe.job.JobConfig.from_options(
            in_process=True, **{k: v for k, v in options.items() if k != "scorer_weights"}
        ),
        scorer_weights=options["scorer_weights"],
    )
    before = NetworkScorer.__init__

    def older(self, *arguments, **given):
        before(self, *arguments, **given)
        self.torch_version = "1.0.0"

    monkeypatch.setattr(NetworkScorer, "__init__", older)
    monkeypatch.setattr("quadpipe.job.shard._scorer", quadpipe.job.shard._scorer.__wrapped__)
    with pytest.raises(JobError, match=r"has torch 1\.0\.0, the plan was made with \d"):
        job.run()


def test_the_oracle_tokenizes_labelled_images_only(images, tmp_path):
    out = tmp_path / "out"
    dataset = quadpipe.tokenize(
        images, out, scorer="grad-cam", in_process=True, limit=3, max_rejected="3"
    )
    assert dataset.manifest.scorer["label_aware"] is True
    assert dataset.manifest.scorer["parameters"]["backbone"] == "efficientnet-lite0"
    assert "The scorer looked at the labels" in (out / "README.md").read_text()
    with pytest.raises(ConfigError, match="scorer grad-cam needs labels"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="grad-cam", use_labels=False)
    (tmp_path / "odd" / "griffin").mkdir(parents=True)
    shutil.copy(next(images.rglob("*.jpg")), tmp_path / "odd" / "griffin" / "x.jpg")
    with pytest.raises(ConfigError, match="class 'griffin' is none of the classifier's 1000"):
        quadpipe.tokenize(tmp_path / "odd", tmp_path / "x", scorer="grad-cam")


def test_precomputed_maps_decide_and_missing_ones_are_rejects(images, tmp_path):
    maps = tmp_path / "maps"
    paths = sorted(images.rglob("*.jpg"))
    corner = np.zeros((16, 16), np.float32)
    corner[:8, :8] = 1
    for path in paths:
        target = (maps / path.relative_to(images)).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, corner)
    no_map, bad_map = ((maps / p.relative_to(images)).with_suffix(".npy") for p in paths[:2])
    no_map.unlink()
    np.save(bad_map, np.zeros((3, 4)))
    out = tmp_path / "out"
    dataset = quadpipe.tokenize(
        images, out, scorer="precomputed", maps=maps, tokens=64, in_process=True, max_rejected="9"
    )
    rejected = [json.loads(line) for line in (out / ".quadpipe/rejected.jsonl").open()]
    reasons = {row["path"]: row["reason"] for row in rejected}
    assert reasons[str(paths[0].relative_to(images))] == "no_map"
    assert reasons[str(paths[1].relative_to(images))] == "bad_map"
    for sample in dataset.samples("train"):
        fine = sample.mosaic.leaves().boxes[sample.mosaic.leaves().boxes[:, 2] == 0]
        assert (fine[:, :2] < 8).all()
    with pytest.raises(ConfigError, match="scorer precomputed needs maps; give their folder"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="precomputed")
    with pytest.raises(ConfigError, match="is no folder; give one with a map for each image"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="precomputed", maps=tmp_path / "none")
    with pytest.raises(ConfigError, match="maps are of whole images, not of random crops"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="precomputed", maps=maps, views=2)
    with pytest.raises(ConfigError, match="--maps is for scorer precomputed, not entropy"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="entropy", maps=maps)


def test_thresholds_are_part_of_the_plan(images, tmp_path):
    out = tmp_path / "out"
    given = {"scorer": "entropy", "in_process": True, "limit": 3, "max_rejected": "3"}
    quadpipe.tokenize(images, out, thresholds=((32, 5.75), (64, 4.0)), **given)
    manifest = quadpipe.Dataset(out).manifest
    assert manifest.tokenizer.thresholds == ((32, 5.75), (64, 4.0))
    with pytest.raises(ConfigError, match=r"tokenizer\.thresholds was \[\[32, 5\.75\]"):
        quadpipe.tokenize(images, out, **given)


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
        ({"scorer_wait": 9, "scorer": "feature"}, "scorer_wait is for scorers in actors of their"),
        ({"scorer_resource": "a=b", "scorer": "feature"}, "'a=b' is not NAME or NAME=AMOUNT"),
        ({"scorers": 1, "in_process": True, "scorer": "feature"}, "in_process scores here, with"),
        ({"scorers": 1}, "scorer pixel-blur has no network to run in actors; leave out"),
        ({"score_batch": 0}, "score_batch 0 is not from 1 to 1,024"),
    ],
)
def test_pools_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.job.JobConfig.from_options(**options)
