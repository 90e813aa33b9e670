"""Where the time of training goes."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from runs import ADAPTIVE, SMALL, command

from quadpipe.cli import commands
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.step import TrainStep
from quadpipe.model.timing import StepTimes

T = TypeVar("T")


@pytest.mark.parametrize("options", [SMALL, ADAPTIVE | {"tokens_per_batch": None}])
def test_waiting_for_data_and_computing_are_told_apart(shards, tmp_path, monkeypatch, options):
    """By a clock that only these move: reading a batch, copying it, computing a step."""
    now = 0.0

    def taking(seconds: float, act: Callable[..., T]) -> Callable[..., T]:
        def slow(*given: Any, **named: Any) -> T:
            nonlocal now
            now += seconds
            return act(*given, **named)

        return slow

    real, read = Loader.epoch, taking(2, lambda batch: batch)
    monkeypatch.setattr(Loader, "epoch", lambda *given, **named: map(read, real(*given, **named)))
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("quadpipe.model.progress.time", clock)
    monkeypatch.setattr("quadpipe.model.timing.time", clock)
    monkeypatch.setattr("quadpipe.model.step.replace", taking(1, replace))
    computed = taking(5, TrainStep._accumulate_gradients)
    monkeypatch.setattr(TrainStep, "_accumulate_gradients", lambda *given: computed(*given))
    train(shards, tmp_path / "run", **options | {"epochs": 1, "log_interval": 4})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = [row for row in map(json.loads, lines) if row["event"] == "train"]
    # Steps 1 to 4 have waited for 3 batches: the clock starts with the first one.
    for row, waited in ((first, 3), (second, 4)):
        seconds = waited * 2 + 4 * 6
        assert row["waiting"] == waited * 2 / seconds
        assert row["copying"] == 4 / seconds
        assert row["computing"] == 20 / seconds
    assert first["images_per_second"] == 4 * 8 / 30
    if options is SMALL:
        assert first["tokens_per_second"] == 16 * first["images_per_second"]
    else:
        assert 10 < first["tokens_per_second"] / first["images_per_second"] < 28


def test_times_of_steps_are_summed_up_while_they_are_taken():
    times = StepTimes(torch.device("cpu"))
    for step in range(100):
        times.add(step, step + 0.25, step + 0.75)
        assert len(times._steps) <= 2
    assert times.totals() == times.totals() == (25, 50)
    times.clear()
    assert times.totals() == (0, 0)


def test_a_trace_of_some_steps_is_written(shards, tmp_path, capfd):
    run = tmp_path / "run"
    given = command(shards, run, "--profile", "2", changed={"epochs": 1})
    commands.main(given, standalone_mode=False)
    share = r"\d+\.\d%"
    told = rf" tokens/s  {share} waiting for data, {share} copying, {share} computing  "
    output = capfd.readouterr()
    assert re.search(told, output.out)
    assert f"note     the trace of the profiler is in {run / 'trace.json'}\n" in output.err
    assert "profiler_start" not in output.err
    events = json.loads((run / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {name for name in names if name.startswith("ProfilerStep#")} == {
        "ProfilerStep#5",
        "ProfilerStep#6",
    }
    assert any("addmm" in name for name in names)
