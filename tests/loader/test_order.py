import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadpipe.loader.order import EpochOrder, Interleave

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=80).filter(sum)
SHARES = st.lists(st.integers(1, 50) | st.integers(1, 10**9), min_size=1, max_size=8)


def whole(order: EpochOrder) -> list[tuple[int, int]]:
    shards, numbers = order.locate(0, order.samples)
    return list(zip(shards.tolist(), numbers.tolist(), strict=True))


@settings(max_examples=60)
@given(COUNTS, st.integers(0, 5), st.integers(0, 5))
def test_every_sample_is_once_in_an_epoch(counts, seed, epoch):
    order = whole(EpochOrder(counts, seed=seed, epoch=epoch))
    expected = [(shard, n) for shard, count in enumerate(counts) for n in range(count)]
    assert sorted(order) == expected


@settings(max_examples=60)
@given(COUNTS, st.data())
def test_any_range_is_computed_without_the_ones_before(counts, data):
    order = EpochOrder(counts, seed=1, epoch=2)
    start = data.draw(st.integers(0, order.samples))
    stop = data.draw(st.integers(start, order.samples))
    shards, numbers = EpochOrder(counts, seed=1, epoch=2).locate(start, stop)
    assert whole(order)[start:stop] == list(zip(shards.tolist(), numbers.tolist(), strict=True))


def test_positions_agree_across_many_blocks():
    counts = [1000 + 7 * n for n in range(37)]
    order = EpochOrder(counts, seed=0, epoch=0)
    everything = whole(order)
    for start in range(0, order.samples, 3001):
        shards, numbers = order.locate(start, min(start + 50, order.samples))
        assert everything[start : start + 50] == list(zip(shards, numbers, strict=True))


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    counts = [100] * 20
    orders = [whole(EpochOrder(counts, seed=s, epoch=e)) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders[0] == whole(EpochOrder(counts, seed=0, epoch=0))


def test_without_shuffling_the_order_is_that_of_the_shards():
    assert whole(EpochOrder([2, 0, 3], seed=5, epoch=5, shuffle=False)) == [
        *((0, 0), (0, 1)),
        *((2, 0), (2, 1), (2, 2)),
    ]


def test_shards_mix_well_and_few_are_read_at_a_time():
    counts = [100] * 256
    order = np.array(whole(EpochOrder(counts, seed=0, epoch=0)))
    for start in range(0, len(order) - 256, 2560):
        assert len(np.unique(order[start : start + 256, 0])) > 40
    for start in range(0, len(order), 1600):
        assert len(np.unique(order[start : start + 1600, 0])) <= 16 * 4 * 2


def test_the_order_is_pinned():
    shards, numbers = EpochOrder([5, 3, 4], seed=0, epoch=0).locate(0, 6)
    assert shards.tolist() == [0, 2, 1, 0, 2, 1]
    assert numbers.tolist() == [1, 2, 1, 0, 1, 0]


@pytest.mark.parametrize("shards", [1_000_000])
def test_a_million_shards_are_ordered_quickly(shards):
    order = EpochOrder([1024] * shards, seed=0, epoch=0)
    found, _ = order.locate(777_000_000, 777_000_256)
    assert len(np.unique(found)) > 40


@settings(max_examples=60)
@given(SHARES, st.integers(1, 2000))
def test_each_dataset_has_its_share_of_any_number_of_samples(shares, count):
    datasets, numbers = Interleave(shares).locate(0, count)
    taken = np.cumsum(datasets[:, None] == np.arange(len(shares)), axis=0)
    exact = np.arange(1, count + 1)[:, None] * (np.array(shares) / sum(shares))
    assert (abs(taken - exact) < 1 + 1e-6).all()
    for dataset in range(len(shares)):
        assert np.array_equal(numbers[datasets == dataset], np.arange(taken[-1, dataset]))


@settings(max_examples=30)
@given(SHARES, st.integers(0, 300_000), st.integers(0, 70_000))
def test_any_range_of_turns_is_computed_alone(shares, start, length):
    whole = Interleave(shares).locate(0, start + length)
    part = Interleave(shares).locate(start, start + length)
    for one, other in zip(whole, part, strict=True):
        assert np.array_equal(one[start:], other)
