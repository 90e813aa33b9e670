"""Training of a part of the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SMALL, command, losses, stop_after
from safetensors.torch import load_file
from torch import Tensor

import quadpipe
from quadpipe.cli import commands
from quadpipe.errors import ConfigError
from quadpipe.model import TrainConfig, train
from quadpipe.model.optimize import MovingAverage, freeze, make_optimizer
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.signals import InterruptedTrainingError

CPU = torch.device("cpu")
PROBE = SMALL | {"model": None, "epochs": 1, "freeze": "backbone"}


@pytest.fixture
def model(shards) -> Quadformer:
    torch.manual_seed(0)
    config = TrainConfig(model="nano", drop_path=0.5)
    return Quadformer(config.quadformer(quadpipe.Dataset(shards).manifest))


def trained(model: Quadformer) -> set[str]:
    """Names of modules with parameters that are trained."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {".".join(name.split(".")[: 1 + name.startswith("blocks.")]) for name in names}


def changed(run: Path, since: Path, prefix: str = "") -> set[str]:
    """Names of weights of a run that are not those of another."""
    now, before = load_file(run / "last.safetensors"), load_file(since)
    return {name for name in before if not torch.equal(now[prefix + name], before[name])}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("backbone", {"head"}),
        (4, {"norm", "head"}),
        (3, {"blocks.3", "norm", "head"}),
        (0, {"blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"}),
    ],
)
def test_the_head_or_the_last_blocks_are_trained(model, part, expected):
    freeze(model, part)
    assert trained(model) == expected
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5))
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    last = next(
        group for group in optimizer.param_groups if group["params"][-1] is model.head.weight
    )
    assert last["lr_scale"] == 1


def test_the_frozen_part_keeps_no_gradients_and_drops_no_branches(model):
    tokens, boxes = torch.rand(4, 3, 8, 8, 3) * 255, torch.zeros(4, 3, 3, dtype=torch.int64)
    boxes[:, :, 0] = torch.arange(3)
    assert not torch.equal(*(model.train()(tokens, boxes)[0] for _ in range(2)))
    freeze(model, "backbone")
    assert torch.equal(*(model.train()(tokens, boxes)[0] for _ in range(2)))
    logits, out = model(tokens, boxes)
    assert logits.requires_grad
    assert not out["pooled"].requires_grad
    freeze(model, 2)
    assert [block.training for block in model.train().blocks] == [False, False, True, True]
    assert model.training


def test_a_linear_probe_changes_the_head_only(shards, undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    options = PROBE | {"ema_decay": 0.9, "layer_decay": 0.75}
    given = command(shards, run, "--init", str(undisturbed), changed=options)
    commands.main(given, standalone_mode=False)
    output = capsys.readouterr()
    assert ", 194 of them trained, 2 classes, " in output.out
    assert "note     --layer-decay has no effect with --freeze backbone" in output.err
    before = undisturbed / "best.safetensors"
    assert changed(run, before) == {"head.weight", "head.bias"}
    assert changed(run, before, "ema.") == {"head.weight", "head.bias"}
    weights = load_file(run / "last.safetensors")
    assert not torch.equal(weights["ema.head.weight"], weights["head.weight"])
    assert RunFolder(run).config().train.freeze == "backbone"


def test_a_resumed_run_freezes_the_same_part(shards, undisturbed, tmp_path, monkeypatch):
    options: dict[str, Any] = PROBE | {"freeze": "2", "ema_decay": 0.9, "drop_path": 0.2}
    train(shards, tmp_path / "whole", **options, init=undisturbed)
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(InterruptedTrainingError):
            train(shards, tmp_path / "run", **options, init=undisturbed)
    with pytest.raises(ConfigError, match="train.freeze was 2, now None"):
        train(shards, tmp_path / "run", **options | {"freeze": None}, resume=True)
    train(shards, tmp_path / "run", **options, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert changed(tmp_path / "run", tmp_path / "whole" / "last.safetensors") == set()
    moved = {".".join(n.split(".")[:2]) for n in changed(
        tmp_path / "run", undisturbed / "best.safetensors"
    )}  # fmt: skip
    assert moved == {"blocks.2", "blocks.3", "norm.weight", "norm.bias", "head.weight", "head.bias"}


def test_the_moving_average_has_no_copy_of_the_frozen_part(model):
    freeze(model, "backbone")
    average = MovingAverage(model, 0.5)
    own: dict[str, Tensor] = model.state_dict()
    shared = {name for name, value in average.weights.items() if value.is_set_to(own[name])}
    assert own.keys() - shared == {"head.weight", "head.bias"}
    torch.nn.init.ones_(model.head.bias)
    average.update(model, step=1000)
    assert average.weights["head.bias"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": None}, "--freeze would keep random weights; give --init too"),
        ({"freeze": 5}, "freeze 5 is not from 0 to 4, the number of blocks; to train the head "),
        ({"freeze": "head"}, "freeze 'head' is neither backbone nor a number of blocks"),
        ({"scale_embedding": True}, "would keep a scale embedding that is new, so zero; omit --fr"),
    ],
)
def test_parts_that_cannot_be_frozen_are_refused(shards, undisturbed, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "run", **PROBE | {"init": undisturbed} | options)
    assert not (tmp_path / "run").exists()
