"""`dataset.json` and the shard lists as checked Python objects."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import Folder
from quadpipe.geometry import Geometry
from quadpipe.shards.format import FORMAT_VERSION, MANIFEST, Codec, json_bytes, shard_name
from quadpipe.sources.names import SPLITS
from quadpipe.tokenizer import TOKENIZER_VERSION, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """Counts of one split. samples = views * (inputs - rejected)."""

    inputs: int
    rejected: int
    samples: int
    views: int
    shards: int
    bytes: int
    shard_list: str
    shard_list_sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One line of a shard list."""

    name: str
    view: int
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a dataset holds and how it was made."""

    splits: dict[str, SplitInfo]
    classes: list[str] | None
    tokenizer: TokenizerConfig
    scorer: dict[str, Any]
    codec: dict[str, Any]
    imaging_library: dict[str, str | None]
    samples_per_shard: int
    name: str | None = None
    license: str | None = None
    source: str | None = None
    format_version: str = FORMAT_VERSION
    tokenizer_version: int = TOKENIZER_VERSION
    revision: int = 1

    @property
    def geometry(self) -> Geometry:
        return self.tokenizer.geometry

    def make_codec(self) -> Codec:
        """How tokens were written; ConfigError when the codec is not one of ours."""
        return Codec(**self.codec, patch_size=self.tokenizer.patch_size)

    def to_bytes(self) -> bytes:
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["splits"] = {name: asdict(split) for name, split in self.splits.items()}
        document["tokenizer"] = self.tokenizer.as_json()
        return json_bytes(document, indent=2)

    @classmethod
    def read(cls, folder: Folder) -> "Manifest":
        """The manifest of a dataset; ShardError when there is none, or one we cannot trust."""
        where = folder.path(MANIFEST)
        if not folder.exists(MANIFEST):
            raise ShardError(
                f"{folder} is not a finished dataset: it has no {MANIFEST}; run the quadpipe "
                f"tokenize command that writes it to its end"
            )
        try:
            document = json.loads(folder.read(MANIFEST))
            _check_version(where, document["format_version"])
            document["splits"] = {
                name: SplitInfo(**split) for name, split in document["splits"].items()
            }
            document["tokenizer"] = TokenizerConfig(**document["tokenizer"])
            manifest = cls(**{name: document[name] for name in cls.__dataclass_fields__})
            manifest._check()
        except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
            raise ShardError(f"{where} cannot be used: {_describe(error)}") from error
        return manifest

    def _check(self) -> None:
        for name, split in self.splits.items():
            counts = asdict(split)
            if name not in SPLITS:
                raise ValueError(f"split {name!r} is not one of {', '.join(SPLITS)}")
            for key in ("inputs", "rejected", "samples", "views", "shards", "bytes"):
                if not isinstance(counts[key], int) or counts[key] < 0:
                    raise ValueError(f"{name}: {key} is {counts[key]!r}, not a count")
            if split.samples != split.views * (split.inputs - split.rejected):
                raise ValueError(
                    f"{name}: {split.samples} samples are not {split.views} views of "
                    f"{split.inputs} - {split.rejected} inputs"
                )
        if self.classes is not None and not all(isinstance(name, str) for name in self.classes):
            raise ValueError("classes are not all names")
        self.make_codec()


def read_shard_list(folder: Folder, split: str, info: SplitInfo) -> list[ShardInfo]:
    """The shards of a split; ShardError when the list is not the one the manifest names."""
    where = folder.path(info.shard_list)
    if folder.sha256(info.shard_list) != info.shard_list_sha256:
        raise ShardError(f"{where} was changed: its checksum is not the one in {MANIFEST}")
    shards = list(_parse_shard_list(where, folder.read(info.shard_list)))
    totals = (len(shards), sum(s.samples for s in shards), sum(s.bytes for s in shards))
    if totals != (info.shards, info.samples, info.bytes):
        raise ShardError(
            f"{where} holds {totals[0]} shards, {totals[1]} samples, {totals[2]} bytes; "
            f"{MANIFEST} says {info.shards}, {info.samples}, {info.bytes}"
        )
    for shard in shards:
        if not _is_shard_of(split, shard):
            raise ShardError(f"{where}: {shard.name!r} is no shard of view {shard.view} of {split}")
    return shards


def _parse_shard_list(where: Any, data: bytes) -> Iterator[ShardInfo]:
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            yield ShardInfo(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ShardError(f"{where}, line {number}: {error}") from error


def _is_shard_of(split: str, shard: ShardInfo) -> bool:
    digits = shard.name.removesuffix(".tar").rpartition("-")[2]
    return digits.isdecimal() and shard.name == shard_name(split, shard.view, int(digits))


def _check_version(where: Any, version: Any) -> None:
    if not isinstance(version, str) or version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise ShardError(
            f"{where} is written in format {version}; this quadpipe reads format "
            f"{FORMAT_VERSION}: install a version of quadpipe that reads {version}"
        )


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
