"""The options of a job."""

from dataclasses import dataclass, field, fields
from math import inf
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, check_known, option
from quadpipe.images.crop import check_range
from quadpipe.job.run_config import RunConfig
from quadpipe.names import MAX_KEPT, SPLITS, is_member_name
from quadpipe.scorers import scorer_type
from quadpipe.shards.format import CODECS, DEFAULT_QUALITY, MAX_SAMPLES_PER_SHARD, MAX_VIEWS, Codec
from quadpipe.tokenizer import TokenizerConfig

TEXTS = ("name", "license", "source")
"""What cards show and no shard holds."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The options besides the tokenizer's that decide the bytes of a dataset."""

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
    keep: tuple[str, ...] | None = option(
        None, "Keep these members of input tars, or columns of a list, beside the tokens."
    )
    boxes: tuple[str, ...] | None = option(
        None, "Keep these members or columns as boxes, which follow the crop."
    )
    masks: tuple[str, ...] | None = option(
        None, "Keep these PNG members of tars as masks, which follow the crop."
    )
    preview: int | None = option(
        None,
        "Also store a JPEG of each crop, its longer side of this many pixels, for viewers.",
        low=16,
        high=1024,
    )
    name: str | None = option(None, "Name of the dataset, for the dataset card.")
    license: str | None = option(None, "License of the dataset, for the dataset card.")
    source: str | None = option(None, "Origin of the images, for the dataset card.")

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("view_scale", self.view_scale, 1.0)
        check_range("view_ratio", self.view_ratio, inf)
        for option_name in ("keep", "boxes", "masks"):
            if names := getattr(self, option_name):  # those of sources are in lower case too
                object.__setattr__(self, option_name, tuple(name.lower() for name in names))
        self.wanted_members()
        if self.quality is not None and self.codec != "jpg":
            raise ConfigError(f"quality is for codec jpg, not {self.codec}; omit it")

    def wanted_members(self) -> dict[str, str]:
        """Kind of each member or column to keep, by its name in the source.

        ConfigError on a name that a member cannot have, and on too many.
        """
        given = {"bytes": self.keep, "boxes": self.boxes, "mask": self.masks}
        pairs = [(name, kind) for kind, names in given.items() for name in names or ()]
        names = [name for name, _ in pairs]
        for name in names:
            if not is_member_name(name):
                raise ConfigError(
                    f"{name!r} cannot be the name of a member; give letters from a to z, digits "
                    f"and `_-.`, such as txt or caption"
                )
            if names.count(name) > 1:
                raise ConfigError(f"keep, boxes and masks name {name!r} twice; name it once")
        if len(names) > MAX_KEPT:
            raise ConfigError(f"{len(names)} members are to be kept, more than {MAX_KEPT}")
        return dict(pairs)

    def codec_parameters(self) -> dict[str, Any]:
        """The codec as the manifest names it."""
        if self.codec != "jpg":
            return {"name": self.codec}
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return {"name": "jpg", "quality": quality}


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """All options of a job except its input and output."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        self.make_codec()
        self.tokenizer.check_scorer()
        if self.run.pooled and not scorer_type(self.tokenizer.scorer).uses_network:
            raise ConfigError(
                f"scorer {self.tokenizer.scorer} has no network to run in actors; omit "
                f"scorers, gpus_per_scorer and scorer_resource"
            )

    def make_codec(self) -> Codec:
        """How tokens are written; ConfigError when the codec does not fit the patches."""
        return Codec(**self.dataset.codec_parameters(), patch_size=self.tokenizer.patch_size)

    @classmethod
    def from_options(cls, **options: Any) -> "JobConfig":
        """From options named as the fields of the three parts; ConfigError on unknown ones."""
        check_known(options, *cls.parts().values())
        parts: dict[str, Any] = {}
        for part, kind in cls.parts().items():
            names = {f.name for f in fields(kind)} & options.keys()
            parts[part] = kind(**{name: options[name] for name in names})
        config = cls(**parts)
        config.tokenizer.check_limits()
        return config

    @staticmethod
    def parts() -> dict[str, Any]:
        return {"tokenizer": TokenizerConfig, "dataset": DatasetConfig, "run": RunConfig}
