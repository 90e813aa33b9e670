from typing import Any

import numpy as np
import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.loader.augment import Augmentation, flip, jitter_colors

LUMA = np.array([0.299, 0.587, 0.114])


Leaves = tuple[torch.Tensor, torch.Tensor]
"""Tokens and boxes of a batch."""


@pytest.fixture(scope="module")
def mosaics(square) -> list[quadpipe.Mosaic]:
    return quadpipe.Tokenizer(tokens=100).tokenize(square)


@pytest.fixture
def batch(mosaics) -> Leaves:
    leaves = [mosaic.leaves() for mosaic in mosaics]
    tokens = torch.from_numpy(np.stack([leaf.tokens for leaf in leaves]))
    return tokens, torch.from_numpy(np.stack([leaf.boxes for leaf in leaves]).astype(np.int16))


def by_box(tokens: torch.Tensor, boxes: torch.Tensor) -> dict[tuple, np.ndarray]:
    return {tuple(b): t.numpy() for t, b in zip(tokens, boxes.tolist(), strict=True)}


def test_flipping_tokens_equals_flipping_the_image(batch: Leaves, mosaics):
    chosen = torch.tensor([True, False, True, False])
    tokens, boxes = flip(*batch, chosen[:, None], 16)
    for row, mosaic in enumerate(mosaics):
        expected = (mosaic.flip() if chosen[row] else mosaic).leaves()
        found = by_box(tokens[row], boxes[row])
        assert len(found) == 100
        for box, token in zip(expected.boxes.tolist(), expected.tokens, strict=True):
            np.testing.assert_array_equal(found[tuple(box)], token)


def test_colors_change_as_in_the_whole_image(batch: Leaves):
    tokens, boxes = batch
    factors = np.array([[1.3, 0.7, 1.0, 1.1], [0.6, 1.4, 1.2, 1.0], [1.5, 0.5, 0.0, 1.0]])
    found = jitter_colors(tokens, boxes, *torch.tensor(factors, dtype=torch.float32)[..., None])
    for row in range(4):
        brightness, contrast, saturation = factors[:, row]
        pixels = np.clip(tokens[row].numpy().astype(float) * brightness, 0, 255)
        areas = 4.0 ** boxes[row, :, 2].numpy()
        # The mean of the picture, each token spread over its area.
        mean = np.average((pixels @ LUMA).mean(axis=(1, 2)), weights=areas)
        pixels = np.clip(pixels * contrast + mean * (1 - contrast), 0, 255)
        grey = (pixels @ LUMA)[..., None]
        pixels = np.clip(pixels * saturation + grey * (1 - saturation), 0, 255)
        np.testing.assert_allclose(found[row].numpy(), pixels, atol=1e-2)


def test_color_factors_of_one_change_nothing(batch: Leaves):
    ones = torch.ones(4, 1)
    found = jitter_colors(*batch, ones, ones, ones)
    assert torch.allclose(found, batch[0].float(), atol=1e-3)


def test_token_dropout_removes_tokens_with_their_boxes(batch: Leaves):
    tokens, boxes = batch
    kept, where, _ = Augmentation(flip=0, token_dropout=0.3)(
        tokens, boxes, 16, torch.Generator().manual_seed(0)
    )
    assert kept.shape[1] == where.shape[1] == 70
    for row in range(4):
        before = by_box(tokens[row], boxes[row])
        after = by_box(kept[row], where[row])
        assert len(after) == 70
        assert all(np.array_equal(before[box], token) for box, token in after.items())
    assert not torch.equal(where[0], where[1])


def test_a_batch_without_augmentation_is_unchanged(batch: Leaves):
    tokens, boxes, lengths = Augmentation(flip=0)(*batch, 16, torch.Generator())
    assert tokens is batch[0]
    assert boxes is batch[1]
    assert lengths is None


def test_random_numbers_come_from_the_generator(batch: Leaves):
    augment = Augmentation(color_jitter=0.4, token_dropout=0.1)
    runs = [augment(*batch, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][0], runs[2][0])


# Images of different lengths.

LENGTHS = torch.tensor([100, 40, 64, 19])


@pytest.fixture
def packed(mosaics) -> Leaves:
    leaves = [m.leaves(tokens=n) for m, n in zip(mosaics, LENGTHS.tolist(), strict=True)]
    tokens = torch.from_numpy(np.concatenate([leaf.tokens for leaf in leaves]))
    boxes = np.concatenate([leaf.boxes for leaf in leaves]).astype(np.int16)
    return tokens, torch.from_numpy(boxes)


def augmented(
    augment: Augmentation, images: Leaves, lengths: torch.Tensor | None, **slices: Any
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    tokens, boxes, kept = augment(*images, 16, generator, lengths=lengths, **slices)
    return (tokens, boxes) if kept is None else (tokens, boxes, kept)


def image(images: Leaves, number: int) -> Leaves:
    tokens, boxes = (values.split(LENGTHS.tolist())[number] for values in images)
    return tokens, boxes


@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_images_of_several_lengths_are_augmented_as_those_of_one(packed: Leaves, jitter):
    augment = Augmentation(color_jitter=jitter)
    tokens, boxes, lengths = augmented(augment, packed, LENGTHS)
    assert lengths is LENGTHS
    flipped = 0
    for number in range(4):
        one, where = image(packed, number)
        alone = augmented(augment, (one[None], where[None]), None, total=4, first=number)
        found = image((tokens, boxes), number)
        assert torch.allclose(found[0].float(), alone[0][0].float(), atol=1e-3)
        assert torch.equal(found[1], alone[1][0])
        flipped += not torch.equal(found[1], where)
    assert 0 < flipped < 4


@pytest.mark.parametrize("options", [{}, {"color_jitter": 0.4}, {"token_dropout": 0.3}])
def test_slices_of_images_of_several_lengths_are_augmented_as_the_whole(packed: Leaves, options):
    augment = Augmentation(**options)
    tokens, boxes, lengths = augmented(augment, packed, LENGTHS)
    parts = []
    for first, last in ((0, 1), (1, 3), (3, 4)):
        rows = slice(int(LENGTHS[:first].sum()), int(LENGTHS[:last].sum()))
        own = (packed[0][rows], packed[1][rows])
        parts.append(augmented(augment, own, LENGTHS[first:last], total=4, first=first))
    for whole, of_parts in zip((tokens, boxes, lengths), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(of_parts))


def test_token_dropout_takes_its_share_of_each_image(packed: Leaves):
    augment = Augmentation(flip=0, token_dropout=0.3)
    tokens, boxes, lengths = augmented(augment, packed, LENGTHS)
    assert lengths.tolist() == [70, 28, 45, 13]
    pairs = zip(tokens.split(lengths.tolist()), boxes.split(lengths.tolist()), strict=True)
    for number, (token, box) in enumerate(pairs):
        before, after = by_box(*image(packed, number)), by_box(token, box)
        assert len(after) == lengths[number]
        assert all(np.array_equal(before[box], token) for box, token in after.items())
        assert list(after) == [box for box in before if box in after]
    (alone,) = Augmentation(token_dropout=0.99)._draw_kept(torch.tensor([3]), torch.tensor([1]))[0]
    assert alone == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip 1.5 is not from 0 to 1"),
        ({"color_jitter": -0.1}, "color_jitter -0.1 is not from 0 to 1"),
        ({"token_dropout": 1.0}, "token_dropout 1 is not from 0 to below 1"),
    ],
)
def test_invalid_augmentation_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)
