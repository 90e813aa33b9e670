"""The golden files of pretrained ViTs: tiny models that were made with timm."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from quadpipe.model.pretrained import read_weights
from quadpipe.model.quadformer import Quadformer, QuadformerConfig

GOLDEN = {path.stem: path for path in sorted(Path(__file__).parent.glob("golden/timm/*.npz"))}
SIDE, PATCH = 64, 8
GRID = (SIDE // PATCH, SIDE // PATCH)


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
