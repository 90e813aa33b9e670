"""The training loop: shards in, a run folder out."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from inspect import signature
from math import isfinite
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from quadpipe.errors import ConfigError, QuadpipeError, ShardError, first_line
from quadpipe.files import Cache
from quadpipe.loader import Batch, Loader
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World, join_world
from quadpipe.model.evaluate import EvalResult, check_fits, evaluate
from quadpipe.model.optimize import (
    MovingAverage,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from quadpipe.model.pretrained import Loaded, load_pretrained
from quadpipe.model.progress import Interval, TrainProgress
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import (
    BEST,
    LAST,
    RunFolder,
    pick_device,
)
from quadpipe.model.run_manifest import DATASET_PARTS, RunManifest
from quadpipe.seeds import random_bits
from quadpipe.shards.reader import Dataset

# What may differ when a run is resumed: without a trace, or changing how it goes on.
_FREE = {"workers", "device", "log_interval", "checkpoint_interval", "tensorboard", "compile"}
_CHANGEABLE = {"lr", "min_lr", "warmup_epochs", "clip_grad", "amp", "on_error", "verify"}

# A longer warm-up is shortened to this part of a run: one tenth.
_RUN_BY_WARMUP = 10

# A launcher may pass on a signal that has come already; later ones mean it.
_SECONDS_TO_SAVE = 2.0


class NonFiniteLossError(QuadpipeError):
    """The loss or its gradient is no number; the weights are as before the step."""


class InterruptedTrainingError(QuadpipeError):
    """Stopped by a signal, after a checkpoint."""

    exit_code = 130


def train(
    dataset: str | PathLike[str],
    out: str | PathLike[str],
    *,
    resume: bool = False,
    init: str | PathLike[str] | None = None,
    cache: Cache | None = None,
    progress: TrainProgress | None = None,
    **options: Any,
) -> RunFolder:
    """Train a Quadformer on the split `train` of a dataset.

        run = quadpipe.model.train("shards/", "run/", model="small", tokens=100, epochs=100)

    options: fields of TrainConfig. resume: go on with the run in `out`, exactly; its options must
    be those of before. init: weights to start from, of a timm ViT or a run. cache: keeps shards of
    a dataset at a URL here. Under torchrun each process calls this. Raises ConfigError on what
    cannot work, NonFiniteLossError, InterruptedTrainingError.
    """
    config = TrainConfig(**options)
    device = pick_device(config.device)
    with join_world(device) as world, ExitStack() as held:
        data = Dataset(dataset, cache=cache)
        trainer = Trainer(data, RunFolder(out), config, device, world, progress)
        trainer.prepare(held, resume=resume, init=init)
        trainer.fit()
        return trainer.run


class Trainer:
    """One process of a training run."""

    def __init__(
        self,
        dataset: Dataset,
        run: RunFolder,
        config: TrainConfig,
        device: torch.device,
        world: World,
        progress: TrainProgress | None = None,
    ) -> None:
        self.dataset, self.run, self.config = dataset, run, config
        self.device, self.world = device, world
        self.progress = progress if progress and world.is_rank_zero else TrainProgress()
        manifest = dataset.manifest
        if manifest.classes is None:
            raise ConfigError(f"{dataset.folder} has no labels, so there is nothing to learn")
        self.loader = self._loader("train", shuffle=True)
        self.validation = self._loader("val", shuffle=False) if self._has_samples("val") else None
        self.run_config = RunManifest.of(config, manifest)
        torch.manual_seed(config.seed)
        self.model = Quadformer(self.run_config.model).to(device)
        self.optimizer = make_optimizer(self.model, config)
        self.average: MovingAverage | None = None
        self.loaded: Loaded | None = None
        self._augment = config.make_augmentation()
        self.step, self.epoch, self.consumed, self.best = 0, 0, 0, -1.0
        self.events: Any = None
        self._interval = Interval(self.device, self.world)
        self._stop = False

    def prepare(self, held: ExitStack, *, resume: bool, init: str | PathLike[str] | None) -> None:
        """Begin a new run, or load the checkpoint of one; all checks are made here.

        The run's lock is entered into `held`.
        """
        if resume and init:
            raise ConfigError("--resume goes on with a run's own weights; leave out --init")
        if resume and not self.run.started:
            raise ConfigError(f"{self.run} holds no run to resume; leave out --resume")
        if self.config.tensorboard:
            _summary_writer_type()
        self._shorten_warmup(resume=resume)
        if init:
            self.loaded = load_pretrained(self.model, Path(init), self.run_config.classes)
        if self.config.ema_decay:
            self.average = MovingAverage(self.model, self.config.ema_decay)
        if resume:
            self._check_same_run()
        self._step_model = self._wrapped()
        with self.world.together():
            if self.world.is_rank_zero and not resume:
                self.run.check_empty()
            if self.world.is_rank_zero:
                held.enter_context(self.run.lock())
            if self.world.is_rank_zero and not resume:
                self.run.start(self.run_config)
        if resume:
            self._load_checkpoint()
        else:
            self._save()  # from here on there is something to resume
        if self.config.tensorboard and self.world.is_rank_zero:
            self.events = _summary_writer_type()(str(self.run.folder.root / "events"))
        self._warn_of_dataset()

    def _shorten_warmup(self, *, resume: bool) -> None:
        """A warm-up takes at most a tenth of the run, so that a short run trains as well."""
        given, longest = self.config.warmup_epochs, self.config.epochs / _RUN_BY_WARMUP
        # Older versions did not shorten it: their runs go on as they began.
        if given <= longest or (resume and self.run.config().train.warmup_epochs == given):
            return
        self.progress.warn(
            f"the warm-up of {given:g} epochs is shortened to {longest:g}, a tenth of the run"
        )
        self.config = replace(self.config, warmup_epochs=longest)
        self.run_config = replace(self.run_config, train=self.config)

    def _warn_of_dataset(self) -> None:
        """Say what makes the accuracy of a dataset mean less than it seems."""
        manifest = self.dataset.manifest
        if len(self.run_config.classes) == 1:
            self.progress.warn(
                f"the dataset has one class, {self.run_config.classes[0]!r}, so there is nothing "
                f"to learn; where that folder holds the folders of the real classes, tokenize it "
                f"instead of the folder around it"
            )
        if manifest.scorer["label_aware"]:
            self.progress.warn(
                "the scorer of these shards looked at the labels: accuracies mean nothing for "
                "images without labels"
            )
        if self.validation is None:
            self.progress.warn("no split val: no accuracy on unseen images, and no best checkpoint")

    @property
    def samples(self) -> int:
        """Samples that an epoch trains on."""
        return min(self.loader.samples, self.loader.steps * self.loader.batch_size)

    @property
    def steps(self) -> int:
        return self.loader.steps * self.config.epochs

    def fit(self) -> None:
        """Train to the end; on SIGTERM or Ctrl-C save and raise InterruptedTrainingError."""
        self.progress.started(self)
        with self._watching_signals():
            while self.epoch < self.config.epochs:
                self._train_epoch(self._step_model)
                self._finish_epoch()
        self.progress.finished(self)

    def _train_epoch(self, step_model: nn.Module) -> None:
        self.model.train()
        batches = self.world.in_step(self.loader.epoch(self.epoch, consumed=self.consumed))
        self._interval.restart_clock()
        for batch in self._interval.timed(batches):
            loss, correct, skipped = self._train_step(step_model, batch)
            self.consumed = min(self.consumed + self.loader.batch_size, self.samples)
            self._interval.add(loss, correct, batch.total, skipped)
            stop = self.world.total(float(self._stop))[0] > 0
            last = self.consumed == self.samples
            if self._interval.steps == self.config.log_interval or last:
                self._report()
            if stop:
                self._save()
                raise InterruptedTrainingError(
                    f"stopped at step {self.step} and saved; go on with --resume"
                )
            if self.step % self.config.checkpoint_interval == 0 and not last:
                self._save()

    def _skipped(self, batch: Batch) -> int:
        """Damaged samples of the global batch."""
        if self.config.on_error == "raise":
            return 0
        return int(self.world.total(batch.skipped)[0])

    def _train_step(self, step_model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """One update; sums of loss and correct answers of this process's slice.

        And how many samples of the global batch were skipped: the loss is the mean over the
        others, and where there are none the weights stay as they are.
        """
        skipped = self._skipped(batch)
        whole = batch.total - skipped
        seen = self.epoch * self.samples + self.consumed + batch.total
        set_learning_rate(self.optimizer, learning_rate(self.config, seen, self.samples))
        tokens, boxes = self._augment(
            batch.tokens.to(self.device, non_blocking=True),
            batch.boxes.to(self.device, non_blocking=True),
            self.dataset.manifest.geometry.grid(0)[1],
            self._seed_step(),
            total=batch.total,
            first=batch.first,
        )
        labels = batch.label.to(self.device, non_blocking=True)
        weights = batch.weight.to(self.device, non_blocking=True)
        parts = min(self.config.grad_accum_steps, len(labels))
        loss = correct = torch.zeros((), device=self.device)
        losses = []
        splits = (values.tensor_split(parts) for values in (tokens, boxes, labels, weights))
        for number, (token, box, label, weight) in enumerate(zip(*splits, strict=True), start=1):
            with self._exchanging(step_model, last=number == parts):
                with self._autocast():
                    logits, _ = step_model(token, box)
                each = weight * F.cross_entropy(
                    logits.float(),
                    label,
                    reduction="none",
                    label_smoothing=self.config.label_smoothing,
                )
                # DDP takes the mean over processes; the sum over the global batch is wanted.
                torch.autograd.backward(each.sum() * (self.world.size / max(whole, 1)))
            losses.append(each.detach())
            loss = loss + each.detach().sum()
            correct = correct + ((logits.detach().argmax(dim=1) == label) * weight).sum()
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip_grad or float("inf")
        )
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if self.world.total(float(not finite))[0]:
            self.optimizer.zero_grad(set_to_none=True)
            self._save()
            raise self._not_finite(batch, torch.cat(losses))
        self.step += 1
        if whole:
            self.optimizer.step()
            if self.average:
                self.average.update(self.model, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, correct, skipped

    def _seed_step(self) -> torch.Generator:
        """Random numbers of a step depend on seed and step alone, so there is none to save.

        Those of the model, for dropping paths, also on the rank; those of the augmentation not.
        """
        words = ("model/step", self.config.seed, self.step)
        own = random_bits(1, *words, self.world.rank)
        torch.manual_seed(int(own[0] >> np.uint64(1)))
        return torch.Generator().manual_seed(int(random_bits(1, *words)[0] >> np.uint64(1)))

    def _not_finite(self, batch: Batch, losses: Tensor) -> NonFiniteLossError:
        finite = torch.isfinite(losses).tolist()
        bad = [key for key, fine in zip(batch.keys, finite, strict=True) if not fine]
        named = [key for key in bad or batch.keys if key]
        return NonFiniteLossError(
            f"loss or gradient is not finite at step {self.step} of epoch {self.epoch}; the "
            f"weights are saved as before it. Samples: {', '.join(named[:8])}. Try "
            f"a smaller --lr, more --warmup-epochs, or --amp off, with --resume"
        )

    def _report(self) -> None:
        seen = self.epoch * self.samples + self.consumed
        report = self._interval.report(
            epoch=self.epoch,
            step=self.step,
            steps=self.steps,
            lr=max(group["lr"] for group in self.optimizer.param_groups),
            left=self.config.epochs * self.samples - seen,
        )
        if self.world.is_rank_zero:
            self.record({"event": "train", **vars(report)})
        self.progress.interval(report)
        self._interval.clear()

    def record(self, row: dict[str, Any]) -> None:
        """Keep a row of metrics."""
        self.run.append_metrics(row)
        if self.events:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self.events.add_scalar(f"{row['event']}/{name}", value, row["step"])
            self.events.flush()

    def _finish_epoch(self) -> None:
        self.epoch, self.consumed = self.epoch + 1, 0
        if self.validation is not None:
            score = self._validate(self.validation)
            if not isfinite(score.loss):
                self._save()
                raise NonFiniteLossError(
                    f"the model's loss on val is not finite after epoch {self.epoch}; begin again "
                    f"with a smaller --lr or more --warmup-epochs"
                )
            if self.world.is_rank_zero:
                row = {"event": "eval", "epoch": self.epoch, "step": self.step, **score.as_json()}
                self.record(row)
            self.progress.evaluated(self.epoch, score)
            if score.top1 >= self.best:  # of equal epochs the later one has seen more
                self.best = score.top1
                self._save(BEST)
        self._save()

    def _validate(self, loader: Loader) -> EvalResult:
        if self.average is None:
            return evaluate(self.model, loader, self.device, self.world)
        averaged = Quadformer(self.run_config.model).to(self.device)
        averaged.load_state_dict(self.average.weights)
        return evaluate(averaged, loader, self.device, self.world)

    def _save(self, name: str = LAST) -> None:
        interval = self._interval.state()
        if self.world.is_rank_zero:
            state = {
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "consumed": self.consumed,
                "step": self.step,
                "best": self.best,
                "interval": interval,
            }
            average = self.average.weights if self.average else None
            kept = state if name == LAST else None
            self.run.save(
                name, self.model.state_dict(), average, kept, step=self.step, epoch=self.epoch
            )
        self.world.wait()

    def _load_checkpoint(self) -> None:
        weights, average, metadata = self.run.weights(LAST)
        state = self.run.state(metadata)
        try:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.epoch = int(state["step"]), int(state["epoch"])
            self.consumed, self.best = int(state["consumed"]), float(state["best"])
            self._interval.restore(state["interval"])
            if self.average:
                self.average.load(average or weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ShardError(
                f"the checkpoint in {self.run} does not fit: {first_line(error)}"
            ) from error
        whole = self.consumed % self.config.batch_size == 0 or self.consumed == self.samples
        inside = 0 <= self.epoch <= self.config.epochs and 0 <= self.consumed <= self.samples
        if not (whole and inside):
            raise ShardError(f"the checkpoint in {self.run} is at no step of this run")
        if self.world.is_rank_zero:
            self.run.cut_metrics(self.step, self.epoch)
        self.world.wait()

    def _check_same_run(self) -> None:
        """Raise ConfigError when options that decide the result are not those of the run."""
        stored = self.run.config()
        check_fits(stored.model, self.dataset.manifest, stored.classes, str(self.dataset.folder))
        differences: list[str] = []
        changes: list[str] = []
        found = stored.differences(self.run_config, "train", *DATASET_PARTS, "shard_lists")
        for name, text in found.items():
            part, _, option = name.partition(".")
            if part == "train" and option in _FREE:
                continue
            # The same shards are the same bytes, whatever library a manifest names.
            changeable = part == "imaging_library" or (part == "train" and option in _CHANGEABLE)
            (changes if changeable else differences).append(text)
        if stored.ignored:
            self.progress.warn(f"{self.run} {stored.says_ignored()}")
        if changes:
            self.progress.warn(f"resumed with other options: {'; '.join(changes)}")
        if differences:
            raise ConfigError(
                f"{self.run} was started differently: {'; '.join(differences[:8])}; resume with "
                f"the options and the dataset of before, or begin another run"
            )

    def _wrapped(self) -> nn.Module:
        """The model as the training step calls it."""
        wrapped: nn.Module = self.model
        if self.config.compile:
            wrapped = torch.compile(wrapped)  # type: ignore[assignment]
        if self.world.size > 1:
            # The buffers are constants; later versions of torch have another name for that.
            parallel = nn.parallel.DistributedDataParallel
            names = ("forward_sync_buffers", "broadcast_buffers")
            name = next(n for n in names if n in signature(parallel).parameters)
            not_synced: dict[str, Any] = {name: False}
            wrapped = parallel(wrapped, **not_synced)
        return wrapped

    def _exchanging(self, step_model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients with the last part of a batch only."""
        if isinstance(step_model, nn.parallel.DistributedDataParallel) and not last:
            context: AbstractContextManager[None] = step_model.no_sync()
            return context
        return nullcontext()

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.config.amp == "bf16" or (
            self.config.amp == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _loader(self, split: str, *, shuffle: bool) -> Loader:
        return Loader(
            self.dataset,
            split,
            batch_size=self.config.batch_size,
            tokens=self.config.tokens,
            shuffle=shuffle,
            drop_last=self.config.drop_last and shuffle,
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
            on_error=self.config.on_error,
            verify=self.config.verify,
        )

    def _has_samples(self, split: str) -> bool:
        info = self.dataset.manifest.splits.get(split)
        return info is not None and info.samples > 0

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """The first signal stops after the step; one that comes much later stops at once.

        Only the main thread gets signals: in another one they are the caller's.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        came: list[float] = []

        def stop(number: int, frame: FrameType | None) -> None:
            came.append(time.monotonic())
            self._stop = True
            if came[-1] - came[0] > _SECONDS_TO_SAVE:
                raise InterruptedTrainingError(
                    f"stopped at step {self.step} without saving; go on from the last checkpoint "
                    f"with --resume"
                )

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _summary_writer_type() -> Any:
    """A TensorBoard writer that brings no Pillow; ConfigError when it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs tensorboardX; pip install 'quadpipe[tensorboard]'"
        ) from error
    return SummaryWriter
