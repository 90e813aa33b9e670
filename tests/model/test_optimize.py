"""Options of training, the learning rate, weight decay and the moving average."""

from dataclasses import replace

import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.model import TrainConfig
from quadpipe.model.config import PRESETS
from quadpipe.model.optimize import MovingAverage, learning_rate, make_optimizer
from quadpipe.model.quadformer import Quadformer


def groups_of(model: Quadformer, config: TrainConfig) -> dict[str, tuple[float, float]]:
    """Weight decay and factor of the learning rate of each parameter."""
    groups = {}
    for group in make_optimizer(model, config).param_groups:
        for parameter in group["params"]:
            groups[id(parameter)] = (group["weight_decay"], group["lr_scale"])
    found = {name: groups[id(p)] for name, p in model.named_parameters()}
    assert len(found) == len(groups)
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "huge"}, "model 'huge' is not one of nano, tiny"),
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"lr": 0.0}, "lr 0 is not above 0 and at most 1e"),
        ({"lr": 1e38}, "lr 1e.38 is not above 0 and at most 1e"),
        ({"seed": 2**70}, "is not from 0 to 9,223,372,036,854,775,807"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean must be a finite number"),
        ({"weight_decay": -1.0}, "weight_decay -1 is below 0"),
        ({"label_smoothing": 1.0}, "label_smoothing 1 is not from 0 to below 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std 0 is not above 0"),
        ({"flip": 2.0}, "flip 2 is not from 0 to 1"),
        ({"batch_size": "8"}, "batch_size must be a whole number, not '8'"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_the_learning_rate_warms_up_in_samples_and_falls_to_its_minimum():
    config = TrainConfig(epochs=10, warmup_epochs=2.0, lr=1.0, min_lr=0.1)
    rates = [learning_rate(config, seen, 100) for seen in (0, 50, 100, 200, 600, 1000)]
    assert rates == pytest.approx([0, 0.25, 0.5, 1.0, 0.55, 0.1])


def test_weight_decay_skips_biases_norms_and_positions_and_lower_layers_learn_slower(shards):
    config = TrainConfig(model="nano", layer_decay=0.5, positions="learned")
    model = Quadformer(config.quadformer(quadpipe.Dataset(shards).manifest))
    found = groups_of(model, config)
    assert found["head.weight"] == (0.05, 1.0)
    assert found["head.bias"] == (0.0, 1.0)
    assert found["blocks.3.mlp.fc1.weight"] == (0.05, 0.5)
    assert found["blocks.0.norm1.weight"] == (0.0, 0.0625)
    assert found["patch_embed.proj.weight"] == (0.05, 0.03125)
    assert found["pos_embed"] == (0.0, 0.03125)
    assert PRESETS["nano"]["depth"] == 4


def test_registers_and_the_pooling_of_pretrained_models_have_their_groups(shards):
    config = TrainConfig(model="nano", layer_decay=0.5, pool="attention")
    chosen = config.quadformer(quadpipe.Dataset(shards).manifest)
    model = Quadformer(replace(chosen, reg_tokens=4, layer_scale=True, pre_norm=True))
    found = groups_of(model, config)
    assert found["reg_token"] == (0.0, 0.03125)
    assert found["norm_pre.weight"] == (0.0, 0.03125)
    assert found["blocks.3.ls1.gamma"] == (0.0, 0.5)
    assert found["attn_pool.latent"] == (0.0, 1.0)
    assert found["attn_pool.kv.weight"] == (0.05, 1.0)


def test_the_moving_average_follows_the_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 0.0)
    average = MovingAverage(layer, 0.9)
    torch.nn.init.constant_(layer.weight, 1.0)
    average.update(layer, step=1000)
    assert average.weights["weight"].item() == pytest.approx(0.1)
