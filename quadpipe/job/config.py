"""What a job is asked to make, and how it is asked to run."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_types
from quadpipe.images.crop import check_range
from quadpipe.scorers import scorer_type
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
    score_batch: int = field(
        default=8,
        metadata={
            "help": "Consecutive inputs that are scored together; networks run on so many images."
        },
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
        for name, limit in (
            ("samples_per_shard", MAX_SAMPLES_PER_SHARD),
            ("views", 100),
            ("score_batch", 1024),
        ):
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


# Of a resource, in Ray; and those that have options of their own there.
_SMALLEST_SHARE = 1e-4
_OWN_RESOURCES = ("CPU", "GPU", "memory", "object_store_memory")
_SCORER_WAIT = 300


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a job runs; nothing here changes a byte of its output."""

    workers: int | None = field(
        default=None,
        metadata={
            "help": "Shards made at the same time, by default one for each CPU that may be used."
        },
    )
    address: str | None = field(
        default=None,
        metadata={"help": "A running Ray cluster, `auto` or HOST:PORT; else a private one."},
    )
    in_process: bool = field(
        default=False, metadata={"help": "Make one shard after the other here, without Ray."}
    )
    scorers: int | None = field(
        default=None,
        metadata={
            "help": "Run the scorer's network in so many Ray actors, not in the workers; by "
            "default as many as the GPUs hold."
        },
    )
    gpus_per_scorer: float = field(
        default=0.0,
        metadata={"help": "GPUs of each of these actors; fractions share a GPU, 0 is the CPU."},
    )
    scorer_resource: str | None = field(
        default=None,
        metadata={
            "help": "A Ray resource that each of these actors takes too, NAME or NAME=AMOUNT, to "
            "place them."
        },
    )
    scorer_wait: int | None = field(
        default=None,
        metadata={"help": "Seconds to wait for these actors to start or answer, by default 300."},
    )
    retry_rejected: bool = field(
        default=False,
        metadata={"help": "Try rejected inputs again, and make the shards anew that they are of."},
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
        if self.scorers is not None and self.scorers < 1:
            raise ConfigError(f"scorers {self.scorers} is not above 0")
        gpus = self.gpus_per_scorer
        fits = gpus == 0 or _SMALLEST_SHARE <= gpus <= 1 or (gpus < inf and gpus % 1 == 0)
        if gpus < 0 or not fits:  # as Ray has it
            raise ConfigError(
                f"gpus_per_scorer {gpus:g} is neither a share of a GPU nor a whole number of them"
            )
        if self.scorer_wait is not None and self.scorer_wait < 1:
            raise ConfigError(f"scorer_wait {self.scorer_wait} is not above 0")
        if self.scorer_wait is not None and not self.pooled:
            raise ConfigError("scorer_wait is for scorers in actors of their own; leave it out")
        self.scorer_resources()
        if self.in_process and self.pooled:
            raise ConfigError(
                "in_process scores here, without scorers, gpus_per_scorer or scorer_resource"
            )
        self.allowed_rejects(0)

    @property
    def pooled(self) -> bool:
        """Whether the scorer runs in actors of its own."""
        return bool(self.scorers or self.gpus_per_scorer or self.scorer_resource)

    @property
    def patience(self) -> int:
        """Seconds to wait for scorers."""
        return _SCORER_WAIT if self.scorer_wait is None else self.scorer_wait

    @property
    def scorer_device(self) -> str:
        """The kind of torch device that a network scorer runs on."""
        return "cuda" if self.gpus_per_scorer else "cpu"

    def scorer_resources(self) -> dict[str, float]:
        """What `scorer_resource` asks Ray for."""
        if self.scorer_resource is None:
            return {}
        name, _, amount = self.scorer_resource.partition("=")
        try:
            count = float(amount or 1)
        except ValueError:
            count = 0
        if not name or not _SMALLEST_SHARE <= count < inf or name in _OWN_RESOURCES:
            raise ConfigError(
                f"scorer_resource {self.scorer_resource!r} is not NAME or NAME=AMOUNT; GPUs are "
                f"asked for with gpus_per_scorer"
            )
        return {name: count}

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
        if scorer_type(self.tokenizer.scorer).uses_network:
            return  # its network is found when the job starts
        self.tokenizer.make_scorer()
        if self.run.pooled:
            raise ConfigError(
                f"scorer {self.tokenizer.scorer} has no network to run in actors; leave out "
                f"scorers, gpus_per_scorer and scorer_resource"
            )

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
        config = cls(**parts)
        config.tokenizer.check_limits()
        return config

    @staticmethod
    def parts() -> dict[str, Any]:
        return {"tokenizer": TokenizerConfig, "dataset": DatasetConfig, "run": RunConfig}
