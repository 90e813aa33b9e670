"""What a job is asked to make, and how it is asked to run."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_types
from quadpipe.images.crop import check_range
from quadpipe.shards.format import CODECS, DEFAULT_QUALITY, MAX_SAMPLES_PER_SHARD, Codec
from quadpipe.sources.names import SPLITS
from quadpipe.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What decides the bytes of a dataset beside its inputs and its tokenizer."""

    codec: str = field(
        default="raw",
        metadata={"help": "Tokens as NumPy arrays, or as one image a sample.", "choices": CODECS},
    )
    quality: int | None = field(
        default=None, metadata={"help": f"JPEG quality of codec jpg, by default {DEFAULT_QUALITY}."}
    )
    samples_per_shard: int = field(default=1024, metadata={"help": "Inputs a shard."})
    views: int = field(
        default=1,
        metadata={
            "help": "Mosaics an input of the training split; from the second on random crops."
        },
    )
    view_scale: tuple[float, float] = field(
        default=(0.35, 1.0),
        metadata={"help": "Random crops: smallest and largest share of the area."},
    )
    view_ratio: tuple[float, float] = field(
        default=(0.75, 1.333),
        metadata={"help": "Random crops: smallest and largest width to height."},
    )
    split: str | None = field(
        default=None,
        metadata={"help": "The split of all inputs, where folders do not tell.", "choices": SPLITS},
    )
    val_share: float = field(
        default=0.0, metadata={"help": "Share of the training inputs drawn for a split val."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Only the first so many inputs of each split's plan."}
    )
    name: str | None = field(default=None, metadata={"help": "Name of the dataset, for its card."})
    license: str | None = field(default=None, metadata={"help": "Its license, for its card."})
    source: str | None = field(
        default=None, metadata={"help": "Where the images come from, for its card."}
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name, allowed in (("codec", CODECS), ("split", (*SPLITS, None))):
            if getattr(self, name) not in allowed:
                choices = ", ".join(choice for choice in allowed if choice)
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of {choices}")
        for name, limit in (("samples_per_shard", MAX_SAMPLES_PER_SHARD), ("views", 100)):
            if not 1 <= getattr(self, name) <= limit:
                raise ConfigError(f"{name} {getattr(self, name)} is not from 1 to {limit:,}")
        check_range("view_scale", self.view_scale, 1.0)
        check_range("view_ratio", self.view_ratio, inf)
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share {self.val_share:g} is not from 0 to below 1")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit {self.limit} is not above 0")
        if self.quality is not None and self.codec != "jpg":
            raise ConfigError(f"quality is for codec jpg, not {self.codec}; leave it out")

    def codec_parameters(self) -> dict[str, Any]:
        """The codec as the manifest names it."""
        if self.codec != "jpg":
            return {"name": self.codec}
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return {"name": "jpg", "quality": quality}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a job runs; nothing here changes a byte of its output."""

    workers: int | None = field(
        default=None, metadata={"help": "Shards made at the same time, by default one a CPU."}
    )
    address: str | None = field(
        default=None,
        metadata={"help": "A running Ray cluster, `auto` or HOST:PORT; else a private one."},
    )
    in_process: bool = field(
        default=False, metadata={"help": "Make one shard after the other here, without Ray."}
    )
    max_rejected: str = field(
        default="1%", metadata={"help": "How many inputs may be rejected: a share or a count."}
    )

    def __post_init__(self) -> None:
        check_types(self)
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers {self.workers} is not above 0")
        if self.in_process and (self.address or (self.workers or 1) > 1):
            raise ConfigError("in_process makes one shard at a time, without workers or address")
        self.allowed_rejects(0)

    def allowed_rejects(self, inputs: int) -> int:
        """The largest number of rejects out of so many inputs."""
        text = self.max_rejected.strip()
        try:
            if text.endswith("%"):
                share = float(text[:-1])
                if 0 <= share <= 100:
                    return int(inputs * share / 100)
            elif int(text) >= 0:
                return int(text)
        except ValueError:
            pass
        raise ConfigError(f"max_rejected {text!r} is neither a share like 1% nor a count like 20")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All of a job but its input and its output."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self.make_codec()
        self.tokenizer.make_scorer()

    def make_codec(self) -> Codec:
        """How tokens are written; ConfigError when the codec does not fit the patches."""
        return Codec(**self.dataset.codec_parameters(), patch_size=self.tokenizer.patch_size)

    @classmethod
    def from_options(cls, **options: Any) -> "JobConfig":
        """From flat options, named as the fields of the three parts; ConfigError on others."""
        parts: dict[str, Any] = {}
        for part, kind in cls.parts().items():
            names = {f.name for f in fields(kind)} & options.keys()
            parts[part] = kind(**{name: options.pop(name) for name in names})
        if options:
            known = sorted(f.name for kind in cls.parts().values() for f in fields(kind))
            raise ConfigError(
                f"there is no option {', '.join(sorted(options))}; options are {', '.join(known)}"
            )
        return cls(**parts)

    @staticmethod
    def parts() -> dict[str, Any]:
        return {"tokenizer": TokenizerConfig, "dataset": DatasetConfig, "run": RunConfig}
