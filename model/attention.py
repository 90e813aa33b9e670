"""Attention within each image, for images of one or of several lengths. No length is padded.

Letters: B images; T tokens of all images; R prefix tokens (CLS and registers) of each; L rows of
one image, its prefix tokens and its tokens; S = B * R + T rows of all images; H heads; E width of a
head; Q queries.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

from quadpipe.errors import ConfigError
from quadpipe.loader.device import to_device

_LARGEST_HEAD = 256  # of the flash kernels


class Packing:
    """Where the rows of images of different lengths are in one sequence of S rows.

    The images are in ascending order of length, so that those of one length are a view
    `[images, L]` of the sequence. Made once per batch; nothing waits for the device.

    images: B. groups: (images, L) of the images of each length, in order. longest: the largest L.
    starts: int32 `[B + 1]`, the first row of each image in order, and S. rows: int64 `[S]`, where
    the rows of the batch, with the images in the order given, are in the sequence. image: int64
    `[S]`, the number in the batch of each row's image.
    """

    def __init__(self, lengths: Tensor, device: torch.device, prefix: int = 1) -> None:
        """lengths: int64 `[B]` on the CPU, tokens per image, all above 0. prefix: R."""
        lengths = lengths + prefix
        order = lengths.argsort(stable=True)
        ordered = lengths[order]
        counts: Counter[int] = Counter(ordered.tolist())
        self.groups = [(images, length) for length, images in counts.items()]
        self.longest = self.groups[-1][1]
        starts = F.pad(ordered.cumsum(0), (1, 0))
        first = torch.empty_like(order).index_copy_(0, order, starts[:-1])  # of each given image
        begin = lengths.cumsum(0) - lengths
        rows = torch.arange(int(starts[-1])) + (first - begin).repeat_interleave(lengths)
        is_token = torch.ones(len(rows), dtype=torch.bool)
        numbers = torch.arange(prefix)
        is_token[begin[:, None] + numbers] = False
        self.images = len(lengths)
        self.rows, self.image, self.starts, *own = to_device(
            device,
            rows,
            order.repeat_interleave(ordered),
            starts.int(),
            order,
            lengths - prefix,
            (first[:, None] + numbers).flatten(),
            rows[is_token],
        )
        self._order, self._lengths, self._prefix, self._tokens = own

    def join(self, prefix: Tensor, tokens: Tensor) -> Tensor:
        """The sequence `[S, ..]` of tokens `[T, ..]`, each image's after the prefix `[R, ..]`."""
        repeated = prefix.expand(self.images, *prefix.shape).flatten(0, 1)
        sequence = tokens.new_empty(len(self.rows), *tokens.shape[1:])
        sequence.index_copy_(0, self._tokens, tokens)
        return sequence.index_copy_(0, self._prefix, repeated)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens `[B, R, ..]` and tokens `[T, ..]` of a sequence, in the batch's order."""
        shared = len(self._prefix) // self.images
        prefix = x.index_select(0, self._prefix).view(self.images, shared, *x.shape[1:])
        return prefix, x.index_select(0, self._tokens)

    def by_length(self, x: Tensor) -> list[Tensor]:
        """Views `[images, L, ..]` of a sequence `[S, ..]`, one for each length, ascending."""
        sizes = [images * length for images, length in self.groups]
        parts = zip(x.split_with_sizes(sizes), self.groups, strict=True)
        return [part.view(*group, *x.shape[1:]) for part, group in parts]

    def restore(self, values: Tensor) -> Tensor:
        """`[B, ..]` in the order of the batch, of values in the order of `by_length`."""
        return values.new_empty(values.shape).index_copy_(0, self._order, values)

    def spread(self, values: Tensor) -> Tensor:
        """`[T, ..]`, for each token the value of its image; values: `[B, ..]`."""
        return values[self.image[self._tokens]]

    def sum(self, values: Tensor) -> Tensor:
        """Sums `[B, ..]` over the tokens of each image; values: `[T, ..]`."""
        return torch.segment_reduce(values, "sum", lengths=self._lengths, unsafe=True)


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None = None) -> Tensor:
    """Scaled dot product attention within each image; q, k, v and the result: `[B, L, H, E]`.

    With a packing they are `[S, H, E]`: on CUDA one call of `varlen_attn` where it takes them,
    elsewhere a call of `scaled_dot_product_attention` for the images of each length.
    """
    if packing is None:
        return _attend_equal(q, k, v)
    if _is_for_flash(q) and (varlen_attn := find_varlen_attn()):
        starts, longest = packing.starts, packing.longest
        mixed: Tensor = varlen_attn(q, k, v, starts, starts, longest, longest)
        return mixed
    groups = zip(*(packing.by_length(x) for x in (q, k, v)), strict=True)
    return torch.cat([_attend_equal(*parts).flatten(0, 1) for parts in groups])


def attend_with(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None = None) -> Tensor:
    """Attention of the same queries `[Q, H, E]` to all rows of each image: `[B, Q, H, E]`.

    k, v: `[B, L, H, E]`, or `[S, H, E]` with a packing.
    """
    if packing is None:
        return _attend_equal(q.expand(len(k), *q.shape), k, v)
    groups = zip(packing.by_length(k), packing.by_length(v), strict=True)
    mixed = [_attend_equal(q.expand(len(keys), *q.shape), keys, values) for keys, values in groups]
    return packing.restore(torch.cat(mixed))


@cache
def find_varlen_attn() -> Callable[..., Any] | None:
    """torch's attention over a sequence with lengths, where this version has it.

    Its import takes seconds, so it waits for a GPU.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def check_lengths(lengths: Tensor, tokens: Tensor) -> None:
    """Raise ConfigError unless the lengths of images are those of their tokens `[T, ..]`."""
    if lengths.device.type != "cpu" or lengths.dtype != torch.int64 or lengths.dim() != 1:
        raise ConfigError(
            f"lengths are {lengths.dtype} {list(lengths.shape)} on {lengths.device}; give int64 "
            f"[images] on the CPU"
        )
    if not len(lengths) or lengths.min() < 1 or int(lengths.sum()) != len(tokens):
        raise ConfigError(
            f"{len(tokens)} tokens are not those of {len(lengths)} images with {lengths.sum()} "
            f"tokens; each image needs a length of at least 1, and their sum is the tokens' number"
        )


def _attend_equal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _is_for_flash(q: Tensor) -> bool:
    """Whether the flash kernels take it: half precision, heads of 8 to 256, Ampere or later."""
    return (
        q.is_cuda
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= _LARGEST_HEAD
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )
