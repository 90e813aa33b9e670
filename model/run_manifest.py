"""The manifest of a training run, as `config.json` holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from quadpipe import __version__
from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, known_fields, unknown_fields
from quadpipe.model.config import TrainConfig
from quadpipe.model.quadformer import QuadformerConfig
from quadpipe.shards.format import Codec
from quadpipe.shards.manifest import Manifest
from quadpipe.text import counted
from quadpipe.tokenizer import TokenizerConfig

DATASET_PARTS = ("tokenizer", "scorer_sha256", "label_aware", "codec", "imaging_library")
"""Fields of a `RunManifest` that describe how the shards were made."""

_PARTS: dict[str, Any] = {
    "train": TrainConfig,
    "model": QuadformerConfig,
    "tokenizer": TokenizerConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """Everything needed to resume a run, to evaluate it and to predict with it.

    train: with the options of the model as they are in `model`. shard_lists: sha256 of the list of
    shards by split. scorer_sha256: of the weights of the scorer's network. codec, imaging_library,
    fingerprint: as in the dataset's manifest, None in runs of older versions. datasets: where there
    were several, their `Manifest.as_parent`, and the other fields are of their `joint_manifest`.
    quadpipe: the version that started the run. ignored: fields of the file that this version does
    not know.
    """

    train: TrainConfig
    model: QuadformerConfig
    tokenizer: TokenizerConfig
    classes: list[str]
    label_aware: bool
    shard_lists: dict[str, str]
    scorer_sha256: str | None = None
    codec: dict[str, Any] | None = None
    imaging_library: dict[str, Any] | None = None
    fingerprint: str | None = None
    datasets: tuple[Any, ...] = ()
    quadpipe: str | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "train", self.train.settled(self.model))
        geometry = self.tokenizer.geometry
        if len(self.classes) != self.model.classes:
            raise ConfigError(
                f"{counted(len(self.classes), 'class')} for a head of {self.model.classes}"
            )
        if geometry.patch_size != self.model.patch_size or geometry.grid(0) != self.model.grid:
            raise ConfigError("the tokenizer's patches are not the model's")
        if not isinstance(self.imaging_library, dict | None):
            raise ConfigError("imaging_library is not an object")
        self.make_codec()
        if not all(
            isinstance(dataset, dict) and isinstance(dataset.get("fingerprint"), str)
            for dataset in self.datasets
        ):
            raise ConfigError("datasets is not a list of objects with a fingerprint")

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        manifest: Manifest,
        architecture: Mapping[str, Any] | None = None,
        datasets: Sequence[Manifest] = (),
    ) -> "RunManifest":
        """architecture: see `TrainConfig.quadformer`. datasets: those of a joint manifest."""
        return cls(
            train=config,
            model=config.quadformer(manifest, architecture),
            tokenizer=manifest.tokenizer,
            classes=list(manifest.classes or ()),
            label_aware=bool(manifest.scorer["label_aware"]),
            shard_lists={n: split.shard_list_sha256 for n, split in manifest.splits.items()},
            scorer_sha256=manifest.scorer.get("weights_sha256"),
            codec=manifest.codec,
            imaging_library=manifest.imaging_library,
            fingerprint=manifest.fingerprint,
            datasets=tuple(each.as_parent() for each in datasets if len(datasets) > 1),
            quadpipe=__version__,
        )

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, or means over images, that the model was trained at, ascending."""
        return self.train.budgets(self.tokenizer.tokens, self.tokenizer.geometry)

    @property
    def is_adaptive(self) -> bool:
        """Whether images had numbers of tokens of their own."""
        return self.train.mean_tokens is not None

    def limits(self, least: int | None = None, most: int | None = None) -> CountLimits:
        """The least and the most tokens of an image, by default those of training; of a model for
        one budget, those of the shards.

        ConfigError if they are not within what the shards held.
        """
        stored = self.tokenizer.tokens
        trained = self.train.min_tokens, self.train.max_tokens
        if len(self.budgets) > 1 and not self.is_adaptive:
            trained = self.budgets[0], self.budgets[-1]
        least, most = (t if n is None else n for n, t in zip((least, most), trained, strict=True))
        return CountLimits.of(
            self.tokenizer.geometry, stored, least, most, self.train.gain_discount
        )

    def unseen(self, counts: Sequence[int]) -> list[int]:
        """Those of some numbers of tokens per image that no image had in training."""
        seen = self.limits().counts if self.is_adaptive else self.budgets
        return [count for count in counts if count not in seen]

    @property
    def draw_weights(self) -> list[float] | None:
        """How often a step draws each of the budgets, in proportion; None for evenly.

        For a draw that is even over multiply-adds the budgets divide their range at the midpoints.
        """
        if self.train.tokens_draw == "even":
            return None
        costs = [float(self.model.multiply_adds(budget)) for budget in self.budgets]
        middles = [(low + high) / 2 for low, high in pairwise(costs)]
        return [high - low or 1.0 for low, high in pairwise([costs[0], *middles, costs[-1]])]

    def make_codec(self) -> Codec | None:
        """The codec of the shards' tokens; None if the run does not name it."""
        if self.codec is None:
            return None
        return Codec(**known_fields(Codec, self.codec), patch_size=self.tokenizer.patch_size)

    def says_ignored(self) -> str:
        """A warning about the ignored fields; empty without such fields."""
        if not self.ignored:
            return ""
        writer = f"quadpipe {self.quadpipe}" if self.quadpipe else "another version"
        return (
            f"was written by {writer}; quadpipe {__version__} ignores its "
            f"{', '.join(map(repr, self.ignored))}"
        )

    def to_json(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ignored"}
        return document | {name: getattr(self, name).as_json() for name in _PARTS}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RunManifest":
        """Fields that a later version added are ignored, except the model's.

        Those may change what the weights compute: ConfigError names the version to install.
        """
        entries = known_fields(cls, document)
        ignored = [name for name in document if name not in entries]
        for part, kind in _PARTS.items():
            known = known_fields(kind, document[part])
            unknown = [f"{part}.{name}" for name in unknown_fields(kind, document[part])]
            if part == "model" and unknown:
                raise ConfigError(
                    f"{unknown[0]!r} decides what the model computes, and quadpipe {__version__} "
                    f"does not know it; install the version that wrote it, "
                    f"{document.get('quadpipe')!r}"
                )
            ignored += unknown
            entries[part] = kind(**known)
        return cls(**entries | {"ignored": ignored})

    def differences(self, other: "RunManifest", *parts: str) -> dict[str, str]:
        """Differences between two runs in these parts, by name: "was .., now ..".

        Parts that one of the runs does not have are skipped.
        """
        known = [part for part in parts if None not in (getattr(self, part), getattr(other, part))]
        before, now = (_flat(config.to_json(), known) for config in (self, other))
        return {
            name: f"{name} was {before.get(name)}, now {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        }


def _flat(document: dict[str, Any], parts: list[str]) -> dict[str, Any]:
    """The values of some parts, named "part.field" where a part is an object."""
    flat: dict[str, Any] = {}
    for part in parts:
        value = document[part]
        if isinstance(value, dict):
            flat |= {f"{part}.{name}": inner for name, inner in value.items()}
        else:
            flat[part] = value
    return flat
