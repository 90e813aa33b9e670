"""Pretrained models of nine families on the plain grid: features and logits are timm's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import GOLDEN, GRID, PATCH, config, differences, golden, saved, state, uniform
from runs import SMALL
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812  its usual name
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quadpipe import Dataset
from quadpipe.errors import ConfigError
from quadpipe.model import train
from quadpipe.model.evaluate import check_fits
from quadpipe.model.layouts import recognize, settings_by_name
from quadpipe.model.positions import patch_centers, rope_angles
from quadpipe.model.pretrained import load_pretrained, resample_kernel
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.model.run_folder import RunFolder

ONE_STEP = {k: v for k, v in SMALL.items() if k != "model"} | {"epochs": 1, "batch_size": 64}


@pytest.mark.parametrize("family", GOLDEN)
def test_features_and_logits_are_timms(family, tmp_path):
    path = saved(family, tmp_path)
    chosen = config(family, path, scale_embedding=True)
    assert chosen.mean == pytest.approx(golden(family)["mean"].tolist())
    assert chosen.std == pytest.approx(golden(family)["std"].tolist())
    assert chosen.prefix == golden(family)["prefix"]
    model = Quadformer(chosen).eval()
    loaded = load_pretrained(model, path)
    assert loaded.fresh == ["scale_embed"]
    assert loaded.unused == []
    found = differences(family, model)
    assert max(found) < 1e-5


def test_training_starts_from_the_model_of_the_weights(shards, tmp_path):
    path = saved("dinov2_reg", tmp_path)
    train(shards, tmp_path / "run", **ONE_STEP, init=path, heads=2)
    run = RunFolder(tmp_path / "run")
    stored = run.config()
    assert (stored.model.width, stored.model.depth, stored.model.reg_tokens) == (32, 2, 4)
    assert (stored.train.positions, stored.train.heads, stored.train.model) == ("learned", 2, None)
    assert "reg_token" in run.model(torch.device("cpu")).state_dict()
    resumed = train(shards, run.folder.root, **ONE_STEP, resume=True)
    assert resumed.config() == stored
    again = tmp_path / "again"
    train(shards, again, **ONE_STEP, init=run.folder.root, scale_embedding=True)
    assert RunFolder(again).config().model == replace(stored.model, scale_embedding=True)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("augreg", {}, "does not tell its heads, mean, std; give timm's name .* --init-name vit_"),
        ("clip", {"heads": 2}, "does not tell its activation, mean, std; .* --activation, --mean"),
        ("siglip2", {"heads": 2, "mean": (0.5,) * 3}, "does not tell its activation, std;"),
        ("dinov3", {"heads": 2}, "does not tell its mean, std"),
        ("mae", {"init_name": "vit_base_patch16_224.mae"}, "tell its heads; give --heads"),
        ("mae", {"init_name": "resnet50"}, "--init-name resnet50 is not known; give timm's whole"),
        ("deit3", {"heads": 2, "model": "nano"}, "model nano has width 96, the weights have 32;"),
    ],
)
def test_what_weights_do_not_tell_is_asked_for(shards, tmp_path, family, options, message):
    with pytest.raises(ConfigError, match=message):
        train(shards, tmp_path / "run", **ONE_STEP | options, init=saved(family, tmp_path))
    assert not (tmp_path / "run").exists()


def test_a_name_is_for_the_weights_of_init(shards, tmp_path, undisturbed):
    with pytest.raises(ConfigError, match="--init-name is the name of the weights of --init"):
        train(shards, tmp_path / "run", **ONE_STEP, init_name="vit_base_patch16_224.mae")
    with pytest.raises(ConfigError, match="is a run, which has its settings; omit --init-name"):
        train(shards, tmp_path / "run", **ONE_STEP, init=undisturbed, init_name="x.mae")


@pytest.mark.parametrize("family", GOLDEN)
def test_multiply_adds_are_those_that_torch_counts(family, tmp_path):
    chosen = config(family, saved(family, tmp_path))
    tokens, boxes = uniform(family)
    # The fused kernels are not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Quadformer(chosen).eval()(tokens[:1], boxes[:1])
    assert counter.get_total_flops() == 2 * chosen.multiply_adds(64)


# Mixed scales.


@pytest.mark.parametrize(("old", "new"), [(14, 16), (8, 16), (16, 32)])
def test_embeddings_of_a_resized_patch_are_those_of_the_patch(old, new):
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(5, 3, old, old, generator=draw)
    patch = torch.randn(3, 3, old, old, generator=draw)
    larger = F.interpolate(patch, (new, new), mode="bicubic", antialias=True)
    found = torch.einsum("bchw,dchw->bd", larger, resample_kernel(kernel, new))
    expected = torch.einsum("bchw,dchw->bd", patch, kernel)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_a_kernel_for_smaller_patches_is_the_best_for_random_ones():
    draw = torch.Generator().manual_seed(0)
    kernel = torch.randn(1, 1, 16, 16, generator=draw, dtype=torch.float64)
    found = resample_kernel(kernel.expand(1, 3, 16, 16), 8)[0, 0].flatten()
    pixels = torch.eye(256).view(256, 1, 16, 16)
    resize = F.interpolate(pixels, (8, 8), mode="bicubic", antialias=True).double().flatten(1)
    expected = torch.linalg.lstsq(resize, kernel.flatten()[:, None]).solution[:, 0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_weights_of_another_patch_size_and_grid_are_resampled(tmp_path):
    path = saved("dinov2_reg", tmp_path)
    model = Quadformer(config("dinov2_reg", path, patch_size=16, grid=(4, 6)))
    loaded = load_pretrained(model, path)
    name = "patch_embed.proj.weight"
    assert loaded.changed[name] == "resampled from patches of 8 to 16 pixels, by pseudo-inverse"
    assert loaded.changed["pos_embed"] == "resampled from 8 x 8 to 4 x 6"
    kernel = resample_kernel(state("dinov2_reg")[name], 16)
    assert torch.equal(model.state_dict()[name], kernel.permute(0, 2, 3, 1).flatten(1))


def test_a_run_of_another_patch_size_is_resampled(undisturbed):
    stored = RunFolder(undisturbed).config().model
    models = [Quadformer(replace(stored, patch_size=side)) for side in (8, 16)]
    notes = [load_pretrained(model, undisturbed).changed for model in models]
    name = "patch_embed.proj.weight"
    assert name not in notes[0]
    assert notes[1][name] == "resampled from patches of 8 to 16 pixels, by pseudo-inverse"
    kernels = [
        model.state_dict()[name].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
        for model, side in zip(models, (8, 16), strict=True)
    ]
    assert torch.equal(kernels[1], resample_kernel(kernels[0], 16))


@pytest.mark.parametrize("rope", ["eva02", "dinov3"])
def test_rope_of_a_large_patch_is_that_of_its_center(rope):
    chosen = QuadformerConfig(
        classes=2, patch_size=8, grid=(4, 8), max_scale=2, width=32, depth=1, heads=2, rope=rope
    )
    turns = Quadformer(chosen).rope_frequencies
    boxes = torch.tensor([[[2, 0, 0], [3, 1, 0], [2, 0, 1], [0, 0, 2]]])
    angles = rope_angles(boxes, rope, chosen.grid, turns)[0]
    assert torch.allclose(angles[2], (angles[0] + angles[1]) / 2, atol=1e-5)
    assert patch_centers(boxes)[0, 3].tolist() == [2, 2]
    middle = {"eva02": (1.5 / 4 * 16, 1.5 / 8 * 16), "dinov3": (0.0, -torch.pi)}[rope]
    expected = torch.cat([where * turns for where in middle])
    assert torch.allclose(angles[3], expected, atol=1e-5)


@pytest.mark.parametrize("family", GOLDEN)
def test_mixed_scales_have_finite_logits_and_no_order(family, tmp_path):
    path = saved(family, tmp_path)
    model = Quadformer(config(family, path)).eval()
    load_pretrained(model, path)
    tokens, boxes = uniform(family)
    large = torch.tensor([[0, 0, 2], [4, 0, 2], [0, 4, 2], [4, 4, 1]])
    boxes = torch.cat([large.expand(2, -1, -1), boxes[:, 54:]], dim=1)
    tokens = tokens[:, : boxes.shape[1]]
    logits, out = model(tokens, boxes)
    assert logits.isfinite().all()
    assert out["tokens"].shape == (2, 14, 32)
    back = list(range(13, -1, -1))
    assert torch.allclose(model(tokens[:, back], boxes[:, back])[0], logits, atol=1e-5)


def test_rope_is_for_the_grid_of_the_run(made_otherwise):
    chosen = QuadformerConfig(
        classes=2, patch_size=8, grid=(4, 8), max_scale=2, width=32, depth=1, heads=2, rope="dinov3"
    )
    manifest = Dataset(made_otherwise()).manifest
    check_fits(replace(chosen, grid=(8, 8)), manifest, ["flower", "temple"], "shards")
    with pytest.raises(ConfigError, match=r"has \(8, 8\) patches, .* positions are for \(4, 8\)"):
        check_fits(chosen, manifest, ["flower", "temple"], "shards")


# Recognition.


def test_layouts_of_other_models_are_refused(shards, tmp_path):
    weights = state("dinov3")
    for change, message in (
        ({"pos_embed": torch.zeros(1, 69, 32)}, "its combination of parts is not one of these"),
        ({"blocks.0.mlp.fc1.weight": None}, "it has no blocks.0.mlp.fc1.weight"),
        ({"patch_embed.proj.weight": torch.zeros(3)}, r"its patch_embed.proj.weight is \[3\]"),
    ):
        changed: dict[str, Any] = {k: v for k, v in (weights | change).items() if v is not None}
        save_file(changed, tmp_path / "vit.safetensors")
        with pytest.raises(ConfigError, match=f"is not a ViT as timm has them: {message}"):
            train(shards, tmp_path / "run", **ONE_STEP, init=tmp_path / "vit.safetensors")


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1152, 16), (32, None)]
)
def test_heads_are_known_by_the_width(width, heads):
    weights = state("deit3")
    weights["patch_embed.proj.weight"] = torch.empty(width, 3, 8, 8)
    assert recognize(weights).fields.get("heads") == heads


@pytest.mark.parametrize(
    ("name", "layout", "activation", "mean"),
    [
        ("vit_base_patch16_clip_quickgelu_224.openai", "clip", "quick_gelu", 0.48145466),
        ("vit_large_patch14_clip_224.laion2b", "clip", "gelu", 0.5),
        ("vit_so400m_patch16_siglip_256.v2_webli", "siglip", "gelu_tanh", 0.5),
        ("vit_base_patch16_siglip_256.v2_webli", "gap", "gelu", 0.5),
        ("vit_large_patch16_dinov3.sat493m", "dinov3", "gelu", 0.43),
        ("vit_small_patch14_reg4_dinov2", "dinov2", "gelu", 0.485),
        ("deit3_small_patch16_224.fb_in1k", "dinov2", "gelu", 0.485),
        ("vit_base_patch16_reg4_gap_256.sbb_in1k", "gap", "gelu", 0.5),
    ],
)
def test_settings_are_known_by_timms_name(name, layout, activation, mean):
    settings = settings_by_name(name, layout)
    assert (settings["activation"], settings["mean"][0]) == (activation, mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "none"}, "positions none is for models with RoPE"),
        ({"class_token": False}, "pool cls is for models with a CLS token"),
        ({"rope": "dinov3", "heads": 16}, "rope dinov3 needs heads of a multiple of 4, not 2"),
        ({"activation": "relu"}, "activation 'relu' is not one of gelu, gelu_tanh"),
        ({"norm_eps": 0.0}, "norm_eps 0 is not above 0"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(options, message):
    shape: dict[str, Any] = {"classes": 5, "patch_size": PATCH, "grid": GRID, "max_scale": 2}
    shape |= {"width": 32, "depth": 2, "heads": 2}
    with pytest.raises(ConfigError, match=message):
        QuadformerConfig(**shape | options)


@pytest.mark.parametrize("grid", [(4, 16), (7, 9)])  # 64 patches, and 63 with a CLS token
def test_positions_of_a_grid_that_is_not_square_stay_where_they_are(grid, tmp_path):
    shape = QuadformerConfig(
        grid=grid, classes=2, patch_size=8, max_scale=0, width=32, depth=1, heads=2,
        positions="learned",
    )  # fmt: skip
    given, model = Quadformer(shape), Quadformer(shape)
    kernel = given.patch_embed.proj.weight.view(32, 8, 8, 3).permute(0, 3, 1, 2)
    state = dict(given.state_dict()) | {"patch_embed.proj.weight": kernel.contiguous()}
    save_file(state, tmp_path / "vit.safetensors")
    load_pretrained(model, tmp_path / "vit.safetensors")
    assert torch.equal(model.pos_embed, given.pos_embed)
