from typing import Any

import numpy as np
import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.loader import Loader
from quadpipe.loader.schedule import Schedule, parse_tokens

GEOMETRY = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)


@pytest.mark.parametrize(
    ("tokens", "budgets"),
    [
        (64, (64,)),
        ("64", (64,)),
        ("64, 19,37", (19, 37, 64)),
        ((64, 19, 19), (19, 64)),
        ("20-30", (22, 25, 28)),
        ("1-19", (16, 19)),
        ("250-900", (250, 253, 256)),
    ],
)
def test_tokens_are_one_budget_a_range_or_a_list(tokens, budgets):
    assert parse_tokens(tokens, GEOMETRY) == budgets


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("19-", "tokens '19-' is not a number, a range such as 19-100, or a list"),
        ("19-37-64", "is not a number"),
        ("many", "is not a number"),
        ("17-18", "no number of tokens from 17 to 18 can tile 256x256"),
        ("64-19", "no number of tokens from 64 to 19"),
        ("19,20", "20 tokens cannot tile 256x256 pixels .* use 19 or 22"),
        ((), "tokens is an empty list"),
        (37.5, "tokens 37.5 is not a whole number, or several"),
        ((19, 37.0), "is not a whole number, or several"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(tokens, message):
    with pytest.raises(ConfigError, match=message):
        parse_tokens(tokens, GEOMETRY)


@pytest.mark.parametrize("limit", [None, 300])
def test_batches_of_an_epoch_cover_all_samples_once(limit):
    schedule = Schedule(1003, 16, (19, 37, 64), tokens_per_batch=limit, seed=3)
    for epoch in (0, 1, 7):
        batches = schedule.epoch(epoch)
        sizes = np.diff(batches.starts)
        assert (batches.starts[0], batches.starts[-1]) == (0, 1003)
        wanted = 16 if limit is None else np.minimum(limit // batches.budgets, 16)
        full = np.broadcast_to(wanted, sizes.shape)
        assert (sizes[:-1] == full[:-1]).all()
        assert 0 < sizes[-1] <= full[-1]
        for step in range(len(batches) + 1):
            assert batches.after(batches.starts[step]) == step
        assert batches.after(1) is None
        assert batches.after(5000) == len(batches)


def test_budgets_depend_on_seed_and_epoch_alone():
    def budgets(seed: int, epoch: int) -> list[int]:
        return Schedule(4000, 16, (19, 37, 64), seed=seed).epoch(epoch).budgets.tolist()

    assert budgets(3, 1) == budgets(3, 1)
    assert budgets(3, 1) != budgets(3, 2)
    assert budgets(3, 1) != budgets(4, 1)
    # A longer epoch begins with the batches of a shorter one.
    assert Schedule(400, 16, (19, 37, 64), seed=3).epoch(1).budgets.tolist() == budgets(3, 1)[:25]


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_budgets_are_drawn_in_proportion_to_their_weights(weights):
    schedule = Schedule(30_000, 1, (19, 37, 64), weights=weights)
    drawn = schedule.epoch(0).budgets
    shares = [(drawn == budget).mean() for budget in (19, 37, 64)]
    wanted = np.array(weights or [1, 1, 1])
    np.testing.assert_allclose(shares, wanted / wanted.sum(), atol=0.012)


def test_tokens_per_batch_and_drop_last_exclude_each_other():
    with pytest.raises(ConfigError, match="leave out drop_last"):
        Schedule(100, 16, (19,), tokens_per_batch=100, drop_last=True)


@pytest.fixture(scope="module")
def shards(image_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("elastic") / "shards"
    quadpipe.tokenize(image_folder, out, samples_per_shard=4, in_process=True)
    return out


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_threads_and_resuming_do_not_change_batches_of_several_budgets(
    shards, world_size, workers
):
    given: dict[str, Any] = {"batch_size": 5, "tokens": "19-64", "tokens_per_batch": 150, "seed": 1}
    whole = list(Loader(shards, "train", **given).epoch(1))
    assert len({batch.tokens.shape[1] for batch in whole}) > 2
    assert max(batch.tokens.shape[0] * batch.tokens.shape[1] for batch in whole) <= 150
    for done in (0, 2):
        consumed = sum(batch.total for batch in whole[:done])
        ranks = [
            Loader(shards, "train", **given, rank=rank, world_size=world_size, workers=workers)
            for rank in range(world_size)
        ]
        epochs = [loader.epoch(1, consumed=consumed) for loader in ranks]
        for expected, *slices in zip(whole[done:], *epochs, strict=True):
            kept = [part for part in slices if part.weight[0]]
            assert torch.equal(torch.cat([part.tokens for part in kept]), expected.tokens)
            assert torch.equal(torch.cat([part.boxes for part in kept]), expected.boxes)
            assert {part.total for part in slices} == {expected.total}


def test_a_batch_of_several_budgets_holds_the_leaves_at_its_budget(shards):
    dataset = quadpipe.Dataset(shards)
    samples = {sample.key: sample for sample in dataset.samples("train")}
    for batch in Loader(dataset, "train", batch_size=4, tokens=(19, 64)).epoch(0):
        for row, key in enumerate(batch.keys):
            leaves = samples[key].mosaic.leaves(batch.tokens.shape[1])
            np.testing.assert_array_equal(batch.tokens[row], leaves.tokens)
            np.testing.assert_array_equal(batch.boxes[row], leaves.boxes)


def test_a_budget_above_the_stored_one_and_a_half_batch_are_refused(shards):
    with pytest.raises(ConfigError, match="holds 100 tokens, not 256; use at most 100"):
        Loader(shards, "train", batch_size=4, tokens="19-256")
    loader = Loader(shards, "train", batch_size=4, tokens=(19, 64), tokens_per_batch=128)
    middle = int(loader.schedule.epoch(0).starts[1]) + 1
    with pytest.raises(ConfigError, match="are not a whole number of batches"):
        next(loader.epoch(0, consumed=middle))
