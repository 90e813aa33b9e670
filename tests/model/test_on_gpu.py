"""What only a GPU can show; `make gpu` runs these tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import ADAPTIVE, SMALL, RecordedProgress, losses, torchrun
from torch import Tensor

import quadpipe
from quadpipe.geometry import Geometry
from quadpipe.model import attention, train
from quadpipe.model.attention import Packing, attend
from quadpipe.model.config import TrainConfig
from quadpipe.model.distributed import World
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.model.run_folder import RunFolder
from quadpipe.model.step import NonFiniteLossError
from quadpipe.model.train import Trainer
from quadpipe.scorers import find_network, make_scorer

pytestmark = pytest.mark.gpu

ON_GPU: dict[str, Any] = {"device": "cuda", "amp": "off"}
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        SMALL | {"color_jitter": 0.3, "token_dropout": 0.3, "ema_decay": 0.9},
        SMALL | {"positions": "learned", "pool": "attention", "grad_accum_steps": 2},
        ADAPTIVE | {"pool": "area", "color_jitter": 0.3, "token_dropout": 0.3},
    ],
)
def test_training_gives_the_losses_of_a_cpu(shards, tmp_path, options):
    options = options | {"epochs": 1}
    recorded = [RecordedProgress(), RecordedProgress()]
    train(shards, tmp_path / "cpu", **options, progress=recorded[0])
    train(shards, tmp_path / "gpu", **options | ON_GPU, progress=recorded[1])
    found, expected = ([x for _, x in losses(tmp_path / name)] for name in ("gpu", "cpu"))
    np.testing.assert_allclose(found, expected, rtol=0.01)
    on_cpu, on_gpu = (one.scores[-1].loss for one in recorded)
    assert on_gpu == pytest.approx(on_cpu, rel=0.01)


@pytest.mark.parametrize(
    "options",
    [
        SMALL | {"amp": "auto", "color_jitter": 0.3, "token_dropout": 0.3, "ema_decay": 0.9},
        ADAPTIVE | {"amp": "auto", "color_jitter": 0.3, "token_dropout": 0.3, "pool": "area"},
    ],
)
def test_torch_sees_no_wait_in_a_step(shards, tmp_path, options):
    config = TrainConfig(**options | {"device": "cuda"})
    run = RunFolder(tmp_path / "run")
    trainer = Trainer(quadpipe.Dataset(shards), run, config, GPU, World())
    for number, batch in enumerate(trainer.loader.epoch(0)):
        torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first one sets up
        try:
            trainer.train_on(batch, batch.skipped)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    copying, computing = trainer.update.times.totals()
    assert 0 < copying < computing


def test_a_loss_that_is_not_finite_leaves_the_weights_of_the_step_before(shards, tmp_path):
    options = SMALL | ON_GPU | {"clip_grad": 0.0, "warmup_epochs": 0.0, "lr": 1e6}
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+; .*Samples: 00000"):
        train(shards, tmp_path / "run", **options)
    weights = RunFolder(tmp_path / "run").weights("last.safetensors")[0]
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_run_moves_between_gpu_and_cpu(shards, tmp_path):
    run = train(shards, tmp_path / "run", **SMALL | ON_GPU | {"ema_decay": 0.9})
    on_cpu, on_gpu = (run.model(device).state_dict() for device in (CPU, GPU))
    assert all(torch.equal(on_gpu[name].cpu(), value) for name, value in on_cpu.items())
    train(shards, tmp_path / "run", **SMALL | {"ema_decay": 0.9}, resume=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_flash_kernel_gives_the_attention_of_each_length(dtype, monkeypatch):
    packing = Packing(torch.tensor([16, 7, 10, 7, 64, 100]), GPU)
    q, k, v = (
        torch.randn(len(packing.rows), 6, 64, device=GPU, dtype=dtype, requires_grad=True)
        for _ in range(3)
    )

    def gradients() -> list[Tensor]:
        mixed = attend(q, k, v, packing)
        return [mixed, *torch.autograd.grad(mixed.float().square().sum(), (q, k, v))]

    flash = gradients()
    monkeypatch.setattr(attention, "find_varlen_attn", lambda: None)
    for one, other in zip(flash, gradients(), strict=True):
        assert torch.allclose(one, other, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("options", [{}, {"pool": "area", "positions": "learned"}])
def test_a_compiled_model_in_bf16_gives_the_logits_of_float32(options):
    config = QuadformerConfig(
        classes=10, patch_size=16, grid=(16, 16), max_scale=2, width=192, depth=4, heads=3,
        **options,
    )  # fmt: skip
    model = Quadformer(config).to(GPU).eval()
    tokens = torch.randint(256, (4, 100, 16, 16, 3), dtype=torch.uint8, device=GPU)
    boxes = torch.randint(3, (4, 100, 3), dtype=torch.int16, device=GPU)
    expected, _ = model(tokens, boxes)
    compiled = torch.compile(model, dynamic=False)
    with torch.autocast("cuda", torch.bfloat16):
        found, _ = compiled(tokens, boxes)
    scale = float(expected.abs().max())
    assert float((found.float() - expected).abs().max()) < 0.03 * scale


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("options", [{"ema_decay": 0.9}, {"grad_accum_steps": 2}])
def test_two_processes_with_nccl_give_the_losses_of_one(shards, tmp_path, options):
    changed = {"epochs": 2, **ON_GPU, **options}
    done = torchrun(shards, tmp_path / "two", changed=changed)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    train(shards, tmp_path / "one", **SMALL | changed)
    found, expected = ([x for _, x in losses(tmp_path / name)] for name in ("two", "one"))
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_a_scorer_gives_the_maps_of_a_cpu(square, shufflenet_weights: Path):
    geometry = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
    network = find_network("shufflenet-v2-x0.5", shufflenet_weights)
    maps = [
        make_scorer("feature", geometry, network=network, device=device).score(square)
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*maps, strict=True):
        assert np.allclose(one, other, rtol=1e-3, atol=1e-6)
