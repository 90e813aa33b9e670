"""Trained runs in use: eval, predict and --init."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli
from job_runs import tokenize_small
from PIL import Image
from runs import (
    SMALL,
)

import quadpipe
from forging import edit_manifest
from quadpipe.errors import ConfigError, ShardError
from quadpipe.model import train
from quadpipe.model.evaluate import find_differences
from quadpipe.model.predict import Predictor
from quadpipe.model.pretrained import Loaded, load_pretrained
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder

train_module = sys.modules["quadpipe.model.train"]


def test_eval_scores_several_budgets(shards, undisturbed):
    done = run_cli("eval", undisturbed, shards, "--tokens", 16, "--tokens", 40, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["tokens", "16", "40"]
    as_json = run_cli("eval", undisturbed, shards, "--json", "--workers", 0)
    (score,) = json.loads(as_json.stdout)
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    best = max(row["top1"] for row in rows if row["event"] == "eval")
    assert score["top1"] == pytest.approx(best)
    assert score["tokens"] == 16


def test_the_later_of_equal_epochs_is_best_and_eval_and_predict_name_it(
    shards, tmp_path, monkeypatch, stderr_of
):
    real, scores = train_module.evaluate, iter([0.5, 0.9, 0.9, 0.4])
    ranked = lambda *arguments: replace(real(*arguments), top1=next(scores))  # noqa: E731
    monkeypatch.setattr(train_module, "evaluate", ranked)
    run = tmp_path / "run"
    train(shards, run, **SMALL | {"epochs": 4})
    picture = next((shards.parent / "images").rglob("*.png"))
    for arguments in (("eval", run, shards), ("predict", run, picture)):
        assert f"model    {run}: best.safetensors, epoch 3, step 24\n" in stderr_of(*arguments)
    (run / "best.safetensors").unlink()
    assert "last.safetensors, epoch 4, step 32\n" in stderr_of("eval", run, shards)


def test_eval_reports_differences_in_how_the_dataset_was_made(
    undisturbed, made_otherwise, stderr_of
):
    other = made_otherwise(
        image_size=128, tokens=100, resize="squash", crop_pct=1.0, resample="area", codec="jpg",
        quality=40, scorer="laplacian", max_patch_size=16, seed=5,
    )  # fmt: skip
    errors = stderr_of("eval", undisturbed, other, "--tokens", 64)
    (line,) = (line for line in errors.splitlines() if "was made differently" in line)
    for text in (
        "codec.name was raw, now jpg",
        "codec.quality was None, now 40",
        "tokenizer.crop_pct was 0.875, now 1.0",
        "tokenizer.image_size was [64, 64], now [128, 128]",
        "tokenizer.max_patch_size was 32, now 16",
        "tokenizer.resample was bilinear, now area",
        "tokenizer.resize was crop, now squash",
        "tokenizer.scorer was saliency, now laplacian",
    ):
        assert text in line
    assert "seed" not in line
    assert "tokens" not in line


def test_eval_reports_other_weights_of_the_scorer(scored_by_a_network, tmp_path):
    shards = scored_by_a_network.parent / "shards"
    config = RunFolder(scored_by_a_network).config()
    assert find_differences(config, quadpipe.Dataset(shards).manifest) == []
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, scorer__weights_sha256="0" * 64)
    (line,) = find_differences(config, quadpipe.Dataset(other).manifest)
    assert line.startswith(f"scorer_sha256 was {config.scorer_sha256}, now 0000")


def test_eval_refuses_patches_of_another_size(undisturbed, made_otherwise, stderr_of):
    with pytest.raises(ConfigError, match="of 16 to 32 pixels, the model was made for 8 to 32"):
        stderr_of("eval", undisturbed, made_otherwise(patch_size=16, tokens=16))


def test_eval_refuses_other_classes(undisturbed, image_folder, tmp_path):
    tokenize_small(image_folder, tmp_path / "other", split="val")
    done = run_cli("eval", undisturbed, tmp_path / "other")
    assert done.returncode == 2
    assert "1 of the 3 classes of " in done.stderr
    assert "are not among the run's 2, such as 'zebra'; use a dataset" in done.stderr


def test_predict_sees_the_tokens_that_training_saw(shards, made_otherwise, tmp_path):
    compressed = made_otherwise(codec="jpg", quality=20)
    train(compressed, tmp_path / "run", **SMALL | {"epochs": 1})
    dataset = quadpipe.Dataset(compressed)
    predictor = Predictor(RunFolder(tmp_path / "run"), torch.device("cpu"), tokens=40)
    for sample in list(dataset.samples("val"))[:2]:
        path = shards.parent / "images" / sample.info["path"]
        seen = predictor(path).exhibit.mosaic
        assert np.array_equal(seen.tokens, sample.mosaic.tokens)


def test_predict_names_classes_and_draws_the_tokens(shards, undisturbed, photographs, tmp_path):
    Image.fromarray(photographs[0][:200, :200]).save(tmp_path / "x.jpg")
    shown = tmp_path / "x.png"
    done = run_cli("predict", undisturbed, tmp_path / "x.jpg", "--show", shown, "--tokens", 40)
    assert done.returncode == 0, done.stderr
    assert "temple" in done.stdout
    assert "flower" in done.stdout
    with Image.open(shown) as picture:
        assert picture.width > 1000
    as_json = run_cli("predict", undisturbed, tmp_path / "x.jpg", "--json", "--top", 1)
    ((best,),) = (row["classes"] for row in json.loads(as_json.stdout))
    assert 0.5 <= best["probability"] <= 1


def test_predict_refuses_label_aware_runs_and_files_that_are_not_images(undisturbed, tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    done = run_cli("predict", undisturbed, tmp_path / "x.jpg")
    assert done.returncode == 1
    assert "x.jpg cannot be used as an image" in done.stderr
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"label_aware": True}))
    done = run_cli("predict", copy, tmp_path / "x.jpg")
    assert done.returncode == 2
    assert "whose scorer, saliency, looks at labels" in done.stderr


def test_predict_scores_with_the_network_of_the_shards(
    scored_by_a_network, shards, shufflenet_weights, tmp_path
):
    picture = next((shards.parent / "images").rglob("*.png"))
    given = ("predict", scored_by_a_network, picture)
    done = run_cli(*given, "--scorer-weights", shufflenet_weights)
    assert done.returncode == 0, done.stderr
    state = torch.load(shufflenet_weights, weights_only=True)
    state["conv5.1.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    done = run_cli(*given, "--scorer-weights", tmp_path / "other.pth")
    assert done.returncode == 2
    assert "give the same file with --scorer-weights" in done.stderr
    done = run_cli(*given, "--backbone", "efficientnet-lite0")
    assert "the shards were made with backbone shufflenet-v2-x0.5, not efficientnet" in done.stderr


def test_predict_runs_no_code_that_a_run_names(scored_by_a_network, shards, tmp_path):
    (tmp_path / "evil.py").write_text("open('was-run', 'w')")
    copy = Path(shutil.copytree(scored_by_a_network, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["tokenizer"]["backbone"] = "evil:make"
    (copy / "config.json").write_text(json.dumps(config))
    picture = next((shards.parent / "images").rglob("*.png"))
    done = run_cli("predict", copy, picture, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "with backbone evil:make, a user's own code; if you trust it, name it with" in done.stderr
    )
    assert not (tmp_path / "was-run").exists()


def test_predict_refuses_a_network_if_the_scorer_has_none(undisturbed, shards, shufflenet_weights):
    picture = next((shards.parent / "images").rglob("*.png"))
    done = run_cli("predict", undisturbed, picture, "--scorer-weights", shufflenet_weights)
    assert done.returncode == 2
    assert "scorer saliency has no network; omit" in done.stderr


def test_init_from_a_run_matches_the_head_by_class_names(shards, undisturbed, tmp_path):
    def loaded(classes: list[str], path: Path) -> tuple[Any, Loaded]:
        model = Quadformer(replace(config.model, classes=len(classes)))
        return model, load_pretrained(model, path, classes)

    config = RunFolder(undisturbed).config()
    assert config.classes == ["flower", "temple"]
    trained: Any = RunFolder(undisturbed).model(torch.device("cpu"))
    for path in (undisturbed, undisturbed / "best.safetensors"):
        model, report = loaded(["flower", "temple"], path)
        assert (report.changed, report.fresh) == ({}, [])
        assert torch.equal(model.head.weight, trained.head.weight)
        model, report = loaded(["temple", "flower"], path)
        assert report.changed["head"] == "matched by the names of its classes"
        assert torch.equal(model.head.weight, trained.head.weight.flip(0))
        assert torch.equal(model.head.bias, trained.head.bias.flip(0))
        model, report = loaded(["cat", "temple"], path)
        assert report.changed["head"] == "not loaded: other classes"
        assert report.fresh == ["head.bias", "head.weight"]
        assert torch.equal(model.norm.weight, trained.norm.weight)
    shutil.copy(undisturbed / "best.safetensors", tmp_path / "copied.safetensors")
    model, report = loaded(["cat", "temple"], tmp_path / "copied.safetensors")
    assert "loaded with its 2 classes; the file does not hold their names" in report.changed["head"]
    with pytest.raises(ShardError, match="holds no training run"):
        loaded(["cat"], tmp_path)


def test_init_from_a_run_uses_its_moving_average_and_its_grid(made_otherwise, tmp_path):
    shards = made_otherwise(image_size=(64, 96), tokens=42)
    options: dict[str, Any] = SMALL | {
        "epochs": 1,
        "positions": "learned",
        "ema_decay": 0.9,
        "tokens": 18,
    }
    train(shards, tmp_path / "run", **options)
    config = RunFolder(tmp_path / "run").config()
    model: Any = Quadformer(replace(config.model, grid=(8, 8)))
    loaded = load_pretrained(model, tmp_path / "run" / "last.safetensors", config.classes)
    assert loaded.changed == {"pos_embed": "resampled from 8 x 12 to 8 x 8"}
    average: Any = RunFolder(tmp_path / "run").weights("last.safetensors")[1]
    assert torch.equal(model.norm.weight, average["norm.weight"])
    train(shards, tmp_path / "next", **options, init=tmp_path / "run")
