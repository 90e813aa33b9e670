"""The model on images of different lengths in one batch."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn

from quadpipe.errors import ConfigError
from quadpipe.model import attention
from quadpipe.model.attention import Packing, attend
from quadpipe.model.quadformer import Quadformer, QuadformerConfig

SMALL = QuadformerConfig(
    classes=5, patch_size=4, grid=(8, 8), max_scale=2, width=24, depth=2, heads=3
)
LENGTHS = torch.tensor([7, 4, 10, 4, 7, 16])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"positions": "learned", "scale_embedding": True},
    {"pool": "area", "positions": "learned"},
    {"pool": "area", "fc_norm": True, "scale_embedding": True},
    {"gradient_checkpointing": True},
    {"reg_tokens": 4, "rope": "dinov3", "positions": "none", "layer_scale": True},
    {"rope": "eva02", "positions": "learned", "swiglu": True, "qkv_bias": "qv"},
    {"class_token": False, "pool": "attention", "positions": "learned"},
    {"class_token": False, "pool": "area", "pre_norm": True},
    {"reg_tokens": 1, "positions": "learned", "pool": "attention", "gradient_checkpointing": True},
]


def make_model(dtype: torch.dtype = torch.float64, **options: Any) -> Quadformer:
    torch.manual_seed(0)
    model = Quadformer(replace(SMALL, **options)).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def make_images(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens uint8 `[T, 4, 4, 3]` and boxes int16 `[T, 3]`."""
    generator = torch.Generator().manual_seed(1)
    count = int(lengths.sum())
    tokens = torch.randint(0, 256, (count, 4, 4, 3), generator=generator, dtype=torch.uint8)
    boxes = torch.randint(0, 3, (count, 3), generator=generator, dtype=torch.int16)
    return tokens, boxes


def gradients(model: Quadformer, logits: Tensor) -> list[Tensor]:
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((logits * weights).sum())
    found = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_of_several_lengths_equals_its_images_one_by_one(options):
    model = make_model(**options)
    tokens, boxes = make_images(LENGTHS)
    logits, out = model(tokens, boxes, LENGTHS)
    sizes = LENGTHS.tolist()
    singles = [
        model(token[None], box[None])
        for token, box in zip(tokens.split(sizes), boxes.split(sizes), strict=True)
    ]
    expected = torch.cat([single[0] for single in singles])
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)
    assert logits.std() > 0.1
    for name, values in out.items():
        parts = [single[1][name] for single in singles]
        flat = [part.flatten(0, 1) if part.dim() == 3 else part for part in parts]
        found = values.flatten(0, 1) if values.dim() == 3 else values
        assert torch.allclose(found, torch.cat(flat), rtol=0, atol=1e-10), name
    for one, other in zip(gradients(model, logits), gradients(model, expected), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_order_of_the_images_does_not_matter(options):
    model = make_model(**options)
    tokens, boxes = make_images(LENGTHS)
    logits, _ = model(tokens, boxes, LENGTHS)
    order = torch.tensor([5, 0, 3, 2, 1, 4])
    rows = torch.cat([torch.arange(len(tokens)).split(LENGTHS.tolist())[i] for i in order])
    other, _ = model(tokens[rows], boxes[rows], LENGTHS[order])
    assert torch.allclose(other, logits[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [*OPTIONS, {"drop_path": 0.5}])
def test_equal_lengths_give_the_bits_of_a_batch_without_lengths(options):
    model = make_model(torch.float32, **options)
    lengths = torch.full((6,), 10)
    tokens, boxes = make_images(lengths)
    torch.manual_seed(3)
    expected, steps = model(tokens.unflatten(0, (6, 10)), boxes.unflatten(0, (6, 10)))
    torch.manual_seed(3)
    logits, out = model(tokens, boxes, lengths)
    assert torch.equal(logits, expected)
    assert torch.equal(out["embedded"], steps["embedded"].flatten(0, 1))
    assert torch.equal(out["tokens"], steps["tokens"].flatten(0, 1))
    assert torch.equal(out["pooled"], steps["pooled"])
    for one, other in zip(gradients(model, logits), gradients(model, expected), strict=True):
        assert torch.equal(one, other)


def test_drop_path_drops_the_branches_of_whole_images():
    block: Any = make_model(drop_path=0.5).blocks[-1]
    packing = Packing(LENGTHS, torch.device("cpu"))
    torch.manual_seed(4)
    expected = block._dropped(torch.ones(6, 1, 1)).flatten()
    torch.manual_seed(4)
    kept = block._dropped(torch.ones(len(packing.rows), 1), packing)[packing.rows, 0]
    assert torch.equal(kept, expected.repeat_interleave(LENGTHS + 1))
    assert set(expected.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("options", OPTIONS[2:4])
def test_half_precision_equals_that_of_the_images_one_by_one(options):
    model = make_model(torch.float32, **options)
    tokens, boxes = make_images(LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(tokens, boxes, LENGTHS)
        single, _ = model(tokens[None, :7], boxes[None, :7])
    assert torch.allclose(logits[:1], single, rtol=0.05, atol=0.05)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model, logits))


@pytest.mark.parametrize(
    "options",
    [
        {"scale_embedding": True, "pool": "area"},
        {"positions": "learned", "layer_scale": True, "pool": "attention"},
        {"positions": "none", "rope": "dinov3", "reg_tokens": 2},
    ],
)
@pytest.mark.parametrize("lengths", [LENGTHS, None])
def test_under_autocast_the_residual_stream_is_float32(options, lengths):
    model = make_model(torch.float32, **options)
    inside: list[torch.dtype] = []
    between: list[torch.dtype] = []
    for block in model.blocks:
        block.attn.proj.register_forward_hook(lambda _, given, out: inside.append(out.dtype))
        block.register_forward_hook(lambda _, given, out: between.append(out.dtype))
    tokens, boxes = make_images(LENGTHS)
    if lengths is None:
        tokens, boxes = tokens[None, :7], boxes[None, :7]
    with torch.autocast("cpu", torch.bfloat16):
        logits, out = model(tokens, boxes, lengths)
    assert set(inside) == {torch.bfloat16}
    assert {*between, out["embedded"].dtype, out["tokens"].dtype} == {torch.float32}
    assert logits.dtype == torch.bfloat16


def test_intermediates_are_in_the_order_of_the_batch():
    model = make_model(pool="area")
    _, out = model(*make_images(LENGTHS), LENGTHS)
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "embedded": (54, 24),
        "tokens": (48, 24),
        "prefix": (6, 1, 24),
        "cls": (6, 24),
        "pooled": (6, 24),
    }
    firsts = (LENGTHS + 1).cumsum(0) - LENGTHS - 1
    assert torch.equal(out["embedded"][firsts], model.cls_token[0].expand(6, -1))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([7, 4]), "48 tokens are not those of 2 images with 11 tokens"),
        (torch.tensor([48, 0]), "needs a length of at least 1"),
        (torch.tensor([], dtype=torch.int64), "48 tokens are not those of 0 images"),
        (torch.tensor([40.0, 8.0]), "lengths are torch.float32 .* give int64"),
        (LENGTHS[None], r"lengths are torch.int64 \[1, 6\] on cpu"),
    ],
)
def test_lengths_of_other_tokens_are_refused(lengths, message):
    with pytest.raises(ConfigError, match=message):
        make_model()(*make_images(LENGTHS), lengths)


# The call of the GPU.


def varlen_on_cpu(*arguments: Any, **options: Any) -> Tensor:
    """What `varlen_attn` computes, for the arguments of its signature."""
    bound = inspect.signature(varlen_attn).bind(*arguments, **options)
    given = bound.arguments
    q, k, v = (given.pop(name) for name in ("query", "key", "value"))
    starts, others = given.pop("cu_seq_q"), given.pop("cu_seq_k")
    assert starts.dtype == others.dtype == torch.int32
    assert given == {name: int(starts.diff().max()) for name in ("max_q", "max_k")}
    mixed = [
        F.scaled_dot_product_attention(*(x[a:b].transpose(0, 1)[None] for x in (q, k, v)))[0]
        for a, b in torch.stack([starts[:-1], starts[1:]], dim=1).tolist()
    ]
    return torch.cat([one.transpose(0, 1) for one in mixed])


@pytest.fixture
def like_on_cuda(monkeypatch) -> Callable[[Any], None]:
    def pretend(varlen: Any) -> None:
        monkeypatch.setattr(attention, "_is_for_flash", lambda q: True)
        monkeypatch.setattr(attention, "find_varlen_attn", lambda: varlen)

    return pretend


def test_one_call_for_the_sequence_equals_one_for_each_length(like_on_cuda):
    model = make_model(pool="area")
    images = make_images(LENGTHS)
    expected, _ = model(*images, LENGTHS)
    calls = []
    like_on_cuda(lambda *given: (calls.append(given), varlen_on_cpu(*given))[1])
    logits, _ = model(*images, LENGTHS)
    assert len(calls) == model.config.depth
    assert torch.allclose(logits, expected, rtol=0, atol=1e-10)
    for one, other in zip(gradients(model, logits), gradients(model, expected), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_a_torch_without_attention_over_sequences_takes_the_images_of_each_length(like_on_cuda):
    model = make_model()
    images = make_images(LENGTHS)
    expected, _ = model(*images, LENGTHS)
    like_on_cuda(None)
    assert torch.equal(model(*images, LENGTHS)[0], expected)


def test_torchs_attention_over_sequences_takes_the_call_and_its_gradient(like_on_cuda):
    assert attention.find_varlen_attn() is varlen_attn
    packing = Packing(LENGTHS, torch.device("cpu"))
    like_on_cuda(varlen_attn)
    with FakeTensorMode(allow_non_fake_inputs=True):
        q, k, v = (torch.empty(54, 3, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
        mixed = attend(q, k, v, packing)
        mixed.sum().backward()
    assert mixed.shape == (54, 3, 8)
    assert q.grad is not None
    assert q.grad.shape == q.shape


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "takes"),
    [
        ((5, 3, 64), torch.bfloat16, (8, 0), True),
        ((5, 3, 64), torch.float16, (9, 0), True),
        ((5, 3, 64), torch.float32, (8, 0), False),
        ((5, 3, 64), torch.bfloat16, (7, 5), False),
        ((5, 3, 12), torch.bfloat16, (8, 0), False),
        ((5, 3, 264), torch.bfloat16, (8, 0), False),
    ],
)
def test_the_flash_kernels_take_half_precision_on_ampere(
    monkeypatch, shape, dtype, capability, takes
):
    class OnCuda(Tensor):
        is_cuda = True  # type: ignore[assignment]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    q = torch.empty(shape, dtype=dtype)
    assert not attention._is_for_flash(q)
    assert attention._is_for_flash(q.as_subclass(OnCuda)) is takes
