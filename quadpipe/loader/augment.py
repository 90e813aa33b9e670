"""Augmentation of batches of tokens, on their device, from a generator of random numbers.

Augmentations that need the pixels between tokens (crops, rotations, blur) are not possible here:
tokenize with several `--views` instead.

Letters: b batch; N tokens per image; P patch size; T tokens of a batch whose images have different
lengths. `[b | T, ..]` is `[b, N, ..]`, or with lengths `[T, ..]`, image after image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quadpipe.fields import check_fields, option
from quadpipe.loader.device import to_device

# ITU-R BT.601 luma, as PIL and torchvision use it for saturation and contrast.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of training batches; by default only horizontal flips.

    Raises ConfigError on values outside their bounds.
    """

    flip: float = option(0.5, "Probability of a horizontal flip.", low=0, high=1)
    color_jitter: float = option(
        0.0,
        "Largest relative change of brightness, contrast and saturation.",
        low=0,
        high=1,
        formerly="colour_jitter",
    )
    token_dropout: float = option(
        0.0, "Share of the tokens of each image that are dropped in training.", low=0, below=1
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self,
        tokens: Tensor,
        boxes: Tensor,
        columns: int,
        generator: torch.Generator,
        *,
        lengths: Tensor | None = None,
        total: int | None = None,
        first: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Augmented (tokens, boxes, lengths) of uint8 `[b | T, P, P, 3]` and integers `[b | T, 3]`.

        lengths: tokens per image, int64 `[b]` on the CPU, or None. columns: width of the image in
        units of P. generator: of the CPU, so that the draws are the same on every device; numbers
        are drawn for `total` images, and `tokens` are those from `first` on, so a batch is
        augmented in the same way in any number of slices. Tokens become float32 in 0..255 when
        colors change.
        """
        images = len(tokens) if lengths is None else len(lengths)
        total = images if total is None else total
        mine = slice(first, first + images)
        drawn = []
        if self.flip:
            drawn.append(_per_token(self._draw_flips(total, generator)[mine], lengths))
        if self.color_jitter:
            low, high = 1 - self.color_jitter, 1 + self.color_jitter
            factors = torch.rand(3, total, generator=generator)[:, mine] * (high - low) + low
            drawn.append(_per_token(factors, lengths))
        after = lengths
        if self.token_dropout and lengths is None:
            keep = self._kept(tokens.shape[1])
            draws = torch.rand(total, tokens.shape[1], generator=generator)[mine]
            drawn.append(draws.argsort(dim=1)[:, :keep].sort(dim=1).values)
        elif self.token_dropout and lengths is not None:
            # One seed per image: an image's draws do not depend on the lengths of the others.
            seeds = torch.randint(2**63 - 1, (total,), generator=generator)[mine]
            after, kept = self._draw_kept(lengths, seeds)
            drawn.append(kept)
        if not drawn:
            return tokens, boxes, lengths
        there = iter(to_device(tokens.device, *drawn))
        if self.flip:
            tokens, boxes = flip(tokens, boxes, next(there), columns)
        if self.color_jitter:
            tokens = jitter_colors(tokens, boxes, *next(there), lengths=lengths)
        if self.token_dropout:
            tokens, boxes = _take(tokens, boxes, next(there))
        return tokens, boxes, after

    def flips(
        self, images: int, generator: torch.Generator, *, total: int | None = None, first: int = 0
    ) -> Tensor:
        """bool `[images]`: the images that the next call with this generator mirrors.

        Its state does not change. For boxes and masks, see `annotations`.
        """
        same = torch.Generator().set_state(generator.get_state())
        chosen = self._draw_flips(images if total is None else total, same)
        return chosen[first : first + images]

    def _draw_flips(self, total: int, generator: torch.Generator) -> Tensor:
        if not self.flip:
            return torch.zeros(total, dtype=torch.bool)
        return torch.rand(total, generator=generator) < self.flip

    def _kept(self, tokens: int) -> int:
        """The tokens that an image keeps."""
        return max(1, round(tokens * (1 - self.token_dropout)))

    def _draw_kept(self, lengths: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """The lengths after token dropout, and the positions of the kept tokens, both int64."""
        kept, begin, generator = [], 0, torch.Generator()
        for length, seed in zip(lengths.tolist(), seeds.tolist(), strict=True):
            drawn = torch.randperm(length, generator=generator.manual_seed(seed))
            kept.append(drawn[: self._kept(length)].sort().values + begin)
            begin += length
        return torch.tensor([len(positions) for positions in kept]), torch.cat(kept)


def flip(tokens: Tensor, boxes: Tensor, chosen: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Mirror the chosen images exactly, pixels and left edges.

    chosen: bool `[b, 1]`, or with lengths `[T]`.
    """
    mirrored = boxes.clone()
    mirrored[..., 0] = columns - boxes[..., 0] - (1 << boxes[..., 2].int()).to(boxes.dtype)
    return (
        torch.where(chosen[..., None, None, None], tokens.flip(-2), tokens),
        torch.where(chosen[..., None], mirrored, boxes),
    )


def jitter_colors(
    tokens: Tensor,
    boxes: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    *,
    lengths: Tensor | None = None,
) -> Tensor:
    """Scale brightness, then contrast, then saturation by the factors of the images.

    The factors are `[b, 1]`, or with lengths `[T]`, equal for the tokens of an image. As
    torchvision's ColorJitter in that order, clamped to 0..255 after each, float32. Contrast is
    relative to the mean luma of the image, in which tokens are weighted by their area.
    """

    def per_pixel(values: Tensor) -> Tensor:
        return values[..., None, None, None]

    (luma,) = to_device(tokens.device, torch.tensor(_LUMA))
    if lengths is not None:
        (lengths,) = to_device(tokens.device, lengths)
    pixels = (tokens.float() * per_pixel(brightness)).clamp(0, 255)
    areas = torch.exp2(2 * boxes[..., 2].float())
    token_means = (pixels @ luma).mean(dim=(-2, -1))  # [b | T]
    mean = _sum_per_image(token_means * areas, lengths) / _sum_per_image(areas, lengths)
    pixels = _blend(pixels, per_pixel(mean), per_pixel(contrast))
    return _blend(pixels, (pixels @ luma)[..., None], per_pixel(saturation))


def _take(tokens: Tensor, boxes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens at the positions `[b, kept]` of each image, or `[kept]` of all."""
    if kept.dim() == 1:
        return tokens[kept], boxes[kept]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    return tokens[rows, kept], boxes[rows, kept]


def _blend(pixels: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor + towards * (1 - factor)).clamp(0, 255)


def _per_token(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Values of images `[.., b]` as their tokens take them: `[.., b, 1]` or `[.., T]`."""
    return values[..., None] if lengths is None else values.repeat_interleave(lengths, dim=-1)


def _sum_per_image(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Sums `[b, 1]` or `[T]` over the tokens of each image, of values `[b | T]`."""
    if lengths is None:
        return values.sum(dim=1, keepdim=True)
    sums = torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)
    return sums.repeat_interleave(lengths, output_size=len(values))
