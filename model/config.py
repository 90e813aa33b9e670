"""How a model is trained: every option of `quadpipe train` but its shards."""

from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_types
from quadpipe.loader.augment import Augmentation
from quadpipe.loader.samples import VERIFY, check_verify
from quadpipe.model.quadformer import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    POOLS,
    POSITIONS,
    PRESETS,
    QuadformerConfig,
)
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.skipped import ON_ERROR, check_on_error

_LARGEST_RATE = 1e6
AMP = ("auto", "bf16", "off")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Raises ConfigError when it cannot work. A batch is that of all processes together."""

    model: str = field(
        default="tiny",
        metadata={"help": "Width and depth of the model.", "choices": tuple(PRESETS)},
    )
    tokens: int | None = field(
        default=None, metadata={"help": "Tokens an image; by default all that the shards hold."}
    )
    positions: str = field(
        default="sinusoidal",
        metadata={"help": "Positions of patch centres.", "choices": POSITIONS},
    )
    scale_embedding: bool = field(
        default=False, metadata={"help": "Learn an embedding of a patch's scale."}
    )
    pool: str = field(
        default="cls",
        metadata={
            "help": "What is classified: the CLS token, or the mean by area.",
            "choices": POOLS,
        },
    )
    fc_norm: bool = field(
        default=False,
        metadata={"help": "With pool area: normalise after pooling, as timm's fc_norm."},
    )
    epochs: int = field(default=100, metadata={"help": "Passes over the training split."})
    batch_size: int = field(
        default=256, metadata={"help": "Images a step, of all processes together."}
    )
    grad_accum_steps: int = field(
        default=1, metadata={"help": "Parts in which a batch is computed, to save memory."}
    )
    lr: float = field(default=1e-3, metadata={"help": "Largest learning rate, after the warm-up."})
    min_lr: float = field(default=1e-6, metadata={"help": "Learning rate at the end."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's, on weight matrices."})
    warmup_epochs: float = field(
        default=5.0,
        metadata={"help": "Epochs in which the learning rate rises from 0; at most a tenth."},
    )
    smoothing: float = field(default=0.1, metadata={"help": "Label smoothing."})
    drop_last: bool = field(
        default=False, metadata={"help": "Leave out the last batch of an epoch when it is short."}
    )
    drop_path: float = field(default=0.0, metadata={"help": "Stochastic depth of the last block."})
    clip_grad: float = field(
        default=1.0, metadata={"help": "Largest norm of the gradient; 0 for any."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate from a layer to the one below."}
    )
    ema: float = field(
        default=0.0, metadata={"help": "Decay of the moving average of the weights; 0 for none."}
    )
    flip: float = field(
        default=Augmentation.flip, metadata={"help": "Probability of mirroring an image."}
    )
    colour_jitter: float = field(
        default=Augmentation.colour_jitter,
        metadata={"help": "Largest change of brightness, contrast and saturation."},
    )
    token_dropout: float = field(
        default=Augmentation.token_dropout,
        metadata={"help": "Share of tokens left out in training."},
    )
    mean: tuple[float, float, float] = field(
        default=IMAGENET_MEAN, metadata={"help": "Mean of the pixels in 0..1, by channel."}
    )
    std: tuple[float, float, float] = field(
        default=IMAGENET_STD, metadata={"help": "Standard deviation of the pixels, by channel."}
    )
    amp: str = field(
        default="auto",
        metadata={"help": "bf16 autocast; auto: on GPUs that have it.", "choices": AMP},
    )
    compile: bool = field(default=False, metadata={"help": "Use torch.compile."})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Compute activations twice to save memory."}
    )
    device: str = field(
        default="auto", metadata={"help": "auto: a GPU where there is one.", "choices": DEVICES}
    )
    workers: int = field(default=2, metadata={"help": "Threads that read ahead; 0 for none."})
    on_error: str = field(
        default="raise",
        metadata={
            "help": "At a damaged sample: raise, or skip and count it; steps stay the same.",
            "choices": ON_ERROR,
        },
    )
    verify: str = field(
        default="first",
        metadata={
            "help": "Compare checksums of local samples when they are first read, always or never; "
            "those of remote samples always or never.",
            "choices": VERIFY,
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and augmentation."})
    log_interval: int = field(default=50, metadata={"help": "Steps between lines of progress."})
    checkpoint_interval: int = field(
        default=500, metadata={"help": "Steps between checkpoints, beside one each epoch."}
    )
    tensorboard: bool = field(
        default=False, metadata={"help": "Also write TensorBoard events (extra `tensorboard`)."}
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.model not in PRESETS:
            raise ConfigError(f"model {self.model!r} is not one of {', '.join(PRESETS)}")
        for name in (
            "epochs",
            "batch_size",
            "grad_accum_steps",
            "log_interval",
            "checkpoint_interval",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not above 0")
        for name in ("lr", "layer_decay"):
            if not 0 < getattr(self, name) <= _LARGEST_RATE:
                raise ConfigError(
                    f"{name} {getattr(self, name):g} is not above 0 and at most {_LARGEST_RATE:g}"
                )
        for name in ("min_lr", "weight_decay", "warmup_epochs", "workers", "clip_grad"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} {getattr(self, name):g} is below 0")
        for name in ("smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name):g} is not from 0 to below 1")
        if not all(map(isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ConfigError(f"mean {self.mean} or std {self.std}: not finite, or std not above 0")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} is not from 0 to 2^63 - 1")
        check_on_error(self.on_error)
        check_verify(self.verify)
        self.make_augmentation()

    def make_augmentation(self) -> Augmentation:
        """ConfigError when it cannot work."""
        return Augmentation(**{f.name: getattr(self, f.name) for f in fields(Augmentation)})

    def quadformer(self, manifest: Manifest) -> QuadformerConfig:
        """The shape of the model for a dataset with labels."""
        geometry = manifest.geometry
        return QuadformerConfig(
            classes=len(manifest.classes or ()),
            patch_size=geometry.patch_size,
            grid=geometry.grid(0),
            max_scale=geometry.max_scale,
            positions=self.positions,
            scale_embedding=self.scale_embedding,
            pool=self.pool,
            fc_norm=self.fc_norm,
            drop_path=self.drop_path,
            gradient_checkpointing=self.gradient_checkpointing,
            mean=self.mean,
            std=self.std,
            **PRESETS[self.model],
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it; `TrainConfig(**config.as_json())` is equal."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
