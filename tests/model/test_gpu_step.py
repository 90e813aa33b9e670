"""Training, evaluation and scoring on a GPU without a GPU: nothing waits for it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_gpu import GPU, FakeGpu, WaitError, fake_gpu, load_driver
from runs import ADAPTIVE, SMALL
from torch import Tensor

import quadpipe
from quadpipe.geometry import Geometry
from quadpipe.loader import Batch, Loader
from quadpipe.loader.device import to_device
from quadpipe.model import attention
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.evaluate import evaluate
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.train import Trainer
from quadpipe.scorers import find_network, make_scorer

AUGMENTED: dict[str, Any] = {"flip": 0.5, "color_jitter": 0.3, "token_dropout": 0.3}


@pytest.fixture(scope="module", autouse=True)
def _driver(tmp_path_factory) -> Iterator[None]:
    switch = load_driver(tmp_path_factory.mktemp("driver"))
    switch(True)
    yield
    switch(False)


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with fake_gpu() as gpu:
        yield gpu


def make_trainer(shards: Path, out: Path, **options: Any) -> Trainer:
    config = TrainConfig(**SMALL | options)
    return Trainer(quadpipe.Dataset(shards), RunFolder(out), config, GPU, World())


def train_three_steps(gpu: FakeGpu, trainer: Trainer) -> int:
    """Copies to the GPU per step."""
    trainer.model.train()
    copies = gpu.copies
    for _, batch in zip(range(3), trainer.loader.epoch(0), strict=False):
        with gpu.must_not_wait():
            trainer.train_on(batch, batch.skipped)
    assert trainer.step == 3
    return (gpu.copies - copies) // 3


# Without a discount, no batch has images of one length only.
UNEQUAL = ADAPTIVE | {"gain_discount": 0}


# Tokens, boxes, labels and weights of the batch are copied, and what is named here.
@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"flip": 0.0}, 4),
        ({"flip": 0.5}, 4 + 1),  # all draws
        (AUGMENTED, 4 + 1 + 1),  # also the weights of luma
        ({"flip": 0.0, "positions": "learned", "scale_embedding": True, "pool": "area"}, 4),
        ({"flip": 0.0, "pool": "attention", "gradient_checkpointing": True}, 4),
        ({"flip": 0.0, "grad_accum_steps": 3, "ema_decay": 0.9, "clip_grad": 0.0}, 4),
        ({"flip": 0.0, "drop_path": 0.2, "layer_decay": 0.7, "on_error": "skip"}, 4),
        (UNEQUAL | {"flip": 0.0}, 4 + 1),  # the packing
        (UNEQUAL | AUGMENTED | {"pool": "area", "drop_path": 0.2}, 4 + 1 + 1 + 1 + 1),  # lengths
        (UNEQUAL | {"flip": 0.0, "pool": "attention", "amp": "off", "ema_decay": 0.9}, 4 + 1),
    ],
)  # fmt: skip
def test_a_training_step_does_not_wait_for_the_gpu(shards, tmp_path, gpu, options, copies):
    trainer = make_trainer(shards, tmp_path / "run", **options)
    assert all(value.is_cuda for value in trainer.model.state_dict().values())
    assert train_three_steps(gpu, trainer) == copies
    for waits in (trainer.update.check, trainer.update.times.totals):
        with pytest.raises(WaitError), gpu.must_not_wait():
            waits()
    copying, computing = trainer.update.times.totals()
    assert computing > copying == 0  # the fake GPU counts matrix products


@pytest.mark.parametrize("options", [{"tokens": 16}, {"mean_tokens": 16, "min_tokens": 7}])
def test_evaluation_waits_for_the_gpu_at_its_end_only(shards, gpu, options, monkeypatch):
    loader = Loader(shards, "val", batch_size=4, shuffle=False, pin_memory=True, **options)
    model = Quadformer(TrainConfig(model="nano").quadformer(loader.mixture.manifest)).to(GPU)
    batches = list(loader.epoch(0))

    def watched(epoch: int) -> Iterator[Batch]:
        with gpu.must_not_wait():
            yield from batches

    monkeypatch.setattr(loader, "epoch", watched)
    assert evaluate(model, loader, GPU).samples == 11


def test_a_whole_run_saves_and_evaluates_on_the_gpu(shards, tmp_path, gpu):
    options = {"epochs": 1, "ema_decay": 0.9, "log_interval": 3, "checkpoint_interval": 3}
    trainer = make_trainer(shards, tmp_path / "run", **options)
    trainer.fit()
    resumed = Trainer(
        quadpipe.Dataset(shards), RunFolder(tmp_path / "run"), trainer.config, GPU, World(),
        resume=True,
    )  # fmt: skip
    resumed.fit()
    assert resumed.step == 8


def test_images_of_several_lengths_are_one_call_of_the_flash_kernel(
    shards, tmp_path, gpu, monkeypatch
):
    calls = []

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, *starts: Any) -> Tensor:
        calls.append(q)
        return v

    monkeypatch.setattr(attention, "find_varlen_attn", lambda: varlen_attn)
    trainer = make_trainer(shards, tmp_path / "run", **UNEQUAL)
    train_three_steps(gpu, trainer)
    assert len(calls) == 3 * trainer.model.config.depth
    assert {call.dtype for call in calls} == {torch.bfloat16}


def test_draws_arrive_in_one_copy_with_their_types_and_shapes(gpu):
    given = [torch.ones(3, dtype=torch.bool), torch.rand(2, 3), torch.arange(5), torch.zeros(0)]
    there = to_device(GPU, *given)
    assert gpu.copies == 1
    assert [(x.dtype, x.shape, x.device) for x in there] == [(x.dtype, x.shape, GPU) for x in given]


# The rules of the fake GPU themselves: each of these would make a real one wait, or fail.


@pytest.mark.parametrize(
    "program",
    [
        lambda x: bool(torch.isfinite(x).all()),
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.ones(4).to(GPU),
        lambda x: torch.ones(4).to(GPU, non_blocking=True),
        lambda x: torch.ones(4).pin_memory().to(GPU),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x.copy_(torch.ones(4), non_blocking=True),
        lambda x: torch.segment_reduce(x, "sum", lengths=torch.ones_like(x, dtype=torch.int64)),
    ],
)
def test_a_wait_for_the_gpu_is_noticed(gpu, program):
    x = torch.ones(4, device=GPU)
    with pytest.raises(WaitError), gpu.must_not_wait():
        program(x)


@pytest.mark.parametrize(
    "program",
    [
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64)),
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(4)]),
    ],
)
def test_shapes_that_depend_on_values_and_other_devices_fail(gpu, program):
    with pytest.raises(Exception, match=r"aten\.|on the same device"):
        program(torch.ones(4, device=GPU))


def test_copies_from_pinned_memory_do_not_wait(gpu):
    with gpu.must_not_wait():
        x = torch.ones(4).pin_memory()[1:].to(GPU, non_blocking=True)
        back = x.to("cpu", non_blocking=True)
    assert x.device == GPU
    assert np.array_equal(back.numpy(), np.zeros(3))


@pytest.mark.parametrize("name", ["feature", "feature-saliency", "grad-cam"])
def test_a_scorers_batch_waits_for_the_gpu_only_to_read_its_maps(
    gpu, monkeypatch, square, shufflenet_weights, name
):
    network = find_network("shufflenet-v2-x0.5", shufflenet_weights)
    if name == "grad-cam":
        network = find_network("efficientnet-lite0")
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        geometry = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
        scorer: Any = make_scorer(name, geometry, network=network, batch=3, device="cuda:0")
    done: list[str] = []
    run, read = scorer._features, Tensor.cpu

    def features(*given: Any) -> Any:
        done.append("run")
        return run(*given)

    def cpu(tensor: Tensor) -> Tensor:
        done.append("read")
        with gpu.may_wait():
            return read(tensor)

    monkeypatch.setattr(scorer, "_features", features)
    monkeypatch.setattr(Tensor, "cpu", cpu)
    with gpu.must_not_wait():
        maps = scorer.score(square, [0] * 4 if name == "grad-cam" else None)
    # Four images in batches of three, each read when all of it is queued.
    assert re.fullmatch("((run)+(read)+){2}", "".join(done))
    assert [level.shape for level in maps] == [(4, 4, 4), (4, 8, 8)]
