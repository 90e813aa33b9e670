"""One update of the weights."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from quadpipe.errors import QuadpipeError
from quadpipe.loader import Batch
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.optimize import MovingAverage, make_optimizer, set_learning_rate
from quadpipe.model.quadformer import Quadformer
from quadpipe.seeds import random_bits


class NonFiniteLossError(QuadpipeError):
    """The loss or its gradient is not finite; the weights are as before the step."""


class StepResult(NamedTuple):
    """loss, correct: sums over this process's slice. skipped: samples of the global batch."""

    loss: Tensor
    correct: Tensor
    skipped: int


class TrainStep:
    """A model with its optimizer and the moving average of its weights, if there is one.

    columns: scale-0 patches per row of an image.
    """

    def __init__(
        self,
        model: Quadformer,
        config: TrainConfig,
        device: torch.device,
        world: World,
        columns: int,
    ) -> None:
        self.model, self.config, self.device, self.world = model, config, device, world
        self.optimizer = make_optimizer(model, config)
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self._columns = columns
        self._augment = config.make_augmentation()
        self._forward = _wrap(model, config, world)

    def __call__(self, batch: Batch, *, step: int, rate: float) -> StepResult:
        """Update the weights; step: number of updates before this one. rate: learning rate.

        The loss is the mean over the samples that were not skipped; a batch without any leaves the
        weights as they are. Raises NonFiniteLossError in all processes.
        """
        skipped = self._count_skipped(batch)
        kept = batch.total - skipped
        set_learning_rate(self.optimizer, rate)
        losses, loss, correct = self._accumulate_gradients(batch, step, kept)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.clip_grad or float("inf")
        )
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if self.world.total(float(not finite))[0]:
            self.optimizer.zero_grad(set_to_none=True)
            raise _not_finite(batch, losses, step)
        if kept:
            self.optimizer.step()
            if self.average:
                self.average.update(self.model, step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, correct, skipped)

    def _count_skipped(self, batch: Batch) -> int:
        """Damaged samples of the global batch."""
        if self.config.on_error == "raise":
            return 0
        return int(self.world.total(batch.skipped)[0])

    def _accumulate_gradients(
        self, batch: Batch, step: int, kept: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses of this process's samples, their sum, and the number of correct answers."""
        tokens, boxes, lengths = self._augment(
            batch.tokens.to(self.device, non_blocking=True),
            batch.boxes.to(self.device, non_blocking=True),
            self._columns,
            self._seed(step),
            lengths=batch.lengths,
            total=batch.total,
            first=batch.first,
        )
        labels = batch.label.to(self.device, non_blocking=True)
        weights = batch.weight.to(self.device, non_blocking=True)
        parts = min(self.config.grad_accum_steps, len(labels))
        loss = correct = torch.zeros((), device=self.device)
        losses = []
        inputs = _split_inputs(tokens, boxes, lengths, parts)
        targets = (values.tensor_split(parts) for values in (labels, weights))
        splits = zip(inputs, *targets, strict=True)
        for number, (given, label, weight) in enumerate(splits, start=1):
            with self._exchanging(last=number == parts):
                with self._autocast():
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

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.config.amp == "bf16" or (
            self.config.amp == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported()
        )
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()


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


def _wrap(model: nn.Module, config: TrainConfig, world: World) -> nn.Module:
    """The model, compiled and distributed as configured."""
    if config.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    if world.size > 1:
        # The buffers are constants; later versions of torch have another name for that.
        parallel = nn.parallel.DistributedDataParallel
        names = ("forward_sync_buffers", "broadcast_buffers")
        name = next(n for n in names if n in signature(parallel).parameters)
        not_synced: dict[str, Any] = {name: False}
        model = parallel(model, **not_synced)
    return model


def _not_finite(batch: Batch, losses: Tensor, step: int) -> NonFiniteLossError:
    finite = torch.isfinite(losses).tolist()
    bad = [key for key, fine in zip(batch.keys, finite, strict=True) if not fine]
    named = [key for key in bad or batch.keys if key]
    return NonFiniteLossError(
        f"loss or gradient is not finite at step {step}; the weights from before it are saved. "
        f"Samples: {', '.join(named[:8])}. Try a smaller --lr, more --warmup-epochs, or --amp off, "
        f"with --resume"
    )
