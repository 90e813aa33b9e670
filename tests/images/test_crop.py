import io
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quadpipe.errors import ConfigError
from quadpipe.images.crop import (
    Box,
    center_box,
    check_range,
    decode_and_resample,
    random_box,
    resample,
)
from quadpipe.images.decode import EncodedImage


def test_the_center_crop_equals_resize_then_crop(photographs):
    picture = Image.fromarray(photographs[0])
    resized = picture.resize((292 * 640 // 427, 292), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 256) / 2), round((292 - 256) / 2)
    expected = np.asarray(resized.crop((left, top, left + 256, top + 256))).astype(int)
    found = resample(picture, center_box(640, 427, (256, 256), 0.875), (256, 256))
    # PIL keeps boxes and weights in low precision, so a few values differ by rounding.
    assert abs(found - expected).max() <= 2
    assert abs(found - expected).mean() < 0.02


def test_crop_pct_1_keeps_an_image_of_the_size_whole():
    assert center_box(256, 256, (256, 256), 1.0) == Box(0, 0, 256, 256)
    assert center_box(320, 128, (128, 320), 1.0) == Box(0, 0, 320, 128)


@given(st.integers(8, 3000), st.integers(8, 3000), st.sampled_from([(256, 256), (64, 448)]))
def test_the_center_crop_is_inside_and_keeps_the_aspect_ratio(w, h, size):
    box = center_box(w, h, size, 0.875)
    assert 0 <= box.x0 < box.x1 <= w
    assert 0 <= box.y0 < box.y1 <= h
    across, down = size[1] / (box.x1 - box.x0), size[0] / (box.y1 - box.y0)
    assert across == pytest.approx(down, rel=0.02)  # the resized image has whole pixels


@given(
    st.integers(8, 3000),
    st.integers(8, 3000),
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    st.integers(0, 1000),
)
def test_random_crops_are_inside_the_image(w, h, scale, ratio, seed):
    box = random_box(w, h, tuple(scale), tuple(ratio), seed)
    assert 0 <= box.x0 < box.x1 <= w
    assert 0 <= box.y0 < box.y1 <= h
    assert all(value == int(value) for value in box.rounded())


def test_random_crops_have_the_requested_areas_and_ratios():
    boxes = [random_box(1000, 1000, (0.35, 1.0), (0.75, 1.333), seed) for seed in range(2000)]
    areas = np.array([(b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes]) / 1_000_000
    ratios = np.array([(b.x1 - b.x0) / (b.y1 - b.y0) for b in boxes])
    assert 0.349 < areas.min() < 0.36
    assert areas.mean() == pytest.approx(0.6, abs=0.02)  # large ones fit less often
    assert 0.748 < ratios.min()
    assert ratios.max() < 1.336
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.02)


def test_a_random_crop_depends_on_each_part_of_its_key():
    words = (("view", 0, "train", 5, 1), ("view", 1, "train", 5, 1), ("view", 0, "train", 5, 2))
    boxes = {random_box(640, 480, (0.35, 1.0), (0.75, 1.333), *word) for word in words}
    assert len(boxes) == 3


def test_a_random_crop_is_pinned():
    box = random_box(640, 480, (0.35, 1.0), (0.75, 1.333), "job/view", 0, "train", 7, 1)
    assert box.rounded() == [263, 3, 614, 427]


def test_when_nothing_fits_the_crop_is_the_largest_with_a_legal_ratio():
    assert random_box(1000, 10, (0.9, 1.0), (0.75, 1.333), 0) == Box(493, 0, 506, 10)
    assert random_box(10, 1000, (0.9, 1.0), (0.5, 2.0), 0) == Box(0, 490, 10, 510)


@pytest.mark.parametrize(
    ("size", "reduction"),
    [((1100, 1000), 1), ((1200, 1200), 2), ((2400, 2400), 4), ((4700, 4700), 8)],
)
def test_large_jpegs_are_decoded_reduced_to_at_least_twice_the_output(size, reduction, photographs):
    file = io.BytesIO()
    Image.fromarray(photographs[0]).resize(size).save(file, "JPEG", quality=90)
    image = EncodedImage(file.getvalue())
    box = center_box(size[0], size[1], (256, 256), 0.875)
    asked = []
    decode = image.decode
    image.decode = lambda reduction=1: asked.append(reduction) or decode(reduction)
    found = decode_and_resample(image, box, (256, 256)).astype(int)
    assert asked == [reduction]
    full = resample(decode(1), box, (256, 256))
    assert abs(found - full).mean() < 1.5


@pytest.mark.parametrize("values", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5), (float("nan"), 1.0)])
def test_invalid_ranges_are_refused(values):
    with pytest.raises(ConfigError, match="view_scale .* is not a range of numbers above 0"):
        check_range("view_scale", values, 1.0)
    check_range("view_ratio", (0.5, 20.0), inf)
