"""`dataset.json`, and the lines of shard lists, as checked Python objects."""

import hashlib
import json
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

from quadpipe.errors import ConfigError, ShardError
from quadpipe.fields import check_fields, known_fields
from quadpipe.files import ReadableFolder
from quadpipe.geometry import Geometry
from quadpipe.names import SPLITS, is_member_name
from quadpipe.shards.format import (
    FORMAT_VERSION,
    MANIFEST,
    MAX_SAMPLES_PER_SHARD,
    MAX_VIEWS,
    Codec,
    gains_name,
    index_name,
    json_bytes,
    shard_list_name,
)
from quadpipe.tokenizer import TOKENIZER_VERSION, TokenizerConfig

SHORTEST_FINGERPRINT = 12
"""Hex digits of a fingerprint that name a dataset."""

_MOST_GENERATIONS = 32


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """Counts of one split, samples = views * (inputs - rejected), and the sha256 of its files.

    index_sha256, gains_sha256: None for a dataset that was written before these files existed.
    """

    inputs: int
    rejected: int
    samples: int
    views: int
    shards: int
    bytes: int
    shard_list: str
    shard_list_sha256: str
    index_sha256: str | None = None
    gains_sha256: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("inputs", "rejected", "samples", "views", "shards", "bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} is below 0")
        if self.views > MAX_VIEWS:
            raise ConfigError(f"views {self.views} is above {MAX_VIEWS}")
        if self.samples != self.views * (self.inputs - self.rejected):
            raise ConfigError(
                f"{self.samples} samples are not {self.views} views of {self.inputs} - "
                f"{self.rejected} inputs"
            )

    def files(self, split: str) -> dict[str, str]:
        """The sha256 of each file of the split but its shards, by name."""
        found = {
            self.shard_list: self.shard_list_sha256,
            index_name(split): self.index_sha256,
            gains_name(split): self.gains_sha256,
        }
        return {name: sha256 for name, sha256 in found.items() if sha256 is not None}


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One line of a shard list."""

    name: str
    view: int
    samples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def index(self) -> int:
        """Number of the shard in the plan of its split."""
        return int(self.name.removesuffix(".tar").rpartition("-")[2])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a dataset and how it was made.

    parents: the sources of a copy that has other shards, or another license, than they:
    `fingerprint`, `name`, `license`, `source`, and their own `parents`.
    quadpipe: the version that wrote it.
    members: kind (see `names.MEMBER_KINDS`) of each kept member by name; None in a file of an
    earlier version, which did not record them.
    preview: longer side of the previews in pixels, None without them.
    fingerprint: see `fingerprint_of`; it is computed if the file of an earlier version has none.
    """

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
    parents: tuple[Any, ...] = ()
    members: dict[str, str] | None = None
    preview: int | None = None
    quadpipe: str | None = None
    fingerprint: str = ""

    @property
    def geometry(self) -> Geometry:
        return self.tokenizer.geometry

    @property
    def most_views(self) -> int:
        """Views of a training image; 1 without a split of several."""
        return max((split.views for split in self.splits.values()), default=1)

    def as_parent(self) -> dict[str, Any]:
        """This dataset as one of the `parents` of a copy."""
        kept = ("fingerprint", "name", "license", "source")
        document = {key: getattr(self, key) for key in kept}
        return document | ({"parents": list(self.parents)} if self.parents else {})

    def make_codec(self) -> Codec:
        """The codec of the tokens; ConfigError when the codec is unknown."""
        return Codec(**self.codec, patch_size=self.tokenizer.patch_size)

    def to_bytes(self) -> bytes:
        return json_bytes(self._as_json(), indent=2)

    def _as_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__dataclass_fields__}
        document["splits"] = {name: asdict(split) for name, split in self.splits.items()}
        document["tokenizer"] = self.tokenizer.as_json()
        return document

    def check_expected(self, expected: str | None, where: str) -> None:
        """Raise ShardError unless the fingerprint is, or begins with, the expected one.

        ConfigError when that cannot be one. where: the dataset, for the message.
        """
        if expected is None:
            return
        wanted = expected.strip().lower()
        if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_FINGERPRINT},64}}", wanted):
            raise ConfigError(
                f"{expected!r} is not a fingerprint: give at least {SHORTEST_FINGERPRINT} of its "
                f"64 hex digits, as quadpipe info prints it"
            )
        if not self.fingerprint.startswith(wanted):
            raise ShardError(
                f"{where} is not the expected dataset: its fingerprint is {self.fingerprint}, "
                f"expected {wanted}; fetch the expected one, or ask its publisher what changed"
            )

    @classmethod
    def read(cls, folder: ReadableFolder, name: str = MANIFEST) -> "Manifest":
        """The manifest of a dataset; ShardError when it is missing or invalid."""
        where = folder.where(name)
        if not folder.exists(name):
            raise ShardError(
                f"{folder} is not a finished dataset: it has no {MANIFEST}; finish copying it, or "
                f"rerun the quadpipe tokenize command that writes it"
            )
        return cls.parse(folder.read(name), where)

    @classmethod
    def parse(cls, data: bytes, where: str) -> "Manifest":
        """The manifest in these bytes of the file `where`; ShardError when it is invalid."""
        try:
            document = json.loads(data)
            _check_version(where, document["format_version"])
            manifest = cls._from_json(document)
        except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ShardError(f"{where} cannot be used: {what}; fetch it again") from error
        return manifest

    @classmethod
    def _from_json(cls, document: dict[str, Any]) -> "Manifest":
        entries = {
            item.name: document[item.name]
            for item in fields(cls)
            if item.name in document or item.default is MISSING
        }
        entries["tokenizer"] = TokenizerConfig(
            **known_fields(TokenizerConfig, entries["tokenizer"])
        )
        entries["codec"] = known_fields(Codec, entries["codec"])
        splits = entries["splits"]
        if not isinstance(splits, dict) or not splits:
            raise ValueError("it has no splits")
        entries["splits"] = {name: _split_info(name, info) for name, info in splits.items()}
        manifest = cls(**entries)
        # Of the file as it is, which may have fields of a later version.
        fingerprint = fingerprint_of(document)
        if entries.get("fingerprint", fingerprint) != fingerprint:
            raise ValueError(
                f"its fingerprint is {manifest.fingerprint}, and that of what it describes is "
                f"{fingerprint}"
            )
        return replace(manifest, fingerprint=fingerprint)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= self.samples_per_shard <= MAX_SAMPLES_PER_SHARD:
            raise ConfigError(f"samples_per_shard {self.samples_per_shard} is out of range")
        if not isinstance(self.scorer, dict) or not (
            isinstance(self.scorer.get("name"), str)
            and isinstance(self.scorer.get("label_aware"), bool)
            and isinstance(self.scorer.get("weights_sha256"), str | None)
        ):
            raise ConfigError(
                "scorer needs a name, label_aware (true or false) and weights_sha256 (text or null)"
            )
        library = self.imaging_library
        if (
            not isinstance(library, dict)
            or not all(isinstance(library.get(key), str) for key in ("name", "version"))
            or not all(value is None or isinstance(value, str) for value in library.values())
        ):
            raise ConfigError(
                "imaging_library needs a name and a version, and only text or null as values"
            )
        _check_parents(self.parents)
        _check_members(self.members or {})
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ConfigError("classes names one class twice")
        self.make_codec()
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint_of(self._as_json()))


def fingerprint_of(document: dict[str, Any]) -> str:
    """The sha256 of what a manifest says of its samples, as 64 hex digits.

    Over the checksums of the shard lists, the tokenizer, the codec and the classes, not over name,
    license and source, nor over the indexes, which follow from the shards.
    """
    lists = {name: split["shard_list_sha256"] for name, split in document["splits"].items()}
    content = {key: document[key] for key in ("tokenizer", "codec", "classes")}
    return hashlib.sha256(json_bytes(content | {"shard_lists": lists})).hexdigest()


def _check_members(members: Any) -> None:
    """Later versions may have other kinds."""
    if not isinstance(members, dict) or not all(
        is_member_name(name) and isinstance(kind, str) for name, kind in members.items()
    ):
        raise ConfigError("members needs names of members, and a kind of each")


def _check_parents(parents: Any, depth: int = 0) -> None:
    if depth > _MOST_GENERATIONS:
        raise ConfigError(f"parents are nested more than {_MOST_GENERATIONS} deep")
    for parent in parents:
        if not isinstance(parent, dict) or not isinstance(parent.get("fingerprint"), str):
            raise ConfigError("parents needs a fingerprint of each dataset")
        if not all(
            isinstance(parent.get(key), str | None) for key in ("name", "license", "source")
        ):
            raise ConfigError("name, license and source of parents must be text or null")
        above = parent.get("parents", [])
        if not isinstance(above, list):
            raise ConfigError("parents of parents must be a list")
        _check_parents(above, depth + 1)


def _split_info(name: str, document: Any) -> SplitInfo:
    if name not in SPLITS:
        raise ValueError(f"split {name!r} is not one of {', '.join(SPLITS)}")
    try:
        info = SplitInfo(**known_fields(SplitInfo, document))
    except (TypeError, ConfigError) as error:
        raise ValueError(f"{name}: {error}") from error
    if info.shard_list != shard_list_name(name):
        raise ValueError(f"{name}: {info.shard_list!r} is not the name of its shard list")
    return info


def _check_version(where: str, version: Any) -> None:
    if not isinstance(version, str) or version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise ShardError(
            f"{where} is written in format {version}; this quadpipe reads format "
            f"{FORMAT_VERSION}: install a version of quadpipe that reads {version}"
        )
