"""A training run on disk.

    config.json             options, shape of the model, the dataset's tokenizer and classes
    metrics.jsonl           one line an interval and an evaluation
    last.safetensors        weights, and their moving average under `ema.`; names its state file
    state-0000000123.pt     optimizer and position in the data, loadable with weights_only=True
    best.safetensors        weights of the best epoch on the validation split

`last.safetensors` is written after its state file and is the point at which a checkpoint counts.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from quadpipe.errors import ConfigError, OutputError, ShardError
from quadpipe.fields import check_types
from quadpipe.files import LocalFolder
from quadpipe.model.config import TrainConfig
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.shards.format import json_bytes
from quadpipe.shards.manifest import Manifest
from quadpipe.tokenizer import TokenizerConfig
from quadpipe.weights import load_torch

CONFIG, METRICS = "config.json", "metrics.jsonl"
LAST, BEST = "last.safetensors", "best.safetensors"
LOCK = ".quadpipe/lock"
_EMA = "ema."


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is: enough to resume it, to evaluate it and to predict with it.

    shard_lists: their sha256 by split, which name the very shards. scorer_sha256: of the weights
    of the scorer's network.
    """

    train: TrainConfig
    model: QuadformerConfig
    tokenizer: TokenizerConfig
    classes: list[str]
    label_aware: bool
    shard_lists: dict[str, str]
    scorer_sha256: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        geometry = self.tokenizer.geometry
        if len(self.classes) != self.model.classes:
            raise ConfigError(f"{len(self.classes)} classes for a head of {self.model.classes}")
        if geometry.patch_size != self.model.patch_size or geometry.grid(0) != self.model.grid:
            raise ConfigError("the tokenizer's patches are not the model's")

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
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "train": self.train.as_json(),
            "model": self.model.as_json(),
            "tokenizer": self.tokenizer.as_json(),
            "classes": self.classes,
            "label_aware": self.label_aware,
            "shard_lists": self.shard_lists,
            "scorer_sha256": self.scorer_sha256,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "RunConfig":
        return cls(
            train=TrainConfig(**document["train"]),
            model=QuadformerConfig(**document["model"]),
            tokenizer=TokenizerConfig(**document["tokenizer"]),
            classes=document["classes"],
            label_aware=document["label_aware"],
            shard_lists=dict(document["shard_lists"]),
            scorer_sha256=document.get("scorer_sha256"),
        )


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
        """OutputError when the folder holds something already."""
        strangers = self.folder.names()
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
    ) -> None:
        """Commit a checkpoint, whole or not at all."""
        from safetensors.torch import save

        metadata = {"step": str(step)}
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
        from safetensors import SafetensorError, safe_open

        path = self.folder.path(name)
        if not self.folder.exists(name):
            raise ShardError(f"{self.folder} has no {name}; it is no whole training run")
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ShardError(
                f"{path} is damaged: {_first_line(error)}; copy the run again, or begin another"
            ) from error
        average = {k.removeprefix(_EMA): v for k, v in tensors.items() if k.startswith(_EMA)}
        weights = {k: v for k, v in tensors.items() if not k.startswith(_EMA)}
        return weights, average or None, metadata

    def state(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Optimizer and position of the checkpoint with this metadata."""
        name = metadata.get("state", "")
        path = self.folder.path(name) if name else self.folder.root
        try:
            state = load_torch(path.read_bytes())
        except Exception as error:  # whatever the file's bytes make the parsers raise
            raise ShardError(f"{path} cannot be loaded: {_first_line(error)}") from error
        if not isinstance(state, dict):
            raise ShardError(f"{path} cannot be loaded: it holds no state")
        return state

    def model(self, device: torch.device, name: str | None = None) -> Quadformer:
        """The trained model for evaluation: the moving average of `best`, else of `last`."""
        name = name or (BEST if self.folder.exists(BEST) else LAST)
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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]


def pick_device(name: str) -> torch.device:
    """`auto`: this process's GPU where there is one; ConfigError when `cuda` is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use --device cpu")
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def load_run(location: str | os.PathLike[str]) -> tuple[RunFolder, RunConfig]:
    run = RunFolder(Path(location))
    return run, run.config()
