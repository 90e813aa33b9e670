"""timm's plain Vision Transformer, step by step, from its state dict."""

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def logits(
    state: dict[str, Tensor], images: Tensor, heads: int, global_pool: str = "token"
) -> Tensor:
    """images: float `[B, 3, H, W]`, normalized. Returns `[B, C]`.

    The state shows whether the model has `no_embed_class` (no position for CLS) and `fc_norm` (the
    last norm comes after pooling), which timm gives to models of global_pool "avg".
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    side = kernel.shape[-1]
    x = torch.nn.functional.conv2d(images, kernel, bias, stride=side)
    x = x.flatten(2).transpose(1, 2)
    cls, positions = state["cls_token"].expand(len(x), -1, -1), state["pos_embed"]
    if positions.shape[1] == x.shape[1]:
        x = torch.cat([cls, x + positions], dim=1)
    else:
        x = torch.cat([cls, x], dim=1) + positions
    depth = sum(name.endswith("norm1.weight") for name in state)
    for i in range(depth):
        block = f"blocks.{i}"
        h = layer_norm(x, state[f"{block}.norm1.weight"], state[f"{block}.norm1.bias"])
        q, k, v = linear(h, f"{block}.attn.qkv").chunk(3, dim=-1)
        d = q.shape[-1] // heads
        parts = []
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / d**0.5
            parts.append(scores.softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(parts, dim=-1), f"{block}.attn.proj")
        h = layer_norm(x, state[f"{block}.norm2.weight"], state[f"{block}.norm2.bias"])
        x = x + linear(gelu(linear(h, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    if "norm.weight" in state:
        x = layer_norm(x, state["norm.weight"], state["norm.bias"])
    pooled = x[:, 1:].mean(dim=1) if global_pool == "avg" else x[:, 0]
    if "fc_norm.weight" in state:
        pooled = layer_norm(pooled, state["fc_norm.weight"], state["fc_norm.bias"])
    return linear(pooled, "head")


def random_state(width: int, depth: int, side: int, cells: int, classes: int) -> dict[str, Tensor]:
    """Weights with timm's names and shapes."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw) * 0.1

    state = {
        "cls_token": normal(1, 1, width),
        "pos_embed": normal(1, 1 + cells, width),
        "patch_embed.proj.weight": normal(width, 3, side, side),
        "patch_embed.proj.bias": normal(width),
        "norm.weight": 1 + normal(width),
        "norm.bias": normal(width),
        "head.weight": normal(classes, width),
        "head.bias": normal(classes),
    }
    for i in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            state[f"blocks.{i}.{name}.weight"] = normal(out, into)
            state[f"blocks.{i}.{name}.bias"] = normal(out)
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"] = 1 + normal(width)
            state[f"blocks.{i}.{name}.bias"] = normal(width)
    return state
