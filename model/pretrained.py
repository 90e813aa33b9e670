"""Initial weights: of timm's Vision Transformers, or of another run.

Letters: C classes; D width; P patch size; G rows x columns of patches.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from quadpipe.errors import ConfigError
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import BEST, LAST, RunFolder
from quadpipe.model.run_manifest import RunManifest
from quadpipe.weights import listing, parse_weights, read_weights_file, state_dict_problems

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "visual.trunk.")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How weights were loaded, by names of parameters.

    fresh: kept as initialized. unused: in the file only. changed: adapted, and how.
    """

    fresh: list[str]
    unused: list[str]
    changed: dict[str, str]


def load_pretrained(model: Quadformer, path: Path, classes: list[str] | None = None) -> Loaded:
    """Copy the weights of a timm ViT, or of a run, into `model`.

    path: a file of weights, or a run's folder or checkpoint. classes: the names of the model's.
    The patch embedding is reshaped to a linear map. Positions are resampled to the model's grid
    (bicubic, antialiased). The head is matched by the names of its classes, or by their number if
    the names are not known, and not loaded if they differ. Raises ConfigError if the file cannot be
    read, or a parameter is missing, has another shape or is not expected; ShardError if the file
    does not hold plain weights.
    """
    weights, run = _read(path)
    wanted = model.state_dict()
    changed: dict[str, str] = {}
    expected_fresh = {"scale_embed"}
    expected_unused: set[str] = set()
    if "patch_embed.proj.weight" in weights:
        weights["patch_embed.proj.weight"] = _linear_patches(
            weights["patch_embed.proj.weight"], wanted["patch_embed.proj.weight"], changed
        )
    split = _split_positions(weights, model, run.model.grid if run else None)
    if split and "pos_embed" in wanted:
        weights["pos_embed"] = _resample_positions(*split, model, changed)
    elif split:
        weights["cls_token"] = weights["cls_token"] + split[0]
        changed["pos_embed"] = "not loaded: the model has sinusoidal positions"
        expected_unused.add("pos_embed")
    _take_head(weights, wanted, classes, run.classes if run else None, changed)
    if "head.weight" not in weights:
        expected_fresh |= {"head.weight", "head.bias"}
    fresh = sorted(wanted.keys() - weights.keys())
    unused = sorted(weights.keys() - wanted.keys())
    problems = state_dict_problems(
        weights, wanted, may_miss=expected_fresh, may_be_unused=expected_unused
    )
    if problems:
        norm = ""
        if "fc_norm.weight" in unused:
            norm = ", with --pool area --fc-norm (its last norm comes after pooling)"
        elif "fc_norm.weight" in fresh:
            norm = ", without --fc-norm (its last norm comes before pooling)"
        raise ConfigError(
            f"{path} does not fit the model: {listing(problems, 8)}; give weights of a "
            f"plain timm ViT of width {model.config.width} and depth {model.config.depth}, or "
            f"another --model{norm}"
        )
    model.load_state_dict({k: weights.get(k, v) for k, v in wanted.items()})
    return Loaded(fresh=fresh, unused=unused, changed=changed)


def _read(path: Path) -> tuple[dict[str, Tensor], RunManifest | None]:
    """The weights at `path`, and the manifest of their run if it is known."""
    of_run = path.name in (BEST, LAST) and RunFolder(path.parent).started
    if not (path.is_dir() or of_run):
        return _without_prefix(parse_weights(read_weights_file(path), str(path))), None
    run = RunFolder(path if path.is_dir() else path.parent)
    config = run.config()
    model = run.model(torch.device("cpu"), None if path.is_dir() else path.name)
    return dict(model.state_dict()), config


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while not any(name.startswith("patch_embed.") for name in weights):
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in weights)), None)
        if prefix is None:
            break
        weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    return dict(weights)


def _linear_patches(weight: Tensor, wanted: Tensor, changed: dict[str, str]) -> Tensor:
    """A convolution `[D, 3, P, P]` as a linear map `[D, P * P * 3]` of pixels in H, W, C order."""
    if weight.dim() != 4 or weight.shape[2:].numel() * 3 != wanted.shape[1]:
        return weight
    changed["patch_embed.proj.weight"] = (
        f"reshaped from a {weight.shape[2]} x {weight.shape[3]} convolution"
    )
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _split_positions(
    weights: dict[str, Tensor], model: Quadformer, grid: tuple[int, int] | None
) -> tuple[Tensor, Tensor] | None:
    """Learned positions of CLS `[1, 1, D]` and of the patches `[1, D, rows, columns]`.

    timm's `pos_embed` is `[1, 1 + G, D]`, or `[1, G, D]` with `no_embed_class`: nothing is added to
    CLS then, as with a position of zeros. grid: of the positions, if it is known; otherwise a
    square is tried, then the model's grid. None without positions, or if none of these fits.
    """
    positions, cls_token = weights.get("pos_embed"), weights.get("cls_token")
    width = model.config.width
    if positions is None or positions.dim() != 3 or positions.shape[::2] != (1, width):
        return None
    if cls_token is None or cls_token.shape != (1, 1, width):
        return None
    count = positions.shape[1]
    square = [(math.isqrt(cells), math.isqrt(cells)) for cells in (count - 1, count) if cells > 0]
    for rows, columns in [grid] if grid else [*square, model.config.grid]:
        own = count - rows * columns
        if own in (0, 1):
            cells = positions[:, own:].reshape(1, rows, columns, width).permute(0, 3, 1, 2)
            return positions[:, :own] if own else torch.zeros_like(cls_token), cells
    return None


def _resample_positions(
    cls: Tensor, cells: Tensor, model: Quadformer, changed: dict[str, str]
) -> Tensor:
    """`[1, 1 + G, D]` for the model's grid, from split positions."""
    (rows, columns), side = model.config.grid, tuple(cells.shape[2:])
    notes = []
    if side != (rows, columns):
        notes.append(f"resampled from {side[0]} x {side[1]} to {rows} x {columns}")
        resized = F.interpolate(cells.float(), (rows, columns), mode="bicubic", antialias=True)
        cells = resized.to(cells.dtype)
    if not cls.any():
        notes.append("none for CLS")
    if notes:
        changed["pos_embed"] = ", ".join(notes)
    return torch.cat([cls, cells.flatten(2).transpose(1, 2)], dim=1)


def _take_head(
    weights: dict[str, Tensor],
    wanted: dict[str, Tensor],
    ours: list[str] | None,
    theirs: list[str] | None,
    changed: dict[str, str],
) -> None:
    """Sort the rows of the head `[C, D]` into the order of our classes, or drop the head."""
    head, classes = weights.get("head.weight"), len(wanted["head.weight"])
    if head is None or head.dim() != 2:
        return
    parts = ("head.weight", "head.bias")
    named = ours is not None and theirs is not None
    if ours is not None and theirs is not None and set(ours) <= set(theirs):
        for part in parts:
            weights[part] = weights[part][[theirs.index(name) for name in ours]]
        if ours != theirs:
            changed["head"] = "matched by the names of its classes"
    elif named or len(head) != classes:
        why = "other classes" if named else f"{len(head)} classes, the model has {classes}"
        changed["head"] = f"not loaded: {why}"
        for part in parts:
            weights.pop(part, None)
    else:
        changed["head"] = (
            f"loaded with its {classes} classes; the file does not hold their names, so they were "
            f"not compared"
        )
