"""Image -> mosaic, for Python users and for the job alike.

Letters: B batch; H, W image height and width in pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from PIL import Image

from quadpipe.errors import ConfigError
from quadpipe.fields import check_types
from quadpipe.geometry import Geometry
from quadpipe.images.crop import RESIZES, Box, centre_box, decode_and_resample, resample
from quadpipe.images.decode import EncodedImage, to_rgb
from quadpipe.mosaic import RESAMPLERS, Mosaic, cut
from quadpipe.quadtree import grow, join_maps
from quadpipe.scorers import SCORERS, make_scorer
from quadpipe.scorers.base import Scorer

TOKENIZER_VERSION = 1
"""Raised only when the same configuration gives other bytes than before."""

MAX_IMAGE_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Everything that decides an image's mosaic; raises ConfigError when it cannot work.

    image_size may be given as a number for a square; it is kept as (H, W). Whether the scorer is
    there is asked by `make_scorer`: datasets of other scorers can be read.
    """

    image_size: tuple[int, int] = field(
        default=(256, 256), metadata={"help": "Size of the images in pixels: 256, or HxW."}
    )
    patch_size: int = field(
        default=16, metadata={"help": "Side in pixels of the smallest patch and of every token."}
    )
    max_patch_size: int = field(
        default=64,
        metadata={"help": "Side of the largest patch: patch size times a power of two."},
    )
    tokens: int = field(
        default=100,
        metadata={"help": "Tokens an image; every smaller budget can be read from the result."},
    )
    scorer: str = field(
        default="pixel-blur",
        metadata={"help": "What says which patches to split.", "choices": tuple(SCORERS)},
    )
    resample: str = field(
        default="bilinear",
        metadata={
            "help": "How large patches shrink: four centre pixels of each block, or all.",
            "choices": RESAMPLERS,
        },
    )
    resize: str = field(
        default="crop",
        metadata={
            "help": "Keep the aspect and crop the centre, or squash to the size.",
            "choices": RESIZES,
        },
    )
    crop_pct: float = field(
        default=0.875,
        metadata={"help": "With resize crop: share of the resized side that is kept."},
    )
    seed: int = field(
        default=0, metadata={"help": "Seed of whatever is drawn: order, views, random scorer."}
    )

    def __post_init__(self) -> None:
        size: Any = self.image_size
        if isinstance(size, int):
            object.__setattr__(self, "image_size", (size, size))
        check_types(self)
        if max(self.image_size) > MAX_IMAGE_SIDE:
            raise ConfigError(f"image_size {self.image_size} has a side above {MAX_IMAGE_SIDE:,}")
        for name, allowed in (("resample", RESAMPLERS), ("resize", RESIZES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )
        if not 0.1 <= self.crop_pct <= 1:
            raise ConfigError(f"crop_pct {self.crop_pct:g} is not from 0.1 to 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed {self.seed} is not from 0 to 2^63 - 1")
        self.geometry.splits(self.tokens)

    @cached_property
    def geometry(self) -> Geometry:
        height, width = self.image_size
        return Geometry(
            height=height,
            width=width,
            patch_size=self.patch_size,
            max_patch_size=self.max_patch_size,
        )

    def make_scorer(self) -> Scorer:
        """ConfigError when there is no such scorer, or it does not fit the geometry."""
        parameters = {"seed": self.seed} if self.scorer == "random" else {}
        return make_scorer(self.scorer, self.geometry, **parameters)

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it; `TokenizerConfig(**config.as_json())` is equal."""
        return asdict(self) | {"image_size": list(self.image_size)}


class Tokenizer:
    """Turns images into mosaics.

        tokenizer = quadpipe.Tokenizer(tokens=196)
        mosaic = tokenizer(PIL.Image.open("cat.jpg"))
        leaves = mosaic.leaves(64)

    Options are those of TokenizerConfig; raises ConfigError when they cannot work.
    """

    def __init__(self, config: TokenizerConfig | None = None, **options: Any) -> None:
        if config is not None and options:
            raise ConfigError("give a TokenizerConfig or options, not both")
        self.config = config or TokenizerConfig(**options)
        self.geometry = self.config.geometry
        self.scorer = self.config.make_scorer()

    @overload
    def __call__(self, images: Image.Image) -> Mosaic: ...

    @overload
    def __call__(self, images: Sequence[Image.Image | np.ndarray]) -> list[Mosaic]: ...

    @overload
    def __call__(self, images: np.ndarray) -> Mosaic | list[Mosaic]: ...

    def __call__(
        self, images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray]
    ) -> Mosaic | list[Mosaic]:
        """The mosaic of one image, or the mosaics of several.

        An image is a PIL image of any size, made upright and RGB, or uint8 `[h, w, 3]`; a batch
        is a sequence of images or uint8 `[B, h, w, 3]`. Images are resized and cropped as in the
        job; one that has the image size already is used as it is when `crop_pct` is 1. Raises
        ConfigError on arrays that are no images, RejectError on PIL images without RGB colours.
        """
        if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
            return self.tokenize(self.prepare(images)[None])[0]
        if not len(images):
            return []
        return self.tokenize(np.stack([self.prepare(image) for image in images]))

    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The part of an image that its mosaic shows, uint8 `[H, W, 3]`; errors as above."""
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ConfigError(
                    f"an image must be uint8 [h, w, 3], RGB; this one is {image.dtype} "
                    f"{list(image.shape)}"
                )
            picture = Image.fromarray(image)
        else:
            picture = to_rgb(image)
        box = self.view_box(picture.width, picture.height)
        return resample(picture, box, self.config.image_size)

    def prepare_file(self, data: bytes) -> np.ndarray:
        """As `prepare`, from the bytes of an image file and as the job does it.

        Raises RejectError when the bytes are no image that can be used.
        """
        image = EncodedImage(data)
        box = self.view_box(image.width, image.height)
        return decode_and_resample(image, box, self.config.image_size)

    def view_box(self, width: int, height: int) -> Box:
        """The part of a picture of this size that view 0 shows."""
        if self.config.resize == "squash":
            return Box(0, 0, width, height)
        return centre_box(width, height, self.config.image_size, self.config.crop_pct)

    def tokenize(self, images: np.ndarray) -> list[Mosaic]:
        """The mosaics of prepared images, uint8 `[B, H, W, 3]` of exactly the image size.

        Raises ConfigError on other arrays.
        """
        expected = (*self.config.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ConfigError(
                f"prepared images must be uint8 {['B', *expected]}; these are {images.dtype} "
                f"{list(images.shape)}"
            )
        maps = self.scorer.score(images)
        importance = join_maps(maps, self.geometry, len(images))
        trees = grow(importance, self.geometry, self.config.tokens)
        return cut(images, trees, self.geometry, self.config.resample)
