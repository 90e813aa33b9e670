"""Training with a mean number of tokens per image, and using such models."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ADAPTIVE, SMALL, stop_after

import quadpipe
from forging import edit_manifest, make_dataset
from quadpipe.errors import ConfigError
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.config import TrainConfig
from quadpipe.model.predict import Predictor
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.signals import InterruptedTrainingError


def test_the_threshold_of_a_run_gives_its_mean_over_the_training_split(shards, adaptive):
    run = RunFolder(adaptive)
    limits = run.config().limits()
    assert (limits.least, limits.most) == (7, 40)
    for mean in (13, 20, 28):
        threshold = run.threshold(mean, limits)
        loader = Loader(shards, batch_size=8, threshold=threshold, min_tokens=7)
        lengths = []
        for epoch in range(2):  # one for each view
            for batch in loader.epoch(epoch):
                assert batch.lengths is not None
                lengths += batch.lengths.tolist()
        assert np.mean(lengths) == pytest.approx(mean, abs=0.2)


def test_eval_scores_the_means_of_training_or_others(shards, adaptive, capsys):
    from quadpipe.cli import commands

    def scores_of(*options: object) -> list[dict[str, float]]:
        given = ["eval", adaptive, shards, "--json", "--workers", 0, *options]
        commands.main([str(word) for word in given], standalone_mode=False)
        scores: list[dict[str, float]] = json.loads(capsys.readouterr().out)
        return scores

    trained = scores_of()
    assert len(trained) == 6
    assert trained[0]["tokens"] < trained[-1]["tokens"] < 40
    both = scores_of("--tokens", 16, "--mean-tokens", "13,28")
    assert both[0]["tokens"] == 16
    for score, other in ((both[1], trained[0]), (both[2], trained[-1])):
        assert [score["tokens"], score["loss"]] == [other["tokens"], other["loss"]]
    (narrow,) = scores_of("--mean-tokens", 16, "--min-tokens", 16, "--max-tokens", 16)
    assert narrow["tokens"] == 16
    assert narrow["loss"] == pytest.approx(both[0]["loss"], rel=1e-5)


def test_eval_scores_own_numbers_of_a_run_for_several_budgets(shards, tmp_path, stderr_of):
    run = tmp_path / "run"
    train(shards, run, **SMALL | {"tokens": "7-28", "epochs": 1})
    assert "note" not in stderr_of("eval", run, shards, "--mean-tokens", 16, "--workers", 0)
    errors = stderr_of("eval", run, shards, "--mean-tokens", 16, "--max-tokens", 34, "--workers", 0)
    assert f"note     {run} has not seen images with 31 and 34 tokens" in errors
    with pytest.raises(ConfigError, match="a mean of 31 tokens is not from 7 to 28"):
        stderr_of("eval", run, shards, "--mean-tokens", 31)


def test_predict_says_how_many_tokens_an_image_got(shards, adaptive, photographs, tmp_path):
    from command_line import run_cli

    for name, pixels in (("busy", photographs[0]), ("plain", np.full((96, 96, 3), 127, np.uint8))):
        Image.fromarray(pixels[:96, :96]).save(tmp_path / f"{name}.png")
    images = [tmp_path / "busy.png", tmp_path / "plain.png"]
    done = run_cli("predict", adaptive, *images, "--show", tmp_path / "shown.png")
    assert done.returncode == 0, done.stderr
    counts = [int(line.split()[-2]) for line in done.stdout.splitlines() if "tokens" in line]
    predictor = Predictor(RunFolder(adaptive), torch.device("cpu"))
    predictions = [predictor(path) for path in images]
    assert [p.tokens for p in predictions] == counts
    assert all(7 <= count <= 40 for count in counts)
    threshold = RunFolder(adaptive).threshold(28, RunFolder(adaptive).config().limits())
    for prediction in predictions:
        gains = prediction.exhibit.mosaic.gains
        splits = int((gains / np.arange(1, len(gains) + 1) ** 2 >= threshold).sum())
        assert prediction.tokens == max(4 + 3 * splits, 7)


def test_a_run_on_shards_without_gains_asks_for_them(shards, tmp_path):
    old = Path(shutil.copytree(shards, tmp_path / "old"))
    edit_manifest(old, splits__train__gains_sha256=None, splits__val__gains_sha256=None)
    train(old, tmp_path / "run", **SMALL | {"epochs": 1})
    with pytest.raises(ConfigError, match=r"has no gains\.npy.*rerun their quadpipe tokenize"):
        Predictor(RunFolder(tmp_path / "run"), torch.device("cpu"), mean_tokens=16)
    train(old, tmp_path / "own", **ADAPTIVE | {"epochs": 1})
    assert (tmp_path / "own/gains.npy").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 16, "mean_tokens": 16}, "give tokens or mean_tokens, not both"),
        (
            {"max_tokens": 16},
            "max_tokens and gain_discount are for mean_tokens",
        ),
        ({"mean_tokens": 16, "compile": True}, "torch.compile would compile the model for each"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": 16, "mean_tokens": 16}, "give tokens or mean_tokens, not both"),
        (
            {"tokens": 16, "max_tokens": 16},
            "max_tokens and gain_discount are for mean_tokens",
        ),
        ({"mean_tokens": 50}, "a mean of 50 tokens is not from 7 to 40"),
        ({"mean_tokens": 16, "max_tokens": 43}, "from 7 to 43 tokens .* give other min_tokens"),
    ],
)
def test_predict_refuses_numbers_that_the_run_does_not_know(adaptive, given, message):
    with pytest.raises(ConfigError, match=message):
        Predictor(RunFolder(adaptive), torch.device("cpu"), **given)


def test_show_draws_a_batch_from_few_tokens_to_many(shards, tmp_path, stderr_of):
    picture = tmp_path / "batch.png"
    stderr_of("show", shards, "--samples", 6, "--mean-tokens", 16, "--out", picture)
    with Image.open(picture) as image:
        assert image.width > 3 * image.height // 2
    with pytest.raises(ConfigError, match="--tokens applies to pictures without --mean-tokens"):
        stderr_of("show", shards, "--tokens", 16, "--mean-tokens", 16, "--out", picture)
    with pytest.raises(ConfigError, match="max_tokens and gain_discount are for mean_tokens"):
        stderr_of("show", shards, "--max-tokens", 16, "--out", picture)


def test_info_prints_how_many_tokens_images_get(shards, capsys):
    from quadpipe.cli import commands

    words = ["info", str(shards), "--mean-tokens", "16", "--max-tokens", "28", "--json"]
    commands.main(words, standalone_mode=False)
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["train"]["mean"] == pytest.approx(16, abs=0.1)
    assert 4 <= counts["train"]["smallest"] <= counts["train"]["50%"] <= 28
    assert counts["val"]["largest"] <= 28
    commands.main(words[:-1], standalone_mode=False)
    assert "tokens per image" in capsys.readouterr().out


def test_splits_without_samples_are_said_or_skipped(tmp_path, capsys):
    from quadpipe.cli import commands

    dataset = make_dataset(tmp_path)
    for path in (tmp_path / "images/train").rglob("*.png"):
        path.write_bytes(b"not an image")
    shutil.rmtree(dataset)
    quadpipe.tokenize(
        tmp_path / "images", dataset, image_size=32, patch_size=4, max_patch_size=16, tokens=16,
        max_rejected="100%", in_process=True,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="has 0 samples, too few for a batch"):
        train(dataset, tmp_path / "run", **SMALL | {"tokens": None})
    with pytest.raises(ConfigError, match="no samples to draw"):
        words = ["show", dataset, "--mean-tokens", 10, "--out", tmp_path / "x.png"]
        commands.main([str(word) for word in words], standalone_mode=False)
    commands.main(["info", str(dataset), "--mean-tokens", "10", "--json"], standalone_mode=False)
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert list(counts) == ["val"]
    assert counts["val"]["mean"] == pytest.approx(10, abs=1)


def test_images_of_another_size_need_a_number_of_tokens(adaptive, made_otherwise, stderr_of):
    other = made_otherwise(image_size=(64, 96), tokens=42)
    with pytest.raises(ConfigError, match="images or patches of other sizes than the run"):
        stderr_of("eval", adaptive, other, "--mean-tokens", 13)


def test_gains_of_another_dataset_do_not_stay_in_a_run(shards, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.folder.write("gains.npy", b"of a run that ended before its first checkpoint")
    old = Path(shutil.copytree(shards, tmp_path / "old"))
    edit_manifest(old, splits__train__gains_sha256=None)
    train(old, tmp_path / "run", **SMALL | {"epochs": 1})
    assert run.gains() is None


def test_a_resumed_run_learns_the_gains_that_its_shards_have_now(shards, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(InterruptedTrainingError):
            train(shards, tmp_path / "run", **SMALL)
    (tmp_path / "run/gains.npy").unlink()  # as an earlier version left it
    train(shards, tmp_path / "run", **SMALL, resume=True)
    run = RunFolder(tmp_path / "run")
    assert run.threshold(20, run.config().limits()) > 0
