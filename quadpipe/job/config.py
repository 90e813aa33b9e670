"""What a job is asked to make, and how it is asked to run."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, option
from quadpipe.images.crop import check_range
from quadpipe.scorers import scorer_type
from quadpipe.shards.format import CODECS, DEFAULT_QUALITY, MAX_SAMPLES_PER_SHARD, MAX_VIEWS, Codec
from quadpipe.sources.names import SPLITS
from quadpipe.tokenizer import TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What decides the bytes of a dataset beside its inputs and its tokenizer."""

    codec: str = option(
        "raw", "Store tokens as NumPy arrays, or as one image per sample.", choices=CODECS
    )
    quality: int | None = option(
        None, f"JPEG quality of codec jpg, by default {DEFAULT_QUALITY}.", low=1, high=100
    )
    samples_per_shard: int = option(1024, "Inputs per shard.", low=1, high=MAX_SAMPLES_PER_SHARD)
    views: int = option(
        1,
        "Mosaics per training image; all but the first are of random crops.",
        low=1,
        high=MAX_VIEWS,
    )
    view_scale: tuple[float, float] = option(
        (0.35, 1.0), "Random crops: range of the share of the image area."
    )
    view_ratio: tuple[float, float] = option(
        (0.75, 1.333), "Random crops: range of the aspect ratio, width by height."
    )
    split: str | None = option(
        None,
        "Put all inputs into this split; top folders are then classes.",
        choices=SPLITS,
    )
    val_share: float = option(
        0.0, "Share of the training inputs to draw for a val split.", low=0, below=1
    )
    score_batch: int = option(
        8,
        "Batch size of the scorer, in consecutive inputs.",
        low=1,
        high=1024,
    )
    limit: int | None = option(None, "Tokenize only this many inputs of each split.", low=1)
    name: str | None = option(None, "Name of the dataset, for the dataset card.")
    license: str | None = option(None, "License of the dataset, for the dataset card.")
    source: str | None = option(None, "Origin of the images, for the dataset card.")

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("view_scale", self.view_scale, 1.0)
        check_range("view_ratio", self.view_ratio, inf)
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

    workers: int | None = option(
        None, "Shards to make in parallel; by default one per CPU that may be used.", low=1
    )
    address: str | None = option(
        None, "Ray cluster to join, `auto` or HOST:PORT; by default a private Ray is started."
    )
    in_process: bool = option(False, "Make the shards one by one in this process, without Ray.")
    scorers: int | None = option(
        None,
        "Run the scorer's network in this many Ray actors instead of in the workers; by default as "
        "many as the GPUs hold.",
        low=1,
    )
    gpus_per_scorer: float = option(
        0.0, "GPUs per scorer actor; fractions share a GPU, 0 runs on the CPU."
    )
    scorer_resource: str | None = option(
        None,
        "Ray resource that each scorer actor takes, NAME or NAME=AMOUNT, to place them.",
    )
    scorer_wait: int | None = option(
        None, "Seconds to wait for scorer actors to start or answer, by default 300.", low=1
    )
    retry_rejected: bool = option(False, "Retry rejected inputs and rewrite their shards.")
    max_rejected: str = option(
        "1%", "Fail when more inputs than this are rejected: a share or a count."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.in_process and (self.address or (self.workers or 1) > 1):
            raise ConfigError("in_process makes one shard at a time, without workers or address")
        gpus = self.gpus_per_scorer
        fits = gpus == 0 or _SMALLEST_SHARE <= gpus <= 1 or (gpus < inf and gpus % 1 == 0)
        if gpus < 0 or not fits:  # as Ray has it
            raise ConfigError(
                f"gpus_per_scorer {gpus:g} is neither a share of a GPU nor a whole number of them"
            )
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
    def scorer_timeout(self) -> int:
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
        self.tokenizer.check_scorer()
        if self.run.pooled and not scorer_type(self.tokenizer.scorer).uses_network:
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
