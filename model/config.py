"""Configuration of training: the options of `quadpipe train`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from quadpipe.counts import DISCOUNT, MAX_DISCOUNT, check_given
from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, declared_options, option, same_option
from quadpipe.geometry import Geometry
from quadpipe.loader.augment import Augmentation
from quadpipe.loader.samples import VERIFY
from quadpipe.loader.schedule import parse_tokens
from quadpipe.model.precision import AMP, AMP_HELP
from quadpipe.model.quadformer import PRESETS, QuadformerConfig
from quadpipe.seeds import LARGEST_SEED
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.skipped import ON_ERROR

_LARGEST_RATE = 1e6
TOKENS_DRAW = ("even", "multiply-adds")
DEVICES = ("auto", "cpu", "cuda")
BACKBONE = "backbone"
_DEFAULT_MODEL = "tiny"
_OF_THE_MODEL = (
    "positions",
    "scale_embedding",
    "pool",
    "fc_norm",
    "heads",
    "activation",
    "mean",
    "std",
)


def _of_the_model(name: str) -> Any:
    """An option of the model; None, if not given, is as in --init or the model's default."""
    declared = declared_options(QuadformerConfig)[name]
    (default,) = (f.default for f in fields(QuadformerConfig) if f.name == name)
    usual = ",".join(map(str, default)) if isinstance(default, tuple) else default
    text = f"{declared.help} By default {usual}, or as in --init."
    if isinstance(default, bool):
        text = declared.help
    elif name == "heads":
        text = f"{declared.help} By default those of --model, or of --init."
    return field(default=None, metadata={"option": replace(declared, help=text)})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a run; raises ConfigError if they are invalid."""

    model: str | None = option(
        None,
        f"Size of the model. By default {_DEFAULT_MODEL}, or that of --init.",
        choices=tuple(PRESETS),
    )
    weights: tuple[float, ...] | None = option(
        None,
        "Of several datasets: the share of each in every step, in their order; by default their "
        "sizes, with which each image is once in an epoch.",
        above=0,
    )
    repeat: bool = option(
        False,
        "With --weights: an epoch ends when all datasets are used up, and small ones start over. "
        "By default it ends when the first one is.",
    )
    tokens: int | str | None = option(
        None,
        "Tokens per image; by default all that the shards hold. Of a range or a list, each step "
        "draws one, and the model serves all of them.",
    )
    mean_tokens: int | str | None = option(
        None,
        "Instead of --tokens, the mean over the images of a step: each image has as many as it "
        "needs. Of a range or a list, each step draws one.",
    )
    min_tokens: int | None = option(
        None, "With --mean-tokens: the least of an image, by default the fewest possible.", low=1
    )
    max_tokens: int | None = option(
        None,
        "With --mean-tokens: the most of an image, by default all that the shards hold.",
        low=1,
    )
    gain_discount: int = option(
        DISCOUNT,
        "With --mean-tokens: the gain of an image's split k is divided by k to this power; large "
        "values make the numbers of tokens equal.",
        low=0,
        high=MAX_DISCOUNT,
    )
    tokens_draw: str = option(
        "even",
        "With several --tokens: draw each as often, or large ones more often, evenly over "
        "multiply-adds.",
        choices=TOKENS_DRAW,
    )
    tokens_per_batch: int | None = option(
        None,
        "Limit the tokens per step, over all processes: a step has this divided by its tokens per "
        "image, at most --batch-size images.",
        low=1,
    )
    positions: str | None = _of_the_model("positions")
    scale_embedding: bool | None = _of_the_model("scale_embedding")
    pool: str | None = _of_the_model("pool")
    fc_norm: bool | None = _of_the_model("fc_norm")
    heads: int | None = _of_the_model("heads")
    activation: str | None = _of_the_model("activation")
    epochs: int = option(100, "Passes over the training split.", low=1)
    batch_size: int = option(256, "Images per step, over all processes.", low=1)
    grad_accum_steps: int = option(
        1, "Split each batch into this many parts to save memory.", low=1
    )
    lr: float = option(1e-3, "Peak learning rate.", above=0, high=_LARGEST_RATE)
    min_lr: float = option(1e-6, "Learning rate at the end of the cosine schedule.", low=0)
    weight_decay: float = option(0.05, "Weight decay of AdamW, on weight matrices only.", low=0)
    warmup_epochs: float = option(
        5.0, "Epochs of linear warm-up; at most a tenth of the run.", low=0
    )
    label_smoothing: float = option(0.1, "Label smoothing.", low=0, below=1, formerly="smoothing")
    freeze: int | str | None = option(
        None,
        "Keep a part of --init as it is: `backbone`, all but the head (a linear probe), or the "
        "embeddings and this number of blocks after them.",
        metavar="backbone|N",
    )
    drop_last: bool = option(False, "Drop the last batch of an epoch when it is short.")
    drop_path: float = same_option(QuadformerConfig, "drop_path")
    clip_grad: float = option(
        1.0, "Clip the gradient norm to this value; 0 disables clipping.", low=0
    )
    layer_decay: float = option(
        1.0,
        "Layer-wise decay of the learning rate, from each block to the one below it.",
        above=0,
        high=1,
    )
    ema_decay: float = option(
        0.0,
        "Decay of the exponential moving average of the weights; 0 disables it.",
        low=0,
        below=1,
        formerly="ema",
    )
    flip: float = same_option(Augmentation, "flip")
    color_jitter: float = same_option(Augmentation, "color_jitter")
    token_dropout: float = same_option(Augmentation, "token_dropout")
    mean: tuple[float, float, float] | None = _of_the_model("mean")
    std: tuple[float, float, float] | None = _of_the_model("std")
    amp: str = option("auto", AMP_HELP, choices=AMP)
    compile: bool = option(False, "Compile the model with torch.compile.")
    gradient_checkpointing: bool = same_option(QuadformerConfig, "gradient_checkpointing")
    device: str = option(
        "auto", "Device to train on; auto uses a GPU if there is one.", choices=DEVICES
    )
    workers: int = option(
        2, "Threads that read batches ahead; 0 reads in the training loop.", low=0
    )
    on_error: str = option(
        "raise", "Damaged samples: stop with an error, or skip and count them.", choices=ON_ERROR
    )
    verify: str = option(
        "first",
        "Compare checksums of local samples on their first read, always or never; those of remote "
        "samples always or never.",
        choices=VERIFY,
    )
    seed: int = option(
        0, "Seed of the initial weights, the order and the augmentation.", low=0, high=LARGEST_SEED
    )
    log_interval: int = option(50, "Steps between progress lines.", low=1)
    checkpoint_interval: int = option(
        500, "Steps between checkpoints; one more is written after each epoch.", low=1
    )
    profile: int = option(
        0,
        "Write a trace of this many steps by torch's profiler to trace.json in the run folder.",
        low=0,
    )
    tensorboard: bool = option(False, "Write TensorBoard events too (extra `tensorboard`).")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("tokens", "mean_tokens", "freeze"):  # "37" is 37, so that runs compare equal
            text = getattr(self, name)
            if isinstance(text, str) and text.isascii() and text.isdecimal():
                object.__setattr__(self, name, int(text))
        if not (self.freeze in (None, BACKBONE) or isinstance(self.freeze, int)):
            raise ConfigError(
                f"freeze {self.freeze!r} is neither {BACKBONE} nor a number of blocks"
            )
        check_given(self.mean_tokens, self.min_tokens, self.max_tokens)
        if self.mean_tokens is None:
            return
        if self.tokens is not None:
            raise ConfigError("give tokens or mean_tokens, not both")
        if self.compile:
            raise ConfigError(
                "with mean_tokens each batch has other shapes, and torch.compile would compile the "
                "model for each; give compile or mean_tokens, not both"
            )

    def make_augmentation(self) -> Augmentation:
        return Augmentation(**{f.name: getattr(self, f.name) for f in fields(Augmentation)})

    def budgets(self, manifest_tokens: int, geometry: Geometry) -> tuple[int, ...]:
        """The budgets or means that the run trains, ascending, on shards with `manifest_tokens`."""
        if self.mean_tokens is not None:
            return parse_tokens(self.mean_tokens, geometry, means=True)
        return parse_tokens(self.tokens or manifest_tokens, geometry)

    def of_the_model(self) -> dict[str, Any]:
        """The options of the model that are given, by the names of QuadformerConfig."""
        given = {name: getattr(self, name) for name in _OF_THE_MODEL}
        return {name: value for name, value in given.items() if value is not None}

    def quadformer(
        self, manifest: Manifest, architecture: Mapping[str, Any] | None = None
    ) -> QuadformerConfig:
        """Configuration of the model for a dataset with labels.

        architecture: of the initial weights or of a resumed run, in place of `model`; ConfigError
        if `model` is of another size.
        """
        geometry = manifest.geometry
        if architecture and architecture["fc_norm"] and self.pool not in (None, "area"):
            raise ConfigError(
                f"pool {self.pool}: the last norm of these weights comes after pooling by area "
                f"(fc_norm); omit --pool"
            )
        sizes = PRESETS[self.model or _DEFAULT_MODEL]
        if architecture and self.model:
            for name in ("width", "depth"):
                if architecture[name] != sizes[name]:
                    raise ConfigError(
                        f"model {self.model} has {name} {sizes[name]}, the weights have "
                        f"{architecture[name]}; omit --model, the weights decide it"
                    )
        return QuadformerConfig(
            **dict(architecture or sizes)
            | self.of_the_model()
            | {
                "classes": len(manifest.classes or ()),
                "patch_size": geometry.patch_size,
                "grid": geometry.grid(0),
                "max_scale": geometry.max_scale,
                "drop_path": self.drop_path,
                "gradient_checkpointing": self.gradient_checkpointing,
            }
        )

    def settled(self, model: QuadformerConfig) -> "TrainConfig":
        """With the options of the model that were not given as they are in `model`."""
        sizes = ((name, preset["width"], preset["depth"]) for name, preset in PRESETS.items())
        same = (name for name, *size in sizes if size == [model.width, model.depth])
        settled = {name: getattr(model, name) for name in _OF_THE_MODEL}
        return replace(self, **settled | self.of_the_model(), model=self.model or next(same, None))

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON; `TrainConfig(**config.as_json())` is equal."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
