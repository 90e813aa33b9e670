"""Training: it learns, repeats, warns, and refuses what cannot work."""

import contextlib
import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from command_line import run_cli
from PIL import Image
from runs import (
    SMALL,
    RecordedProgress,
    command,
    losses,
)

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.model import TrainConfig, train
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.step import NonFiniteLossError

train_module = sys.modules["quadpipe.model.train"]


def test_training_learns_to_classify_unseen_images(shards, tmp_path):
    recorded = RecordedProgress()
    train(shards, tmp_path / "run", **SMALL | {"epochs": 12, "ema_decay": 0.9}, progress=recorded)
    assert recorded.scores[-1].top1 > 0.8
    assert recorded.scores[-1].samples == 11
    first, last = losses(tmp_path / "run")[0], losses(tmp_path / "run")[-1]
    assert last[1] < first[1]


def test_losses_are_the_same_for_any_number_of_workers(shards, undisturbed, tmp_path):
    train(shards, tmp_path / "run", **SMALL | {"workers": 2})
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert [step for step, _ in losses(undisturbed)] == list(range(1, 25))


def test_the_short_last_batch_can_be_dropped(shards, tmp_path):
    train(shards, tmp_path / "run", **SMALL | {"drop_last": True, "epochs": 2})
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 15))


def test_a_damaged_shard_is_reported_in_one_line_from_any_worker(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    shutil.rmtree(copy / ".quadpipe")
    tar = copy / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[5] ^= 0xFF
    tar.write_bytes(bytes(data))
    done = processes.run(command(copy, tmp_path / "run", "--workers", "2"), tmp_path)
    assert done.returncode == 1
    assert "train-000001.tar: a sample: checksum mismatch at byte 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_works_in_a_thread(shards, undisturbed, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, shards, tmp_path / "run", **SMALL).result()
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_a_missing_tensorboard_is_reported_before_anything_is_written(
    shards, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="--tensorboard needs tensorboardX"):
        train(shards, tmp_path / "run", **SMALL | {"tensorboard": True})
    assert not (tmp_path / "run").exists()


def test_gradient_accumulation_does_not_change_losses(shards, tmp_path):
    options: dict[str, Any] = SMALL | {"epochs": 1}
    train(shards, tmp_path / "whole", **options)
    train(shards, tmp_path / "parts", **options | {"grad_accum_steps": 3})
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    np.testing.assert_allclose([x for _, x in whole], [x for _, x in parts], rtol=1e-4)


def test_a_non_finite_loss_stops_before_the_update(shards, tmp_path):
    options: dict[str, Any] = SMALL | {"clip_grad": 0.0, "warmup_epochs": 0.0, "lr": 1e6}
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+; .*Samples: 00000.*--lr"):
        train(shards, tmp_path / "run", **options)
    weights, _, _ = RunFolder(tmp_path / "run").weights("last.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    recorded = RecordedProgress()
    calm = options | {"lr": 1e-4, "clip_grad": 1.0, "epochs": 3}
    with contextlib.suppress(NonFiniteLossError):  # the weights may be beyond help, the run is not
        train(shards, tmp_path / "run", **calm, resume=True, progress=recorded)
    assert any("train.lr was 1000000.0, now 0.0001" in warning for warning in recorded.warnings)


def test_a_non_finite_validation_loss_is_reported_after_saving(shards, tmp_path, monkeypatch):
    real = train_module.evaluate
    broken = lambda *arguments: replace(real(*arguments), loss=float("nan"))  # noqa: E731
    monkeypatch.setattr(train_module, "evaluate", broken)
    with pytest.raises(NonFiniteLossError, match="loss on val is not finite after epoch 1"):
        train(shards, tmp_path / "run", **SMALL)
    _, _, metadata = RunFolder(tmp_path / "run").weights("last.safetensors")
    assert metadata["step"] == "8"
    with pytest.raises(NonFiniteLossError, match="loss on val is not finite after epoch 1"):
        train(shards, tmp_path / "run", **SMALL, resume=True)


def test_bf16_and_other_options_train(shards, tmp_path):
    options: dict[str, Any] = SMALL | {
        "epochs": 1, "amp": "bf16", "positions": "learned", "pool": "area", "scale_embedding": True,
        "drop_path": 0.1, "layer_decay": 0.8, "gradient_checkpointing": True, "color_jitter": 0.3,
        "token_dropout": 0.2, "ema_decay": 0.99, "tensorboard": True,
    }  # fmt: skip
    run = train(shards, tmp_path / "run", **options)
    _, average, _ = run.weights("last.safetensors")
    assert average is not None
    assert list((tmp_path / "run" / "events").glob("events.out.tfevents.*"))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path / "run"))


def test_a_dataset_without_val_trains_with_a_warning(image_folder, tmp_path):
    quadpipe.tokenize(image_folder, tmp_path / "shards", in_process=True)
    done = run_cli(*command(tmp_path / "shards", tmp_path / "run", changed={"epochs": 1}))
    assert "note     no split val: " in done.stderr
    assert done.stdout.endswith("\ndone\n")  # no `quadpipe eval`, which needs it
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_dataset_of_one_class_trains_with_a_warning(photographs, tmp_path):
    (tmp_path / "images" / "imagenet").mkdir(parents=True)
    for number in range(8):
        part = photographs[0][number * 9 :][:64, :64]
        Image.fromarray(part).save(tmp_path / "images" / "imagenet" / f"{number}.png")
    quadpipe.tokenize(
        tmp_path / "images", tmp_path / "shards", image_size=64, patch_size=8, max_patch_size=32,
        tokens=16, in_process=True,
    )  # fmt: skip
    recorded = RecordedProgress()
    train(tmp_path / "shards", tmp_path / "run", **SMALL | {"epochs": 1}, progress=recorded)
    (warning,) = (line for line in recorded.warnings if "one class" in line)
    assert "one class, 'imagenet', so there is nothing to learn" in warning
    assert "\n" not in warning


def test_label_aware_shards_train_with_a_warning(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["scorer"]["label_aware"] = True
    (copy / "dataset.json").write_text(json.dumps(manifest))
    recorded = RecordedProgress()
    train(copy, tmp_path / "run", **SMALL | {"epochs": 1}, progress=recorded)
    assert any("used the labels" in warning for warning in recorded.warnings)


def test_invalid_combinations_are_refused_before_anything_is_written(
    shards, image_folder, tmp_path
):
    quadpipe.tokenize(image_folder, tmp_path / "bare", use_labels=False, in_process=True, limit=4)
    with pytest.raises(ConfigError, match="has no labels, so there is nothing to learn"):
        train(tmp_path / "bare", tmp_path / "run", **SMALL)
    with pytest.raises(ConfigError, match="holds 40 tokens, not 64"):
        train(shards, tmp_path / "run", **SMALL | {"tokens": 64})
    with pytest.raises(ConfigError, match="does not hold a run to resume"):
        train(shards, tmp_path / "run", **SMALL, resume=True)
    with pytest.raises(ConfigError, match="own weights; omit --init"):
        train(shards, tmp_path / "run", **SMALL, resume=True, init="x.pth")
    assert not (tmp_path / "run").exists()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU here; use --device cpu"):
            train(shards, tmp_path / "run", **SMALL | {"device": "cuda"})


def test_a_long_warm_up_is_shortened_to_a_tenth_of_the_run_with_a_warning(shards, tmp_path):
    recorded = RecordedProgress()
    options: dict[str, Any] = SMALL | {"epochs": 2, "warmup_epochs": 6.0}
    train(shards, tmp_path / "run", **options, progress=recorded)
    expected = "the warm-up of 6 epochs is shortened to 0.2, a tenth of the run"
    assert recorded.warnings == [expected]
    assert RunFolder(tmp_path / "run").config().train.warmup_epochs == 0.2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [row["lr"] for row in rows if row["event"] == "train"]
    assert rates.index(max(rates)) == 1  # of 16 steps
    assert max(rates) > 0.9e-3
    again = RecordedProgress()
    train(shards, tmp_path / "run", **options, resume=True, progress=again)
    assert again.warnings == [expected]  # and not that an option has changed
    calm = RecordedProgress()
    for warmup in (0.1, TrainConfig.warmup_epochs):  # the default is shortened without a note
        given = options | {"warmup_epochs": warmup}
        train(shards, tmp_path / str(warmup), **given, progress=calm)
    assert calm.warnings == []


def test_printed_epochs_count_from_one_and_limited_steps_are_about(shards, tmp_path):
    run, changed = tmp_path / "run", {"epochs": 2, "log_interval": 100}
    done = run_cli(*command(shards, run, "--tokens-per-batch", "96", changed=changed))
    assert "59 samples per epoch, about 10 steps of at most 8, 2 views" in done.stdout
    assert re.findall("^epoch (.*?)  ", done.stdout, re.MULTILINE) == [
        "1/2 step 10/20", "1/2 done", "2/2 step 20/20", "2/2 done",
    ]  # fmt: skip


def test_a_longer_run_is_refused_with_the_way_to_keep_the_weights(shards, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    recorded = RecordedProgress()
    options: dict[str, Any] = SMALL | {"epochs": 4, "lr": 3e-4}
    with pytest.raises(ConfigError, match=r"epochs was 3, now 4; .* weights with --init .*/run$"):
        train(shards, run, **options, resume=True, progress=recorded)
    assert recorded.warnings == []  # not that it is resumed
    train(shards, tmp_path / "longer", **options | {"model": None}, init=run)


def test_a_layer_decay_cannot_grow_rates():
    with pytest.raises(ConfigError, match="layer_decay 75 is"):
        TrainConfig(layer_decay=75.0)
