"""The training loop: shards in, a run folder out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quadpipe.counts import distribution
from quadpipe.errors import ConfigError, ShardError, first_line
from quadpipe.fields import check_known
from quadpipe.files import Cache, ReadableFolder
from quadpipe.loader import Batch, Loader
from quadpipe.model.checks import (
    check_same_run,
    has_samples,
    shorten_warmup,
    warn_of_dataset,
    warn_of_differences,
    warn_of_options,
)
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World, join_world
from quadpipe.model.evaluate import EvalResult, evaluate
from quadpipe.model.metrics import Metrics
from quadpipe.model.optimize import freeze, learning_rate
from quadpipe.model.pretrained import load_pretrained, read_weights
from quadpipe.model.progress import Interval, TrainProgress
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import BEST, LAST, RunFolder, pick_device
from quadpipe.model.run_manifest import RunManifest
from quadpipe.model.signals import InterruptedTrainingError, StopSignals
from quadpipe.model.step import NonFiniteLossError, StepResult, TrainStep
from quadpipe.model.timing import STEPS_BEFORE_TRACE, traced
from quadpipe.model.training_state import TrainingState, load_optimizer, optimizer_tensors
from quadpipe.shards.gains import read_gains
from quadpipe.shards.joined import Location, joint_manifest, open_datasets, why_not_comparable
from quadpipe.shards.reader import Dataset
from quadpipe.weights import listing, state_dict_problems


def train(
    dataset: Location | Sequence[Location],
    out: str | PathLike[str],
    *,
    resume: bool = False,
    init: str | PathLike[str] | None = None,
    init_name: str | None = None,
    cache: Cache | None = None,
    expect: str | None = None,
    progress: TrainProgress | None = None,
    **options: Any,
) -> RunFolder:
    """Train a Quadformer on the split `train` of a dataset, or of several.

        run = quadpipe.model.train("shards/", "run/", model="small", tokens=100, epochs=100)

    options: fields of TrainConfig. resume: continue the run in `out`, exactly, with the options it
    was started with. init: weights to start from, of a timm ViT or a run; the model is theirs.
    init_name: timm's name of the model. cache: local copies of the shards of remote datasets.
    expect: see `Dataset`; of several datasets one for each, separated by commas. Under torchrun
    each process calls this. Raises ConfigError if options or datasets are invalid,
    NonFiniteLossError, InterruptedTrainingError.
    """
    check_known(options, TrainConfig)
    config = TrainConfig(**options)
    device = pick_device(config.device)
    with join_world(device) as world:
        trainer = Trainer(
            open_datasets(dataset, cache, expect),
            RunFolder(out),
            config,
            device,
            world,
            progress,
            resume=resume,
            init=init,
            init_name=init_name,
        )
        trainer.fit()
        return trainer.run


class Trainer:
    """One process of a training run. All options are checked before anything is written.

    step: updates so far. epoch: finished epochs. consumed: samples seen in the current epoch.
    best: largest top-1 on the split val so far. validated: the datasets that have this split.
    """

    def __init__(
        self,
        datasets: Dataset | Sequence[Dataset],
        run: RunFolder,
        config: TrainConfig,
        device: torch.device,
        world: World,
        progress: TrainProgress | None = None,
        *,
        resume: bool = False,
        init: str | PathLike[str] | None = None,
        init_name: str | None = None,
    ) -> None:
        self.datasets = [datasets] if isinstance(datasets, Dataset) else list(datasets)
        self.run, self.device, self.world = run, device, world
        self.progress = progress if progress and world.is_rank_zero else TrainProgress()
        manifest, where = joint_manifest(self.datasets), " and ".join(map(str, self.folders))
        if manifest.classes is None:
            raise ConfigError(f"{where} has no labels, so there is nothing to learn")
        if resume and init:
            raise ConfigError("--resume continues with the run's own weights; omit --init")
        if resume and not run.started:
            raise ConfigError(f"{run} does not hold a run to resume; omit --resume")
        if "://" in str(init):
            raise ConfigError(
                f"--init {init} is a URL; copy it here and give the local file or run"
            )
        if init_name and not init:
            raise ConfigError("--init-name is the name of the weights of --init; give both")
        if config.freeze is not None and not (init or resume):
            raise ConfigError("--freeze would keep random weights; give --init too")
        stored = run.config() if resume else None
        weights = read_weights(Path(init)) if init else None
        config = shorten_warmup(config, stored, self.progress.warn)
        architecture = stored.model.architecture() if stored else None
        if weights:
            architecture = weights.architecture(init_name, config.of_the_model())
        joined = [dataset.manifest for dataset in self.datasets]
        self.manifest = RunManifest.of(config, manifest, architecture, joined)
        self.config = config = self.manifest.train
        if stored:
            check_same_run(stored, self.manifest, manifest, str(run), where, self.progress.warn)
        self.loader = self._loader(self.datasets, "train", shuffle=True)
        self.validated = [dataset for dataset in self.datasets if has_samples(dataset, "val")]
        self.validation = (
            self._loader(self.validated, "val", shuffle=False) if self.validated else None
        )
        self.metrics = Metrics(run.folder, tensorboard=config.tensorboard)
        torch.manual_seed(config.seed)
        self.model = Quadformer(self.manifest.model).to(device)
        self.loaded = load_pretrained(self.model, weights, manifest.classes) if weights else None
        if config.freeze is not None:
            if self.loaded and any(name.startswith("scale_embed") for name in self.loaded.fresh):
                raise ConfigError(
                    "--freeze would keep a scale embedding that is new, so zero; omit --freeze or "
                    "--scale-embedding"
                )
            freeze(self.model, config.freeze)
        columns = manifest.geometry.grid(0)[1]
        budgets = len(self.loader.budgets)
        self.update = TrainStep(self.model, config, device, world, columns, budgets)
        warn_of_options(config, budgets, self.progress.warn)
        self.step, self.epoch, self.consumed, self.best = 0, 0, 0, -1.0
        self.signals = StopSignals()
        self._resume = resume
        self._trace_step: Callable[[], None] = lambda: None
        self._interval = Interval(device, world, self.update.times)

    @property
    def folders(self) -> list[ReadableFolder]:
        return [dataset.folder for dataset in self.datasets]

    @property
    def samples(self) -> int:
        """Samples per epoch."""
        return self.loader.schedule.epoch(0).samples

    @cached_property
    def steps(self) -> int:
        return sum(self.loader.steps(epoch) for epoch in range(self.config.epochs))

    def fit(self) -> None:
        """Train to the end; on SIGTERM or Ctrl-C save and raise InterruptedTrainingError."""
        with self._opened_run():
            self.progress.started(self)
            profiled = self.config.profile if self.world.is_rank_zero else 0
            if profiled and self.steps - self.step < STEPS_BEFORE_TRACE + profiled:
                self.progress.warn(f"too few steps are left to trace {profiled}; no trace.json")
            trace = traced(profiled, self.run.folder, self.progress.warn)
            with self.signals.watched(), trace as self._trace_step:
                while self.epoch < self.config.epochs:
                    self._train_epoch()
                    self._finish_epoch()
            self.progress.finished(self)

    @contextmanager
    def _opened_run(self) -> Iterator[None]:
        """Lock the run folder, and start a new run or load the checkpoint."""
        with ExitStack() as held:
            with self.world.together():
                if self.world.is_rank_zero:
                    if not self._resume:
                        self.run.check_empty()
                    held.enter_context(self.run.lock())
                    if not self._resume:
                        self.run.start(self.manifest)
                    if self.run.gains() is None and self.gains is not None:
                        self.run.write_gains(self.gains)
            if self._resume:
                self._load()
            else:
                self._save()  # from here on there is a run to resume
            warn_of_differences(self.datasets, self.progress.warn)
            warn_of_dataset(
                self.loader.mixture.manifest,
                validated=self.validation is not None,
                warn=self.progress.warn,
            )
            yield

    def _train_epoch(self) -> None:
        self.model.train()
        batches = self.world.in_step(
            self._interval.timed(self.loader.epoch(self.epoch, consumed=self.consumed)),
            lambda batch: (
                batch.skipped if batch else 0,
                batch.boxes.shape[:-1].numel() if batch else 0,
                self.signals.received,
            ),
        )
        for batch, (skipped, tokens, stop) in batches:
            if stop:
                self._stop()
            self.train_on(batch, int(skipped))
            self._interval.count_tokens(int(tokens))
            self._trace_step()
            last = self.consumed == self.samples
            if self._interval.steps == self.config.log_interval or last:
                self._report()
            if self.step % self.config.checkpoint_interval == 0 and not last:
                self._save()
        if self.world.total(self.signals.received)[0]:
            self._stop()

    def _stop(self) -> None:
        self._save()
        raise InterruptedTrainingError(
            f"stopped at step {self.step} and saved; continue with --resume"
        )

    def train_on(self, batch: Batch, skipped: int) -> StepResult:
        """Update the weights with the next global batch, of which `skipped` samples are damaged."""
        seen = self.epoch * self.samples + self.consumed + batch.total
        rate = learning_rate(self.config, seen, self.samples)
        with self._saved_before_a_bad_step():
            result = self.update(batch, step=self.step, rate=rate, skipped=skipped)
        self.step += 1
        self.consumed += batch.total
        self._interval.add(result.loss, result.correct, batch.total, result.skipped)
        return result

    @contextmanager
    def _saved_before_a_bad_step(self) -> Iterator[None]:
        """Go back to before the last step and save, if its loss turns out not to be finite."""
        try:
            yield
        except NonFiniteLossError as error:
            self.step -= 1
            self.consumed -= error.samples
            self._interval.undo()
            self._save()
            raise

    def _check(self) -> None:
        """Wait for the last step, and check it."""
        with self._saved_before_a_bad_step():
            self.update.check()

    def _report(self) -> None:
        self._check()
        seen = self.epoch * self.samples + self.consumed
        report = self._interval.report(
            epoch=self.epoch,
            step=self.step,
            steps=self.steps,
            lr=max(group["lr"] for group in self.update.optimizer.param_groups),
            left=self.config.epochs * self.samples - seen,
        )
        if self.world.is_rank_zero:
            self.metrics.append({"event": "train", **vars(report)})
        self.progress.interval(report)
        self._interval.clear()

    def _finish_epoch(self) -> None:
        self._check()
        score = self._validate(self.validation) if self.validation is not None else None
        if score and not isfinite(score.loss):
            self._save()  # within the epoch, so that a resumed run fails too
            raise NonFiniteLossError(
                f"the model's loss on val is not finite after epoch {self.epoch + 1}; restart "
                f"with a smaller --lr or more --warmup-epochs",
                score.samples,
            )
        self.epoch, self.consumed = self.epoch + 1, 0
        if score:
            if self.world.is_rank_zero:
                row = {"event": "eval", "epoch": self.epoch, "step": self.step, **score.as_json()}
                self.metrics.append(row)
            self.progress.evaluated(self.epoch, score)
            if score.top1 >= self.best:  # of equal epochs the later one has seen more
                self.best = score.top1
                self._save(BEST)
        self._save()

    def _validate(self, loader: Loader) -> EvalResult:
        model = self.model
        if self.update.average is not None:
            model = Quadformer(self.manifest.model).to(self.device)
            model.load_state_dict(self.update.average.weights)
        return evaluate(model, loader, self.device, self.world, self.config.amp)

    def _save(self, name: str = LAST) -> None:
        self._check()
        interval = self._interval.state()
        if self.world.is_rank_zero:
            state = TrainingState(
                step=self.step,
                epoch=self.epoch,
                consumed=self.consumed,
                best=self.best,
                interval=interval,
                optimizer=optimizer_tensors(self.update.optimizer.state_dict()["state"]),
            )
            self.run.save(
                name,
                self.model.state_dict(),
                self.update.average.weights if self.update.average else None,
                step=self.step,
                epoch=self.epoch,
                state=state if name == LAST else None,
            )
        self.world.wait()

    def _load(self) -> None:
        weights, average, metadata = self.run.weights(LAST)
        state = self.run.state(metadata)
        try:
            for given in (weights, average or weights):
                if problems := state_dict_problems(given, self.model.state_dict()):
                    raise ValueError(listing(problems))
            self.model.load_state_dict(weights)
            load_optimizer(self.update.optimizer, state.optimizer)
            self._interval.restore(state.interval)
            if self.update.average:
                self.update.average.load(average or weights)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ShardError(
                f"the checkpoint in {self.run} does not fit: {first_line(error)}"
            ) from error
        is_position = self.loader.is_position(state.epoch, state.consumed)
        if not is_position or state.epoch > self.config.epochs:
            raise ShardError(f"the checkpoint in {self.run} is not at a step of this run")
        self.step, self.epoch = state.step, state.epoch
        self.consumed, self.best = state.consumed, state.best
        if self.world.is_rank_zero:
            self.metrics.cut(self.step, self.epoch)
        self.world.wait()

    @cached_property
    def gains(self) -> np.ndarray | None:
        """The distribution of gains in training; None if training does without it and they have no
        file, or not a whole one."""
        mixture = self.loader.mixture
        if self.manifest.is_adaptive:
            return distribution(mixture.in_proportion([d.gains("train") for d in self.datasets]))
        infos = [dataset.split("train") for dataset in self.datasets]
        if any(info.gains_sha256 is None for info in infos):
            return None
        try:
            if reason := why_not_comparable(self.datasets):
                raise ShardError(reason)
            rows = [  # not through the datasets, which would keep all rows
                read_gains(d.folder, "train", info, d.manifest.tokenizer.num_splits)
                for d, info in zip(self.datasets, infos, strict=True)
            ]
        except ShardError as error:
            self.progress.warn(f"{error}; this run will not know how to share tokens")
            return None
        return distribution(mixture.in_proportion(rows))

    def _tokens(self, *, training: bool) -> dict[str, Any]:
        """The loader's options on tokens. The largest budget or mean is validated."""
        budgets = self.manifest.budgets if training else self.manifest.budgets[-1:]
        if not self.manifest.is_adaptive:
            return {"tokens": budgets}
        limits = self.manifest.limits()
        if training:
            return limits.options() | {"mean_tokens": budgets}
        assert self.gains is not None
        return limits.options() | {"threshold": limits.threshold(self.gains, budgets[0])}

    def _loader(self, datasets: Sequence[Dataset], split: str, *, shuffle: bool) -> Loader:
        return Loader(
            datasets,
            split,
            weights=self.config.weights if shuffle else None,
            repeat=self.config.repeat and shuffle,
            classes=self.manifest.classes,
            batch_size=self.config.batch_size,
            **self._tokens(training=shuffle),
            budget_weights=self.manifest.draw_weights if shuffle else None,
            tokens_per_batch=self.config.tokens_per_batch,
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
