"""Pretrained models of nine families on the plain grid: features and logits are timm's.

The golden files were made with timm: tiny models with random weights, and the settings of a model.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import SMALL
from safetensors.torch import save_file

from quadpipe.errors import ConfigError
from quadpipe.model import train
from quadpipe.model.pretrained import load_pretrained, read_weights
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.model.run_folder import RunFolder

GOLDEN = {path.stem: path for path in sorted(Path(__file__).parents[1].glob("golden/timm/*.npz"))}
SIDE, PATCH = 64, 8
GRID = (SIDE // PATCH, SIDE // PATCH)
ONE_STEP = {k: v for k, v in SMALL.items() if k != "model"} | {"epochs": 1, "batch_size": 64}


@cache
def golden(family: str) -> dict[str, Any]:
    with np.load(GOLDEN[family]) as arrays:
        return {name: arrays[name] for name in arrays.files}


def state(family: str) -> dict[str, torch.Tensor]:
    arrays = golden(family)
    return {
        name.removeprefix("state/"): torch.from_numpy(array.copy())
        for name, array in arrays.items()
        if name.startswith("state/")
    }


def saved(family: str, folder: Path) -> Path:
    save_file(state(family), folder / f"{family}.safetensors")
    return folder / f"{family}.safetensors"


def config(family: str, path: Path, **options: Any) -> QuadformerConfig:
    """The configuration that the weights and timm's name of the model tell; heads are given."""
    heads = int(golden(family)["heads"])
    name = str(golden(family)["source"])
    architecture = read_weights(path).architecture(name, {"heads": heads})
    fields = {"classes": 5, "patch_size": PATCH, "grid": GRID, "max_scale": 2, "heads": heads}
    return QuadformerConfig(**architecture | fields | options)


def uniform(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as patches of scale 0 in raster order."""
    images = torch.from_numpy(golden(family)["images"])
    rows, columns = GRID
    tokens = images.unflatten(2, (columns, PATCH)).unflatten(1, (rows, PATCH)).transpose(2, 3)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    boxes = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(1, -1, 3)
    return tokens.flatten(1, 2), boxes.expand(len(images), -1, -1)


def relative(found: torch.Tensor, expected: np.ndarray) -> float:
    """The largest difference, in parts of the largest value."""
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


def differences(family: str, model: Quadformer) -> tuple[float, float]:
    """Of the features and the logits from timm's."""
    logits, out = model(*uniform(family))
    features = torch.cat([out["prefix"], out["tokens"]], dim=1)
    arrays = golden(family)
    return relative(features, arrays["features"]), relative(logits, arrays["logits"])


@pytest.mark.parametrize("family", GOLDEN)
def test_features_and_logits_are_timms(family, tmp_path):
    path = saved(family, tmp_path)
    chosen = config(family, path, scale_embedding=True)
    assert chosen.mean == pytest.approx(golden(family)["mean"].tolist())
    assert chosen.std == pytest.approx(golden(family)["std"].tolist())
    assert chosen.prefix == golden(family)["prefix"]
    model = Quadformer(chosen).eval()
    loaded = load_pretrained(model, path)
    assert loaded.fresh == ["scale_embed"]
    assert loaded.unused == []
    found = differences(family, model)
    assert max(found) < 1e-5


def test_training_starts_from_the_model_of_the_weights(shards, tmp_path):
    path = saved("dinov2_reg", tmp_path)
    train(shards, tmp_path / "run", **ONE_STEP, init=path, heads=2)
    run = RunFolder(tmp_path / "run")
    stored = run.config()
    assert (stored.model.width, stored.model.depth, stored.model.reg_tokens) == (32, 2, 4)
    assert (stored.train.positions, stored.train.heads, stored.train.model) == ("learned", 2, None)
    assert "reg_token" in run.model(torch.device("cpu")).state_dict()
    resumed = train(shards, run.folder.root, **ONE_STEP, resume=True)
    assert resumed.config() == stored
    again = tmp_path / "again"
    train(shards, again, **ONE_STEP, init=run.folder.root, scale_embedding=True)
    assert RunFolder(again).config().model == replace(stored.model, scale_embedding=True)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("augreg", {}, "does not tell its heads, mean, std; give timm's name .* --init-name vit_"),
        ("clip", {"heads": 2}, "does not tell its activation, mean, std; .* --activation, --mean"),
        ("siglip2", {"heads": 2, "mean": (0.5,) * 3}, "does not tell its activation, std;"),
        ("dinov3", {"heads": 2}, "does not tell its mean, std"),
        ("mae", {"init_name": "resnet50"}, "--init-name resnet50 is not known; give timm's whole"),
        ("deit3", {"heads": 2, "model": "nano"}, "model nano has width 96, the weights have 32;"),
    ],
)
def test_what_weights_do_not_tell_is_asked_for(shards, tmp_path, family, options, message):
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "run", **ONE_STEP | options, init=saved(family, tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_name_is_for_the_weights_of_init(shards, tmp_path, undisturbed):
    with pytest.raises(ConfigError, match="--init-name is the name of the weights of --init"):
        train(shards, tmp_path / "run", **ONE_STEP, init_name="vit_base_patch16_224.mae")
    with pytest.raises(ConfigError, match="is a run, which has its settings; omit --init-name"):
        train(shards, tmp_path / "run", **ONE_STEP, init=undisturbed, init_name="x.mae")
