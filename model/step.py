"""One update of the weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from quadpipe.errors import ConfigError, QuadpipeError, first_line
from quadpipe.loader import Batch
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.optimize import (
    MovingAverage,
    has_fused,
    make_optimizer,
    set_learning_rate,
)
from quadpipe.model.precision import autocast
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.timing import StepTimes
from quadpipe.seeds import random_bits


class NonFiniteLossError(QuadpipeError):
    """The loss or its gradient is not finite; the weights are as before that step.

    samples: of the step's global batch.
    """

    def __init__(self, message: str, samples: int) -> None:
        super().__init__(message)
        self.samples = samples


class StepResult(NamedTuple):
    """loss, correct: sums over this process's slice. skipped: samples of the global batch."""

    loss: Tensor
    correct: Tensor
    skipped: int


class _Unchecked(NamedTuple):
    """A step of which the CPU does not know whether its loss is finite.

    bad: 1 if not, on the CPU, once the device has `copied` it. keys, losses: of this process's
    samples. samples: of the global batch.
    """

    step: int
    samples: int
    keys: list[str]
    losses: Tensor
    bad: Tensor
    copied: torch.cuda.Event | None


class TrainStep:
    """A model with its optimizer and the moving average of its weights, if there is one.

    A step does not wait for the device. If its loss is not finite, the device leaves out its update
    and all later ones; `check`, or the next step, raises NonFiniteLossError.

    columns: scale-0 patches per row of an image. budgets: different numbers of tokens per image.
    """

    def __init__(
        self,
        model: Quadformer,
        config: TrainConfig,
        device: torch.device,
        world: World,
        columns: int,
        budgets: int = 1,
    ) -> None:
        self.model, self.config, self.device, self.world = model, config, device, world
        self.optimizer = make_optimizer(model, config, fused=has_fused(device))
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self._columns = columns
        self._augment = config.make_augmentation()
        forward = _compiled(model, budgets) if config.compile else model
        self._forward = _distributed(forward, config, world, device)
        self.times = StepTimes(device)
        self._bad = torch.zeros((), device=device)  # 1 from the first step that is not finite
        self._unchecked: _Unchecked | None = None

    def __call__(self, batch: Batch, *, step: int, rate: float, skipped: int) -> StepResult:
        """Update the weights; step: number of updates before this one. rate: learning rate.
        skipped: damaged samples of the global batch.

        The loss is the mean over the samples that were not skipped; a batch without any leaves the
        weights as they are. Raises NonFiniteLossError, in all processes, if that of the step before
        was not finite.
        """
        kept = batch.total - skipped
        set_learning_rate(self.optimizer, rate)
        begin = self.times.mark()
        names = ("tokens", "boxes", "label", "weight")
        moved = {name: getattr(batch, name).to(self.device, non_blocking=True) for name in names}
        batch, copied = replace(batch, **moved), self.times.mark()
        with _compiling() if self.config.compile else nullcontext():
            losses, loss, correct = self._accumulate_gradients(batch, step, kept)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip_grad or float("inf")
        )
        not_finite = ~(torch.isfinite(norm) & torch.isfinite(loss))
        torch.maximum(self._bad, not_finite.float(), out=self._bad)
        self.world.max_(self._bad)
        if kept:
            self._apply_gradients(step)
        self.optimizer.zero_grad(set_to_none=True)
        self.times.add(begin, copied, self.times.mark())
        # The device has this step to compute while the CPU waits for the result of the one before.
        before, self._unchecked = self._unchecked, self._to_check(batch, step, losses)
        self._check(before)
        return StepResult(loss, correct, skipped)

    def check(self) -> None:
        """Wait for the last step; raise NonFiniteLossError if its loss was not finite."""
        last, self._unchecked = self._unchecked, None
        self._check(last)

    def _check(self, step: _Unchecked | None) -> None:
        if step is None:
            return
        if step.copied:
            step.copied.synchronize()
        if step.bad:
            self._unchecked = None
            self._bad.zero_()
            raise _not_finite(step, self.world)

    def _to_check(self, batch: Batch, step: int, losses: Tensor) -> _Unchecked:
        bad = self._bad.to("cpu", non_blocking=True, copy=True)
        copied = None
        if self.device.type == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        keys = batch.keys
        if batch.dataset is not None:
            numbers = (batch.dataset + 1).tolist()
            named = zip(keys, numbers, strict=True)
            keys = [f"{key} of dataset {number}" if key else "" for key, number in named]
        return _Unchecked(step, batch.total, keys, losses, bad, copied)

    def _apply_gradients(self, step: int) -> None:
        """Update weights and moving average, unless the step is bad."""
        unless = None
        if self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = unless = self._bad  # type: ignore[attr-defined]
        elif self._bad:
            return
        self.optimizer.step()
        if self.average:
            self.average.update(self.model, step + 1, unless)

    def _accumulate_gradients(
        self, batch: Batch, step: int, kept: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of this process's samples, their sum, and the number of correct answers.

        batch: on the device, except for its lengths.
        """
        tokens, boxes, lengths = self._augment(
            batch.tokens,
            batch.boxes,
            self._columns,
            self._seed(step),
            lengths=batch.lengths,
            total=batch.total,
            first=batch.first,
        )
        parts = min(self.config.grad_accum_steps, len(batch.label))
        loss = correct = torch.zeros((), device=self.device)
        losses = []
        inputs = _split_inputs(tokens, boxes, lengths, parts)
        targets = (values.tensor_split(parts) for values in (batch.label, batch.weight))
        splits = zip(inputs, *targets, strict=True)
        for number, (given, label, weight) in enumerate(splits, start=1):
            with self._exchanging(last=number == parts):
                with autocast(self.device, self.config.amp):
                    logits, _ = self._forward(*given)
                each = weight * F.cross_entropy(
                    logits.float(),
                    label,
                    reduction="none",
                    label_smoothing=self.config.label_smoothing,
                )
                # DDP takes the mean over processes; the sum over the global batch is wanted.
                torch.autograd.backward(each.sum() * (self.world.size / max(kept, 1)))
            losses.append(each.detach())
            loss = loss + each.detach().sum()
            correct = correct + ((logits.detach().argmax(dim=1) == label) * weight).sum()
        return torch.cat(losses), loss, correct

    def _seed(self, step: int) -> torch.Generator:
        """Seed the model's random numbers, and return a generator for the augmentation's.

        They depend on seed and step alone, so a checkpoint holds none. The model's, for stochastic
        depth, depend on the rank too.
        """
        words = ("model/step", self.config.seed, step)
        own = random_bits(1, *words, self.world.rank)
        torch.manual_seed(int(own[0] >> np.uint64(1)))
        return torch.Generator().manual_seed(int(random_bits(1, *words)[0] >> np.uint64(1)))

    def _exchanging(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients with the last part of a batch only."""
        if isinstance(self._forward, nn.parallel.DistributedDataParallel) and not last:
            context: AbstractContextManager[None] = self._forward.no_sync()
            return context
        return nullcontext()


def _split_inputs(
    tokens: Tensor, boxes: Tensor, lengths: Tensor | None, parts: int
) -> list[tuple[Tensor | None, ...]]:
    """Inputs of the model for the parts of a batch, each as many images, one more in the first."""
    if lengths is None:
        equal = (values.tensor_split(parts) for values in (tokens, boxes))
        return list(zip(*equal, strict=True))
    part_lengths = lengths.tensor_split(parts)
    sizes = [int(part.sum()) for part in part_lengths]
    splits = (values.split_with_sizes(sizes) for values in (tokens, boxes))
    return list(zip(*splits, part_lengths, strict=True))


def _compiled(model: nn.Module, budgets: int) -> nn.Module:
    """The model, to be compiled once for each shape of a batch."""
    from torch._dynamo import config

    # A short last batch, and the parts of a batch, have other shapes. Beyond the limit a shape is
    # not compiled. Older versions of torch have another name for it.
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(getattr(config, name), 4 * budgets))
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return compiled


@contextmanager
def _compiling() -> Iterator[None]:
    """Explain errors of torch.compile, which compiles in the first steps."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        raise ConfigError(
            f"--compile failed: {first_line(cause)}; torch needs a C++ compiler for a CPU, and "
            f"Triton and a C compiler for a GPU: install them, or continue with --resume and "
            f"without --compile"
        ) from error


def _distributed(
    model: nn.Module, config: TrainConfig, world: World, device: torch.device
) -> nn.Module:
    if world.size == 1:
        return model
    # The buffers are constants; later versions of torch have another name for that.
    parallel = nn.parallel.DistributedDataParallel
    names = ("forward_sync_buffers", "broadcast_buffers")
    name = next(n for n in names if n in signature(parallel).parameters)
    not_synced: dict[str, Any] = {name: False}
    return parallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Every step uses all parameters. torch's `no_sync` does not work with it.
        static_graph=config.grad_accum_steps == 1,
        **not_synced,
    )


def _not_finite(step: _Unchecked, world: World) -> NonFiniteLossError:
    finite = torch.isfinite(step.losses).tolist()
    bad = world.gather([k for k, fine in zip(step.keys, finite, strict=True) if not fine])
    named = [key for key in bad or step.keys if key]
    return NonFiniteLossError(
        f"loss or gradient is not finite at step {step.step}; the weights from before it are "
        f"saved. Samples: {', '.join(named[:8])}. Try a smaller --lr, more --warmup-epochs, or "
        f"--amp off, with --resume",
        step.samples,
    )
