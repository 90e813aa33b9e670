"""A step whose loss is not finite: it is found a step later, and nothing of it is left."""

from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from runs import SMALL, command, losses

from quadpipe.model import step as step_module
from quadpipe.model import train
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.step import NonFiniteLossError, TrainStep

OPTIONS: dict[str, Any] = SMALL | {"epochs": 2, "log_interval": 3, "ema_decay": 0.9}


# The optimizer of a CPU, and the kernel of a GPU, which leaves the update out by itself.
OPTIMIZERS = ("loop", "fused")


def use(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "has_fused", lambda device: optimizer == "fused")


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> dict[str, Path]:
    """An undisturbed run of each optimizer."""
    runs = {optimizer: tmp_path_factory.mktemp("whole") / "run" for optimizer in OPTIMIZERS}
    for optimizer, run in runs.items():
        with pytest.MonkeyPatch.context() as patched:
            use(optimizer, patched)
            train(shards, run, **OPTIONS)
    return runs


def break_step(monkeypatch: pytest.MonkeyPatch, broken: int) -> list[str]:
    """Make the loss of the third sample of a step infinite; the key of that sample."""
    real, keys = TrainStep.__call__, []

    def call(self, batch, *, step, **options):
        if step == broken:
            keys.append(batch.keys[2])
            self.model.head.register_forward_hook(
                lambda _, given, logits: logits.index_fill(0, torch.tensor(2), float("inf"))
            )
        elif step > broken:
            self.model.head._forward_hooks.clear()
        return real(self, batch, step=step, **options)

    monkeypatch.setattr(TrainStep, "__call__", call)
    return keys


# In an interval, at its end, in the last step of an epoch, and in the first and last of a run.
@pytest.mark.parametrize("broken", [3, 5, 7, 0, 15])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_step_leaves_the_run_as_it_was_before(
    shards, whole, tmp_path, monkeypatch, optimizer, broken
):
    use(optimizer, monkeypatch)
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        keys = break_step(patched, broken)
        with pytest.raises(NonFiniteLossError) as raised:
            train(shards, run, **OPTIONS)
    assert f"not finite at step {broken}; the weights from before it" in str(raised.value)
    assert f"Samples: {keys[0]}. Try" in str(raised.value)
    metadata = RunFolder(run).weights("last.safetensors")[2]
    assert metadata["step"] == str(broken)
    train(shards, run, **OPTIONS, resume=True)
    assert losses(run) == losses(whole[optimizer])
    for one, other in zip(weights(run), weights(whole[optimizer]), strict=True):
        assert torch.equal(one, other)


def weights(run: Path) -> list[torch.Tensor]:
    """Weights and their moving average."""
    raw, average, _ = RunFolder(run).weights("last.safetensors")
    assert average is not None
    return [*raw.values(), *average.values()]


def test_the_fused_optimizer_learns_what_the_other_does(whole):
    expected, found = ([x for _, x in losses(whole[optimizer])] for optimizer in OPTIMIZERS)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_all_processes_stop_before_a_bad_step(shards, tmp_path):
    changed = {"clip_grad": 0.0, "warmup_epochs": 0.0, "lr": 1e6, "log_interval": 50}
    done = processes.run(command(shards, tmp_path / "run", changed=changed), tmp_path, 2)
    assert done.returncode == 1
    ours = [line for line in done.stderr.splitlines() if line.startswith("quadpipe: ")]
    assert len(ours) == 2
    assert all("loss or gradient is not finite at step" in line for line in ours)
    assert all("Samples: 00000" in line for line in ours)
    raw = RunFolder(tmp_path / "run").weights("last.safetensors")[0]
    assert all(torch.isfinite(weight).all() for weight in raw.values())
