"""Augmentation of batches of tokens, on their device, from a generator of random numbers.

Augmentations that need the pixels between tokens (crops, rotations, blur) are not possible here:
tokenize with several `--views` instead.

Letters: b batch; N tokens; P patch size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from quadpipe.fields import check_fields, option

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
        total: int | None = None,
        first: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Augmented (tokens, boxes) of `[b, N, P, P, 3]` uint8 and `[b, N, 3]` integers.

        columns: width of the image in units of P. generator: of the CPU, so that the draws are
        the same on every device; numbers are drawn for `total` images, and `tokens` are those
        from `first` on, so a batch is augmented in the same way in any number of slices. Tokens
        become float32 in 0..255 when colors change.
        """
        total = len(tokens) if total is None else total
        mine = slice(first, first + len(tokens))
        if self.flip:
            chosen = torch.rand(total, generator=generator)[mine] < self.flip
            tokens, boxes = flip(tokens, boxes, chosen.to(tokens.device), columns)
        if self.color_jitter:
            low, high = 1 - self.color_jitter, 1 + self.color_jitter
            factors = torch.rand(3, total, generator=generator)[:, mine] * (high - low) + low
            tokens = jitter_colors(tokens, boxes, *factors.to(tokens.device))
        if self.token_dropout:
            keep = max(1, round(tokens.shape[1] * (1 - self.token_dropout)))
            draws = torch.rand(total, tokens.shape[1], generator=generator)[mine]
            kept = draws.argsort(dim=1)[:, :keep].sort(dim=1).values.to(tokens.device)
            rows = torch.arange(len(tokens), device=tokens.device)[:, None]
            tokens, boxes = tokens[rows, kept], boxes[rows, kept]
        return tokens, boxes


def flip(tokens: Tensor, boxes: Tensor, chosen: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Mirror the images where the bool `[b]` is true, exactly: pixels and left edges."""
    mirrored = boxes.clone()
    mirrored[..., 0] = columns - boxes[..., 0] - (1 << boxes[..., 2].int()).to(boxes.dtype)
    return (
        torch.where(chosen[:, None, None, None, None], tokens.flip(3), tokens),
        torch.where(chosen[:, None, None], mirrored, boxes),
    )


def jitter_colors(
    tokens: Tensor, boxes: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor
) -> Tensor:
    """Scale brightness, then contrast, then saturation by a factor for each image `[b]`.

    As torchvision's ColorJitter in that order, clamped to 0..255 after each, float32. Contrast
    is relative to the mean luma of the image, in which tokens are weighted by their area.
    """

    def per_image(factor: Tensor) -> Tensor:
        return factor.view(-1, 1, 1, 1, 1)

    luma = tokens.new_tensor(_LUMA, dtype=torch.float32)
    pixels = (tokens.float() * per_image(brightness)).clamp(0, 255)
    areas = torch.exp2(2 * boxes[..., 2].float())
    token_means = (pixels @ luma).mean(dim=(2, 3))  # [b, N]
    mean = (token_means * areas).sum(dim=1) / areas.sum(dim=1)
    pixels = _blend(pixels, per_image(mean), per_image(contrast))
    return _blend(pixels, (pixels @ luma)[..., None], per_image(saturation))


def _blend(pixels: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor + towards * (1 - factor)).clamp(0, 255)
