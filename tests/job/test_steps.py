"""The steps of a shard: batches, order, and rejects on their way."""

from itertools import count
from typing import Any

import numpy as np
import pytest

from quadpipe.job.steps import View, cut, score
from quadpipe.shards.marker import Reject


class FakeScorer:
    """Gives the number of each image as its map, and records what is sent and waited for."""

    def __init__(self, batches_out: int) -> None:
        self.batches_out = batches_out
        self.events: list[str] = []
        self._numbers = count()

    def submit(self, images, hints):
        number = next(self._numbers)
        self.events.append(f"sent {number}")

        def receive():
            self.events.append(f"received {number}")
            return [images[:, 0, 0]]

        return receive


class FakeTokenizer:
    def cut(self, images, maps):
        return [f"mosaic {number}" for number in maps[0]]


def views(index: int) -> list[View]:
    """Two views, whose pixels are their number."""
    return [
        View(index, view, np.full((1, 1), 2 * index + view), {}, None, None) for view in range(2)
    ]


def rejected(index: int) -> Reject:
    return Reject(path=f"{index}.jpg", reason="empty", message="the file has no bytes")


@pytest.mark.parametrize("batches_out", [1, 2])
@pytest.mark.parametrize("bad", [(), (0,), (5,), (1, 2, 3), range(8)])
def test_views_and_rejects_keep_the_order_of_the_inputs(bad, batches_out):
    items = [rejected(index) if index in bad else views(index) for index in range(8)]
    seen: list[Any] = []
    tokenizer: Any = FakeTokenizer()
    scorer: Any = FakeScorer(batches_out)
    found: Any = cut(tokenizer, score(scorer, items, 3))
    for item in found:
        if isinstance(item, Reject):
            seen.append(item.path)
        else:
            view, mosaic = item
            assert mosaic == f"mosaic {2 * view.index + view.view}"
            seen.append((view.index, view.view))
    expected = []
    for index in range(8):
        expected += [f"{index}.jpg"] if index in bad else [(index, 0), (index, 1)]
    assert seen == expected


def test_batches_are_of_consecutive_inputs_with_the_rejects():
    """A network may round differently in a batch of another size, so that rejects fill theirs."""
    items: list[Any] = [views(0), rejected(1), views(2), views(3)]
    scorer: Any = FakeScorer(1)
    batches = list(score(scorer, items, 2))
    assert [len(images) for _, images, _ in batches] == [2, 4]


def test_the_next_batch_is_sent_before_the_first_is_waited_for():
    scorer: Any = FakeScorer(2)
    list(score(scorer, [views(index) for index in range(3)], 1))
    expected = ["sent 0", "sent 1", "received 0", "sent 2", "received 1", "received 2"]
    assert scorer.events == expected
