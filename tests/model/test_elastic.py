"""Training at several budgets, and evaluating such models."""

import json
from itertools import pairwise

import pytest
import torch
from PIL import Image
from runs import SMALL, losses, stop_after

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.model import train
from quadpipe.model.config import TrainConfig
from quadpipe.model.predict import Predictor
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.run_manifest import RunManifest
from quadpipe.model.signals import InterruptedTrainingError

ELASTIC = SMALL | {"tokens": "7-40", "tokens_per_batch": 200}


@pytest.fixture(scope="module")
def elastic(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("elastic") / "run"
    train(shards, run, **ELASTIC)
    return run


def test_an_elastic_run_resumes_exactly(shards, elastic, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 13)
        with pytest.raises(InterruptedTrainingError, match="stopped at step 13"):
            train(shards, tmp_path / "run", **ELASTIC)
    train(shards, tmp_path / "run", **ELASTIC, resume=True)
    assert losses(tmp_path / "run") == losses(elastic)
    weights = [RunFolder(run).weights("last.safetensors")[0] for run in (elastic, tmp_path / "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_elastic_run_makes_the_steps_that_it_announced(elastic):
    rows = [json.loads(line) for line in (elastic / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "train"]
    assert steps[-1]["step"] == steps[0]["steps"] == len(steps)


def test_other_tokens_are_refused_at_resuming(shards, elastic):
    with pytest.raises(ConfigError, match="train.tokens was 7-40, now 7-37"):
        train(shards, elastic, **ELASTIC | {"tokens": "7-37"}, resume=True)


def test_eval_scores_a_curve_over_the_trained_budgets_and_draws_it(
    shards, elastic, tmp_path, stderr_of
):
    picture = tmp_path / "curve.png"
    errors = stderr_of("eval", elastic, shards, "--workers", 0, "--plot", picture)
    assert "note" not in errors
    with Image.open(picture) as image:
        assert image.width > 300
    stderr_of("eval", elastic, shards, "--workers", 0, "--json")
    with pytest.raises(ConfigError, match=r"x.gif does not end in .png"):
        stderr_of("eval", elastic, shards, "--plot", "x.gif")


def test_the_curve_is_eight_budgets_from_the_smallest_to_the_largest(shards, elastic, capsys):
    from quadpipe.cli import commands

    commands.main(["eval", str(elastic), str(shards), "--json"], standalone_mode=False)
    scores = json.loads(capsys.readouterr().out)
    assert [score["tokens"] for score in scores] == [7, 13, 16, 22, 25, 31, 34, 40]
    assert all(a["multiply_adds"] < b["multiply_adds"] for a, b in pairwise(scores))


def test_eval_warns_of_budgets_that_training_did_not_see(shards, undisturbed, stderr_of):
    errors = stderr_of("eval", undisturbed, shards, "--tokens", "16,40", "--tokens", 7)
    assert f"{undisturbed} has not seen images with 7 and 40 tokens" in errors


def test_predict_uses_the_largest_trained_budget(elastic, photographs, tmp_path):
    image = tmp_path / "x.png"
    Image.fromarray(photographs[0][:96, :96]).save(image)
    predictor = Predictor(RunFolder(elastic), torch.device("cpu"))
    assert predictor(image).tokens == 40
    predictor = Predictor(RunFolder(elastic), torch.device("cpu"), tokens=16)
    assert predictor(image).tokens == 16
    assert predictor.unseen == []


def test_predict_warns_of_budgets_that_training_did_not_see(
    undisturbed, photographs, tmp_path, stderr_of
):
    image = tmp_path / "x.png"
    Image.fromarray(photographs[0][:96, :96]).save(image)
    errors = stderr_of("predict", undisturbed, image, "--tokens", 40)
    assert f"note     {undisturbed} has not seen images with 40 tokens" in errors


def test_budgets_can_be_drawn_evenly_over_multiply_adds(shards):
    manifest = quadpipe.Dataset(shards).manifest
    options = SMALL | {"tokens": (7, 16, 40)}
    with pytest.raises(ConfigError, match="tokens"):
        TrainConfig(**options)
    options["tokens"] = "7,16,40"
    assert RunManifest.of(TrainConfig(**options), manifest).draw_weights is None
    run = RunManifest.of(TrainConfig(**options, tokens_draw="multiply-adds"), manifest)
    costs = [run.model.multiply_adds(budget) for budget in (7, 16, 40)]
    middles = [(costs[0] + costs[1]) / 2, (costs[1] + costs[2]) / 2]
    expected = [middles[0] - costs[0], middles[1] - middles[0], costs[2] - middles[1]]
    assert run.draw_weights == pytest.approx(expected)
