"""Initial weights that do not fit what is asked for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import config, saved, state
from runs import SMALL
from safetensors.torch import save_file

from quadpipe.errors import ConfigError
from quadpipe.model import train
from quadpipe.model.pretrained import load_pretrained, read_weights
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder
from quadpipe.shards.format import json_bytes

OPTIONS = SMALL | {"model": None, "epochs": 1}


@pytest.mark.parametrize(
    ("family", "name", "theirs", "ours"),
    [
        ("dinov3", "vit_base_patch16_224.mae", "a plain ViT, such as .*", "DINOv3"),
        ("augreg", "vit_small_patch14_dinov2.lvd142m", "DINOv2 or DeiT3", "a plain ViT, .*"),
        ("mae", "deit3_small_patch16_224.fb_in1k", "DINOv2 or DeiT3", "a plain ViT, .*"),
        ("deit3", "deit_small_patch16_224.fb_in1k", "a plain ViT, .*", "DINOv2 or DeiT3"),
        ("clip", "vit_base_patch16_siglip_224.webli", "SigLIP", "CLIP"),
        ("siglip2", "vit_base_patch16_224.augreg_in21k", "a plain ViT, .*", "SigLIP"),
    ],
)
def test_a_name_of_another_family_is_refused(tmp_path, family, name, theirs, ours):
    weights = read_weights(saved(family, tmp_path))
    message = f"--init-name {name} is of {theirs}, and the weights are of {ours}; correct the name"
    with pytest.raises(ConfigError, match=message):
        weights.architecture(name, {"heads": 2})


def test_weights_are_local(shards, tmp_path):
    with pytest.raises(ConfigError, match="--init s3://b/run is a URL; copy it here and give"):
        train(shards, tmp_path / "run", **OPTIONS, init="s3://b/run")


@pytest.mark.parametrize("shape", [(16, 16), (), (32,)])
def test_parts_of_a_matrix_that_differ_in_shape_are_refused(tmp_path, shape):
    parts = {name: torch.zeros(32, 32) for name in ("q_proj", "k_proj", "v_proj")}
    parts["k_proj"] = torch.zeros(shape)
    weights = {f"blocks.1.attn.{name}.weight": value for name, value in parts.items()}
    del (plain := state("mae"))["blocks.1.attn.qkv.weight"]
    save_file(plain | weights, tmp_path / "vit.safetensors")
    found = read_weights(tmp_path / "vit.safetensors")
    message = r"its parts of attn.qkv.weight differ in shape: .*k_proj.weight \[.*; give weights of"
    model = Quadformer(config("mae", saved("mae", tmp_path)))
    for use in (lambda: found.architecture(None, {}), lambda: load_pretrained(model, found)):
        with pytest.raises(ConfigError, match=message):
            use()


def test_weights_that_are_not_floating_point_are_refused(tmp_path):
    path = saved("mae", tmp_path)
    model = Quadformer(config("mae", path))
    for name in ("norm.weight", "patch_embed.proj.weight", "cls_token"):
        save_file(state("mae") | {name: state("mae")[name].to(torch.int8)}, path)
        with pytest.raises(ConfigError, match=f"{name} is torch.int8, not floating point; give"):
            load_pretrained(model, path)


@pytest.mark.parametrize(
    ("family", "pool", "message"),
    [
        ("eva02", "cls", r"pool cls: the last norm of these weights .* \(fc_norm\); omit --pool"),
        ("eva02", "attention", r"pool attention: the last norm .* \(fc_norm\); omit --pool"),
        ("deit3", "attention", "missing attn_pool.*, without --pool attention"),
    ],
)
def test_pooling_that_the_weights_do_not_have_is_refused(shards, tmp_path, family, pool, message):
    with pytest.raises(ConfigError, match=message):
        given: dict[str, Any] = {"init": saved(family, tmp_path), "heads": 2, "pool": pool}
        given |= {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        train(shards, tmp_path / "run", **OPTIONS | given)
    assert not (tmp_path / "run").exists()


def test_embeddings_of_scales_fit_a_model_with_more_or_fewer(undisturbed, tmp_path):
    manifest = RunFolder(undisturbed).config()
    shape = replace(manifest.model, scale_embedding=True)
    given = Quadformer(shape)
    torch.nn.init.normal_(given.scale_embed)
    run = RunFolder(tmp_path / "run")
    run.folder.write("config.json", json_bytes(replace(manifest, model=shape).to_json()))
    run.save("last.safetensors", given.state_dict(), None, step=0, epoch=0)
    more, fewer = (Quadformer(replace(shape, max_scale=scale)) for scale in (4, 1))
    loaded = load_pretrained(more, run.folder.root)
    assert loaded.fresh == ["scale_embed[3:]"]
    assert torch.equal(more.scale_embed[:3], given.scale_embed)
    assert not more.scale_embed[3:].any()
    loaded = load_pretrained(fewer, run.folder.root)
    assert loaded.changed["scale_embed"] == "loaded for 2 of 3 scales"
    assert torch.equal(fewer.scale_embed, given.scale_embed[:2])
