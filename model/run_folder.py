"""A training run on disk.

    config.json             options, shape of the model, the dataset's tokenizer and classes
    metrics.jsonl           one line an interval and an evaluation
    last.safetensors        weights, and their moving average under `ema.`; names its state file
    state-0000000123.pt     optimizer and position in the data, loadable with weights_only=True
    best.safetensors        weights of the best epoch on the validation split, the latest of equals

`last.safetensors` is written after its state file and is the point at which a checkpoint counts.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from quadpipe import __version__
from quadpipe.errors import ConfigError, OutputError, ShardError
from quadpipe.fields import check_fields, known_fields
from quadpipe.files import LocalFolder
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import rank_variable
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.shards.format import Codec, json_bytes
from quadpipe.shards.manifest import Manifest
from quadpipe.tokenizer import TokenizerConfig
from quadpipe.weights import load_torch

CONFIG, METRICS = "config.json", "metrics.jsonl"
LAST, BEST = "last.safetensors", "best.safetensors"
LOCK = ".quadpipe/lock"
DATASET_PARTS = ("tokenizer", "scorer_sha256", "label_aware", "codec", "imaging_library")
"""Parts of a `RunConfig` that say how the shards were made."""

_EMA = "ema."
_PARTS: dict[str, Any] = {
    "train": TrainConfig,
    "model": QuadformerConfig,
    "tokenizer": TokenizerConfig,
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is: enough to resume it, to evaluate it and to predict with it.

    shard_lists: their sha256 by split, which name the very shards. scorer_sha256: of the weights
    of the scorer's network. codec, imaging_library: as in the manifest, None where an older version
    did not keep them. quadpipe: the version that began the run. ignored: fields of the file that
    this version does not know.
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
    quadpipe: str | None = None
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        geometry = self.tokenizer.geometry
        if len(self.classes) != self.model.classes:
            raise ConfigError(f"{len(self.classes)} classes for a head of {self.model.classes}")
        if geometry.patch_size != self.model.patch_size or geometry.grid(0) != self.model.grid:
            raise ConfigError("the tokenizer's patches are not the model's")
        if not isinstance(self.imaging_library, dict | None):
            raise ConfigError("imaging_library is not an object")
        self.make_codec()

    @classmethod
    def of(cls, config: TrainConfig, manifest: Manifest) -> "RunConfig":
        return cls(
            train=config,
            model=config.quadformer(manifest),
            tokenizer=manifest.tokenizer,
            classes=list(manifest.classes or ()),
            label_aware=bool(manifest.scorer["label_aware"]),
            shard_lists={n: split.shard_list_sha256 for n, split in manifest.splits.items()},
            scorer_sha256=manifest.scorer.get("weights_sha256"),
            codec=manifest.codec,
            imaging_library=manifest.imaging_library,
            quadpipe=__version__,
        )

    def make_codec(self) -> Codec | None:
        """How the tokens of the shards were written, None where the run does not say."""
        if self.codec is None:
            return None
        return Codec(**known_fields(Codec, self.codec), patch_size=self.tokenizer.patch_size)

    def says_ignored(self) -> str:
        """One line on the ignored fields, empty where there are none."""
        if not self.ignored:
            return ""
        return (
            f"was written by quadpipe {self.quadpipe!r}; {__version__} ignores its "
            f"{', '.join(map(repr, self.ignored))}"
        )

    def to_json(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ignored"}
        return document | {name: getattr(self, name).as_json() for name in _PARTS}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RunConfig":
        """Fields that a later version added are ignored, but for the model's.

        Those may change what the weights compute: ConfigError names the version to install.
        """
        entries = known_fields(cls, document)
        ignored = [name for name in document if name not in entries]
        for part, kind in _PARTS.items():
            known = known_fields(kind, document[part])
            unknown = [f"{part}.{name}" for name in document[part] if name not in known]
            if part == "model" and unknown:
                raise ConfigError(
                    f"{unknown[0]!r} decides what the model computes, and quadpipe {__version__} "
                    f"does not know it; install the version that wrote it, "
                    f"{document.get('quadpipe')!r}"
                )
            ignored += unknown
            entries[part] = kind(**known)
        return cls(**entries | {"ignored": ignored})

    def differences(self, other: "RunConfig", *parts: str) -> dict[str, str]:
        """What is not the same in these parts of two runs, by name: "was .., now ..".

        What one of the runs does not say is left out.
        """
        said = [part for part in parts if None not in (getattr(self, part), getattr(other, part))]
        before, now = (_flat(config.to_json(), said) for config in (self, other))
        return {
            name: f"{name} was {before.get(name)}, now {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        }


class RunFolder:
    """Reads and writes a run. All that is read loads without running code."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.folder = LocalFolder(location)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        return self.folder.exists(CONFIG)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that trains into the folder, and remove what was left half written."""
        with self.folder.lock(LOCK):
            self.folder.clear_staging()
            yield

    def check_empty(self) -> None:
        """OutputError when the folder holds something already.

        What a run that ended before its first checkpoint has left may be written over.
        """
        strangers = self.folder.names()
        if not self.folder.exists(LAST):
            strangers = [n for n in strangers if n != CONFIG and not n.startswith("state-")]
        if strangers:
            raise OutputError(
                f"{self.folder} is not empty ({strangers[0]}); choose another --out, or give "
                f"--resume to go on with the run in it"
            )

    def start(self, config: RunConfig) -> None:
        """Write the configuration of a run that begins."""
        self.folder.write(CONFIG, json_bytes(config.to_json(), indent=2))

    def config(self) -> RunConfig:
        """ShardError when the folder holds no run, or one that cannot be used."""
        if not self.started:
            raise ShardError(
                f"{self.folder} holds no training run: it has no {CONFIG}; give the --out of one"
            )
        try:
            return RunConfig.from_json(json.loads(self.folder.read(CONFIG)))
        except (
            ArithmeticError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
            ConfigError,
        ) as error:
            raise ShardError(f"{self.folder.where(CONFIG)} cannot be used: {error}") from error

    def save(
        self,
        name: str,
        weights: dict[str, Tensor],
        average: dict[str, Tensor] | None,
        state: dict[str, Any] | None,
        step: int,
        epoch: int,
    ) -> None:
        """Commit a checkpoint, whole or not at all. epoch: how many are finished."""
        from safetensors.torch import save

        metadata = {"step": str(step), "epoch": str(epoch)}
        if state is not None:
            metadata["state"] = f"state-{step:010d}.pt"
            with self.folder.staged(metadata["state"]) as file:
                torch.save(state, cast(IO[bytes], file))
        tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
        for key, value in (average or {}).items():
            tensors[_EMA + key] = value.detach().cpu().contiguous()
        self.folder.write(name, save(tensors, metadata))
        if state is not None:
            for old in self.folder.root.glob("state-*.pt"):
                if old.name != metadata["state"]:
                    old.unlink(missing_ok=True)

    def weights(
        self, name: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, str]]:
        """Weights, their moving average where there is one, and the checkpoint's metadata."""
        with self._opened(name) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        average = {k.removeprefix(_EMA): v for k, v in tensors.items() if k.startswith(_EMA)}
        weights = {k: v for k, v in tensors.items() if not k.startswith(_EMA)}
        return weights, average or None, metadata

    def describe_checkpoint(self) -> str:
        """Which weights `model` takes, for people; old checkpoints do not say their epoch."""
        with self._opened(self._chosen()) as file:
            metadata = file.metadata() or {}
        counts = {key: metadata.get(key, "") for key in ("epoch", "step")}
        known = [f"{key} {count}" for key, count in counts.items() if count.isdecimal()]
        return ", ".join([self._chosen(), *known])

    def _chosen(self) -> str:
        return BEST if self.folder.exists(BEST) else LAST

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """A checkpoint of safetensors; ShardError when it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.folder.path(name)
        if not self.folder.exists(name):
            raise ShardError(
                f"{self.folder} has no {name}; it is no whole training run: copy it again, or "
                f"train again"
            )
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ShardError(
                f"{path} is damaged: {_first_line(error)}; copy the run again, or begin another"
            ) from error

    def state(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Optimizer and position of the checkpoint with this metadata."""
        name = metadata.get("state", "")
        path = self.folder.path(name) if name else self.folder.root
        try:
            state = load_torch(path.read_bytes())
        except Exception as error:  # whatever the file's bytes make the parsers raise
            raise ShardError(
                f"{path} cannot be loaded: {_first_line(error)}; copy the run again, or train again"
            ) from error
        if not isinstance(state, dict):
            raise ShardError(f"{path} cannot be loaded: it holds no state")
        return state

    def model(self, device: torch.device, name: str | None = None) -> Quadformer:
        """The trained model for evaluation: the moving average of `best`, else of `last`."""
        name = name or self._chosen()
        config = self.config().model
        weights, average, _ = self.weights(name)
        given = average or weights
        with torch.device("meta"):  # the configuration may claim more than there is memory
            wanted = Quadformer(config).state_dict()
        differing = sorted(
            key
            for key in given.keys() | wanted.keys()
            if key not in given or key not in wanted or given[key].shape != wanted[key].shape
        )
        if differing:
            raise ShardError(
                f"{self.folder.where(name)} does not fit {CONFIG}: {differing[0]} is missing, not "
                f"known, or of another shape; copy the run again"
            )
        model = Quadformer(config)
        model.load_state_dict(given)
        return model.to(device).eval()

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.folder.path(METRICS).open("ab") as file:
            file.write(json_bytes(row))

    def cut_metrics(self, step: int, epoch: int) -> None:
        """Forget lines of steps and finished epochs after a checkpoint, and a line cut short."""
        if not self.folder.exists(METRICS):
            return
        kept = []
        for line in self.folder.read(METRICS).splitlines(keepends=True):
            try:
                row = json.loads(line)
                scored_later = row["event"] == "eval" and row["epoch"] > epoch
                if line.endswith(b"\n") and row["step"] <= step and not scored_later:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        self.folder.write(METRICS, b"".join(kept))


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def pick_device(name: str) -> torch.device:
    """`auto`: this process's GPU where there is one; ConfigError when `cuda` is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = rank_variable("LOCAL_RANK", 0), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"LOCAL_RANK {number} has no GPU: torch sees {there} here; start at most {there} "
            f"processes per machine, or use --device cpu"
        )
    return torch.device("cuda", number)


def load_run(location: str | os.PathLike[str]) -> tuple[RunFolder, RunConfig]:
    run = RunFolder(Path(location))
    return run, run.config()
