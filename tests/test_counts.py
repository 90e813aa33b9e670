import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quadpipe.counts import CountLimits, distribution
from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from reference.counts import share_slowly

GEOMETRY = Geometry(height=128, width=128, patch_size=16, max_patch_size=64)
STORED = 40
SPLITS = 12


def made_gains(seed: int, images: int, levels: int) -> np.ndarray:
    """Gains `[images, SPLITS]` with that many different values."""
    chance = np.random.default_rng(seed)
    values = chance.integers(0, levels, (images, SPLITS)).astype(np.float32) - 2
    return -np.sort(-values, axis=1)


@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 9),
    levels=st.sampled_from([1, 3, 1000]),
    bounds=st.tuples(st.integers(0, SPLITS), st.integers(0, SPLITS)).map(sorted),
    share=st.floats(0, 1),
    discount=st.integers(0, 8),
)
def test_a_batch_shares_its_budget_as_one_split_at_a_time_would(
    seed, images, levels, bounds, share, discount
):
    low, high = bounds
    least, most = 4 + 3 * low, 4 + 3 * high
    limits = CountLimits.of(GEOMETRY, STORED, least, most, discount)
    mean = round(least + share * (most - least))
    gains = made_gains(seed, images, levels)
    counts = limits.share(gains, mean)
    tokens = int((4 + 3 * counts).sum())
    assert images * mean - 2 <= tokens <= images * mean
    assert counts.tolist() == share_slowly(gains, (tokens - 4 * images) // 3, low, high, discount)


def test_images_without_differences_get_equal_counts():
    limits = CountLimits.of(GEOMETRY, STORED)
    gains = np.zeros((5, SPLITS), np.float32)
    assert limits.share(gains, 22).tolist() == [6] * 5
    assert sorted(limits.share(gains, 24).tolist()) == [6, 6, 7, 7, 7]


@pytest.mark.parametrize("mean", [4, 13, 21, 40])
def test_a_threshold_gives_the_mean_over_the_images_it_was_made_of(mean):
    gains = made_gains(0, 1000, 10**6)
    limits = CountLimits.of(GEOMETRY, STORED)
    counts = limits.at_threshold(gains, limits.threshold(gains, mean))
    assert abs((4 + 3 * counts).mean() - mean) < 0.01


def test_of_equal_gains_a_threshold_gives_less_than_the_mean_and_says_so(caplog):
    gains = np.zeros((10, SPLITS), np.float32)
    gains[:5, :2] = 1
    limits = CountLimits.of(GEOMETRY, STORED)
    counts = limits.at_threshold(gains, limits.threshold(gains, 31))
    assert (4 + 3 * counts).tolist() == [10] * 5 + [4] * 5
    assert "with 31 tokens on average wanted they get 7.0" in caplog.text
    caplog.clear()
    limits.threshold(gains, 7)
    assert not caplog.text


def test_the_limits_hold_for_thresholds():
    gains = made_gains(1, 50, 10**6)
    limits = CountLimits.of(GEOMETRY, STORED, 10, 25)
    for mean in (10, 16, 25):
        counts = limits.at_threshold(gains, limits.threshold(gains, mean))
        assert counts.min() >= 2
        assert counts.max() <= 7
        assert abs((4 + 3 * counts).mean() - mean) < 0.1


def test_the_distribution_of_many_images_gives_their_thresholds():
    gains = made_gains(2, 20_000, 10**6)
    table = distribution(gains)
    assert table.shape == (1024, SPLITS)
    assert (table[:, 1:] <= table[:, :-1]).all()
    for least, most, mean in ((4, 40, 22), (10, 25, 14), (4, 40, 37)):
        limits = CountLimits.of(GEOMETRY, STORED, least, most)
        counts = limits.at_threshold(gains, limits.threshold(table, mean))
        assert abs((4 + 3 * counts).mean() - mean) < 0.1


def test_the_distribution_of_very_many_images_is_that_of_a_part(monkeypatch):
    monkeypatch.setattr("quadpipe.counts._MOST_SORTED", 2000)
    gains = made_gains(4, 9_000, 10**6)
    limits = CountLimits.of(GEOMETRY, STORED)
    counts = limits.at_threshold(gains, limits.threshold(distribution(gains), 22))
    assert abs((4 + 3 * counts).mean() - 22) < 0.5


def test_the_distribution_of_few_images_has_their_gains_only():
    gains = made_gains(3, 7, 100)
    table = distribution(gains)
    assert table.shape == (1024, SPLITS)
    for column, values in zip(gains.T, table.T, strict=True):
        assert set(values) == set(column)


@pytest.mark.parametrize(
    ("least", "most", "message"),
    [
        (5, None, "5 tokens cannot tile"),
        (None, 43, "from 4 to 43 tokens per image is not a range within the 4 to 40"),
        (22, 19, "from 22 to 19 tokens per image is not a range"),
    ],
)
def test_limits_that_no_image_can_have_are_refused(least, most, message):
    with pytest.raises(ConfigError, match=message):
        CountLimits.of(GEOMETRY, STORED, least, most)
