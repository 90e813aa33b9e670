import numpy as np

from quadpipe.seeds import permutation, random_bits, unit_interval


def test_random_bits_are_pinned():
    assert random_bits(2, "job/order", "train", 0).tolist() == [
        2205317813969070279,
        10013239397453228577,
    ]


def test_other_keys_give_other_bits():
    words: list[tuple] = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a1",), ("a", 1, 0)]
    assert len({int(random_bits(1, *word)[0]) for word in words}) == len(words)


def test_a_permutation_holds_each_number_once_and_is_fair():
    assert sorted(permutation(1000, 1)) == list(range(1000))
    first = [int(permutation(5, seed)[0]) for seed in range(2000)]
    assert np.bincount(first).min() > 330


def test_the_unit_interval_is_filled_and_half_open():
    values = unit_interval(random_bits(100_000, "x"))
    assert 0 <= values.min() < 1e-3
    assert 0.999 < values.max() < 1
    assert unit_interval(np.array([2**64 - 1], np.uint64))[0] < 1
