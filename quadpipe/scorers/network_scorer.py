"""The base class of scorers that run a network."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.fields import declared_options, option
from quadpipe.geometry import Geometry
from quadpipe.scorers.base import Parameter, Scorer
from quadpipe.scorers.network import BACKBONES, Network

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    backbone: str | None = option(
        None,
        f"Network of the scorers feature, feature-saliency and grad-cam: {', '.join(BACKBONES)}, "
        f"or MODULE:CALLABLE, which is imported and called.",
    )
    scorer_dtype: str | None = option(
        None,
        "Precision of the scorer's network; by default float32.",
        choices=("float32", "bfloat16", "float16"),
    )


class NetworkScorer(Scorer):
    """Runs a network on batches of a fixed size, on one CPU thread or one GPU.

    batch: images per call of the network; the last batch is padded, so that a sample's bytes do
    not depend on the other images. None scores all given images in one batch. device: a torch
    device. dtype: of the network's weights and features.
    """

    options = NetworkOptions
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
            raise ConfigError(f"backbone {backbone} does not match the network {network.backbone}")
        declared_options(NetworkOptions)["scorer_dtype"].check("scorer_dtype", dtype)
        if device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                "torch finds no GPU here; install a torch that fits the driver, or score on the CPU"
            )
        self._backbone = network.build()
        self._torch_device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._backbone.module.to(self._torch_device, self._dtype)
        mean, std = self._backbone.mean, self._backbone.std
        self._gain = torch.tensor([1 / (255 * s) for s in std], device=device)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
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
                chunk, given = images[first : first + size], list(hints[first : first + size])
                missing = size - len(chunk) if self._batch else 0
                if missing:
                    chunk = np.concatenate([chunk, chunk[-1:].repeat(missing, axis=0)])
                    given += given[-1:] * missing
                levels = self._score_batch(self._normalized(chunk), given)
                parts.append([level[: size - missing] for level in levels])
        maps = [np.concatenate(level) for level in zip(*parts, strict=True)]
        if not all(np.isfinite(level).all() for level in maps):
            raise ConfigError(
                f"backbone {self._parameters['backbone']} gave importances that are not finite; "
                f"use other weights, or --scorer-dtype float32"
            )
        return maps

    def _features(self, images: "Tensor", *strides: int) -> list["Tensor"]:
        """`[B, C, H / s, W / s]` of normalized images for each stride s, in the scorer's dtype.

        One pass of the network. Raises ConfigError when the network fails, or its output has
        another shape.
        """
        import torch

        name = self._parameters["backbone"]
        batch = images.to(self._dtype, memory_format=torch.channels_last)
        try:
            maps = self._backbone.features(batch, strides)
        except Exception as error:  # the user's network may raise anything
            raise ConfigError(
                f"backbone {name} failed on images {list(batch.shape)}: {type(error).__name__}: "
                f"{error}; fix it, or use another --backbone"
            ) from error
        size, _, height, width = images.shape
        for features, stride in zip(maps, strides, strict=True):
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else ()
            rows, columns = height // stride, width // stride
            if len(shape) != 4 or (shape[0], *shape[2:]) != (size, rows, columns):
                found = f"{list(shape)}" if shape else type(features).__name__
                raise ConfigError(
                    f"backbone {name} gave {found} for images {list(batch.shape)}; with stride "
                    f"{stride} its features must be {[size, 'C', rows, columns]}"
                )
        return maps

    @abstractmethod
    def _score_batch(self, images: "Tensor", hints: Sequence[Any]) -> list[np.ndarray]:
        """As `_score`, of normalized images `[B, 3, H, W]`, channels-last, in float32.

        The CPU waits for a GPU when it reads the maps: that comes last.
        """

    def _normalized(self, images: np.ndarray) -> "Tensor":
        import torch

        # torch warns about read-only arrays, such as memory shared between processes.
        pixels = images if images.flags.writeable else images.copy()
        values = self._moved(torch.from_numpy(pixels)).float().mul_(self._gain).add_(self._shift)
        # [B, H, W, 3] permuted is channels-last.
        return values.permute(0, 3, 1, 2)

    def _moved(self, tensor: "Tensor") -> "Tensor":
        """On the device; a GPU copies from pinned memory, so that the CPU does not wait for it."""
        if self._torch_device.type != "cuda":
            return tensor.to(self._torch_device)
        return tensor.pin_memory().to(self._torch_device, non_blocking=True)

    def _check_network(self, stride: int) -> None:
        """Raise ConfigError unless the backbone has that stride, the stride divides the image, and
        a user's own network gives the same features twice."""
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
                (once,), (twice,) = (
                    self._features(self._normalized(noise), stride) for _ in range(2)
                )
            if not once.isfinite().all():
                raise ConfigError(
                    f"backbone {self._parameters['backbone']} gave features that are not finite"
                )
            if not once.equal(twice):
                raise ConfigError(
                    f"backbone {self._parameters['backbone']} gives different features for "
                    f"the same image; switch off its randomness"
                )


@contextmanager
def _reproducible(device: Any) -> Iterator[None]:
    """No gradients; one thread on the CPU; on a GPU deterministic kernels and no TF32."""
    import torch

    settings = _one_thread() if device.type == "cpu" else _exact_kernels()
    with settings, torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    try:
        if threads != 1:
            torch.set_num_threads(1)
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


@contextmanager
def _exact_kernels() -> Iterator[None]:
    import torch

    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    operations = (matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None))
    wanted = [
        (cudnn, "enabled", True),
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", True),
        (cudnn, "allow_tf32", False),
        (matmul, "allow_tf32", False),
        *((operation, "fp32_precision", "ieee") for operation in operations),
    ]
    before = []
    for part, name, value in wanted:
        # torch before 2.9 has no fp32_precision; where that is in use, it refuses allow_tf32.
        with suppress(AttributeError, RuntimeError):
            before.append((part, name, getattr(part, name), value))
    try:
        for part, name, _, value in before:
            setattr(part, name, value)
        yield
    finally:
        for part, name, old, _ in before:
            setattr(part, name, old)
