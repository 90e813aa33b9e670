"""Stopping, resuming and checkpoints: a resumed run has the losses of an undisturbed one."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from command_line import run_cli
from runs import (
    ADAPTIVE,
    SMALL,
    RecordedProgress,
    command,
    losses,
    losses_so_far,
    stop_after,
    with_torch_state,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import quadpipe
from forging import edit_json, edit_manifest
from quadpipe.errors import ConfigError, OutputError, ShardError
from quadpipe.files import LocalFolder
from quadpipe.model import checks, signals, train
from quadpipe.model.evaluate import find_differences
from quadpipe.model.metrics import Metrics
from quadpipe.model.predict import Predictor
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.signals import InterruptedTrainingError
from quadpipe.model.train import Trainer


@pytest.mark.fault(
    "SIGKILL, SIGTERM or Ctrl-C of a training run",
    "resumed, every loss is that of an undisturbed run",
)
@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGTERM, "undisturbed"),
        pytest.param(signal.SIGINT, "adaptive", marks=pytest.mark.soak),
        (signal.SIGKILL, "adaptive"),
    ],
)
def test_a_stopped_run_continues_to_the_same_losses(
    shards, request, tmp_path, number, kind, workers
):
    whole = request.getfixturevalue(kind)
    run, changed = tmp_path / "run", ADAPTIVE if kind == "adaptive" else SMALL
    slow = ("--checkpoint-interval", "3", "--workers", workers)
    errors = tmp_path / "stderr"
    process = processes.start(
        command(shards, run, *slow, changed=changed), tmp_path / "stdout", errors
    )
    deadline = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and len(losses_so_far(run)) >= 6):
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    # As launchers do: to the process and all that it has started.
    os.killpg(int(process.pid or 0), number)
    process.join(60)
    if process.exitcode == 0:
        pytest.skip("the run ended before the signal came")
    if number != signal.SIGKILL:
        assert process.exitcode == 130
        assert "and saved; continue with --resume" in errors.read_text()
    assert len(losses_so_far(run)) < len(losses(whole))
    done = run_cli(*command(shards, run, "--resume", changed=changed))
    assert done.returncode == 0, done.stderr
    assert "resumed  at step" in done.stdout
    assert losses(run) == losses(whole)


def test_resuming_restores_moving_averages_and_intervals(shards, tmp_path, monkeypatch):
    options: dict[str, Any] = SMALL | {"ema_decay": 0.9, "log_interval": 3, "drop_path": 0.1}
    train(shards, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        stop_after(patched, 10)
        with pytest.raises(InterruptedTrainingError, match="stopped at step 10 and saved"):
            train(shards, tmp_path / "run", **options)
    train(shards, tmp_path / "run", **options, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    runs: Any = [
        RunFolder(tmp_path / name).weights("last.safetensors") for name in ("whole", "run")
    ]
    for one, other in zip(runs[0][:2], runs[1][:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_has_just_begun_can_be_resumed(shards, undisturbed, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_on", fail)
        with pytest.raises(KeyboardInterrupt):
            train(shards, tmp_path / "run", **SMALL)
    leftover = tmp_path / "run" / ".quadpipe" / "tmp" / "last.safetensors.1-abc"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    train(shards, tmp_path / "run", **SMALL, resume=True)
    assert losses(tmp_path / "run") == losses(undisturbed)
    assert not leftover.exists()


def test_a_second_signal_much_later_stops_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_TO_SAVE", 0.0)

    def signalled(*arguments):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    monkeypatch.setattr(Trainer, "train_on", signalled)
    with pytest.raises(InterruptedTrainingError, match="stopped without saving; .* --resume"):
        train(shards, tmp_path / "run", **SMALL)


def test_two_trainers_do_not_share_a_run(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    with RunFolder(copy).lock(), pytest.raises(OutputError, match=r"another quadpipe \(process"):
        train(shards, copy, **SMALL, resume=True)


def test_files_of_a_run_that_never_started_are_overwritten(shards, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OutputError("full")

    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "save", fail)
        with pytest.raises(OutputError, match="full"):
            train(shards, run, **SMALL)
    assert (run / "config.json").exists()
    with pytest.raises(ShardError, match="has no last.safetensors; .* or start another"):
        train(shards, run, **SMALL, resume=True)
    train(shards, run, **SMALL | {"epochs": 1})
    assert RunFolder(run).config().train.epochs == 1


def test_metrics_after_the_checkpoint_are_removed(tmp_path):
    metrics = Metrics(LocalFolder(tmp_path))
    kept = [
        {"event": "train", "epoch": 0, "step": 8},
        {"event": "eval", "epoch": 1, "step": 8},
        {"event": "train", "epoch": 1, "step": 12},
    ]
    later = [{"event": "train", "epoch": 1, "step": 13}, {"event": "eval", "epoch": 2, "step": 12}]
    for row in (*kept, *later):
        metrics.append(row)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "epoch": 0, "step": 1')
    metrics.cut(step=12, epoch=1)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == kept


def test_another_run_or_dataset_is_not_resumed(shards, undisturbed, image_folder, tmp_path):
    with pytest.raises(OutputError, match=r"is not empty \(.*\); choose another --out, or give"):
        train(shards, undisturbed, **SMALL)
    with pytest.raises(ConfigError, match=r"train\.weight_decay was 0\.05, now 0\.5"):
        train(shards, undisturbed, **SMALL | {"weight_decay": 0.5}, resume=True)
    resealed = Path(shutil.copytree(shards, tmp_path / "resealed"))
    rows = (resealed / "train.shards.jsonl").read_text().splitlines()
    text = "\n".join([rows[1], rows[0], *rows[2:]]) + "\n"
    (resealed / "train.shards.jsonl").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    edit_manifest(resealed, splits__train__shard_list_sha256=digest)
    with pytest.raises(ConfigError, match=r"shard_lists\.train was "):
        train(resealed, undisturbed, **SMALL, resume=True)
    quadpipe.tokenize(image_folder, tmp_path / "other", in_process=True)
    with pytest.raises(
        ConfigError, match="has patches of 16 to 64 pixels, the model was made for 8"
    ):
        train(tmp_path / "other", undisturbed, **SMALL, resume=True)


def test_resuming_on_different_shards_names_the_differences(shards, undisturbed, tmp_path):
    changes: dict[str, Any] = {
        "codec": {"name": "png"},
        "imaging_library": {"name": "Pillow", "version": "11.0"},
        "tokenizer__resize": "squash",
        "scorer__weights_sha256": "0" * 64,
    }
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, **changes)
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    edit_json(run / "config.json", scorer_sha256="1" * 64)
    recorded = RecordedProgress()
    with pytest.raises(ConfigError) as caught:
        train(other, run, **SMALL, resume=True, progress=recorded)
    for text in (
        "codec.name was raw, now png",
        "tokenizer.resize was crop, now squash",
        "scorer_sha256 was 1111",
    ):
        assert text in str(caught.value)
    assert recorded.warnings == []  # not that it is resumed with another imaging library


def test_shards_of_another_imaging_library_can_be_resumed_on(shards, undisturbed, tmp_path):
    other = Path(shutil.copytree(shards, tmp_path / "shards"))
    edit_manifest(other, imaging_library={"name": "Pillow", "version": "11.0"})
    recorded = RecordedProgress()
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    train(other, run, **SMALL, resume=True, progress=recorded)
    assert "imaging_library.version was " in recorded.warnings[0]


def test_a_run_of_an_older_version_is_resumed_exactly(shards, undisturbed, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_after(patched, 10)
        with pytest.raises(InterruptedTrainingError):
            train(shards, run, **SMALL)
    edit_json(
        run / "config.json", codec=None, imaging_library=None, quadpipe=None, train__fc_norm=None,
        model__fc_norm=None, tokenizer__thresholds=None,
    )  # fmt: skip
    state = with_torch_state(run)
    for name in ("last.safetensors", "best.safetensors"):
        with safe_open(run / name, "pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "epoch"}
        save_file(load_file(run / name), run / name, metadata)
    assert RunFolder(run).describe_checkpoint() == "best.safetensors, step 8"
    assert find_differences(RunFolder(run).config(), quadpipe.Dataset(shards).manifest) == []
    picture = next((shards.parent / "images").rglob("*.png"))
    Predictor(RunFolder(run), torch.device("cpu"))(picture)
    recorded = RecordedProgress()
    train(shards, run, **SMALL, resume=True, progress=recorded)
    assert recorded.warnings == []
    assert losses(run) == losses(undisturbed)
    assert not state.exists()
    assert [path.name for path in run.glob("state-*")] == ["state-0000000024.safetensors"]


def test_a_run_of_a_later_version_is_read_and_ignored_options_are_named(
    shards, undisturbed, tmp_path, stderr_of
):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    edit_json(
        run / "config.json", quadpipe="9.0", train__mixup=0.2, tokenizer__gamma=2, notes={"a": 1}
    )
    message = (
        "was written by quadpipe 9.0; .* ignores its 'notes', 'train.mixup', 'tokenizer.gamma'"
    )
    recorded = RecordedProgress()
    train(shards, run, **SMALL, resume=True, progress=recorded)
    assert any(re.search(message, warning) for warning in recorded.warnings)
    for arguments in (("eval", run, shards), ("predict", run, next(shards.parent.rglob("*.png")))):
        assert re.search(message, stderr_of(*arguments))
    edit_json(run / "config.json", model__register_tokens=4)
    with pytest.raises(
        ShardError, match=r"'model.register_tokens' .* install the version that wrote it, '9.0'"
    ):
        RunFolder(run).config()


def test_resuming_a_finished_run_changes_nothing(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    train(shards, copy, **SMALL, resume=True)
    assert losses(copy) == losses(undisturbed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"consumed": -8}, "cannot be loaded: a counter is negative"),
        ({"best": float("nan")}, "cannot be loaded: a counter is negative or not finite"),
        ({"interval": None}, "cannot be loaded"),
        ({"interval": {}}, "does not fit: 'steps'"),
        ({"epoch": 99}, "is not at a step of this run"),
        ({"consumed": 7}, "is not at a step of this run"),
    ],
)
def test_counters_that_do_not_fit_are_refused(shards, undisturbed, tmp_path, changes, message):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    path = next(run.glob("state-*"))
    with safe_open(path, "pt") as file:
        counters = json.loads(file.metadata()["counters"])
    save_file(load_file(path), path, {"counters": json.dumps(counters | changes)})
    with pytest.raises(ShardError, match=message):
        train(shards, run, **SMALL, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.exp_avg": None}, "does not fit: .*missing 0.exp_avg"),
        ({"0.exp_avg": torch.zeros(3)}, r"does not fit: .*0\.exp_avg \[3\], expected \["),
        ({"999.step": torch.zeros(())}, "does not fit: .*unexpected 999.step"),
    ],
)
def test_tensors_of_another_optimizer_are_refused(shards, undisturbed, tmp_path, changes, message):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    path = next(run.glob("state-*"))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path) | changes
    save_file({name: value for name, value in tensors.items() if value is not None}, path, metadata)
    with pytest.raises(ShardError, match=message):
        train(shards, run, **SMALL, resume=True)


def test_damaged_states_of_an_older_version_are_refused(shards, undisturbed, tmp_path):
    run = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    state = with_torch_state(run)
    whole = torch.load(state, weights_only=True)
    for change in ({"consumed": -8}, {"epoch": 99}, {"optimizer": {}}, {"interval": None}):
        torch.save(whole | change, state)
        with pytest.raises(ShardError, match="cannot be loaded|is not at a step of this run"):
            train(shards, run, **SMALL, resume=True)
    torch.save([1], state)
    with pytest.raises(ShardError, match="it holds a list, not a state"):
        train(shards, run, **SMALL, resume=True)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ShardError, match=r"state-.*\.pt cannot be loaded"):
        train(shards, run, **SMALL, resume=True)


def test_damaged_checkpoints_are_refused(shards, undisturbed, tmp_path):
    copy = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    state = next(copy.glob("state-*"))
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ShardError, match=r"state-.*\.safetensors is damaged"):
        train(shards, copy, **SMALL, resume=True)
    state.unlink()
    with pytest.raises(ShardError, match=r"has no state-.*; the training run is incomplete"):
        train(shards, copy, **SMALL, resume=True)
    (copy / "last.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ShardError, match=r"last\.safetensors is damaged"):
        train(shards, copy, **SMALL, resume=True)
    (copy / "last.safetensors").unlink()
    with pytest.raises(
        ShardError, match=r"has no last\.safetensors; the training run is incomplete"
    ):
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


def test_a_longer_warm_up_of_an_older_version_is_kept_when_resumed(shards, tmp_path, monkeypatch):
    options: dict[str, Any] = SMALL | {"warmup_epochs": 2.0}
    with monkeypatch.context() as patched:
        patched.setattr(checks, "_RUN_BY_WARMUP", 1)
        train(shards, tmp_path / "whole", **options)
        stop_after(patched, 10)
        with pytest.raises(InterruptedTrainingError):
            train(shards, tmp_path / "run", **options)
    train(
        shards, tmp_path / "run", **options, resume=True, progress=(recorded := RecordedProgress())
    )
    assert recorded.warnings == []
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
