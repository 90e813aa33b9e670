"""Image -> mosaic, for Python users and for the job.

Letters: B batch; H, W image height and width in pixels.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from typing import Any, overload

import numpy as np
from PIL import Image

from quadpipe.errors import ConfigError
from quadpipe.fields import check_fields, check_known, option
from quadpipe.geometry import MAX_IMAGE_SIDE, Geometry
from quadpipe.images.color import to_rgb
from quadpipe.images.crop import RESIZES, Box, center_box, decode_and_resample, resample
from quadpipe.images.decode import BYTES_PER_PIXEL, MAX_PIXELS, EncodedImage
from quadpipe.mosaic import RESAMPLERS, Mosaic, cut
from quadpipe.quadtree import grow, join_maps, subtract_thresholds, weight_scales
from quadpipe.scorers import SCORERS
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.choice import ScorerChoice
from quadpipe.seeds import LARGEST_SEED

TOKENIZER_VERSION = 1
"""Raised only when the same configuration gives other bytes than before."""

_LARGEST_MAX_PIXELS = 2**31 - 1  # PIL counts pixels in 32-bit integers
# Fields that were added later: the same options give the same manifest as before.
_LEFT_OUT_BY_DEFAULT = ("scale_weight", "scorer_blur")
_LARGEST_THRESHOLD = 1e30  # importances minus thresholds are float32


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ScorerChoice):
    """The options that decide an image's mosaic; raises ConfigError if they are invalid.

    image_size may be given as a number for a square; it is kept as (H, W). An unknown scorer is
    refused by `make_scorer`, not here, so that datasets of other scorers can be read.
    """

    image_size: tuple[int, int] = option((256, 256), "Image size in pixels: 256, or HxW.")
    patch_size: int = option(16, "Side of the smallest patch, and of every token, in pixels.")
    max_patch_size: int = option(64, "Side of the largest patch: patch size times a power of two.")
    tokens: int = option(100, "Tokens per image; every smaller budget is stored with it.")
    scale_weight: float = option(
        1.0,
        "Multiply the importance of patches of patch_size * 2^s pixels by this number to the power "
        "of s. Below 1, fewer splits go to the largest patches.",
        above=0,
    )
    thresholds: tuple[tuple[int, float], ...] | None = option(
        None,
        "Subtract these from the importance of patches, by side in pixels, as 32=5.75,64=4; APT's "
        "choice of patches is then gain 0.",
    )
    resample: str = option(
        "bilinear",
        "Downsample large patches from the four center pixels of each block, or from its mean.",
        choices=RESAMPLERS,
    )
    resize: str = option(
        "crop", "Resize and crop the center, or squash to the image size.", choices=RESIZES
    )
    crop_pct: float = option(
        0.875, "With --resize crop: share of the resized side that is kept.", low=0.1, high=1
    )
    max_pixels: int = option(
        MAX_PIXELS,
        f"Reject image files with more pixels than this. A worker may take {BYTES_PER_PIXEL} bytes "
        f"of memory per pixel.",
        low=1,
        high=_LARGEST_MAX_PIXELS,
    )
    seed: int = option(
        0, "Seed of the order, the views and the random scorer.", low=0, high=LARGEST_SEED
    )

    def __post_init__(self) -> None:
        size: Any = self.image_size
        if isinstance(size, int):
            object.__setattr__(self, "image_size", (size, size))
        check_fields(self)
        if max(self.image_size) > MAX_IMAGE_SIDE:
            raise ConfigError(f"image_size {self.image_size} has a side above {MAX_IMAGE_SIDE:,}")
        if self.scorer in SCORERS:
            SCORERS[self.scorer].check_grid(
                self.image_size, self.patch_size, self.max_patch_size, self.tokens
            )
        self.num_splits  # noqa: B018  raises if the number of tokens is not legal
        if self.scale_weight != 1 and not self.geometry.max_scale:
            raise ConfigError(
                "scale_weight is for patches that can be split, and max_patch_size equals "
                "patch_size; omit it"
            )
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", self._checked_thresholds(self.thresholds))

    @property
    def num_splits(self) -> int:
        """K, the number of splits that are stored per image."""
        return self.geometry.num_splits(self.tokens)

    def check_limits(self) -> None:
        """Raise ConfigError when images of the image size are above `max_pixels`.

        Only for a new job: existing datasets with such a configuration can be read.
        """
        height, width = self.image_size
        if height * width > self.max_pixels:
            raise ConfigError(
                f"image_size {height}x{width} has {height * width:,} pixels, and image files of "
                f"more than {self.max_pixels:,} are rejected; give max_pixels {height * width} or "
                f"more"
            )

    def _checked_thresholds(
        self, thresholds: tuple[tuple[int, float], ...]
    ) -> tuple[tuple[int, float], ...]:
        """The thresholds, sorted by side; ConfigError unless each splittable scale has one."""
        geometry = self.geometry
        sides = [geometry.patch_size << scale for scale in range(1, geometry.max_scale + 1)]
        if sorted(side for side, _ in thresholds) != sides or not sides:
            wanted = ",".join(f"{side}=T" for side in sides) or "none: there is nothing to split"
            raise ConfigError(
                f"thresholds are given for patches of "
                f"{', '.join(str(side) for side, _ in thresholds) or 'no size'}; give one for each "
                f"size that can be split: {wanted}"
            )
        if not all(abs(value) <= _LARGEST_THRESHOLD for _, value in thresholds):
            raise ConfigError(f"thresholds must be numbers of at most {_LARGEST_THRESHOLD:g}")
        return tuple(sorted(thresholds))

    @cached_property
    def geometry(self) -> Geometry:
        height, width = self.image_size
        return Geometry(
            height=height,
            width=width,
            patch_size=self.patch_size,
            max_patch_size=self.max_patch_size,
        )

    def view_box(self, width: int, height: int) -> Box:
        """The part of a picture of this size that view 0 shows."""
        if self.resize == "squash":
            return Box(0, 0, width, height)
        return center_box(width, height, self.image_size, self.crop_pct)

    def as_json(self) -> dict[str, Any]:
        """As JSON can hold it; `TokenizerConfig(**config.as_json())` is equal."""
        document = asdict(self) | {"image_size": list(self.image_size)}
        for item in fields(self):
            if item.name in _LEFT_OUT_BY_DEFAULT and document[item.name] == item.default:
                del document[item.name]
        return document


class Tokenizer:
    """Turns images into mosaics.

        tokenizer = quadpipe.Tokenizer(tokens=196)
        mosaic = tokenizer(PIL.Image.open("cat.jpg"))
        leaves = mosaic.leaves(64)

    Options are those of TokenizerConfig, and `scorer_weights`, the file of a scorer's network;
    `scorer` may also be a Scorer of your own. Raises ConfigError if they are invalid. `hints`
    are for scorers that need more than pixels: the image's class (grad-cam) or importance map
    (precomputed); for several images a list. A scorer or backbone `module:callable` is called if
    it is given as an option. In a `config`, which may come from a file, it is refused; give the
    scorer itself then.
    """

    def __init__(
        self,
        config: TokenizerConfig | None = None,
        *,
        scorer: Scorer | str | None = None,
        scorer_weights: str | PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(scorer, str):
            options["scorer"] = scorer
        if config is not None and options:
            raise ConfigError("give a TokenizerConfig or options, not both")
        check_known(options, TokenizerConfig)
        self.config = config or TokenizerConfig(**options)
        self.geometry = self.config.geometry
        if not isinstance(scorer, Scorer):
            # A `config` may come from a file: user code is run only where it is an option.
            trusted = config is None or not config.names_user_code
            scorer = self.config.make_scorer(
                self.config.find_code(scorer_weights) if trusted else None
            )
        self.scorer = scorer

    @overload
    def __call__(self, images: Image.Image, hints: Any = None) -> Mosaic: ...

    @overload
    def __call__(
        self, images: Sequence[Image.Image | np.ndarray], hints: Any = None
    ) -> list[Mosaic]: ...

    @overload
    def __call__(self, images: np.ndarray, hints: Any = None) -> Mosaic | list[Mosaic]: ...

    def __call__(
        self,
        images: Image.Image | np.ndarray | Sequence[Image.Image | np.ndarray],
        hints: Any = None,
    ) -> Mosaic | list[Mosaic]:
        """The mosaic of one image, or the mosaics of several.

        An image is a PIL image of any size, made upright and RGB, or uint8 `[h, w, 3]`; a batch
        is a sequence of images or uint8 `[B, h, w, 3]`. Images are resized and cropped as in the
        job; with `crop_pct` 1, an image that already has the image size is not changed. Raises
        ConfigError on arrays that are not images, RejectError on PIL images without RGB colors.
        """
        # An array that is not a batch is treated as an image, so errors name its whole shape.
        if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim != 4):
            return self.tokenize(self.prepare(images)[None], None if hints is None else [hints])[0]
        if not len(images):
            return []
        return self.tokenize(np.stack([self.prepare(image) for image in images]), hints)

    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """The part of an image that its mosaic shows, uint8 `[H, W, 3]`; raises as `__call__`."""
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                is_gray = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
                raise ConfigError(
                    f"an image must be uint8 [h, w, 3], RGB; this one is {image.dtype} "
                    f"{list(image.shape)}"
                    + ("; give a gray image as PIL.Image.fromarray(image)" if is_gray else "")
                )
            picture = Image.fromarray(image)
        else:
            picture = to_rgb(image)
        box = self.config.view_box(picture.width, picture.height)
        return resample(picture, box, self.config.image_size)

    def prepare_file(self, data: bytes) -> np.ndarray:
        """As `prepare`, from the bytes of an image file, decoded as in the job.

        Raises RejectError when the bytes are not a usable image.
        """
        image = EncodedImage(data, self.config.max_pixels)
        box = self.config.view_box(image.width, image.height)
        return decode_and_resample(image, box, self.config.image_size)

    def tokenize(self, images: np.ndarray, hints: Sequence[Any] | None = None) -> list[Mosaic]:
        """The mosaics of prepared images, uint8 `[B, H, W, 3]` of exactly the image size.

        Raises ConfigError on other arrays, and when the scorer's hints are missing.
        """
        expected = (*self.config.image_size, 3)
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ConfigError(
                f"prepared images must be uint8 {['B', *expected]}; these are {images.dtype} "
                f"{list(images.shape)}"
            )
        return self.cut(images, self.scorer.score(images, hints))

    def cut(self, images: np.ndarray, maps: Sequence[np.ndarray]) -> list[Mosaic]:
        """The mosaics of prepared images, given the scorer's maps, one for each scale."""
        importance = join_maps(maps, self.geometry, len(images))
        if self.config.scale_weight != 1:
            importance = weight_scales(importance, self.geometry, self.config.scale_weight)
        if self.config.thresholds is not None:
            importance = subtract_thresholds(importance, self.geometry, self.config.thresholds)
        trees = grow(importance, self.geometry, self.config.tokens)
        return cut(images, trees, self.geometry, self.config.resample)
