"""Training in several processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from runs import (
    SMALL,
    command,
    losses,
    torchrun,
)

from quadpipe.errors import ConfigError
from quadpipe.model import train
from quadpipe.model.run_folder import pick_device


def test_a_damaged_sample_ends_every_process_with_one_line(shards, tmp_path):
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    marker = json.loads((damaged / ".quadpipe/markers/train/0000/000001.json").read_text())
    tar = damaged / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[marker["views"][0]["offsets"][3] + 520] ^= 0xFF
    tar.write_bytes(bytes(data))
    done = processes.run(command(damaged, tmp_path / "run"), tmp_path, 2)
    assert done.returncode == 1
    ours = sorted(line for line in done.stderr.splitlines() if line.startswith("quadpipe: "))
    assert len(ours) == 2
    assert "train-000001.tar: 00000000" in ours[0]
    assert "another process of the run has failed; see its message" in ours[1]
    assert "[rank" not in done.stderr  # torch's mark on tracebacks
    assert "done" not in done.stdout


def test_an_error_of_one_process_is_reported_once(shards, undisturbed, tmp_path):
    done = processes.run(command(shards, undisturbed), tmp_path, 2)
    assert done.returncode == 1
    assert done.stderr.count("is not empty") == 1
    assert "Traceback" not in done.stderr


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
def test_invalid_variables_of_torchrun_are_refused(
    shards, tmp_path, monkeypatch, variables, message
):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("2", "LOCAL_RANK 2 has no GPU: torch sees 2 here; start at most 2 .* set LOCAL_RANK=0"),
        ("x", "LOCAL_RANK 'x'"),
    ],
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


@pytest.mark.parametrize(
    ("options", "by_torchrun"),
    [
        ({"epochs": 2, "token_dropout": 0.2, "grad_accum_steps": 2, "ema_decay": 0.9}, True),
        ({"epochs": 2, "tokens": None, "mean_tokens": "16-28", "color_jitter": 0.2}, False),
    ],
)
def test_two_processes_give_the_losses_of_one(shards, tmp_path, options, by_torchrun):
    if by_torchrun:
        done = torchrun(shards, tmp_path / "two", changed=options)
    else:
        done = processes.run(command(shards, tmp_path / "two", changed=options), tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done; quadpipe eval") == 1
    assert "Warning" not in done.stderr
    assert "[W" not in done.stderr  # those of torch's own log
    train(shards, tmp_path / "one", **SMALL | options)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 16
    assert [step for step, _ in one] == [step for step, _ in two]
    np.testing.assert_allclose([x for _, x in two], [x for _, x in one], rtol=1e-4)
