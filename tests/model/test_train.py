"""Training as people run it: it learns, stops, resumes exactly, and says what is wrong."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import quadpipe
from forging import edit_json, edit_manifest
from quadpipe.cli import commands
from quadpipe.errors import ConfigError, OutputError, ShardError
from quadpipe.model import TrainConfig, train
from quadpipe.model.config import PRESETS
from quadpipe.model.evaluate import find_differences
from quadpipe.model.optimize import MovingAverage, learning_rate, make_optimizer
from quadpipe.model.predict import Predictor
from quadpipe.model.pretrained import Loaded, load_pretrained
from quadpipe.model.progress import TrainProgress
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder, pick_device
from quadpipe.model.train import (
    InterruptedTrainingError,
    NonFiniteLossError,
    Trainer,
)

train_module = sys.modules["quadpipe.model.train"]

SMALL = {
    "model": "nano",
    "tokens": 16,
    "epochs": 3,
    "batch_size": 8,
    "warmup_epochs": 0.3,
    "workers": 0,
    "log_interval": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def shards(photographs, tmp_path_factory) -> Path:
    """70 crops of two photographs of 64 pixels, to tell which photograph; 59 to train on."""
    root = tmp_path_factory.mktemp("train")
    chance = random.Random(0)
    for number in range(70):
        photograph = photographs[number % 2]
        y, x = chance.randrange(427 - 96), chance.randrange(640 - 96)
        folder = root / "images" / ("temple", "flower")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[y : y + 96, x : x + 96]).save(folder / f"{number}.png")
    quadpipe.tokenize(
        root / "images", root / "shards", image_size=64, patch_size=8, max_patch_size=32, tokens=40,
        val_share=0.16, samples_per_shard=16, views=2, in_process=True,
    )  # fmt: skip
    return root / "shards"


@pytest.fixture
def said(capsys) -> Callable[..., str]:
    """Runs a command here; what it says beside its output."""

    def run(*arguments: object) -> str:
        commands.main([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().err

    return run


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["event"] == "train"]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(shards, run, **SMALL)
    return run


class Heard(TrainProgress):
    def __init__(self) -> None:
        self.warnings, self.scores = [], []

    def warn(self, message):
        self.warnings.append(message)

    def evaluated(self, epoch, score):
        self.scores.append(score)


def test_it_learns_what_it_has_not_seen(shards, tmp_path):
    heard = Heard()
    train(shards, tmp_path / "run", **SMALL | {"epochs": 12, "ema": 0.9}, progress=heard)
    assert heard.scores[-1].top1 > 0.8
    assert heard.scores[-1].samples == 11
    first, last = losses(tmp_path / "run")[0], losses(tmp_path / "run")[-1]
    assert last[1] < first[1]


def test_every_loss_of_a_run_repeats(shards, undisturbed, tmp_path):
    train(shards, tmp_path / "run", **SMALL | {"workers": 2})
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert [step for step, _ in losses(undisturbed)] == list(range(1, 25))


def command(shards: Path, run: Path, *options: str) -> list[str]:
    given = [
        word
        for name, value in SMALL.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return [sys.executable, "-m", "quadpipe.cli", "train", str(shards), "--out", str(run), *given,
            *options]  # fmt: skip


@pytest.mark.fault(
    "SIGKILL, SIGTERM or Ctrl-C of a training run",
    "resumed, every loss is that of an undisturbed run",
)
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGKILL],
)
def test_a_stopped_run_goes_on_to_the_same_losses(shards, undisturbed, tmp_path, number, workers):
    run = tmp_path / "run"
    slow = ("--checkpoint-interval", "3", "--workers", workers)
    with subprocess.Popen(
        command(shards, run, *slow), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 60
        while not ((run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 6):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        # As launchers do: to the process and all that it has started.
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "and saved; go on with --resume" in errors
    assert len(losses_so_far(run)) < 24
    done = subprocess.run(command(shards, run, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resumed  at step" in done.stdout
    assert losses(run) == losses(undisturbed)


def test_resuming_repeats_averages_and_longer_intervals(shards, tmp_path, monkeypatch):
    options = SMALL | {"ema": 0.9, "log_interval": 3, "drop_path": 0.1}
    train(shards, tmp_path / "whole", **options)
    real, calls = Trainer._train_step, []

    def stopping(self, step_model, batch):
        calls.append(1)
        self._stop = len(calls) == 10
        return real(self, step_model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(InterruptedTrainingError, match="stopped at step 10 and saved"):
            train(shards, tmp_path / "run", **options)
    train(shards, tmp_path / "run", **options, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    runs = [RunFolder(tmp_path / name).weights("last.safetensors") for name in ("whole", "run")]
    for one, other in zip(runs[0][:2], runs[1][:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_has_just_begun_can_be_resumed(shards, undisturbed, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train_step", fail)
        with pytest.raises(KeyboardInterrupt):
            train(shards, tmp_path / "run", **SMALL)
    leftover = tmp_path / "run" / ".quadpipe" / "tmp" / "last.safetensors.1-abc"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    train(shards, tmp_path / "run", **SMALL, resume=True)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert not leftover.exists()


def test_a_second_signal_much_later_stops_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "_SECONDS_TO_SAVE", 0.0)

    def signalled(*arguments):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    monkeypatch.setattr(Trainer, "_train_step", signalled)
    with pytest.raises(InterruptedTrainingError, match="stopped at step 0 without saving"):
        train(shards, tmp_path / "run", **SMALL)


def test_two_trainers_do_not_share_a_run(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    with RunFolder(copy).lock(), pytest.raises(OutputError, match=r"another quadpipe \(process"):
        train(shards, copy, **SMALL, resume=True)


def test_the_short_last_batch_can_be_left_out(shards, tmp_path):
    train(shards, tmp_path / "run", **SMALL | {"drop_last": True, "epochs": 2})
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 15))


def test_a_bad_shard_is_one_line_from_any_worker(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    shutil.rmtree(copy / ".quadpipe")
    tar = copy / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[5] ^= 0xFF
    tar.write_bytes(bytes(data))
    done = subprocess.run(
        command(copy, tmp_path / "run", "--workers", "2"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "train-000001.tar: a sample: checksum mismatch at byte 0" in done.stderr
    assert "Traceback" not in done.stderr


def torchrun(
    shards: Path, run: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Training in two processes."""
    given = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*given, *command(shards, run, *options)[1:]],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def test_a_damaged_sample_ends_every_process_with_one_line(shards, tmp_path):
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    marker = json.loads((damaged / ".quadpipe/markers/train/0000/000001.json").read_text())
    tar = damaged / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[marker["views"][0]["offsets"][3] + 520] ^= 0xFF
    tar.write_bytes(bytes(data))
    done = torchrun(damaged, tmp_path / "run")
    assert done.returncode == 1
    ours = sorted(line for line in done.stderr.splitlines() if line.startswith("quadpipe: "))
    assert len(ours) == 2
    assert "train-000001.tar: 00000000" in ours[0]
    assert "another process of the run has failed; see its message" in ours[1]
    assert "[rank" not in done.stderr  # torch's mark on tracebacks
    assert "done" not in done.stdout


def test_an_error_of_one_process_is_said_once(shards, undisturbed):
    done = torchrun(shards, undisturbed)
    assert done.returncode == 1
    assert done.stderr.count("is not empty") == 1
    # torchrun reports failed processes with a traceback of its own; there is none of ours.
    assert "train.py" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "abc"},
            "WORLD_SIZE 'abc' in the environment is not a whole number",
        ),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE '0' .* not a whole number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK '-1' in the environment is not a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 is not below WORLD_SIZE 2; start the processes"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "the processes cannot meet .*MASTER_ADDR"),
    ],
)
def test_odd_variables_of_torchrun_are_refused(shards, tmp_path, monkeypatch, variables, message):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "message"),
    [("2", "LOCAL_RANK 2 has no GPU: torch sees 2 here; start at most 2"), ("x", "LOCAL_RANK 'x'")],
)
def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch, rank, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    for name in ("cuda", "auto"):
        with pytest.raises(ConfigError, match=message):
            pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda", 1)


def test_it_trains_in_a_thread(shards, undisturbed, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(train, shards, tmp_path / "run", **SMALL).result()
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_what_a_run_left_that_never_began_is_written_over(shards, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OutputError("full")

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "save", fail)
        with pytest.raises(OutputError, match="full"):
            train(shards, run, **SMALL)
    assert (run / "config.json").exists()
    with pytest.raises(ShardError, match="has no last.safetensors; .* or train again"):
        train(shards, run, **SMALL, resume=True)
    train(shards, run, **SMALL | {"epochs": 1})
    assert RunFolder(run).config().train.epochs == 1


def test_a_missing_tensorboard_is_said_before_anything_is_written(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match="--tensorboard needs tensorboardX"):
        train(shards, tmp_path / "run", **SMALL | {"tensorboard": True})
    assert not (tmp_path / "run").exists()


def losses_so_far(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]


def test_two_processes_give_the_losses_of_one(shards, undisturbed, tmp_path):
    done = torchrun(shards, tmp_path / "two", "--epochs", "2", "--token-dropout", "0.2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done; quadpipe eval") == 1
    assert "FutureWarning" not in done.stderr
    train(shards, tmp_path / "one", **SMALL | {"epochs": 2, "token_dropout": 0.2})
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 16
    assert [step for step, _ in one] == [step for step, _ in two]
    np.testing.assert_allclose([x for _, x in two], [x for _, x in one], rtol=1e-4)


def test_accumulating_gradients_changes_nothing(shards, tmp_path):
    options = SMALL | {"epochs": 1}
    train(shards, tmp_path / "whole", **options)
    train(shards, tmp_path / "parts", **options | {"grad_accum_steps": 3})
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    np.testing.assert_allclose([x for _, x in whole], [x for _, x in parts], rtol=1e-4)


def test_a_loss_that_is_no_number_stops_before_the_update(shards, tmp_path):
    options = SMALL | {"clip_grad": 0.0, "warmup_epochs": 0.0, "lr": 1e6}
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+ .*Samples: 00000.*--lr"):
        train(shards, tmp_path / "run", **options)
    weights, _, _ = RunFolder(tmp_path / "run").weights("last.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    heard = Heard()
    calm = options | {"lr": 1e-4, "clip_grad": 1.0, "epochs": 3}
    with contextlib.suppress(NonFiniteLossError):  # the weights may be beyond help, the run is not
        train(shards, tmp_path / "run", **calm, resume=True, progress=heard)
    assert any("train.lr was 1000000.0, now 0.0001" in warning for warning in heard.warnings)


def test_a_validation_that_is_no_number_is_said_after_saving(shards, tmp_path, monkeypatch):
    real = train_module.evaluate
    broken = lambda *arguments: replace(real(*arguments), loss=float("nan"))  # noqa: E731
    monkeypatch.setattr(train_module, "evaluate", broken)
    with pytest.raises(NonFiniteLossError, match="loss on val is not finite after epoch 1"):
        train(shards, tmp_path / "run", **SMALL)
    _, _, metadata = RunFolder(tmp_path / "run").weights("last.safetensors")
    assert metadata["step"] == "8"


def test_bf16_and_other_options_train(shards, tmp_path):
    options = SMALL | {
        "epochs": 1, "amp": "bf16", "positions": "learned", "pool": "area", "scale_embedding": True,
        "drop_path": 0.1, "layer_decay": 0.8, "gradient_checkpointing": True, "color_jitter": 0.3,
        "token_dropout": 0.2, "ema": 0.99, "tensorboard": True,
    }  # fmt: skip
    run = train(shards, tmp_path / "run", **options)
    _, average, _ = run.weights("last.safetensors")
    assert average is not None
    assert list((tmp_path / "run" / "events").glob("events.out.tfevents.*"))
    assert all(np.isfinite(loss) for _, loss in losses(tmp_path / "run"))


def test_a_dataset_without_val_trains_and_says_so(image_folder, tmp_path):
    quadpipe.tokenize(image_folder, tmp_path / "shards", in_process=True)
    heard = Heard()
    train(tmp_path / "shards", tmp_path / "run", **SMALL | {"epochs": 1}, progress=heard)
    assert any("no split val" in warning for warning in heard.warnings)
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_one_class_is_nothing_to_learn_and_said(photographs, tmp_path):
    (tmp_path / "images" / "imagenet").mkdir(parents=True)
    for number in range(8):
        part = photographs[0][number * 9 :][:64, :64]
        Image.fromarray(part).save(tmp_path / "images" / "imagenet" / f"{number}.png")
    quadpipe.tokenize(
        tmp_path / "images", tmp_path / "shards", image_size=64, patch_size=8, max_patch_size=32,
        tokens=16, in_process=True,
    )  # fmt: skip
    heard = Heard()
    train(tmp_path / "shards", tmp_path / "run", **SMALL | {"epochs": 1}, progress=heard)
    (warning,) = (line for line in heard.warnings if "one class" in line)
    assert "one class, 'imagenet', so there is nothing to learn" in warning
    assert "\n" not in warning


def test_label_aware_shards_warn(shards, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["scorer"]["label_aware"] = True
    (copy / "dataset.json").write_text(json.dumps(manifest))
    heard = Heard()
    train(copy, tmp_path / "run", **SMALL | {"epochs": 1}, progress=heard)
    assert any("looked at the labels" in warning for warning in heard.warnings)


def test_what_cannot_be_trained_is_refused_before_any_work(shards, image_folder, tmp_path):
    quadpipe.tokenize(image_folder, tmp_path / "bare", use_labels=False, in_process=True, limit=4)
    with pytest.raises(ConfigError, match="has no labels, so there is nothing to learn"):
        train(tmp_path / "bare", tmp_path / "run", **SMALL)
    with pytest.raises(ConfigError, match="holds 40 tokens, not 64"):
        train(shards, tmp_path / "run", **SMALL | {"tokens": 64})
    with pytest.raises(ConfigError, match="holds no run to resume"):
        train(shards, tmp_path / "run", **SMALL, resume=True)
    with pytest.raises(ConfigError, match="own weights; leave out --init"):
        train(shards, tmp_path / "run", **SMALL, resume=True, init="x.pth")
    assert not (tmp_path / "run").exists()
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no GPU here; use --device cpu"):
            train(shards, tmp_path / "run", **SMALL | {"device": "cuda"})


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    run = RunFolder(tmp_path)
    kept = [
        {"event": "train", "epoch": 0, "step": 8},
        {"event": "eval", "epoch": 1, "step": 8},
        {"event": "train", "epoch": 1, "step": 12},
    ]
    later = [{"event": "train", "epoch": 1, "step": 13}, {"event": "eval", "epoch": 2, "step": 12}]
    for row in (*kept, *later):
        run.append_metrics(row)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "epoch": 0, "step": 1')
    run.cut_metrics(step=12, epoch=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == kept


def test_another_run_or_dataset_is_not_resumed(shards, undisturbed, image_folder, tmp_path):
    with pytest.raises(OutputError, match=r"is not empty \(.*\); choose another --out, or give"):
        train(shards, undisturbed, **SMALL)
    with pytest.raises(ConfigError, match=r"train\.weight_decay was 0\.05, now 0\.5"):
        train(shards, undisturbed, **SMALL | {"weight_decay": 0.5}, resume=True)
    resealed = Path(shutil.copytree(shards, tmp_path / "resealed"))
    manifest = json.loads((resealed / "dataset.json").read_text())
    rows = (resealed / "train.shards.jsonl").read_text().splitlines()
    text = "\n".join([rows[1], rows[0], *rows[2:]]) + "\n"
    (resealed / "train.shards.jsonl").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest["splits"]["train"]["shard_list_sha256"] = digest
    (resealed / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"shard_lists\.train was "):
        train(resealed, undisturbed, **SMALL, resume=True)
    quadpipe.tokenize(image_folder, tmp_path / "other", in_process=True)
    with pytest.raises(
        ConfigError, match="has patches of 16 to 64 pixels, the model was made for 8"
    ):
        train(tmp_path / "other", undisturbed, **SMALL, resume=True)


def test_resuming_names_how_the_shards_differ(shards, undisturbed, tmp_path):
    changes = {
        "codec": {"name": "png"},
        "imaging_library": {"name": "Pillow", "version": "11.0"},
        "tokenizer__resize": "squash",
        "scorer__weights_sha256": "0" * 64,
    }
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, **changes)
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    edit_json(run / "config.json", scorer_sha256="1" * 64)
    heard = Heard()
    with pytest.raises(ConfigError) as caught:
        train(other, run, **SMALL, resume=True, progress=heard)
    for text in (
        "codec.name was raw, now png",
        "tokenizer.resize was crop, now squash",
        "scorer_sha256 was 1111",
    ):
        assert text in str(caught.value)
    assert "imaging_library.version was " in heard.warnings[0]


def test_the_same_shards_of_another_library_are_resumed(shards, undisturbed, tmp_path):
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, imaging_library={"name": "Pillow", "version": "11.0"})
    heard = Heard()
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    train(other, run, **SMALL, resume=True, progress=heard)
    assert "imaging_library.version was " in heard.warnings[0]


def test_a_run_of_an_older_version_is_read_and_resumed(shards, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    edit_json(
        run / "config.json", codec=None, imaging_library=None, quadpipe=None, train__fc_norm=None,
        model__fc_norm=None, tokenizer__thresholds=None,
    )  # fmt: skip
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(run / name, "pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "epoch"}
        save_file(load_file(run / name), run / name, metadata)
    heard = Heard()
    train(shards, run, **SMALL, resume=True, progress=heard)
    assert heard.warnings == []
    assert losses(run) == losses(undisturbed)
    assert RunFolder(run).describe_checkpoint().startswith("best.safetensors, step ")
    assert find_differences(RunFolder(run).config(), quadpipe.Dataset(shards).manifest) == []
    picture = next((shards.parent / "images").rglob("*.png"))
    Predictor(RunFolder(run), torch.device("cpu"))(picture)


def test_a_run_of_a_later_version_is_read_and_says_what_is_ignored(
    shards, undisturbed, tmp_path, said
):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    edit_json(
        run / "config.json", quadpipe="9.0", train__mixup=0.2, tokenizer__gamma=2, notes={"a": 1}
    )
    says = "was written by quadpipe '9.0'; .* ignores its 'notes', 'train.mixup', 'tokenizer.gamma'"
    heard = Heard()
    train(shards, run, **SMALL, resume=True, progress=heard)
    assert any(re.search(says, warning) for warning in heard.warnings)
    for arguments in (("eval", run, shards), ("predict", run, next(shards.parent.rglob("*.png")))):
        assert re.search(says, said(*arguments))
    edit_json(run / "config.json", model__register_tokens=4)
    with pytest.raises(
        ShardError, match=r"'model.register_tokens' .* install the version that wrote it, '9.0'"
    ):
        RunFolder(run).config()


def test_a_finished_run_is_done_when_resumed(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    train(shards, copy, **SMALL, resume=True)
    assert losses(copy) == losses(undisturbed)


def test_damaged_checkpoints_are_refused(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    state = next(copy.glob("state-*.pt"))
    whole = torch.load(state, weights_only=True)
    for change in ({"consumed": -8}, {"epoch": 99}, {"optimizer": {}}, {"interval": None}):
        torch.save(whole | change, state)
        with pytest.raises(ShardError, match="does not fit|is at no step of this run"):
            train(shards, copy, **SMALL, resume=True)
    torch.save([1], state)
    with pytest.raises(ShardError, match="it holds no state"):
        train(shards, copy, **SMALL, resume=True)
    torch.save(whole, state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ShardError, match=r"state-.*\.pt cannot be loaded"):
        train(shards, copy, **SMALL, resume=True)
    (copy / "last.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ShardError, match=r"last\.safetensors is damaged"):
        train(shards, copy, **SMALL, resume=True)
    (copy / "last.safetensors").unlink()
    with pytest.raises(ShardError, match=r"has no last\.safetensors; it is no whole training run"):
        train(shards, copy, **SMALL, resume=True)
    config = json.loads((copy / "config.json").read_text())
    for part, change in {
        "classes": ["a"],
        "model": config["model"] | {"heads": 0},
        "tokenizer": config["tokenizer"] | {"patch_size": 16},
    }.items():
        (copy / "config.json").write_text(json.dumps(config | {part: change}))
        with pytest.raises(ShardError, match=r"config\.json cannot be used"):
            RunFolder(copy).config()
    (copy / "config.json").write_text("{}")
    with pytest.raises(ShardError, match=r"config\.json cannot be used"):
        RunFolder(copy).config()
    with pytest.raises(ShardError, match="holds no training run"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "huge"}, "model 'huge' is not one of nano, tiny"),
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"lr": 0.0}, "lr 0 is not above 0 and at most 1e"),
        ({"lr": 1e38}, "lr 1e.38 is not above 0 and at most 1e"),
        ({"seed": 2**70}, "is not from 0 to 9,223,372,036,854,775,807"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "not finite, or std not above 0"),
        ({"weight_decay": -1.0}, "weight_decay -1 is below 0"),
        ({"label_smoothing": 1.0}, "label_smoothing 1 is not from 0 to below 1"),
        ({"std": (1.0, 0.0, 1.0)}, "not finite, or std not above 0"),
        ({"flip": 2.0}, "flip 2 is not from 0 to 1"),
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_the_learning_rate_warms_up_in_samples_and_falls_to_its_minimum():
    config = TrainConfig(epochs=10, warmup_epochs=2.0, lr=1.0, min_lr=0.1)
    rates = [learning_rate(config, seen, 100) for seen in (0, 50, 100, 200, 600, 1000)]
    assert rates == pytest.approx([0, 0.25, 0.5, 1.0, 0.55, 0.1])


def test_a_warm_up_is_at_most_a_tenth_of_the_run_and_that_is_said(shards, tmp_path):
    heard = Heard()
    options = SMALL | {"epochs": 2, "warmup_epochs": 5.0}
    train(shards, tmp_path / "run", **options, progress=heard)
    says = "the warm-up of 5 epochs is shortened to 0.2, a tenth of the run"
    assert heard.warnings == [says]
    assert RunFolder(tmp_path / "run").config().train.warmup_epochs == 0.2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    rates = [row["lr"] for row in rows if row["event"] == "train"]
    assert rates.index(max(rates)) == 1  # of 16 steps
    assert max(rates) > 0.9e-3
    again = Heard()
    train(shards, tmp_path / "run", **options, resume=True, progress=again)
    assert again.warnings == [says]  # and not that an option has changed
    train(shards, tmp_path / "long", **options | {"warmup_epochs": 0.1}, progress=(calm := Heard()))
    assert calm.warnings == []


def test_a_run_with_a_longer_warm_up_of_an_older_version_goes_on_as_it_began(
    shards, tmp_path, monkeypatch
):
    options, real, calls = SMALL | {"warmup_epochs": 2.0}, Trainer._train_step, []

    def stopping(self, step_model, batch):
        calls.append(1)
        self._stop = len(calls) == 10
        return real(self, step_model, batch)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "_RUN_BY_WARMUP", 1)
        train(shards, tmp_path / "whole", **options)
        patched.setattr(Trainer, "_train_step", stopping)
        with pytest.raises(InterruptedTrainingError):
            train(shards, tmp_path / "run", **options)
    train(shards, tmp_path / "run", **options, resume=True, progress=(heard := Heard()))
    assert heard.warnings == []
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_decay_spares_biases_norms_and_positions_and_lower_layers_learn_slower(shards):
    config = TrainConfig(model="nano", layer_decay=0.5, positions="learned")
    model = Quadformer(config.quadformer(quadpipe.Dataset(shards).manifest))
    groups = {}
    for group in make_optimizer(model, config).param_groups:
        for parameter in group["params"]:
            groups[id(parameter)] = (group["weight_decay"], group["lr_scale"])
    found = {name: groups[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(groups)
    assert found["head.weight"] == (0.05, 1.0)
    assert found["head.bias"] == (0.0, 1.0)
    assert found["blocks.3.mlp.fc1.weight"] == (0.05, 0.5)
    assert found["blocks.0.norm1.weight"] == (0.0, 0.0625)
    assert found["patch_embed.proj.weight"] == (0.05, 0.03125)
    assert found["pos_embed"] == (0.0, 0.03125)
    assert PRESETS["nano"]["depth"] == 4


def test_the_moving_average_follows_the_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 0.0)
    average = MovingAverage(layer, 0.9)
    torch.nn.init.constant_(layer.weight, 1.0)
    average.update(layer, step=1000)
    assert average.weights["weight"].item() == pytest.approx(0.1)


def run_cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quadpipe.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


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


def test_the_later_of_equal_epochs_is_the_best_and_eval_and_predict_name_it(
    shards, tmp_path, monkeypatch, said
):
    real, scores = train_module.evaluate, iter([0.5, 0.9, 0.9, 0.4])
    ranked = lambda *arguments: replace(real(*arguments), top1=next(scores))  # noqa: E731
    monkeypatch.setattr(train_module, "evaluate", ranked)
    run = tmp_path / "run"
    train(shards, run, **SMALL | {"epochs": 4})
    picture = next((shards.parent / "images").rglob("*.png"))
    for arguments in (("eval", run, shards), ("predict", run, picture)):
        assert f"model    {run}: best.safetensors, epoch 3, step 24\n" in said(*arguments)
    (run / "best.safetensors").unlink()
    assert "last.safetensors, epoch 4, step 32\n" in said("eval", run, shards)


@pytest.fixture(scope="module")
def made_otherwise(shards, tmp_path_factory) -> Callable[..., Path]:
    """The images of `shards` tokenized with other options."""

    def make(**options: object) -> Path:
        out = tmp_path_factory.mktemp("otherwise") / "shards"
        given = {"image_size": 64, "patch_size": 8, "max_patch_size": 32, "tokens": 40}
        given |= {"val_share": 0.16, "in_process": True, "limit": 16} | options
        quadpipe.tokenize(shards.parent / "images", out, **given)
        return out

    return make


def test_eval_says_how_the_dataset_was_made_differently(undisturbed, made_otherwise, said):
    other = made_otherwise(
        image_size=128, tokens=100, resize="squash", crop_pct=1.0, resample="area", codec="jpg",
        quality=40, scorer="laplacian", max_patch_size=16, seed=5,
    )  # fmt: skip
    told = said("eval", undisturbed, other, "--tokens", 64)
    (line,) = (line for line in told.splitlines() if line.startswith("note "))
    for text in (
        "codec.name was raw, now jpg",
        "codec.quality was None, now 40",
        "tokenizer.crop_pct was 0.875, now 1.0",
        "tokenizer.image_size was [64, 64], now [128, 128]",
        "tokenizer.max_patch_size was 32, now 16",
        "tokenizer.resample was bilinear, now area",
        "tokenizer.resize was crop, now squash",
        "tokenizer.scorer was pixel-blur, now laplacian",
    ):
        assert text in line
    assert "seed" not in line
    assert "tokens" not in line


def test_eval_says_that_a_scorers_weights_are_others(scored_by_a_network, tmp_path):
    shards = scored_by_a_network.parent / "shards"
    config = RunFolder(scored_by_a_network).config()
    assert find_differences(config, quadpipe.Dataset(shards).manifest) == []
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, scorer__weights_sha256="0" * 64)
    (line,) = find_differences(config, quadpipe.Dataset(other).manifest)
    assert line.startswith(f"scorer_sha256 was {config.scorer_sha256}, now 0000")


def test_eval_refuses_patches_of_another_size(undisturbed, made_otherwise, said):
    with pytest.raises(ConfigError, match="of 16 to 32 pixels, the model was made for 8 to 32"):
        said("eval", undisturbed, made_otherwise(patch_size=16, tokens=16))


def test_predict_sees_the_tokens_that_training_saw(shards, made_otherwise, tmp_path):
    compressed = made_otherwise(codec="jpg", quality=20)
    train(compressed, tmp_path / "run", **SMALL | {"epochs": 1})
    dataset = quadpipe.Dataset(compressed)
    predictor = Predictor(RunFolder(tmp_path / "run"), torch.device("cpu"), tokens=40)
    for sample in list(dataset.samples("val"))[:2]:
        path = shards.parent / "images" / sample.info["path"]
        seen = predictor(path).exhibit.mosaic
        assert np.array_equal(seen.tokens, sample.mosaic.tokens)


def test_a_run_is_a_beginning_and_its_head_is_taken_by_names(shards, undisturbed, tmp_path):
    def loaded(classes: list[str], path: Path) -> tuple[Quadformer, Loaded]:
        model = Quadformer(replace(config.model, classes=len(classes)))
        return model, load_pretrained(model, path, classes)

    config = RunFolder(undisturbed).config()
    assert config.classes == ["flower", "temple"]
    trained = RunFolder(undisturbed).model(torch.device("cpu"))
    for path in (undisturbed, undisturbed / "best.safetensors"):
        model, report = loaded(["flower", "temple"], path)
        assert (report.changed, report.fresh) == ({}, [])
        assert torch.equal(model.head.weight, trained.head.weight)
        model, report = loaded(["temple", "flower"], path)
        assert report.changed["head"] == "taken over by the names of its classes"
        assert torch.equal(model.head.weight, trained.head.weight.flip(0))
        assert torch.equal(model.head.bias, trained.head.bias.flip(0))
        model, report = loaded(["cat", "temple"], path)
        assert report.changed["head"] == "left out: other classes"
        assert report.fresh == ["head.bias", "head.weight"]
        assert torch.equal(model.norm.weight, trained.norm.weight)
    shutil.copy(undisturbed / "best.safetensors", tmp_path / "copied.safetensors")
    model, report = loaded(["cat", "temple"], tmp_path / "copied.safetensors")
    assert "taken over with its 2 classes, whose names the file does" in report.changed["head"]
    with pytest.raises(ShardError, match="holds no training run"):
        loaded(["cat"], tmp_path)


def test_a_moving_average_and_the_grid_of_a_run_are_begun_with(made_otherwise, tmp_path):
    shards = made_otherwise(image_size=(64, 96), tokens=42)
    options = SMALL | {"epochs": 1, "positions": "learned", "ema": 0.9, "tokens": 18}
    train(shards, tmp_path / "run", **options)
    config = RunFolder(tmp_path / "run").config()
    model = Quadformer(replace(config.model, grid=(8, 8)))
    loaded = load_pretrained(model, tmp_path / "run" / "last.safetensors", config.classes)
    assert loaded.changed == {"pos_embed": "resampled from 8 x 12 to 8 x 8"}
    average = RunFolder(tmp_path / "run").weights("last.safetensors")[1]
    assert torch.equal(model.norm.weight, average["norm.weight"])
    train(shards, tmp_path / "next", **options, init=tmp_path / "run")


def test_predict_names_classes_and_draws_what_it_saw(shards, undisturbed, photographs, tmp_path):
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


def test_predict_refuses_label_aware_runs_and_what_is_no_image(undisturbed, tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    done = run_cli("predict", undisturbed, tmp_path / "x.jpg")
    assert done.returncode == 1
    assert "x.jpg is no image we can use" in done.stderr
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"label_aware": True}))
    done = run_cli("predict", copy, tmp_path / "x.jpg")
    assert done.returncode == 2
    assert "whose scorer, pixel-blur, looks at labels" in done.stderr


@pytest.fixture(scope="module")
def scored_by_a_network(shards, shufflenet_weights, tmp_path_factory) -> Path:
    """A run on shards of scorer feature, with weights from a file."""
    root = tmp_path_factory.mktemp("feature")
    quadpipe.tokenize(
        shards.parent / "images", root / "shards", image_size=64, patch_size=8, max_patch_size=32,
        tokens=40, in_process=True, limit=16, scorer="feature", scorer_weights=shufflenet_weights,
        scorer_distance="cosine",
    )  # fmt: skip
    train(root / "shards", root / "run", **SMALL | {"epochs": 1})
    return root / "run"


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


def test_predict_refuses_a_network_where_there_is_none(undisturbed, shards, shufflenet_weights):
    picture = next((shards.parent / "images").rglob("*.png"))
    done = run_cli("predict", undisturbed, picture, "--scorer-weights", shufflenet_weights)
    assert done.returncode == 2
    assert "scorer pixel-blur has no network; leave out" in done.stderr


def test_eval_refuses_other_classes(undisturbed, image_folder, tmp_path):
    quadpipe.tokenize(
        image_folder, tmp_path / "other", image_size=64, patch_size=8, max_patch_size=32, tokens=40,
        in_process=True, split="val",
    )  # fmt: skip
    done = run_cli("eval", undisturbed, tmp_path / "other")
    assert done.returncode == 2
    assert "has 3 classes that are not the run's 2" in done.stderr
