"""Where the time of training goes."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from runs import ADAPTIVE, SMALL, command

from quadpipe.cli import commands
from quadpipe.loader import Batch, Loader
from quadpipe.model import train
from quadpipe.model.timing import StepTimes


@pytest.mark.parametrize("options", [SMALL, ADAPTIVE | {"tokens_per_batch": None}])
def test_waiting_for_data_and_computing_are_told_apart(shards, tmp_path, monkeypatch, options):
    real = Loader.epoch

    def slow(loader: Loader, *epoch: int, **options: Any) -> Iterator[Batch]:
        for batch in real(loader, *epoch, **options):
            time.sleep(0.2)
            yield batch

    train(shards, tmp_path / "fast", **options | {"epochs": 1, "log_interval": 100})
    monkeypatch.setattr(Loader, "epoch", slow)
    train(shards, tmp_path / "slow", **options | {"epochs": 1, "log_interval": 100})
    fast, slowed = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in ("fast", "slow")
    )
    assert slowed["waiting"] > 0.5 > fast["waiting"]
    assert fast["computing"] > 0.4 > slowed["computing"] > 0
    for row in (fast, slowed):
        assert row["waiting"] + row["copying"] + row["computing"] < 1
        assert 0 < row["copying"] < 0.1
    if options is SMALL:
        assert fast["tokens_per_second"] == pytest.approx(16 * fast["images_per_second"])
    else:
        assert 10 < fast["tokens_per_second"] / fast["images_per_second"] < 28


def test_times_of_steps_are_summed_up_while_they_are_taken():
    times = StepTimes(torch.device("cpu"))
    for step in range(100):
        times.add(step, step + 0.25, step + 0.75)
        assert len(times._steps) <= 2
    assert times.totals() == times.totals() == (25, 50)
    times.clear()
    assert times.totals() == (0, 0)


def test_a_trace_of_some_steps_is_written(shards, tmp_path, capsys):
    run = tmp_path / "run"
    given = command(shards, run, "--profile", "2", changed={"epochs": 1})
    commands.main(given, standalone_mode=False)
    share = r"\d+\.\d%"
    told = rf" tokens/s  {share} waiting for data, {share} copying, {share} computing  "
    assert re.search(told, capsys.readouterr().out)
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {name for name in names if name.startswith("ProfilerStep#")} == {
        "ProfilerStep#5",
        "ProfilerStep#6",
    }
    assert any("addmm" in name for name in names)
