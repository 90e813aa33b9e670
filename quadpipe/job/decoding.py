"""The bytes of an input -> its views."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from quadpipe import faults
from quadpipe.images.annotations import parse_annotation
from quadpipe.images.crop import Box, decode_and_resample, random_box
from quadpipe.images.decode import EncodedImage
from quadpipe.job.plan import Plan, ShardId


@dataclass(frozen=True)
class Encoded:
    """An input to decode. index: its number in the plan of its split. annotations: its boxes and
    masks by name, of kinds as in the plan.
    """

    shard: ShardId
    index: int
    path: str
    data: bytes
    annotations: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Views:
    """All views of one input. pixels: uint8 `[V, H, W, 3]`; width, height: of the whole image.

    members: of each view, the annotations of the input as they are in its crop.
    """

    width: int
    height: int
    boxes: list[Box]
    pixels: np.ndarray
    members: list[dict[str, bytes]]


class Decoder:
    """Decodes in this process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, encoded: Encoded) -> Views:
        """RejectError when the bytes are not a usable image, or not usable annotations."""
        return decode_views(self.plan, encoded)

    def close(self) -> None:
        """Release resources after the last input."""


def decode_views(plan: Plan, encoded: Encoded) -> Views:
    """All views of one input; RejectError as `Decoder`."""
    config = plan.config
    image = EncodedImage(encoded.data, config.tokenizer.max_pixels)
    faults.point("decoding", encoded.path)
    boxes = [config.tokenizer.view_box(image.width, image.height)]
    for view in range(1, plan.splits[encoded.shard.split].views):
        boxes.append(
            random_box(
                image.width,
                image.height,
                config.dataset.view_scale,
                config.dataset.view_ratio,
                "job/view",
                config.tokenizer.seed,
                encoded.shard.split,
                encoded.index,
                view,
            )
        )
    size = config.tokenizer.image_size
    pixels = np.stack([decode_and_resample(image, box, size) for box in boxes])
    whole, limit = (image.height, image.width), config.tokenizer.max_pixels
    parsed = {
        name: parse_annotation(plan.members[name], content, whole, limit)
        for name, content in encoded.annotations.items()
    }
    members = [{name: a.cropped(box, size) for name, a in parsed.items()} for box in boxes]
    return Views(image.width, image.height, boxes, pixels, members)
