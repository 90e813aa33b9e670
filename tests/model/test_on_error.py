"""Training and evaluation on shards of which some are damaged."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from command_line import run_cli
from runs import stop_after

import quadpipe
from forging import make_dataset
from quadpipe.errors import ShardError
from quadpipe.loader import Batch, Loader
from quadpipe.model import TrainConfig, train
from quadpipe.model.distributed import World
from quadpipe.model.evaluate import evaluate
from quadpipe.model.progress import TrainProgress
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.signals import InterruptedTrainingError
from quadpipe.model.train import Trainer

OPTIONS: dict[str, Any] = {
    "model": "nano",
    "epochs": 2,
    "batch_size": 5,
    "warmup_epochs": 1.0,
    "workers": 0,
    "log_interval": 1,
    "device": "cpu",
    "on_error": "skip",
}
LOST = ["0000000005", "0000000008", "0000000009", "0000000010", "0000000011"]
"""Of the 16 samples of train: one is damaged, and a shard of four is missing."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("whole"))


def damage(dataset: Path, shard: str, number: int) -> None:
    """Make the header of an array of a sample wrong, so that the others can still be read."""
    marker = json.loads((dataset / f".quadpipe/markers/{shard.split('-')[0]}/0000").joinpath(
        f"{shard.split('-')[1]}.json").read_text())  # fmt: skip
    data = bytearray((dataset / f"{shard}.tar").read_bytes())
    data[marker["views"][0]["offsets"][number] + 520] ^= 0xFF
    (dataset / f"{shard}.tar").write_bytes(data)


@pytest.fixture(scope="module")
def damaged(whole, tmp_path_factory) -> Path:
    dataset = Path(shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "shards"))
    damage(dataset, "train-000001", 1)
    (dataset / "train-000002.tar").unlink()
    damage(dataset, "val-000000", 2)
    return dataset


def rows_of(run: Path, event: str = "train") -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


@pytest.fixture(scope="module")
def undisturbed(damaged, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(damaged, run, **OPTIONS)
    return run


def test_training_stops_at_damage_unless_on_error_is_skip(damaged, undisturbed, tmp_path):
    with pytest.raises(ShardError, match=r"train-00000[12]\.tar"):
        train(damaged, tmp_path / "run", **OPTIONS | {"on_error": "raise"})
    rows = rows_of(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [sum(row["skipped"] for row in rows if row["epoch"] == epoch) for epoch in (0, 1)] == [
        5,
        5,
    ]
    scores = rows_of(undisturbed, "eval")
    assert [(row["samples"], row["skipped"]) for row in scores] == [(3, 1), (3, 1)]


def test_a_run_that_stopped_at_damage_continues_with_skip_and_a_warning(damaged, tmp_path):
    with pytest.raises(ShardError):
        train(damaged, tmp_path / "run", **OPTIONS | {"on_error": "raise"})

    warnings: list[str] = []
    progress: Any = TrainProgress()
    progress.warn = warnings.append
    train(damaged, tmp_path / "run", **OPTIONS, resume=True, progress=progress)
    assert any("train.on_error was raise, now skip" in line for line in warnings)
    assert rows_of(tmp_path / "run")[-1]["step"] == 8


def make_trainer(dataset: Path, out: Path, **options: Any) -> Trainer:
    config = TrainConfig(**OPTIONS | {"flip": 0.0} | options)
    return Trainer(quadpipe.Dataset(dataset), RunFolder(out), config, torch.device("cpu"), World())


def without_blanks(batch: Batch) -> Batch:
    kept = batch.weight > 0
    return replace(
        batch,
        tokens=batch.tokens[kept],
        boxes=batch.boxes[kept],
        label=batch.label[kept],
        weight=batch.weight[kept],
        keys=[key for key in batch.keys if key],
        total=int(kept.sum()),
        skipped=0,
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_equals_that_of_the_batch_without_the_skipped_samples(damaged, tmp_path, parts):
    options: dict[str, Any] = {"grad_accum_steps": parts, "clip_grad": 0.0}
    trainers = [make_trainer(damaged, tmp_path / str(n), **options) for n in range(2)]
    gradients: list[list[torch.Tensor]] = [[], []]
    for trainer, kept in zip(trainers, gradients, strict=True):
        # Adam makes the same step for a gradient and its double, so compare the gradients.
        trainer.update.optimizer.register_step_pre_hook(
            lambda *_, model=trainer.model, kept=kept: kept.extend(
                parameter.grad.clone() for parameter in model.parameters()
            )
        )
    batch = next(b for b in trainers[0].loader.epoch(0) if 0 < b.skipped < len(b.keys))
    small = without_blanks(batch)
    results = []
    for trainer, given in zip(trainers, (batch, small), strict=True):
        loss, correct, skipped = trainer.train_on(given, given.skipped)
        assert skipped == given.skipped
        results.append((float(loss), int(correct)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == results[1][1]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_batch_of_skipped_samples_changes_no_weight_average_or_momentum(damaged, tmp_path):
    trainer = make_trainer(damaged, tmp_path / "run", warmup_epochs=0.0, ema_decay=0.9)
    batch = next(iter(trainer.loader.epoch(0)))
    nothing = replace(batch, weight=torch.zeros_like(batch.weight), skipped=len(batch.keys))
    trainer.train_on(batch, batch.skipped)  # the optimizer has momentum from here on
    kept = (trainer.model.state_dict(), trainer.update.average.weights)
    before = [{name: value.clone() for name, value in weights.items()} for weights in kept]
    momentum = copy.deepcopy(trainer.update.optimizer.state_dict()["state"])
    loss, correct, skipped = trainer.train_on(nothing, nothing.skipped)
    assert (float(loss), int(correct), skipped, trainer.step) == (0, 0, 5, 2)
    for weights, those in zip(kept, before, strict=True):
        assert all(torch.equal(value, those[name]) for name, value in weights.items())
    for number, state in trainer.update.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, momentum[number][name]) for name, value in state.items())


def test_an_interval_of_skipped_samples_has_no_loss(whole, tmp_path):
    dataset = Path(shutil.copytree(whole, tmp_path / "shards"))
    for tar in dataset.glob("train-*.tar"):
        tar.unlink()
    train(dataset, tmp_path / "run", **OPTIONS | {"epochs": 1})
    rows = rows_of(tmp_path / "run")
    assert [(row["loss"], row["accuracy"], row["skipped"]) for row in rows] == [
        (None, None, count) for count in (5, 5, 5, 1)
    ]


def test_means_are_taken_over_the_samples_that_were_not_skipped(damaged, tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    train(damaged, short, **OPTIONS | {"lr": 1e-9, "flip": 0.0, "epochs": 1})
    train(damaged, long, **OPTIONS | {"lr": 1e-9, "flip": 0.0, "epochs": 1, "log_interval": 100})
    rows = rows_of(short)
    seen = [size - row["skipped"] for size, row in zip((5, 5, 5, 1), rows, strict=True)]
    assert sum(seen) == 11
    (report,) = rows_of(long)
    assert report["skipped"] == 5
    for name in ("loss", "accuracy"):
        mean = sum(row[name] * n for row, n in zip(rows, seen, strict=True) if n) / sum(seen)
        assert report[name] == pytest.approx(mean)


@pytest.mark.parametrize("stop_at", [2, 6])
def test_resuming_in_the_middle_is_exact(damaged, tmp_path, monkeypatch, stop_at):
    options: dict[str, Any] = OPTIONS | {"log_interval": 3}
    train(damaged, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_after(patched, stop_at)
        with pytest.raises(InterruptedTrainingError, match=f"stopped at step {stop_at} and saved"):
            train(damaged, tmp_path / "run", **options)
    train(damaged, tmp_path / "run", **options, resume=True)
    facts = [
        [(row["step"], row["loss"], row["accuracy"], row["skipped"]) for row in rows_of(run)]
        for run in (tmp_path / "whole", tmp_path / "run")
    ]
    assert facts[0] == facts[1]
    assert sum(skipped for *_, skipped in facts[0]) == 10


def test_two_processes_skip_to_the_losses_of_one(damaged, undisturbed, tmp_path):
    given = [
        word
        for name, value in OPTIONS.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    done = processes.run(["train", damaged, "--out", tmp_path / "two", *given], tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert "damaged samples skipped" in done.stdout
    for event in ("train", "eval"):
        one, two = rows_of(undisturbed, event), rows_of(tmp_path / "two", event)
        for name in ("step", "skipped"):
            assert [row[name] for row in two] == [row[name] for row in one]
        for name in ("loss", "accuracy" if event == "train" else "top1"):
            # There are steps of which nothing is left; NaN is as NaN here.
            found, expected = (np.array([row[name] for row in rows], float) for rows in (two, one))
            np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_evaluation_counts_scored_and_skipped_samples(damaged, undisturbed):
    model = RunFolder(undisturbed).model(torch.device("cpu"))
    loader = Loader(damaged, "val", batch_size=3, shuffle=False, on_error="skip")
    score = evaluate(model, loader, torch.device("cpu"))
    assert (score.samples, score.skipped) == (3, 1)
    samples = list(quadpipe.Dataset(damaged).samples("val", on_error="skip"))
    assert len(samples) == 3
    correct, losses = 0, []
    for sample in samples:
        leaves = sample.mosaic.leaves()
        with torch.inference_mode():
            logits, _ = model(
                torch.tensor(leaves.tokens)[None], torch.tensor(leaves.boxes.astype("int16"))[None]
            )
        correct += int(logits.argmax()) == sample.label
        losses.append(float(F.cross_entropy(logits, torch.tensor([sample.label]))))
    assert score.top1 == pytest.approx(correct / 3)
    assert score.loss == pytest.approx(np.mean(losses), rel=1e-4)


def test_evaluation_of_skipped_samples_only_is_an_error(whole, tmp_path):
    dataset = Path(shutil.copytree(whole, tmp_path / "shards"))
    (dataset / "val-000000.tar").unlink()
    loader = Loader(dataset, "val", batch_size=3, on_error="skip")
    model = Quadformer(TrainConfig(model="nano").quadformer(quadpipe.Dataset(whole).manifest))
    with pytest.raises(ShardError, match="all 4 samples of val in .* are damaged, so there is"):
        evaluate(model, loader, torch.device("cpu"))


def test_eval_reports_skipped_samples(damaged, undisturbed):
    given = ("eval", undisturbed, damaged, "--workers", 0)
    done = run_cli(*given)
    assert done.returncode == 1
    assert "val-000000.tar: 0000000002" in done.stderr
    done = run_cli(*given, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "skipped  1 damaged sample of val" in done.stderr
    done = run_cli(*given, "--on-error", "skip", "--json")
    assert json.loads(done.stdout)[0]["skipped"] == 1
