"""Runs exported for timm."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_cli
from families import GOLDEN, config, saved, state, uniform
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812  its usual name

from quadpipe.errors import ConfigError, OutputError
from quadpipe.model.export import export
from quadpipe.model.layouts import from_timm, to_metadata, to_timm
from quadpipe.model.pretrained import load_pretrained, read_weights
from quadpipe.model.quadformer import Quadformer, QuadformerConfig
from quadpipe.model.run_folder import RunFolder
from quadpipe.shards.format import json_bytes
from reference import vit

CLASSES = ["a", "b", "c", "d", "e"]
SHAPE: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "classes": 5, "patch_size": 8}
SHAPE |= {"grid": (8, 8), "max_scale": 2}


@pytest.fixture
def run_of(undisturbed, tmp_path):
    """A run that holds a model, on the shards of `undisturbed`."""

    def make(model: Quadformer) -> RunFolder:
        run = RunFolder(tmp_path / "run")
        manifest = replace(RunFolder(undisturbed).config(), model=model.config, classes=CLASSES)
        run.folder.write("config.json", json_bytes(manifest.to_json()))
        run.save("last.safetensors", model.state_dict(), None, step=0, epoch=0)
        return run

    return make


@pytest.mark.parametrize("family", GOLDEN)
def test_weights_come_back_bit_equal_under_timms_names(family, run_of, tmp_path):
    model = Quadformer(config(family, saved(family, tmp_path)))
    load_pretrained(model, saved(family, tmp_path))
    exported = export(run_of(model), tmp_path / "timm.safetensors")
    assert exported.changed == {}
    found, expected = load_file(tmp_path / "timm.safetensors"), state(family)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"rope": "eva02", "qkv_bias": "qv", "swiglu": True}, "blocks.1.attn.q_bias"),
        (
            {"rope": "eva02", "qkv_bias": "qv", "swiglu": True, "mlp_norm": True},
            "blocks.1.attn.q_proj.bias",
        ),
        ({"rope": "dinov3", "qkv_bias": "none", "swiglu": True}, "blocks.1.mlp.fc1_g.weight"),
        ({"swiglu": True, "layer_scale": True}, "blocks.1.ls1.gamma"),
        ({"rope": "dinov3", "qkv_bias": "qv", "layer_scale": True}, "blocks.1.gamma_1"),
    ],
)
def test_each_layout_has_timms_names_and_is_read_again(parts, name):
    model = Quadformer(QuadformerConfig(**SHAPE, positions="learned", **parts))
    theirs = to_timm(model.state_dict(), model.config)
    assert name in theirs
    ours = from_timm(theirs)
    linear = "patch_embed.proj.weight"
    ours[linear] = ours[linear].permute(0, 2, 3, 1).flatten(1)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_our_own_parts_are_folded_into_timms(positions, run_of, tmp_path):
    torch.manual_seed(0)
    options: dict[str, Any] = {"positions": positions, "scale_embedding": True}
    model = Quadformer(QuadformerConfig(**SHAPE, **options)).eval()
    torch.nn.init.normal_(model.scale_embed)
    exported = export(run_of(model), tmp_path / "timm.safetensors")
    assert exported.changed["scale_embed"] == "of scale 0 is added to patch_embed.proj.bias"
    assert f"no_embed_class={positions == 'sinusoidal'}" in exported.code
    tokens, boxes = uniform("augreg")
    images = tokens.unflatten(1, (8, 8)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    pixels = (images / 255 - torch.tensor(model.config.mean)) / torch.tensor(model.config.std)
    weights = load_file(tmp_path / "timm.safetensors")
    expected = vit.logits(weights, pixels.permute(0, 3, 1, 2), heads=2)
    assert torch.allclose(model(tokens, boxes)[0], expected, atol=1e-5)


def test_the_command_writes_the_file_and_prints_how_to_load_it(undisturbed, tmp_path):
    path = tmp_path / "timm.safetensors"
    done = run_cli("export", undisturbed, "--to", path)
    assert done.returncode == 0, done.stderr
    assert "best.safetensors, epoch" in done.stderr
    assert "pos_embed holds the sinusoidal positions" in done.stderr
    assert "VisionTransformer(img_size=(64, 64), patch_size=8, num_classes=2," in done.stdout
    compile(done.stdout, "printed", "exec")
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["flower", "temple"]
    done = run_cli("export", undisturbed, "--to", path)
    assert done.returncode == 2
    assert "exists; delete it, or choose another --to" in done.stderr


def test_an_export_tells_what_its_weights_do_not(run_of, tmp_path):
    parts: dict[str, Any] = {"activation": "quick_gelu", "norm_eps": 1e-3, "pool": "area"}
    parts |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "positions": "learned"}
    model = Quadformer(QuadformerConfig(**SHAPE | {"heads": 4}, **parts))
    path = tmp_path / "timm.safetensors"
    export(run_of(model), path)
    weights = read_weights(path)
    assert QuadformerConfig(**SHAPE | weights.architecture(None, {})) == model.config
    turned = Quadformer(model.config)
    loaded = load_pretrained(turned, weights, CLASSES[::-1])
    assert loaded.changed["head"] == "matched by the names of its classes"
    assert torch.equal(turned.head.weight, model.head.weight.flip(0))
    for name, value, message in (
        ("heads", "many", "its metadata has heads 'many', which cannot be read; save the weights"),
        ("classes", '"abcde"', "its metadata has classes '\"abcde\"', which cannot be read"),
        ("classes", '["a"]', "the metadata of the weights names 1 class for a head of 5"),
        ("classes", '["a", "b", "c", "c", "d"]', "its metadata has 2 classes 'c'; save the"),
        ("grid", "[-8, -8]", r"its metadata has grid '\[-8, -8\]', which cannot be read"),
        ("grid", "[4, 8]", "65 positions with a grid of 4 x 8 in its metadata, and 1 other tokens"),
    ):
        save_file(load_file(path), tmp_path / "odd.safetensors", {name: value, "quadpipe": "1"})
        with pytest.raises(ConfigError, match=message):
            load_pretrained(turned, tmp_path / "odd.safetensors", CLASSES)
    save_file(load_file(path), tmp_path / "other.safetensors", {"heads": "many", "pool": "avg"})
    assert read_weights(tmp_path / "other.safetensors").settings == {}


MOSAIC = [[0, 0, 2], [4, 0, 2], [0, 4, 2], [4, 4, 1], [6, 4, 1], [4, 6, 1], [6, 6, 1]]


@pytest.mark.parametrize(
    ("parts", "boxes", "positions"),
    [
        ({}, MOSAIC, "sinusoidal"),
        # The embedding of scale 0 counts for all scales.
        ({"scale_embedding": True}, [[x, 0, 0] for x in range(8)], "sinusoidal"),
        ({"scale_embedding": True, "pre_norm": True}, [[x, 0, 0] for x in range(8)], "learned"),
    ],
)
def test_an_export_of_sinusoidal_positions_is_the_same_model(
    parts, boxes, positions, run_of, tmp_path
):
    model = Quadformer(QuadformerConfig(**SHAPE, **parts)).eval()
    if "scale_embedding" in parts:
        torch.nn.init.normal_(model.scale_embed)
    export(run_of(model), tmp_path / "timm.safetensors")
    weights = read_weights(tmp_path / "timm.safetensors")
    again = Quadformer(QuadformerConfig(**SHAPE | weights.architecture(None, {}))).eval()
    assert again.config.positions == positions
    load_pretrained(again, weights, CLASSES)
    tokens = torch.randint(0, 256, (1, len(boxes), 8, 8, 3), dtype=torch.uint8)
    expected, found = (one(tokens, torch.tensor([boxes]))[0] for one in (model, again))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize(("theirs", "ours"), [((4, 8), (8, 4)), ((4, 12), (8, 8))])
def test_positions_of_an_export_keep_their_grid(theirs, ours, no_embed_class, tmp_path):
    parts: dict[str, Any] = {"positions": "learned", "no_embed_class": no_embed_class}
    given = Quadformer(QuadformerConfig(**SHAPE | {"grid": theirs}, **parts))
    saved_as, path = to_timm(given.state_dict(), given.config), tmp_path / "timm.safetensors"
    save_file(saved_as, path, to_metadata(given.config, CLASSES))
    weights = read_weights(path)
    model = Quadformer(QuadformerConfig(**SHAPE | {"grid": ours} | weights.architecture(None, {})))
    assert model.config.no_embed_class == no_embed_class
    loaded = load_pretrained(model, weights)
    note = f"resampled from {theirs[0]} x {theirs[1]} to {ours[0]} x {ours[1]}"
    assert loaded.changed["pos_embed"] == note
    cells = saved_as["pos_embed"][:, -math.prod(theirs) :].unflatten(1, theirs).permute(0, 3, 1, 2)
    expected = F.interpolate(cells, ours, mode="bicubic", antialias=True).flatten(2).mT
    assert torch.equal(model.pos_embed[:, -math.prod(ours) :], expected)


@pytest.mark.parametrize(
    ("count", "ours", "note"),
    [
        (65, (4, 16), "taken for 4 x 16 as in the model: the file has no grid"),
        (65, (4, 8), "resampled from 8 x 8 to 4 x 8"),
        (33, (4, 8), "taken for 4 x 8 as in the model: the file has no grid"),
        (33, (8, 8), "pos_embed has 33 positions with no grid in its metadata, and 1 other tokens"),
    ],
)
def test_a_grid_that_a_file_does_not_hold_is_noted_or_refused(count, ours, note, tmp_path):
    model = Quadformer(QuadformerConfig(**SHAPE | {"grid": ours}, positions="learned"))
    weights = to_timm(model.state_dict(), model.config) | {"pos_embed": torch.rand(1, count, 32)}
    save_file(weights, tmp_path / "timm.safetensors")
    if count == 33 and ours == (8, 8):
        with pytest.raises(ConfigError, match=note):
            load_pretrained(model, tmp_path / "timm.safetensors")
    else:
        loaded = load_pretrained(model, tmp_path / "timm.safetensors")
        assert loaded.changed["pos_embed"] == note


def test_files_that_cannot_be_written_are_refused(undisturbed, tmp_path):
    with pytest.raises(ConfigError, match="does not end in .safetensors; rename it"):
        export(RunFolder(undisturbed), Path("timm.pth"))
    with pytest.raises(OutputError, match="cannot write .*: No such file or directory"):
        export(RunFolder(undisturbed), tmp_path / "nowhere" / "timm.safetensors")
