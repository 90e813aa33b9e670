"""Short training runs, and how tests start, stop and read them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quadpipe.loader import Batch
from quadpipe.model.progress import TrainProgress
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.step import StepResult
from quadpipe.model.train import Trainer

SMALL: dict[str, Any] = {
    "model": "nano",
    "tokens": 16,
    "epochs": 3,
    "batch_size": 8,
    "warmup_epochs": 0.3,
    "workers": 0,
    "log_interval": 1,
    "device": "cpu",
}


# Several means and a limit on the tokens of a batch: all draws of the loader at once.
ADAPTIVE = SMALL | {
    "tokens": None, "mean_tokens": "13-28", "min_tokens": 7, "tokens_per_batch": 160, "epochs": 2,
}  # fmt: skip


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if row["event"] == "train"]


class RecordedProgress(TrainProgress):
    def __init__(self) -> None:
        self.warnings, self.scores = [], []

    def warn(self, message):
        self.warnings.append(message)

    def evaluated(self, epoch, score):
        self.scores.append(score)


def command(
    shards: Path, run: Path, *options: str, changed: Mapping[str, Any] = SMALL
) -> list[str]:
    """`train` with the options of SMALL, and with those `changed`; None omits one."""
    given = [
        word
        for name, value in (SMALL | dict(changed)).items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return ["train", str(shards), "--out", str(run), *given, *options]


def torchrun(
    shards: Path,
    run: Path,
    *options: str,
    changed: Mapping[str, Any] = SMALL,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Training in two processes."""
    given = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*given, "-m", "quadpipe.cli", *command(shards, run, *options, changed=changed)],
        capture_output=True, text=True, timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def losses_so_far(run: Path) -> list[str]:
    return [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make training behave as if a signal arrived during this step."""
    real = Trainer.train_on

    def stopping(trainer: Trainer, batch: Batch, skipped: int) -> StepResult:
        result = real(trainer, batch, skipped)
        trainer.signals.received = trainer.step == step
        return result

    monkeypatch.setattr(Trainer, "train_on", stopping)


def with_torch_state(run: Path) -> Path:
    """Replace the state of a run by the torch file of older versions; its path."""
    folder = RunFolder(run)
    metadata = folder.weights("last.safetensors")[2]
    state = vars(folder.state(metadata))
    tensors: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.pop("optimizer").items():
        number, _, name = key.partition(".")
        tensors.setdefault(int(number), {})[name] = value
    new = run / metadata["state"]
    old = new.with_suffix(".pt")
    torch.save(state | {"optimizer": {"state": tensors, "param_groups": []}}, old)
    last = run / "last.safetensors"
    save_file(load_file(last), last, metadata | {"state": old.name})
    new.unlink()
    return old
