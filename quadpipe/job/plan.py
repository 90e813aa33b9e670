"""The plan: the shard of each input, fixed and stored before any work.

The inputs of a split are put in order once (shuffled by the seed, or as found in tars) and cut
into shards of a fixed number of inputs. The order is stored in chunks of a few shards; a worker
reads the chunk of its shard and nothing else.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from quadpipe import __version__
from quadpipe.errors import ConfigError, ShardError
from quadpipe.fields import check_fields, known_fields
from quadpipe.files import ReadableFolder
from quadpipe.images.crop import DECODE_MARGIN
from quadpipe.job.config import DatasetConfig, JobConfig
from quadpipe.names import MEMBER_KINDS, is_member_name
from quadpipe.shards.format import FORMAT_VERSION, PLAN, json_bytes, listing_name
from quadpipe.shards.manifest import Manifest
from quadpipe.sources import Input
from quadpipe.tokenizer import TOKENIZER_VERSION, TokenizerConfig

SHARDS_PER_CHUNK = 16

# A USTAR header, on average half a block of padding, and the small members of a sample.
_MEMBER_OVERHEAD = 768
# Measured on photographs: jpg at quality 95 and png, relative to the raw bytes of the tokens.
_PREVIEW_SHARE = 0.25  # bytes per pixel of its square
_CODEC_SHARE = {"raw": 1.0, "jpg": 0.2, "png": 0.6}


@dataclass(frozen=True, kw_only=True)
class PlannedSplit:
    """Counts of one split before any input is rejected. views: mosaics per input.

    listing: sha256 of each chunk of its stored inputs.
    """

    inputs: int
    views: int
    shards: int
    listing: list[str]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ShardId:
    split: str
    index: int

    def __str__(self) -> str:
        return f"{self.split} {self.index:06d}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of the output. Each worker has a copy.

    members: see `Manifest`.
    """

    config: JobConfig
    scorer: dict[str, Any]
    classes: list[str] | None
    splits: dict[str, PlannedSplit]
    imaging_library: dict[str, str | None]
    members: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in self.members.items():
            if not is_member_name(name) or kind not in MEMBER_KINDS:
                raise ConfigError(
                    f"member {name!r} is of kind {kind!r}, not {', '.join(MEMBER_KINDS)}"
                )

    def to_json(self) -> dict[str, Any]:
        dataset = asdict(self.config.dataset)
        for name in ("codec", "quality"):
            del dataset[name]
        for name in ("keep", "boxes", "masks", "preview"):
            if dataset[name] is None:
                del dataset[name]
        document = {
            "format_version": FORMAT_VERSION,
            "tokenizer_version": TOKENIZER_VERSION,
            "tokenizer": self.config.tokenizer.as_json(),
            "scorer": self.scorer,
            "codec": self.config.dataset.codec_parameters(),
            "dataset": dataset,
            "imaging_library": self.imaging_library,
            "classes": self.classes,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "decode_margin": DECODE_MARGIN,
        }
        if self.members:
            document["members"] = self.members
        as_stored: dict[str, Any] = json.loads(json_bytes(document))
        return as_stored

    @property
    def inputs(self) -> int:
        return sum(split.inputs for split in self.splits.values())

    @property
    def samples(self) -> int:
        return sum(split.inputs * split.views for split in self.splits.values())

    def shards(self) -> Iterator[ShardId]:
        for name, split in self.splits.items():
            for index in range(split.shards):
                yield ShardId(split=name, index=index)

    def inputs_of(self, shard: ShardId) -> range:
        """Indices of the inputs of a shard, in the plan of its split."""
        size = self.config.dataset.samples_per_shard
        total = self.splits[shard.split].inputs
        return range(shard.index * size, min(total, (shard.index + 1) * size))

    @property
    def bytes_per_sample(self) -> int:
        """Estimated size of a sample in a shard; for codec raw within a few per cent."""
        config = self.config
        nodes = config.tokenizer.geometry.num_nodes(config.tokenizer.tokens)
        pixels = nodes * config.tokenizer.patch_size**2 * 3
        side = config.dataset.preview
        preview = int(side**2 * _PREVIEW_SHARE) + _MEMBER_OVERHEAD if side else 0
        tokens = int(pixels * _CODEC_SHARE[config.dataset.codec])
        return tokens + preview + 20 * nodes + 5 * _MEMBER_OVERHEAD

    def manifest(self, **counted: Any) -> Manifest:
        """The manifest of the finished dataset; `counted` are the splits."""
        dataset = self.config.dataset
        return Manifest(
            classes=self.classes,
            tokenizer=self.config.tokenizer,
            scorer=self.scorer,
            codec=dataset.codec_parameters(),
            imaging_library=self.imaging_library,
            samples_per_shard=dataset.samples_per_shard,
            name=dataset.name,
            license=dataset.license,
            source=dataset.source,
            members=self.members,
            preview=dataset.preview,
            quadpipe=__version__,
            **counted,
        )


def read_inputs(out: ReadableFolder, plan: Plan, shard: ShardId) -> list[Input]:
    """The inputs of one shard from the stored listing; ShardError when it is not the plan's."""
    chunk, inside = divmod(shard.index, SHARDS_PER_CHUNK)
    name = listing_name(shard.split, chunk)
    data = out.read(name)
    if hashlib.sha256(data).hexdigest() != plan.splits[shard.split].listing[chunk]:
        raise ShardError(
            f"{out.where(name)} was changed: its checksum is not the one in the plan; choose "
            f"another --out, or remove {out}"
        )
    size = plan.config.dataset.samples_per_shard
    lines = data.splitlines()[inside * size : (inside + 1) * size]
    try:
        inputs = [Input.from_row(json.loads(line)) for line in lines]
        if any(not entry.kept.keys() <= plan.members.keys() for entry in inputs):
            raise ValueError("a member that is not in the plan")
        return inputs
    except (ValueError, TypeError, RecursionError) as error:
        raise ShardError(
            f"{out.where(name)} holds a row that is not an input; choose another --out, or remove "
            f"{out}"
        ) from error


def read_plan(folder: ReadableFolder, *, advice: str = "fetch it again") -> Plan:
    """The plan that a dataset was made from, or is being made from.

    An absent field was added by a later version, and has its default. ConfigError when there is no
    plan, when it is of another tokenizer version, or when it has fields or values that this version
    does not support, which may decide bytes. ShardError, with the `advice`, when it is damaged.
    """
    where = folder.where(PLAN)
    if not folder.exists(PLAN):
        raise ConfigError(f"{where} is missing; it records how {folder} was made")
    try:
        document = json.loads(folder.read(PLAN))
        if document["tokenizer_version"] != TOKENIZER_VERSION:
            raise ConfigError(
                f"it was made by tokenizer version {document['tokenizer_version']}, this is "
                f"{TOKENIZER_VERSION}; install the quadpipe that it was made with"
            )
        plan = _plan_of(document)
        unlike = list(changed_fields(document, plan.to_json()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ShardError(f"{where} cannot be used: {error}; {advice}") from error
    except ConfigError as error:
        raise ConfigError(f"{where} cannot be used: {error}") from error
    check_unchanged(folder, unlike)
    return plan


def check_unchanged(folder: ReadableFolder, fields: list[str]) -> None:
    """Raise ConfigError when this version does not support some fields of a plan."""
    if fields:
        raise ConfigError(
            f"{folder} was planned by another version of quadpipe: this one does not know, or "
            f"treats differently, {', '.join(fields)}; use the version that planned it"
        )


def changed_fields(stored: Any, now: Any, where: str = "") -> Iterator[str]:
    """Names of the fields of a stored JSON object that this version lacks, or that differ."""
    if isinstance(stored, dict) and isinstance(now, dict):
        for key, value in stored.items():
            name = f"{where}.{key}" if where else key
            if key not in now:
                yield name
            else:
                yield from changed_fields(value, now[key], name)
    elif stored != now:
        yield where


def _plan_of(document: dict[str, Any]) -> Plan:
    """The plan of a JSON object; fields that this version does not know are dropped."""
    dataset = DatasetConfig(
        **known_fields(DatasetConfig, document["dataset"]),
        codec=document["codec"]["name"],
        quality=document["codec"].get("quality"),
    )
    tokenizer = TokenizerConfig(**known_fields(TokenizerConfig, document["tokenizer"]))
    return Plan(
        config=JobConfig(tokenizer=tokenizer, dataset=dataset),
        scorer=dict(document["scorer"]),
        classes=document["classes"],
        splits={
            name: PlannedSplit(**known_fields(PlannedSplit, split))
            for name, split in document["splits"].items()
        },
        imaging_library=dict(document["imaging_library"]),
        members=dict(document.get("members", {})),
    )
