"""Training steps and evaluation on batches whose images have different lengths."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from runs import SMALL
from torch import Tensor

import quadpipe
from quadpipe.loader import Batch, Loader
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.evaluate import evaluate
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.train import Trainer

CPU = torch.device("cpu")
LENGTHS = torch.tensor([16, 7, 10, 7, 13, 16, 4, 10])


def shortened(batch: Batch, *, skipped: int | None = None) -> Batch:
    """The batch with fewer tokens in most images, and one of them skipped."""
    lengths = LENGTHS[: len(batch.label)]
    weight = batch.weight.clone()
    if skipped is not None:
        weight[skipped] = 0
    return replace(
        batch,
        tokens=torch.cat([x[:n] for x, n in zip(batch.tokens, lengths, strict=True)]),
        boxes=torch.cat([x[:n] for x, n in zip(batch.boxes, lengths, strict=True)]),
        weight=weight,
        skipped=0 if skipped is None else 1,
        lengths=lengths,
    )


def losses_one_by_one(model: Any, batch: Batch, smoothing: float = 0.0) -> Tensor:
    assert batch.lengths is not None
    sizes = batch.lengths.tolist()
    pairs = zip(batch.tokens.split(sizes), batch.boxes.split(sizes), strict=True)
    logits = torch.cat([model(tokens[None], boxes[None])[0] for tokens, boxes in pairs])
    return F.cross_entropy(logits, batch.label, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("skipped", [None, 2])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_takes_the_mean_gradient_of_its_images(shards, tmp_path, parts, skipped):
    config = TrainConfig(
        **SMALL | {"flip": 0.0, "clip_grad": 0.0, "grad_accum_steps": parts, "on_error": "skip"}
    )
    trainer = Trainer(quadpipe.Dataset(shards), RunFolder(tmp_path / "run"), config, CPU, World())
    batch = shortened(next(iter(trainer.loader.epoch(0))), skipped=skipped)
    each = losses_one_by_one(trainer.model, batch, config.label_smoothing) * batch.weight
    mean = each.sum() / batch.weight.sum()
    expected = torch.autograd.grad(mean, list(trainer.model.parameters()))
    found: list[Tensor] = []
    trainer.update.optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in trainer.model.parameters())  # type: ignore[union-attr]
    )
    result = trainer.train_on(batch, batch.skipped)
    assert float(result.loss) == pytest.approx(float(each.detach().sum()), rel=1e-5)
    assert result.skipped == (skipped is not None)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_step_augments_images_of_several_lengths(shards, tmp_path):
    options: dict[str, Any] = {"color_jitter": 0.3, "token_dropout": 0.3}
    results = []
    for parts in (1, 2):
        config = TrainConfig(**SMALL | options | {"grad_accum_steps": parts})
        run = RunFolder(tmp_path / str(parts))
        trainer = Trainer(quadpipe.Dataset(shards), run, config, CPU, World())
        seen = []
        trainer.model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[2]))
        batch = shortened(next(iter(trainer.loader.epoch(0))))
        results.append(float(trainer.train_on(batch, batch.skipped).loss))
        assert torch.cat(seen).tolist() == [11, 5, 7, 5, 9, 11, 3, 7]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_evaluation_reports_the_mean_tokens_and_multiply_adds_of_the_scored_images(
    shards, undisturbed, monkeypatch
):
    model = RunFolder(undisturbed).model(CPU)
    loader = Loader(shards, "val", batch_size=8, tokens=16, shuffle=False)
    fixed = evaluate(model, loader, CPU)
    assert fixed.tokens == 16
    assert isinstance(fixed.tokens, int)
    assert fixed.multiply_adds == model.config.multiply_adds(16)
    batches = [shortened(batch, skipped=1) for batch in loader.epoch(0)]
    monkeypatch.setattr(loader, "epoch", lambda epoch: iter(batches))
    score = evaluate(model, loader, CPU)
    scored = np.array([16, 10, 7, 13, 16, 4, 10, 16, 10])  # of 8 images and of 3
    assert (score.samples, score.skipped) == (9, 2)
    assert score.tokens == pytest.approx(scored.mean())
    costs = [model.config.multiply_adds(int(tokens)) for tokens in scored]
    assert score.multiply_adds == round(np.mean(costs))
    with torch.inference_mode():
        each = [losses_one_by_one(model, batch) * batch.weight for batch in batches]
    assert score.loss == pytest.approx(float(torch.cat(each).sum()) / 9, rel=1e-4)
