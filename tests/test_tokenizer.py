import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import quadpipe
from quadpipe.errors import ConfigError, RejectError
from quadpipe.tokenizer import TokenizerConfig


def test_an_image_is_tokenized_in_three_lines(photographs):
    tokenizer = quadpipe.Tokenizer(tokens=196)
    mosaic = tokenizer(Image.fromarray(photographs[0]))
    assert mosaic.leaves(64).tokens.shape == (64, 16, 16, 3)


def test_pil_images_arrays_and_batches_give_the_same_mosaics(photographs):
    tokenizer = quadpipe.Tokenizer()
    alone = [tokenizer(photograph) for photograph in photographs]
    as_pil = tokenizer([Image.fromarray(photograph) for photograph in photographs])
    as_batch: Any = tokenizer(np.stack(photographs))
    for mosaics in (as_pil, as_batch):
        for one, other in zip(alone, mosaics, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_array_equal(one.nodes, other.nodes)
    assert tokenizer([]) == []


def test_an_image_of_the_size_is_untouched_when_nothing_is_cropped(square):
    tokenizer = quadpipe.Tokenizer(crop_pct=1.0)
    np.testing.assert_array_equal(tokenizer.prepare(square[0]), square[0])


def test_sizes_need_not_be_square(photographs):
    mosaic = quadpipe.Tokenizer(image_size=(128, 320), tokens=40)(photographs[0])
    assert mosaic.rebuild().shape == (128, 320, 3)
    assert len(mosaic.leaves()) == 40


def test_patches_of_14_pixels(photographs):
    mosaic = quadpipe.Tokenizer(image_size=224, patch_size=14, max_patch_size=56)(photographs[0])
    assert mosaic.tokens.shape == (128, 14, 14, 3)


def test_squashing_keeps_the_whole_image(photographs):
    tokenizer = quadpipe.Tokenizer(resize="squash")
    expected = Image.fromarray(photographs[0]).resize((256, 256), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(tokenizer.prepare(photographs[0]), np.asarray(expected))


def test_uniform_is_the_plain_grid_in_raster_order(square):
    tokenizer = quadpipe.Tokenizer(scorer="uniform", max_patch_size=16, tokens=256, crop_pct=1.0)
    leaves = tokenizer.tokenize(square[:1])[0].leaves()
    grid = square[0].reshape(16, 16, 16, 16, 3).swapaxes(1, 2).reshape(256, 16, 16, 3)
    np.testing.assert_array_equal(leaves.tokens, grid)


def test_a_configuration_round_trips_through_json():
    config = TokenizerConfig(image_size=(128, 192), tokens=30, crop_pct=0.9, seed=7)
    assert TokenizerConfig(**config.as_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 99}, "use 97 or 100"),
        ({"image_size": 250}, "use 192 or 256"),
        ({"image_size": (1, 2, 3)}, "image_size must be 2 numbers, not"),
        ({"scorer": "magic"}, "unknown scorer 'magic'"),
        ({"resample": "cubic"}, "resample 'cubic' is not one of bilinear, area"),
        ({"resize": "pad"}, "resize 'pad' is not one of crop, squash"),
        ({"crop_pct": 0.0}, "crop_pct 0 is not from 0.1 to 1"),
        ({"crop_pct": 1.5}, "crop_pct 1.5 is not from 0.1 to 1"),
        ({"tokens": "100"}, "tokens must be a whole number, not '100'"),
        ({"image_size": 32768}, "has a side above 16,384"),
        ({"seed": -1}, "seed -1 is not from 0"),
        ({"max_pixels": 0}, "max_pixels 0 is not from 1 to 2,147,483,647"),
        ({"config": TokenizerConfig(), "tokens": 64}, "not both"),
    ],
)
def test_invalid_configurations_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.Tokenizer(**options)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8)]
)
def test_arrays_that_are_not_images_are_refused(image):
    tokenizer = quadpipe.Tokenizer()
    with pytest.raises(ConfigError, match=r"must be uint8 \[h, w, 3\]"):
        tokenizer([image])


@pytest.mark.parametrize("shape", [(120, 160), (120, 160, 1)])
def test_a_gray_array_is_refused_with_its_shape_and_the_next_step(shape):
    grey = np.zeros(shape, np.uint8)
    message = rf"this one is uint8 \[{', '.join(map(str, shape))}\]; give a gray image as PIL"
    for images in (grey, [grey]):
        with pytest.raises(ConfigError, match=message):
            quadpipe.Tokenizer()(images)
    picture = Image.fromarray(grey.reshape(120, 160))
    assert len(quadpipe.Tokenizer()(picture).leaves()) == 100


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        ({"tokens": 36}, ["--tokens 36 --image-size 96 --max-patch-size 16"]),
        ({"tokens": 36, "image_size": 96}, ["--tokens 36 --image-size 96 --max-patch-size 16"]),
        (
            {"tokens": 40, "image_size": 250},
            [
                "--tokens 36 --image-size 96 --max-patch-size 16",
                "--tokens 49 --image-size 112 --max-patch-size 16",
            ],
        ),
        (
            {"tokens": 99, "image_size": (64, 128), "patch_size": 8, "max_patch_size": 8},
            [
                "--tokens 81 --image-size 72 --max-patch-size 8",
                "--tokens 100 --image-size 80 --max-patch-size 8",
                "--tokens 128 --max-patch-size 8 for images of 64x128",
            ],
        ),
    ],
)
def test_a_uniform_grid_that_does_not_fit_is_refused_with_valid_options(options, choices):
    with pytest.raises(ConfigError, match="are not a grid over") as refused:
        quadpipe.Tokenizer(scorer="uniform", **options)
    for choice in choices:
        assert choice in str(refused.value)
        words = choice.partition(" for ")[0].split()
        given: dict[str, Any] = {
            words[i][2:].replace("-", "_"): int(words[i + 1]) for i in range(0, len(words), 2)
        }
        config = TokenizerConfig(**{**options, "scorer": "uniform", **given})
        assert config.geometry.roots == config.tokens


def test_a_file_of_more_pixels_than_the_limit_is_rejected_and_below_it_is_not(photographs):
    file = io.BytesIO()
    Image.fromarray(photographs[0]).save(file, "PNG")
    pixels = 640 * 427
    with pytest.raises(RejectError, match=f"640 x 427 pixels, more than {pixels - 1:,}"):
        quadpipe.Tokenizer(max_pixels=pixels - 1).prepare_file(file.getvalue())
    prepared = quadpipe.Tokenizer(max_pixels=pixels).prepare_file(file.getvalue())
    assert prepared.shape == (256, 256, 3)


def test_prepared_images_must_have_the_image_size(square):
    with pytest.raises(ConfigError, match="prepared images must be uint8"):
        quadpipe.Tokenizer(image_size=128, tokens=40).tokenize(square)


def test_a_scale_weight_below_1_gives_more_small_patches(square):
    plain, half = (
        quadpipe.Tokenizer(tokens=64, scale_weight=weight)(square[0]) for weight in (1, 0.5)
    )
    small = [int((mosaic.leaves().boxes[:, 2] == 0).sum()) for mosaic in (plain, half)]
    assert small[1] > small[0]


def test_the_manifest_has_a_scale_weight_only_where_one_is_given():
    assert "scale_weight" not in TokenizerConfig().as_json()
    config = TokenizerConfig(scale_weight=0.5)
    assert config.as_json()["scale_weight"] == 0.5
    assert TokenizerConfig(**config.as_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_weight": 0}, "scale_weight 0 is not above 0"),
        ({"scale_weight": -1.5}, "scale_weight -1.5 is not above 0"),
        ({"scale_weight": float("inf")}, "scale_weight must be a finite number"),
        (
            {"scorer": "uniform", "max_patch_size": 16, "tokens": 256, "scale_weight": 0.5},
            "scale_weight is for patches that can be split",
        ),
    ],
)
def test_scale_weights_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerConfig(**options)
