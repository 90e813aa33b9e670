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
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from quadpipe.errors import ConfigError, OutputError, ShardError, first_line
from quadpipe.files import LocalFolder
from quadpipe.model.distributed import rank_variable
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_manifest import RunManifest
from quadpipe.shards.format import json_bytes
from quadpipe.weights import listing, load_torch, state_dict_problems

CONFIG, METRICS = "config.json", "metrics.jsonl"
LAST, BEST = "last.safetensors", "best.safetensors"
LOCK = ".quadpipe/lock"
_EMA = "ema."


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

    def start(self, config: RunManifest) -> None:
        """Write the configuration of a run that begins."""
        self.folder.write(CONFIG, json_bytes(config.to_json(), indent=2))

    def config(self) -> RunManifest:
        """ShardError when the folder holds no run, or one that cannot be used."""
        if not self.started:
            raise ShardError(
                f"{self.folder} holds no training run: it has no {CONFIG}; give the --out of one"
            )
        try:
            return RunManifest.from_json(json.loads(self.folder.read(CONFIG)))
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
                f"{path} is damaged: {first_line(error)}; copy the run again, or begin another"
            ) from error

    def state(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Optimizer and position of the checkpoint with this metadata."""
        name = metadata.get("state", "")
        path = self.folder.path(name) if name else self.folder.root
        try:
            state = load_torch(path.read_bytes())
        except Exception as error:  # whatever the file's bytes make the parsers raise
            raise ShardError(
                f"{path} cannot be loaded: {first_line(error)}; copy the run again, or train again"
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
        if problems := state_dict_problems(given, wanted):
            raise ShardError(
                f"{self.folder.where(name)} does not fit {CONFIG}: {listing(problems)}; copy the "
                f"run again"
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


def load_run(location: str | os.PathLike[str]) -> tuple[RunFolder, RunManifest]:
    run = RunFolder(Path(location))
    return run, run.config()
