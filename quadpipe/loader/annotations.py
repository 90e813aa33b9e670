"""Kept boxes and masks of a batch, and their flips.

Letters: b images; n boxes of an image; H, W height and width of the images.
"""

import io
import json
from collections.abc import Sequence
from math import nan
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quadpipe.errors import ShardError

Contents = Sequence[bytes | None]
"""Of one member for each image, as in `Batch.members`; None where an image has none."""


def read_boxes(contents: Contents) -> list[Tensor]:
    """float32 `[n, 4]` of each image: left, top, right, bottom in pixels, NaN outside the crop.

    `[0, 4]` where there is none. ShardError on other contents.
    """
    boxes = []
    for content in contents:
        try:
            rows = _rows_of(json.loads(content or b"[]"))
            boxes.append(torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 4))
        except (ValueError, OverflowError, RuntimeError, RecursionError) as error:
            raise ShardError(f"not a list of boxes, but {bytes(content or b'')[:40]!r}") from error
    return boxes


def _rows_of(document: Any) -> list[list[float]]:
    """The four numbers of each box; ValueError on other contents."""
    if not isinstance(document, list):
        raise ValueError("not a list")
    rows = [[nan] * 4 if row is None else row for row in document]
    for row in rows:
        if not isinstance(row, list) or [type(v) in (int, float) for v in row] != [True] * 4:
            raise ValueError("a box is not four numbers")
    return rows


def read_masks(contents: Contents, size: tuple[int, int]) -> list[Tensor | None]:
    """uint8, or of 16 bits int32, `[H, W]` of each image, or with colors `[H, W, 3]`.

    size: (H, W). None where there is none. ShardError on other contents.
    """
    return [None if content is None else _read_mask(content, size) for content in contents]


def _read_mask(content: bytes, size: tuple[int, int]) -> Tensor:
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if image.size != size[::-1]:
            raise ShardError(f"a mask is {image.width} x {image.height}, not {size[1]} x {size[0]}")
        values = np.array(image)
    except (ShardError, MemoryError):
        raise
    except Exception as error:  # PIL raises many kinds on damaged bytes, which these are
        raise ShardError(f"a mask is not a readable PNG: {error}") from error
    return torch.from_numpy(values.astype(np.int32 if values.itemsize > 1 else np.uint8))


def flip_boxes(boxes: Sequence[Tensor], chosen: Tensor, width: int) -> list[Tensor]:
    """Mirror the boxes of the chosen images, bool `[b]`, of W = `width` pixels."""
    return [
        torch.stack([width - right, top, width - left, bottom], dim=-1) if mirrored else given
        for given, mirrored in zip(boxes, chosen.tolist(), strict=True)
        for left, top, right, bottom in [given.unbind(-1)]
    ]


def flip_masks(masks: Sequence[Tensor | None], chosen: Tensor) -> list[Tensor | None]:
    """Mirror the masks of the chosen images, bool `[b]`."""
    return [
        mask.flip(1) if mirrored and mask is not None else mask
        for mask, mirrored in zip(masks, chosen.tolist(), strict=True)
    ]
