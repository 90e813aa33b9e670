"""A batch, and the memory that batches share.

Letters: B batch of all ranks; b of one rank; N tokens per image; T tokens of b images; P patch
size.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from quadpipe.errors import ConfigError, ShardError

_MOST_KEPT = 64  # batches whose memory is reused


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One rank's slice of a global batch.

    tokens: uint8 `[b, N, P, P, 3]`. boxes: int16 `[b, N, 3]`: x, y, scale. label: int64 `[b]`, -1
    without labels. weight: float32 `[b]`: 1, or 0 for a skipped sample and for the placeholder of
    an empty slice. keys: of the samples. total: samples of the global batch, over all ranks. first:
    number of them before this slice. skipped: number of damaged samples of this slice; their rows
    are a valid, blank input (tokens 0, boxes of a valid tree, a valid label, or -1 without labels,
    key empty), which must not count in loss and accuracy. The mean over a global batch is the sum
    of weight times loss over all ranks, divided by the sum of the weights over all ranks, which is
    `total` where nothing was skipped.

    lengths: None where every image has N tokens. Else tokens per image, int64 `[b]`, always on the
    CPU, and with T their sum, image after image: tokens uint8 `[T, P, P, 3]`, boxes int16 `[T, 3]`.

    members: the contents of the members that the loader was asked for, by name: one for each image,
    None where a sample has none or was skipped.

    dataset: of a loader of several datasets, the number of each sample's among them, from 0, int64
    `[b]`; None of a single one. Keys are unique within a dataset.
    """

    tokens: Tensor
    boxes: Tensor
    label: Tensor
    weight: Tensor
    keys: list[str]
    total: int
    first: int
    skipped: int
    lengths: Tensor | None = None
    dataset: Tensor | None = None
    members: dict[str, list[bytes | None]] = field(default_factory=dict)

    def text(self, name: str) -> list[str | None]:
        """A member of each sample as text; ShardError names the key of one that is not UTF-8.

        ConfigError when the loader was not asked for the member.
        """
        if name not in self.members:
            raise ConfigError(f"the batch has no member {name!r}; give Loader members=({name!r},)")
        texts: list[str | None] = []
        for key, content in zip(self.keys, self.members[name], strict=True):
            try:
                texts.append(None if content is None else content.decode())
            except UnicodeDecodeError as error:
                raise ShardError(f"{key}.{name} is not text in UTF-8: {error}") from error
        return texts


class BatchMemory:
    """Memory for the tokens of batches, reused when no tensor shares it.

    Fresh memory costs a page fault every 4 kB, as much as copying the tokens. Pinned memory is
    managed by torch, which knows which copies to a GPU are running.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._free = deque[np.ndarray](maxlen=_MOST_KEPT)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 of this shape, uninitialized."""
        size = math.prod(shape)
        try:
            return self._take(shape, size)
        except (MemoryError, RuntimeError) as error:
            raise ConfigError(
                f"a batch of {shape[0]:,} tokens is {size:,} bytes, more than the available "
                f"memory; use a smaller batch_size"
            ) from error

    def _take(self, shape: tuple[int, ...], size: int) -> Tensor:
        if self._pinned:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        memory = self._free_block(size)
        if memory is None:
            memory = np.empty(size, np.uint8)
        # torch keeps this array while a tensor or an array shares its memory.
        lent = memory[:size]
        finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _free_block(self, size: int) -> np.ndarray | None:
        """A block of at least `size` bytes; smaller ones are dropped. Threads may call this."""
        while True:
            try:
                block = self._free.popleft()
            except IndexError:
                return None
            if len(block) >= size:
                return block
