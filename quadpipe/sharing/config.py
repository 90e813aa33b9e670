"""What a copy changes."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, option, same_option
from quadpipe.job.config import TEXTS, DatasetConfig
from quadpipe.names import path_to_text
from quadpipe.seeds import LARGEST_SEED
from quadpipe.shards.format import CODECS
from quadpipe.shards.manifest import Manifest
from quadpipe.sources import read_class_names


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """The options that decide the content of a copy; without any, files are copied as they are."""

    tokens: int | None = option(None, "Tokens per image, at most those of the source.", low=1)
    views: int | None = option(
        None, "Views per training image, at most those of the source: the first ones.", low=1
    )
    codec: str | None = option(
        None, "Store tokens in this way, by default as the source.", choices=CODECS
    )
    quality: int | None = same_option(DatasetConfig, "quality")
    classes: tuple[str, ...] | str | None = option(
        None, "Only images of these classes: names with commas between them, or a file of names."
    )
    samples: int | None = option(
        None, "Only this many images of each split, drawn at random.", low=1
    )
    seed: int = option(0, "Seed of --samples.", low=0, high=LARGEST_SEED)
    shards: int | None = option(None, "Only the first shards of each split.", low=1)
    name: str | None = option(None, "Name of the copy, by default that of the source.")
    license: str | None = option(None, "License of the copy, by default that of the source.")
    source: str | None = option(None, "Origin of the images, by default that of the source.")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.seed and self.samples is None:
            raise ConfigError("seed is for samples; give both, or omit it")
        if self.shards is not None and (self.classes is not None or self.samples is not None):
            raise ConfigError("shards are taken whole; omit classes and samples, or shards")
        for key in TEXTS:
            if (text := getattr(self, key)) is not None and not text.strip():
                raise ConfigError(f"{key} is empty; give a text, or omit it to keep the source's")

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not left out, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, 0)}

    @property
    def texts(self) -> dict[str, Any]:
        """What is given for the card: it changes no shard."""
        return {key: self.given[key] for key in TEXTS if key in self.given}

    @property
    def draws(self) -> bool:
        """Whether images are left out one by one."""
        return self.classes is not None or self.samples is not None

    def codec_of(self, manifest: Manifest) -> dict[str, Any]:
        """The codec of the copy, as its manifest names it."""
        name = self.codec or manifest.codec["name"]
        quality = self.quality
        if quality is None and name == manifest.codec["name"]:
            quality = manifest.codec.get("quality")
        return DatasetConfig(codec=name, quality=quality).codec_parameters()

    def keeps_shards(self, manifest: Manifest) -> bool:
        """Whether the shards of the copy are those of the source."""
        same_tokens = self.tokens in (None, manifest.tokenizer.tokens)
        same_views = self.views in (None, manifest.most_views)
        fewer = self.draws or self.shards is not None
        return (
            same_tokens and same_views and not fewer and self.codec_of(manifest) == manifest.codec
        )

    @property
    def classes_file(self) -> str | None:
        """The file of names that `classes` is, if it is one."""
        given = self.classes
        return given if isinstance(given, str) and os.path.isfile(given) else None

    def class_names(self) -> list[str] | None:
        """The names given in `classes`, as a manifest has them."""
        if self.classes is None:
            return None
        if not isinstance(self.classes, str):
            return list(self.classes)
        if file := self.classes_file:
            return [path_to_text(name) for name in read_class_names(Path(file)).names]
        return [name.strip() for name in self.classes.split(",") if name.strip()]
