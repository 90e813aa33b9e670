"""Scorers in the job, in process."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

import quadpipe
from quadpipe.errors import ConfigError, JobError


def test_plan_and_manifest_name_the_scorer(undisturbed, shufflenet_weights):
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


def test_importances_equal_those_of_the_python_tokenizer(images, options, undisturbed, tmp_path):
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


def test_other_weights_make_another_plan(images, options, tmp_path, shufflenet_weights):
    import torch

    out = tmp_path / "out"
    once: dict[str, Any] = {**options, "limit": 2}
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


def test_grad_cam_needs_labels_that_its_classifier_knows(images, tmp_path):
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
    with pytest.raises(ConfigError, match="class 'griffin' is not one of the classifier's 1000"):
        quadpipe.tokenize(tmp_path / "odd", tmp_path / "x", scorer="grad-cam")


def test_precomputed_maps_decide_the_splits_and_missing_ones_are_rejects(images, tmp_path):
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
    with pytest.raises(ConfigError, match="is not a folder; give one with a map per image"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="precomputed", maps=tmp_path / "none")
    with pytest.raises(ConfigError, match="maps are of whole images, not of random crops"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="precomputed", maps=maps, views=2)
    with pytest.raises(ConfigError, match="--maps is for scorer precomputed, not entropy"):
        quadpipe.tokenize(images, tmp_path / "x", scorer="entropy", maps=maps)


def test_thresholds_are_part_of_the_plan(images, tmp_path):
    out = tmp_path / "out"
    given: dict[str, Any] = {
        "scorer": "entropy",
        "in_process": True,
        "limit": 3,
        "max_rejected": "3",
    }
    quadpipe.tokenize(images, out, thresholds=((32, 5.75), (64, 4.0)), **given)
    manifest = quadpipe.Dataset(out).manifest
    assert manifest.tokenizer.thresholds == ((32, 5.75), (64, 4.0))
    with pytest.raises(ConfigError, match=r"tokenizer\.thresholds was \[\[32, 5\.75\]"):
        quadpipe.tokenize(images, out, **given)


def test_the_scale_weight_is_part_of_the_plan(images, tmp_path):
    out = tmp_path / "out"
    given: dict[str, Any] = {"in_process": True, "limit": 3, "max_rejected": "3"}
    quadpipe.tokenize(images, out, scale_weight=0.5, **given)
    assert quadpipe.Dataset(out).manifest.tokenizer.scale_weight == 0.5
    with pytest.raises(ConfigError, match=r"tokenizer\.scale_weight was 0\.5"):
        quadpipe.tokenize(images, out, **given)
