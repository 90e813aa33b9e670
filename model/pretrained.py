"""Initial weights: of timm's Vision Transformers, or of another run.

Letters: C classes; D width; P patch size; R CLS and register tokens; G rows x columns of patches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from quadpipe.errors import ConfigError
from quadpipe.model.layouts import (
    FAMILIES,
    from_timm,
    recognize,
    settings_by_metadata,
    settings_by_name,
)
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import BEST, LAST, RunFolder
from quadpipe.model.run_manifest import RunManifest
from quadpipe.text import counted
from quadpipe.weights import (
    listing,
    parse_metadata,
    parse_weights,
    read_weights_file,
    state_dict_problems,
)

_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "visual.trunk.")
_LARGEST_KERNEL = 64  # pixels; the pseudo-inverse has this to the fourth power of numbers
_ASKED = ("heads", "activation", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights as they were read. path: of their file or run.

    tensors: under timm's names, or a run's. run: its manifest, None for weights of timm. settings:
    `settings_by_metadata` of the file.
    """

    path: Path
    tensors: dict[str, Tensor]
    run: RunManifest | None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes of the head, if they are known."""
        classes: list[str] | None = self.settings.get("classes")
        return self.run.classes if self.run else classes

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the learned positions, if they are known."""
        grid: list[int] | None = self.settings.get("grid")
        return self.run.model.grid if self.run else (grid[0], grid[1]) if grid else None

    def renamed(self) -> dict[str, Tensor]:
        """The tensors under the Quadformer's names; ConfigError if they are not of a ViT."""
        try:
            return from_timm(self.tensors)
        except ConfigError as error:
            raise self._unlike_timm(error) from error

    def architecture(self, name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the QuadformerConfig that the weights were trained with.

        Without those that depend on the dataset and those of training. name: of timm's model.
        given: the user's options of the model; they take precedence. Raises ConfigError if the
        weights are not of a known family, or if something that they do not tell is not given.
        """
        if self.run is not None:
            if name is not None:
                raise ConfigError(f"{self.path} is a run, which has its settings; omit --init-name")
            return self.run.model.architecture()
        try:
            layout, found = recognize(self.tensors)
        except ConfigError as error:
            raise self._unlike_timm(error) from error
        of_the_file = ("classes", "grid")
        found |= {key: value for key, value in self.settings.items() if key not in of_the_file}
        found |= settings_by_name(name, layout) if name is not None else {}
        if asked := [option for option in _ASKED if option not in {*found, *given}]:
            by_name = (
                "timm's name of the model, such as --init-name "
                "vit_small_patch14_reg4_dinov2.lvd142m, or "
            )
            raise ConfigError(
                f"{self.path} does not tell its {', '.join(asked)}; give "
                f"{'' if name else by_name}{', '.join('--' + option for option in asked)}"
            )
        return found

    def _unlike_timm(self, error: ConfigError) -> ConfigError:
        return ConfigError(
            f"{self.path} is not a ViT as timm has them: {error}; give weights of {FAMILIES}"
        )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How weights were loaded, by names of parameters.

    fresh: kept as initialized. unused: in the file only. changed: adapted, and how.
    """

    fresh: list[str]
    unused: list[str]
    changed: dict[str, str]


def read_weights(path: Path) -> Weights:
    """The weights of a file, or of a run's folder or checkpoint.

    Raises ConfigError if the file cannot be read, ShardError if it does not hold plain weights.
    """
    of_run = path.name in (BEST, LAST) and RunFolder(path.parent).started
    if not (path.is_dir() or of_run):
        data = read_weights_file(path)
        tensors = _without_prefix(parse_weights(data, str(path)))
        try:
            settings = settings_by_metadata(parse_metadata(data))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return Weights(path=path, tensors=tensors, run=None, settings=settings)
    run = RunFolder(path if path.is_dir() else path.parent)
    model = run.model(torch.device("cpu"), None if path.is_dir() else path.name)
    return Weights(path=path, tensors=dict(model.state_dict()), run=run.config())


def load_pretrained(
    model: Quadformer, source: Path | Weights, classes: list[str] | None = None
) -> Loaded:
    """Copy the weights of a timm ViT, or of a run, into `model`.

    classes: the names of the model's. The patch embedding becomes a linear map, of another patch
    size by its pseudo-inverse. Positions are resampled to the model's grid (bicubic, antialiased).
    The head is matched by the names of its classes, or by their number if the names are not known,
    and not loaded if they differ. Raises ConfigError if the file cannot be read, or a parameter is
    missing, has another shape or is not expected; ShardError if the file does not hold plain
    weights.
    """
    source = source if isinstance(source, Weights) else read_weights(source)
    weights, run = source.renamed(), source.run
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ConfigError(
                f"{source.path}: {name} is {tensor.dtype}, not floating point; give weights in "
                f"float32, float16 or bfloat16"
            )
    wanted = model.state_dict()
    changed: dict[str, str] = {}
    expected_fresh, expected_unused = {"scale_embed"}, set[str]()
    new_scales = _fit_scales(weights, model, changed)
    _embed_patches(weights, model, run.model.patch_size if run else None, changed)
    if _place_positions(weights, model, source.grid, changed):
        expected_unused.add("pos_embed")
    if model.config.pool != "attention":
        unused_pool = {name for name in weights if name.startswith("attn_pool.")}
        if unused_pool:
            changed["attn_pool"] = f"not loaded: the model has pool {model.config.pool}"
        expected_unused |= unused_pool
    _take_head(weights, wanted, classes, source.classes, changed)
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
        elif "attn_pool.latent" in fresh:
            norm = ", without --pool attention (it has no attention pooling)"
        raise ConfigError(
            f"{source.path} does not fit the model: {listing(problems, 8)}; give weights of a "
            f"timm ViT of width {model.config.width} and depth {model.config.depth}, of "
            f"{FAMILIES}{norm}"
        )
    model.load_state_dict({k: weights.get(k, v) for k, v in wanted.items()})
    return Loaded(fresh=[*fresh, *new_scales], unused=unused, changed=changed)


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while not any(name.startswith("patch_embed.") for name in weights):
        prefix = next((p for p in _PREFIXES if any(n.startswith(p) for n in weights)), None)
        if prefix is None:
            break
        weights = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    return dict(weights)


def _embed_patches(
    weights: dict[str, Tensor], model: Quadformer, side: int | None, changed: dict[str, str]
) -> None:
    """Make the patch embedding the model's linear map of pixels in H, W, C order.

    It is a convolution `[D, 3, P, P]`, or of a run such a linear map. side: the run's patch size.
    """
    name, wanted = "patch_embed.proj.weight", model.config.patch_size
    kernel = weights.get(name)
    if kernel is None:
        return
    if side is not None:
        kernel = kernel.view(-1, side, side, 3).permute(0, 3, 1, 2)
    if kernel.dim() != 4 or kernel.shape[1] != 3 or kernel.shape[2] != kernel.shape[3]:
        return
    size = kernel.shape[-1]
    if size != wanted:
        if size > _LARGEST_KERNEL:
            raise ConfigError(
                f"{name} is for patches of {size} pixels, too large to be resampled to {wanted}; "
                f"use weights for patches of at most {_LARGEST_KERNEL} pixels"
            )
        kernel = resample_kernel(kernel, wanted)
        changed[name] = f"resampled from patches of {size} to {wanted} pixels, by pseudo-inverse"
    elif side is None:
        changed[name] = f"reshaped from a {size} x {size} convolution"
    weights[name] = kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)


def resample_kernel(kernel: Tensor, side: int) -> Tensor:
    """Patch embeddings `[D, 3, P, P]` for patches of another side (FlexiViT, arXiv 2212.08013).

    The embedding of a patch that is resized (bicubic, antialiased) to a larger side is that of the
    patch itself; to a smaller one the nearest that there is, for random patches.
    """
    size = kernel.shape[-1]
    pixels = torch.eye(size * size, dtype=torch.float64).view(size * size, 1, size, size)
    resize = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True).double()
    inverse = torch.linalg.pinv(resize.flatten(1))  # [side^2, P^2]
    resampled: Tensor = kernel.double().flatten(2) @ inverse.T
    return resampled.to(kernel.dtype).view(*kernel.shape[:2], side, side)


def _place_positions(
    weights: dict[str, Tensor],
    model: Quadformer,
    grid: tuple[int, int] | None,
    changed: dict[str, str],
) -> bool:
    """Fit the learned positions to the model; True if it has none, and they are to be left out."""
    split = _split_positions(weights, model, grid)
    if split is None:
        return False
    prefix, cells = split
    config = model.config
    if prefix.shape[1] and (config.positions != "learned" or config.no_embed_class):
        start = 0
        for name in ("cls_token", "reg_token"):
            if name in weights:
                token = weights[name]
                weights[name] = token + prefix[:, start : start + token.shape[1]]
                start += token.shape[1]
        prefix = prefix[:, :0]
    if config.positions != "learned":
        changed["pos_embed"] = f"not loaded: the model has {config.positions} positions"
        return True
    weights["pos_embed"] = _resample_positions(prefix, cells, model, grid, changed)
    return False


def _split_positions(
    weights: dict[str, Tensor], model: Quadformer, grid: tuple[int, int] | None
) -> tuple[Tensor, Tensor] | None:
    """Learned positions of the prefix tokens `[1, R or 0, D]` and patches `[1, D, rows, columns]`.

    timm's `pos_embed` is `[1, R + G, D]`, or `[1, G, D]` with `no_embed_class`. grid: of the
    positions, if it is known; otherwise the model's grid is tried, then a square. None without
    positions. Raises ConfigError if the grid does not fit.
    """
    positions, width = weights.get("pos_embed"), model.config.width
    if positions is None or positions.dim() != 3 or positions.shape[::2] != (1, width):
        return None
    tokens = [weights[name] for name in ("cls_token", "reg_token") if name in weights]
    if any(token.dim() != 3 or token.shape[::2] != (1, width) for token in tokens):
        return None
    prefix, count = sum(token.shape[1] for token in tokens), positions.shape[1]
    square = [(math.isqrt(c), math.isqrt(c)) for c in (count - prefix, count) if c > 0]
    for rows, columns in [grid] if grid else [model.config.grid, *square]:
        own = count - rows * columns
        if own in (0, prefix):
            cells = positions[:, own:].reshape(1, rows, columns, width).permute(0, 3, 1, 2)
            return positions[:, :own], cells
    told = f"a grid of {grid[0]} x {grid[1]} in its metadata" if grid else "no grid in its metadata"
    raise ConfigError(
        f"pos_embed has {count} positions with {told}, and {prefix} other tokens, which does not "
        f"fit; give the run, a new export of it, or weights of a square grid"
    )


def _resample_positions(
    prefix: Tensor,
    cells: Tensor,
    model: Quadformer,
    grid: tuple[int, int] | None,
    changed: dict[str, str],
) -> Tensor:
    """`[1, R + G, D]`, or without R, for the model, from split positions."""
    (rows, columns), side = model.config.grid, tuple(cells.shape[2:])
    notes = []
    if grid is None and side[0] != side[1]:
        notes.append(f"taken for {side[0]} x {side[1]} as in the model: the file has no grid")
    if side != (rows, columns):
        notes.append(f"resampled from {side[0]} x {side[1]} to {rows} x {columns}")
        resized = F.interpolate(cells.float(), (rows, columns), mode="bicubic", antialias=True)
        cells = resized.to(cells.dtype)
    if not prefix.shape[1] and not model.config.no_embed_class and model.config.prefix:
        notes.append("none for CLS")
        prefix = prefix.new_zeros(1, model.config.prefix, model.config.width)
    if notes:
        changed["pos_embed"] = ", ".join(notes)
    return torch.cat([prefix, cells.flatten(2).transpose(1, 2)], dim=1)


def _fit_scales(
    weights: dict[str, Tensor], model: Quadformer, changed: dict[str, str]
) -> list[str]:
    """Fit the embeddings of scales `[scales, D]` to the model's scales; those that are new."""
    name, scales = "scale_embed", model.config.max_scale + 1
    given = weights.get(name)
    if given is None or given.dim() != 2 or len(given) == scales:
        return []
    if len(given) > scales:
        changed[name] = f"loaded for {scales} of {len(given)} scales"
    weights[name] = torch.zeros(scales, given.shape[1], dtype=given.dtype)
    weights[name][: len(given)] = given[:scales]
    return [f"{name}[{len(given)}:]"] if len(given) < scales else []


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
    if theirs is not None and len(theirs) != len(head):
        raise ConfigError(
            f"the metadata of the weights names {counted(len(theirs), 'class')} for a head of "
            f"{len(head)}; save them without it"
        )
    parts = ("head.weight", "head.bias")
    named = ours is not None and theirs is not None
    if ours is not None and theirs is not None and set(ours) <= set(theirs):
        for part in parts:
            weights[part] = weights[part][[theirs.index(name) for name in ours]]
        if ours != theirs:
            changed["head"] = "matched by the names of its classes"
    elif named or len(head) != classes:
        why = (
            "other classes" if named else f"{counted(len(head), 'class')}, the model has {classes}"
        )
        changed["head"] = f"not loaded: {why}"
        for part in parts:
            weights.pop(part, None)
    else:
        changed["head"] = (
            f"loaded with its {counted(classes, 'class')}; the file does not hold their names, so "
            f"they were not compared"
        )
