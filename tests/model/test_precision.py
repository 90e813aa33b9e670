"""bf16: where it is used, and what stays in float32."""

import json
from functools import partial
from typing import Any

import pytest
import torch
from command_line import run_cli
from runs import SMALL, RecordedProgress, losses

from quadpipe.errors import ConfigError
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.evaluate import evaluate
from quadpipe.model.precision import autocast
from quadpipe.model.run_folder import RunFolder

CPU = torch.device("cpu")


def test_auto_is_bf16_on_gpus_that_do_not_emulate_it(monkeypatch):
    def in_bf16(device: torch.device, amp: str) -> bool:
        return isinstance(autocast(device, amp), torch.autocast)

    assert [in_bf16(CPU, amp) for amp in ("auto", "bf16", "off")] == [False, True, False]
    monkeypatch.setattr(torch, "autocast", type("autocast", (), {"__init__": lambda *given: None}))
    for capability, expected in (((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert in_bf16(torch.device("cuda", 0), "auto") is expected
    assert in_bf16(torch.device("cuda", 0), "bf16")
    assert not in_bf16(torch.device("cuda", 0), "off")


def test_evaluation_follows_amp(shards, undisturbed):
    model: Any = RunFolder(undisturbed).model(CPU)
    loader = Loader(shards, "val", batch_size=8, tokens=16, shuffle=False)
    dtypes: list[torch.dtype] = []
    model.head.register_forward_hook(lambda _, given, out: dtypes.append(out.dtype))
    scores = [evaluate(model, loader, CPU, amp=amp) for amp in ("off", "auto", "bf16")]
    assert dtypes == [torch.float32] * 4 + [torch.bfloat16] * 2
    assert scores[0].loss == scores[1].loss != scores[2].loss
    assert scores[2].loss == pytest.approx(scores[0].loss, rel=0.02)
    done = run_cli("eval", undisturbed, shards, "--amp", "bf16", "--json", "--batch-size", 8)
    assert json.loads(done.stdout)[0]["loss"] == scores[2].loss


def test_a_failure_of_torch_compile_is_one_line(shards, tmp_path, monkeypatch):
    def program(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in g++\n\nmore of it")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=program))
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="--compile failed: .* needs a C") as caught:
        train(shards, run, **SMALL | {"epochs": 1}, compile=True)
    assert "No working C++ compiler" in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    train(shards, run, **SMALL | {"epochs": 1}, resume=True)
    assert len(losses(run)) == 8


def test_a_compiled_model_has_one_program_for_each_number_of_tokens(shards, tmp_path, monkeypatch):
    options: dict[str, Any] = SMALL | {"tokens": "10,13,16", "epochs": 1, "drop_last": True}
    train(shards, tmp_path / "eager", **options)
    compiled: list[int] = []

    def program(graph: Any, inputs: Any) -> Any:
        compiled.append(1)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=program))
    recorded = RecordedProgress()
    train(shards, tmp_path / "run", **options, compile=True, progress=recorded)
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")
    assert len(compiled) == 3
    assert any("compiles the model for each of 3 numbers" in line for line in recorded.warnings)
