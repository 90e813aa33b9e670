import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickles import MARKER, Hostile
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import quadpipe
from quadpipe.errors import ConfigError, ShardError
from quadpipe.model.positions import (
    patch_centers,
    sinusoidal,
    sinusoidal_2d,
    sinusoidal_frequencies,
)
from quadpipe.model.pretrained import load_pretrained
from quadpipe.model.quadformer import PRESETS, Quadformer, QuadformerConfig
from reference import vit

GOLDEN = Path(__file__).parents[1] / "golden" / "model.npz"
SMALL = QuadformerConfig(
    classes=7, patch_size=16, grid=(16, 16), max_scale=2, width=48, depth=3, heads=3
)


@pytest.fixture(scope="module")
def leaves(square) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens uint8 `[4, 64, 16, 16, 3]` and boxes `[4, 64, 3]` of four photographs."""
    found = [m.leaves() for m in quadpipe.Tokenizer(tokens=64).tokenize(square)]
    tokens, boxes = (np.stack([getattr(x, name) for x in found]) for name in ("tokens", "boxes"))
    return torch.from_numpy(tokens), torch.from_numpy(boxes.astype(np.int16))


@pytest.fixture(scope="module")
def grid(square) -> tuple[torch.Tensor, torch.Tensor]:
    """The same photographs on the plain grid."""
    tokenizer = quadpipe.Tokenizer(scorer="uniform", max_patch_size=16, tokens=256, crop_pct=1.0)
    found = [m.leaves() for m in tokenizer.tokenize(square)]
    tokens, boxes = (np.stack([getattr(x, name) for x in found]) for name in ("tokens", "boxes"))
    return torch.from_numpy(tokens), torch.from_numpy(boxes)


def test_positions_equal_those_of_the_papers_code():
    with np.load(GOLDEN) as golden:
        arrays = {name: torch.from_numpy(golden[name]) for name in golden.files}
    found = sinusoidal(arrays["positions"], sinusoidal_frequencies(192))
    assert torch.allclose(found, arrays["sinusoidal_192"], atol=1e-5)
    found = sinusoidal_2d(arrays["centres"], sinusoidal_frequencies(192))
    assert torch.allclose(found, arrays["sinusoidal_2d_384"], atol=1e-5)


def test_centers_are_in_units_of_the_smallest_patch():
    boxes = torch.tensor([[0, 0, 0], [2, 4, 1], [8, 0, 2]], dtype=torch.int16)
    assert patch_centers(boxes).tolist() == [[0.5, 0.5], [3, 5], [10, 2]]


def test_logits_and_named_steps_have_their_shapes(leaves):
    logits, out = Quadformer(SMALL)(*leaves)
    assert logits.shape == (4, 7)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "embedded": (4, 65, 48),
        "prefix": (4, 1, 48),
        "tokens": (4, 64, 48),
        "cls": (4, 48),
        "pooled": (4, 48),
    }


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("pool", ["cls", "area"])
def test_the_order_of_the_tokens_does_not_matter(leaves, positions, pool):
    model = Quadformer(replace(SMALL, positions=positions, pool=pool, scale_embedding=True)).eval()
    torch.nn.init.normal_(model.scale_embed)
    if positions == "learned":
        torch.nn.init.normal_(model.pos_embed)
    tokens, boxes = leaves
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    one, _ = model(tokens, boxes)
    other, _ = model(tokens[:, order], boxes[:, order])
    assert torch.allclose(one, other, atol=1e-5)
    moved = boxes.clone()
    moved[..., 0] = 15 - moved[..., 0]
    assert not torch.allclose(one, model(tokens, moved)[0], atol=1e-7)


def test_learned_positions_are_exact_on_the_grid_and_means_of_cells_above():
    model = Quadformer(replace(SMALL, positions="learned"))
    cells = model.pos_embed[0, 1:].reshape(16, 16, -1)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    smallest = torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(1, -1, 3)
    assert torch.allclose(model._positions(smallest)[0], cells.reshape(256, -1), atol=1e-6)
    large = model._positions(torch.tensor([[[4, 6, 1]]]))[0, 0]
    assert torch.allclose(large, cells[6:8, 4:6].mean(dim=(0, 1)), atol=1e-6)


def test_pooling_weighs_tokens_by_their_area(leaves):
    model = Quadformer(replace(SMALL, pool="area")).eval()
    _, out = model(*leaves)
    for row in range(4):
        areas = 4.0 ** leaves[1][row, :, 2].numpy()
        expected = np.average(out["tokens"][row].detach().numpy(), axis=0, weights=areas)
        np.testing.assert_allclose(out["pooled"][row].detach(), expected, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(leaves):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Quadformer(replace(SMALL, gradient_checkpointing=checkpointing)).train()
        model(*leaves)[0].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_drop_path_drops_branches_in_training_only(leaves):
    model = Quadformer(replace(SMALL, drop_path=0.9))
    torch.manual_seed(0)
    assert not torch.equal(model.train()(*leaves)[0], model(*leaves)[0])
    assert torch.equal(model.eval()(*leaves)[0], model(*leaves)[0])
    branch = torch.ones(20_000, 1, 1)
    block: Any = model.train().blocks[-1]
    assert block.drop_path == pytest.approx(0.9)
    assert block._dropped(branch).mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("tokens", [16, 64])
def test_multiply_adds_are_those_that_torch_counts(leaves, tokens):
    model = Quadformer(SMALL).eval()
    # The fused kernels are not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(leaves[0][:1, :tokens], leaves[1][:1, :tokens])
    assert counter.get_total_flops() == 2 * SMALL.multiply_adds(tokens)


def test_presets_have_the_sizes_of_vits():
    config = QuadformerConfig(
        classes=1000, patch_size=16, grid=(14, 14), max_scale=2, positions="learned",
        **PRESETS["small"],
    )  # fmt: skip
    assert sum(p.numel() for p in Quadformer(config).parameters()) == 22_050_664


# A plain ViT is the same class.

PLAIN = replace(SMALL, positions="learned", max_scale=0)


@pytest.fixture(scope="module")
def timm_state() -> dict[str, torch.Tensor]:
    return vit.random_state(width=48, depth=3, side=16, cells=256, classes=7)


def normalized(square: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(square).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(SMALL.mean).view(3, 1, 1)) / torch.tensor(SMALL.std).view(3, 1, 1)


def test_timm_weights_give_timms_logits(grid, square, timm_state, tmp_path):
    save_file(timm_state, tmp_path / "vit.safetensors")
    model = Quadformer(PLAIN).eval()
    loaded = load_pretrained(model, tmp_path / "vit.safetensors")
    assert loaded.fresh == []
    assert loaded.unused == []
    assert loaded.changed == {
        "patch_embed.proj.weight": "reshaped from a 16 x 16 convolution",
        "head": "loaded with its 7 classes; the file does not hold their names, so they were not "
        "compared",
    }
    expected = vit.logits(timm_state, normalized(square), heads=3)
    assert torch.allclose(model(*grid)[0], expected, atol=1e-4)


def without_cls_position(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As timm's models of `no_embed_class` have it."""
    return state | {"pos_embed": state["pos_embed"][:, 1:].clone()}


def with_fc_norm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As timm's models have it whose last norm comes after pooling."""
    return {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
            for name, value in state.items()}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "options", "pool"),
    [
        (without_cls_position, {}, "token"),
        (dict, {"pool": "area"}, "avg"),
        (with_fc_norm, {"pool": "area", "fc_norm": True}, "avg"),
    ],
)
def test_variants_of_timms_vit_give_timms_logits(
    grid, square, timm_state, tmp_path, change, options, pool
):
    state = change(timm_state)
    save_file(state, tmp_path / "vit.safetensors")
    model = Quadformer(replace(PLAIN, **options)).eval()
    assert load_pretrained(model, tmp_path / "vit.safetensors").fresh == []
    expected = vit.logits(state, normalized(square), heads=3, global_pool=pool)
    assert torch.allclose(model(*grid)[0], expected, atol=1e-4)


def test_a_norm_after_pooling_is_not_taken_for_one_before(timm_state, tmp_path):
    for state, options, advice in (
        (with_fc_norm(timm_state), {"pool": "area"}, "with --pool area --fc-norm"),
        (timm_state, {"pool": "area", "fc_norm": True}, "without --fc-norm"),
    ):
        save_file(state, tmp_path / "vit.safetensors")
        with pytest.raises(ConfigError, match=f"unexpected .*norm.bias; .*{advice}"):
            load_pretrained(Quadformer(replace(PLAIN, **options)), tmp_path / "vit.safetensors")


def test_weights_without_a_position_of_cls_leave_it_alone(timm_state, tmp_path):
    save_file(without_cls_position(timm_state), tmp_path / "vit.safetensors")
    model = Quadformer(SMALL)
    load_pretrained(model, tmp_path / "vit.safetensors")
    assert torch.equal(model.cls_token, timm_state["cls_token"])
    models = [Quadformer(replace(PLAIN, grid=(8, 12))) for _ in range(2)]
    loaded = load_pretrained(models[0], tmp_path / "vit.safetensors")
    assert loaded.changed["pos_embed"] == "resampled from 16 x 16 to 8 x 12, none for CLS"
    save_file(timm_state, tmp_path / "vit.safetensors")
    load_pretrained(models[1], tmp_path / "vit.safetensors")
    cells = [model.pos_embed[:, 1:] for model in models]
    assert torch.equal(*cells)
    assert not models[0].pos_embed[:, 0].any()


@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
@pytest.mark.parametrize("shape", [(5,), (1, 99, 48), (1, 257, 50), (2, 257, 48), (1, 0, 48)])
def test_positions_of_another_count_are_refused(timm_state, tmp_path, positions, shape):
    save_file(timm_state | {"pos_embed": torch.zeros(shape)}, tmp_path / "vit.safetensors")
    with pytest.raises(ConfigError, match="pos_embed"):
        load_pretrained(
            Quadformer(replace(PLAIN, positions=positions)), tmp_path / "vit.safetensors"
        )


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
def test_layouts_with_prefixes_and_wrappers_are_read(grid, timm_state, tmp_path, prefix, wrapper):
    named = {prefix + name: value for name, value in timm_state.items()}
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, tmp_path / "vit.pth")
    save_file(timm_state, tmp_path / "vit.safetensors")
    models = [Quadformer(PLAIN).eval() for _ in range(2)]
    load_pretrained(models[0], tmp_path / "vit.pth")
    load_pretrained(models[1], tmp_path / "vit.safetensors")
    assert torch.equal(models[0](*grid)[0], models[1](*grid)[0])


def test_positions_are_resampled_and_another_head_is_left_out(timm_state, tmp_path):
    save_file(timm_state, tmp_path / "vit.safetensors")
    model = Quadformer(replace(PLAIN, grid=(8, 12), classes=5))
    loaded = load_pretrained(model, tmp_path / "vit.safetensors")
    assert loaded.changed["pos_embed"] == "resampled from 16 x 16 to 8 x 12"
    assert loaded.changed["head"] == "not loaded: 7 classes, the model has 5"
    assert loaded.fresh == ["head.bias", "head.weight"]
    grid = timm_state["pos_embed"][:, 1:]
    assert torch.allclose(model.pos_embed[:, 1:].mean(), grid.mean(), atol=1e-3)


def test_sinusoidal_models_take_the_rest_of_the_weights(timm_state, tmp_path):
    save_file(timm_state, tmp_path / "vit.safetensors")
    model = Quadformer(replace(SMALL, scale_embedding=True))
    loaded = load_pretrained(model, tmp_path / "vit.safetensors")
    assert loaded.fresh == ["scale_embed"]
    assert loaded.unused == ["pos_embed"]
    expected = timm_state["cls_token"] + timm_state["pos_embed"][:, :1]
    assert torch.equal(model.cls_token, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "missing norm.weight"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
        (
            lambda s: s.update({"norm.bias": torch.zeros(5)}),
            r"norm.bias \[5\], expected \[48\]; give weights of a timm ViT of width 48",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_a_list(timm_state, tmp_path, change, message):
    state: dict[str, Any] = dict(timm_state)
    change(state)
    save_file(state, tmp_path / "vit.safetensors")
    model = Quadformer(PLAIN)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        load_pretrained(model, tmp_path / "vit.safetensors")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, tmp_path / "a.pth")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Hostile()))
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "d.pt").write_bytes(b"")
    for name in ("a.pth", "b.pt", "c.safetensors", "d.pt"):
        with pytest.raises(ShardError, match="does not hold plain weights"):
            load_pretrained(Quadformer(PLAIN), tmp_path / name)
    assert not MARKER.exists()
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ShardError, match="holds a list, not a state dict"):
        load_pretrained(Quadformer(PLAIN), tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="cannot read .*; give a .safetensors"):
        load_pretrained(Quadformer(PLAIN), tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads 0 is not from 1 to 1,024"),
        ({"width": 3 * 2**40}, "is not from 4 to 16,384"),
        ({"max_scale": -5}, "max_scale -5 is not from 0"),
        ({"std": (1.0, 0.0, 1.0)}, "std 0 is not above 0"),
        ({"heads": 5}, "width 48 is not a multiple of 4 and of 5 heads"),
        ({"positions": "magic"}, "positions 'magic' is not one of sinusoidal, learned"),
        ({"pool": "max"}, "pool 'max' is not one of cls, area"),
        ({"drop_path": 1.0}, "drop_path 1 is not from 0 to below 1"),
        ({"classes": 0}, "classes 0 is not from 1 to"),
        ({"fc_norm": True}, "fc_norm is for pool area, not cls"),
    ],
)
def test_models_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **options)
