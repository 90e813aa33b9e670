"""A training run on disk.

    config.json                     the `RunManifest`
    gains.npy                       `counts.distribution` of the gains of the split train
    metrics.jsonl                   one line per interval and per evaluation
    last.safetensors                weights, and their moving average under `ema.`
    state-0000000123.safetensors    the `TrainingState` of `last.safetensors`, which names it
    best.safetensors                weights of the best epoch on the split val; of ties the latest

`last.safetensors` is written after its state file and commits the checkpoint.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadpipe.counts import QUANTILES, CountLimits
from quadpipe.errors import ConfigError, OutputError, ShardError, first_line
from quadpipe.files import LocalFolder
from quadpipe.model.distributed import rank_variable
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_manifest import RunManifest
from quadpipe.model.training_state import TrainingState
from quadpipe.shards.format import json_bytes, npy_array, npy_bytes
from quadpipe.weights import listing, state_dict_problems

CONFIG = "config.json"
GAINS = "gains.npy"
LAST, BEST = "last.safetensors", "best.safetensors"
LOCK = ".quadpipe/lock"
_EMA = "ema."


class RunFolder:
    """Reads and writes a run; loading it runs no code."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.folder = LocalFolder(location)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def started(self) -> bool:
        return self.folder.exists(CONFIG)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the run, and remove incomplete files."""
        with self.folder.lock(LOCK):
            self.folder.clear_staging()
            yield

    def check_empty(self) -> None:
        """Raise OutputError if the folder is not empty.

        Files of a run that ended before its first checkpoint may be overwritten.
        """
        strangers = self.folder.names()
        if not self.folder.exists(LAST):
            strangers = [
                n for n in strangers if n not in (CONFIG, GAINS) and not n.startswith("state-")
            ]
        if strangers:
            raise OutputError(
                f"{self.folder} is not empty ({strangers[0]}); choose another --out, or give "
                f"--resume to continue the run in it"
            )

    def start(self, config: RunManifest) -> None:
        """Write the manifest of a new run."""
        self.folder.remove(GAINS)  # of a run that ended before its first checkpoint
        self.folder.write(CONFIG, json_bytes(config.to_json(), indent=2))

    def write_gains(self, table: np.ndarray) -> None:
        """Keep the `counts.distribution` of the gains in training."""
        self.folder.write(GAINS, npy_bytes(table))

    def gains(self) -> np.ndarray | None:
        """The distribution of gains, float32 `[1024, K]`; None if the run does not know it."""
        data = self.folder.get(GAINS)
        if data is None:
            return None
        try:
            return npy_array(data, "<f4", (QUANTILES, self.config().tokenizer.num_splits))
        except ShardError as error:
            raise ShardError(f"{self.folder.where(GAINS)}: {error}; copy the run again") from error

    def threshold(self, mean: int, limits: CountLimits) -> float:
        """The gain down to which images are split for a mean number of tokens in training.

        ConfigError on a mean that is not within the limits, and if the run does not know its gains.
        """
        limits.check_mean(mean)
        table = self.gains()
        if table is None:
            reason = "its shards had no gains; rerun their quadpipe tokenize command, then train"
            if self.config().datasets:
                reason = (
                    "a dataset of its training had no gains, or they were scored differently; give "
                    "--tokens, or tokenize them again with the same scorer and train"
                )
            raise ConfigError(
                f"{self.folder} has no {GAINS}, which a mean number of tokens needs: {reason} again"
            )
        return limits.threshold(table, mean)

    def config(self) -> RunManifest:
        """The manifest; ShardError if the folder holds no run, or one that cannot be used."""
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
        *,
        step: int,
        epoch: int,
        state: TrainingState | None = None,
    ) -> None:
        """Commit a checkpoint, whole or not at all. epoch: number of finished epochs."""
        from safetensors.torch import save

        metadata = {"step": str(step), "epoch": str(epoch)}
        if state is not None:
            metadata["state"] = f"state-{step:010d}.safetensors"
            self.folder.write(metadata["state"], state.to_safetensors())
        tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()}
        for key, value in (average or {}).items():
            value = value.detach().cpu().contiguous()
            is_same = value.data_ptr() == tensors[key].data_ptr()  # of a frozen parameter
            tensors[_EMA + key] = value.clone() if is_same else value
        self.folder.write(name, save(tensors, metadata))
        if state is not None:
            for old in self.folder.root.glob("state-*"):
                if old.name != metadata["state"]:
                    old.unlink(missing_ok=True)

    def weights(
        self, name: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, str]]:
        """Weights, their moving average if there is one, and the checkpoint's metadata."""
        tensors, metadata = self._read(name)
        average = {k.removeprefix(_EMA): v for k, v in tensors.items() if k.startswith(_EMA)}
        weights = {k: v for k, v in tensors.items() if not k.startswith(_EMA)}
        return weights, average or None, metadata

    def describe_checkpoint(self) -> str:
        """Name of the checkpoint that `model` loads, with its epoch and step if it has them."""
        with self._opened(self._chosen()) as file:
            metadata = file.metadata() or {}
        counts = {key: metadata.get(key, "") for key in ("epoch", "step")}
        known = [f"{key} {count}" for key, count in counts.items() if count.isdecimal()]
        return ", ".join([self._chosen(), *known])

    def _chosen(self) -> str:
        return BEST if self.folder.exists(BEST) else LAST

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        """An open safetensors file; ShardError if it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self.folder.path(name)
        if not self.folder.exists(name):
            raise ShardError(
                f"{self.folder} has no {name}; the training run is incomplete: copy it again, or "
                f"start another"
            )
        try:
            with safe_open(path, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            raise ShardError(
                f"{path} is damaged: {first_line(error)}; copy the run again, or start another"
            ) from error

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a checkpoint."""
        with self._opened(name) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})

    def state(self, metadata: dict[str, str]) -> TrainingState:
        """The state that belongs to the checkpoint with this metadata."""
        name = metadata.get("state", "")
        try:
            if name.endswith(".pt"):  # written by an older version
                return TrainingState.from_torch(self.folder.read(name))
            return TrainingState.from_safetensors(*self._read(name))
        except ShardError:
            raise
        except Exception as error:  # the parsers raise many kinds on damaged files
            raise ShardError(
                f"{self.folder.where(name)} cannot be loaded: {first_line(error)}; copy the run "
                f"again, or start another"
            ) from error

    def model(self, device: torch.device, name: str | None = None) -> Quadformer:
        """The trained model in evaluation mode.

        name: a checkpoint, by default `best` if there is one, else `last`. The moving average is
        loaded if there is one.
        """
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


def pick_device(name: str) -> torch.device:
    """`auto`: this process's GPU if it has one. Raises ConfigError if `cuda` is not available."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = rank_variable("LOCAL_RANK", 0), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"LOCAL_RANK {number} has no GPU: torch sees {there} here; start at most {there} "
            f"{'process' if there == 1 else 'processes'} per machine, or use --device cpu; where "
            f"each process sees only its own GPU (SLURM's --gpus-per-task=1), set LOCAL_RANK=0"
        )
    return torch.device("cuda", number)


def load_run(location: str | os.PathLike[str]) -> tuple[RunFolder, RunManifest]:
    run = RunFolder(Path(location))
    return run, run.config()
