"""Several datasets in one loader: shares, order, classes, resuming, and what is refused."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

import quadpipe
from forging import edit_manifest, make_dataset
from quadpipe import Dataset
from quadpipe.errors import ConfigError
from quadpipe.files import Cache
from quadpipe.loader import Batch, Loader


def images(folder: Path, classes: tuple[str, ...], count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / "train" / classes[number % len(classes)] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory) -> Callable[..., Path]:
    """Makes small datasets like `make_dataset`, of 11 images in the classes `right` and `up`."""

    def tokenize(**options: Any) -> Path:
        root = tmp_path_factory.mktemp("other")
        usual: dict[str, Any] = {
            "image_size": 32, "patch_size": 4, "max_patch_size": 16, "tokens": 22, "crop_pct": 1.0,
            "samples_per_shard": 3, "views": 2, "codec": "png", "in_process": True,
        }  # fmt: skip
        quadpipe.tokenize(
            images(root / "images", ("right", "up"), 11, 1), root / "o", **usual | options
        )
        return root / "o"

    return tokenize


@pytest.fixture(scope="module")
def pair(make, tmp_path_factory) -> list[Path]:
    """16 images of left and right, raw and at 16 tokens; 11 of right and up, png, at 22 tokens."""
    return [make_dataset(tmp_path_factory.mktemp("one")), make()]


def samples_of(batches: Iterator[Batch]) -> list[tuple[int, str]]:
    """Dataset and key of each sample."""
    return [
        (number, key)
        for batch in batches
        for number, key in zip(batch.dataset.tolist(), batch.keys, strict=True)
    ]


def read(pair: list[Path], epoch: int = 0, consumed: int = 0, **options: Any) -> list[Any]:
    loader = Loader(pair, **{"batch_size": 5} | options)
    return samples_of(loader.epoch(epoch, consumed=consumed))


def test_datasets_and_views_share_a_limited_number_of_open_shards(pair, monkeypatch):
    monkeypatch.setattr("quadpipe.files.local.resource.getrlimit", lambda _: (16, 16))
    loader = Loader(pair, batch_size=1)
    before = len(os.listdir("/proc/self/fd"))
    for epoch in range(2):
        for _ in loader.epoch(epoch):
            assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_without_weights_every_sample_is_once_in_an_epoch(pair):
    for epoch in range(3):
        found = read(pair, epoch)
        assert Counter(number for number, _ in found) == {0: 16, 1: 11}
        assert len(set(found)) == 27
    assert read(pair, 0) != read(pair, 2)
    assert read(pair, shuffle=False) == read(pair, 2, shuffle=False)


def test_samples_are_those_of_their_dataset_with_labels_joined_by_name(pair):
    opened = [Dataset(place) for place in pair]
    stored = [{s.key: s for s in d.samples("train")} for d in opened]
    loader = Loader(opened, batch_size=6, tokens=13)
    assert loader.mixture.manifest.classes == ["left", "right", "up"]
    for batch in loader.epoch(1):
        for row, (number, key) in enumerate(samples_of(iter([batch]))):
            sample = stored[number][key]
            leaves = sample.mosaic.leaves(13)
            assert np.array_equal(batch.tokens[row], leaves.tokens)
            assert np.array_equal(batch.boxes[row], leaves.boxes)
            assert ["left", "right", "up"][batch.label[row]] == sample.info["class"]


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1, 9], [0.123, 0.456]])
def test_with_weights_an_epoch_ends_when_the_first_dataset_is_used_up(pair, weights):
    found = read(pair, weights=weights)
    assert len(set(found)) == len(found)
    share = np.array(weights) / sum(weights)
    for count in range(1, len(found) + 1):
        taken = sum(number for number, _ in found[:count])
        assert abs(taken - count * share[1]) < 1
    longest = min(np.array([16, 11]) / share)
    assert longest - 1 < len(found) <= longest
    other = read(pair, 1, weights=weights)
    assert set(other) != set(found)  # the rest of a dataset has its turn in other epochs


def test_with_repeat_an_epoch_ends_when_all_datasets_are_used_up(pair):
    found = read(pair, weights=[0.2, 0.8], repeat=True)
    counts = Counter(number for number, _ in found)
    assert counts[0] == 16
    assert counts[1] == 64
    second = [key for number, key in found if number == 1]
    passes = [second[start : start + 11] for start in range(0, 64, 11)]
    for turn, keys in enumerate(passes):
        assert len(set(keys)) == len(keys)
        assert all(key.endswith("-v01") == (turn % 2 == 1) for key in keys)
    assert passes[0] != passes[2] != passes[4]
    assert {key for number, key in found if number == 0} == set(dict(s[::-1] for s in read(pair)
                                                                     if s[0] == 0))  # fmt: skip


MIXED: list[dict[str, Any]] = [
    {"tokens": "4-16"},
    {"weights": [1, 3], "repeat": True, "tokens_per_batch": 60, "tokens": "4-16"},
]


@pytest.mark.parametrize("options", MIXED)
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (3, 2)])
def test_ranks_and_threads_do_not_change_the_order(pair, options, ranks, workers):
    loaders = [
        Loader(pair, batch_size=6, rank=r, world_size=ranks, workers=workers, **options)
        for r in range(ranks)
    ]
    found = []
    for slices in zip(*(loader.epoch(1) for loader in loaders), strict=True):
        whole = [
            s
            for batch in slices
            for s, w in zip(samples_of(iter([batch])), batch.weight, strict=True)
            if w
        ]
        found += whole
    assert found == read(pair, 1, batch_size=6, **options)


@pytest.mark.parametrize("options", MIXED)
def test_a_state_continues_after_any_batch(pair, options):
    loader = Loader(pair, batch_size=6, **options)
    states, batches = [], []
    for _ in range(2):
        for batch in loader:
            batches.append(samples_of(iter([batch])))
            states.append(json.loads(json.dumps(loader.state_dict())))
    assert len({str(batch) for batch in batches}) == len(batches)
    resumed = Loader(pair, batch_size=6, workers=1, **options)
    for number, state in enumerate(states):
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        following = next(iter(resumed))
        if number + 1 < len(batches):
            assert samples_of(iter([following])) == batches[number + 1]


def test_a_state_resumes_on_another_number_of_ranks(pair):
    one = Loader(pair, batch_size=6)
    batches = iter(one)
    next(batches)
    state = one.state_dict()
    assert (state["epoch"], state["consumed"]) == (0, 6)
    loaders = [Loader(pair, batch_size=6, rank=rank, world_size=2) for rank in range(2)]
    for loader in loaders:
        loader.load_state_dict(state)
    halves = [samples_of(iter(loader)) for loader in loaders]
    assert sorted(halves[0] + halves[1]) == sorted(samples_of(batches))


def test_a_new_iterator_begins_the_next_epoch(pair):
    loader = Loader(pair, batch_size=6)
    assert samples_of(iter(loader)) == read(pair, 0, batch_size=6)
    assert loader.state_dict()["epoch"] == 1
    next(iter(loader))  # and leaves it
    assert samples_of(iter(loader)) == read(pair, 2, batch_size=6)


def test_a_state_is_plain_json_whatever_the_options_were_given_as(pair):
    five, ten = np.int64(5), np.int64(10)
    adaptive: dict[str, Any] = {
        "batch_size": five, "seed": five, "threshold": np.float32(0.5), "min_tokens": ten,
        "max_tokens": ten, "gain_discount": np.int64(0), "weights": np.array([1, 2]),
        "repeat": np.bool_(True), "shuffle": np.bool_(True), "drop_last": np.bool_(False),
    }  # fmt: skip
    drawn: dict[str, Any] = {
        "batch_size": five, "tokens": [ten, ten + 3], "budget_weights": np.ones(2),
        "tokens_per_batch": np.int64(50),
    }  # fmt: skip
    for options in (adaptive, drawn):
        loader = Loader(pair, **options)
        state = json.loads(json.dumps(loader.state_dict()))
        loader.load_state_dict(state)
        assert loader.state_dict() == state


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([0.7, 0.3], [7, 3]), ([1e18, 2e18], [1, 2]), ([1000, 1 / 3], None), ([1e-17, 1], None)],
)
def test_ratios_of_weights_are_exact_unless_they_have_very_many_digits(pair, weights, shares):
    found = Loader(pair, batch_size=1, weights=weights).mixture.shares
    assert found == shares or shares is None
    assert found[0] / found[1] == pytest.approx(weights[0] / weights[1])


def test_states_of_other_loaders_are_refused(pair):
    state = Loader(pair, batch_size=6).state_dict()
    for options, message in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"batch_size": 5}, "batch_size was 6, now 5"),
        ({"weights": [1, 2]}, r"weights was \[16, 11\], now \[1, 2\]"),
        ({"split": "val", "dataset": pair[0]}, r"fingerprints was .*; split was train, now val"),
        ({"dataset": pair[::-1]}, "fingerprints was "),
        ({"classes": ["up", "right", "left"]}, r"classes was None, now \['up', 'right', 'left'\]"),
    ):
        loader = Loader(**{"dataset": pair, "batch_size": 6} | options)
        with pytest.raises(ConfigError, match=message):
            loader.load_state_dict(state)
    loader = Loader(pair, batch_size=6)
    for change in ({"consumed": 7}, {"epoch": -1}, {"consumed": 99}):
        with pytest.raises(ConfigError, match="do not end a batch"):
            loader.load_state_dict(state | change)
    for broken in ({}, {"epoch": "x", "consumed": 0, "loader": {}}, {"epoch": 1}):
        with pytest.raises(ConfigError, match="is not the state of a Loader"):
            loader.load_state_dict(broken)


def test_the_order_follows_from_fingerprints_and_not_from_places(pair, tmp_path):
    moved = shutil.copytree(pair[0], tmp_path / "moved")
    fsspec.filesystem("memory").put(str(pair[1]), "/mixture", recursive=True)
    places: Any = [moved, "memory://mixture"]
    assert read(places, 3) == read(pair, 3)
    edit_manifest(moved, classes=["left", "wrong"])  # another fingerprint
    assert read(places, 3) != read(pair, 3)


def test_one_dataset_has_the_order_that_it_always_had(pair):
    batches = list(Loader([pair[0]], batch_size=4, seed=1).epoch(2))
    assert [batch.dataset for batch in batches] == [None] * 4
    assert [int(key) for batch in batches[:2] for key in batch.keys] == [6, 2, 10, 12, 5, 1, 11, 14]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "1 weight for 2 datasets; give one for each"),
        ({"weights": [1, 0]}, "weight 0: each must be above 0; omit a dataset"),
        ({"weights": [1, float("nan")]}, "each must be above 0"),
        ({"weights": "ab"}, "weights 'ab' are not numbers, one for each dataset"),
        ({"weights": "12"}, "weights '12' are not numbers, one for each dataset"),
        ({"weights": 0.5}, "weights 0.5 are not numbers, one for each dataset"),
        ({"weights": [1e-300, 1]}, "differ too much; omit the dataset with the smallest"),
        (
            {"weights": [1e12, 1], "repeat": True},
            r"[/]o is used up after 11,000,000,000,011 samples, too many for an epoch; give it a",
        ),
        ({"classes": ["up", "left", "up", "right"]}, "classes names 'up' twice; give each class"),
        ({"repeat": True}, "repeat is for weights"),
        ({"tokens": 22}, r"shards holds 16 tokens, not 22; use at most 16"),
        ({"tokens": 15}, "use 13 or 16"),
        ({"split": "val"}, "has no split 'val'"),
        ({"classes": ["left", "right"]}, "has 1 class not among the 2 wanted, such as "),
    ],
)
def test_invalid_options_of_several_datasets_are_refused(pair, options, message):
    with pytest.raises(ConfigError, match=message):
        Loader(pair, **{"batch_size": 4} | options)


def test_datasets_that_cannot_be_read_together_are_refused(pair, make, tmp_path):
    with pytest.raises(ConfigError, match="no dataset is given"):
        Loader([], batch_size=4)
    with pytest.raises(ConfigError, match="weights are for several datasets"):
        Loader(pair[0], batch_size=4, weights=[1.0])
    twice = shutil.copytree(pair[0], tmp_path / "twice")
    with pytest.raises(ConfigError, match="shards and .*twice are the same dataset; give it once"):
        Loader([pair[0], twice], batch_size=4)
    with pytest.raises(ConfigError, match="of other sizes, .*: max_patch_size 16 and 8; tokenize"):
        Loader([pair[0], make(max_patch_size=8, tokens=16)], batch_size=4)
    bare = make(use_labels=False)
    with pytest.raises(ConfigError, match="o has no labels; give it some with --labels"):
        Loader([pair[0], bare], batch_size=4)
    with pytest.raises(ConfigError, match="o has no labels; omit classes"):
        Loader(bare, batch_size=4, classes=["up"])


def test_shards_that_must_fit_a_cache_together_are_those_of_all_datasets(pair, make):
    other = make(codec="raw", tokens=16, views=1)
    memory = fsspec.filesystem("memory")
    for name, place in (("/cached", pair[0]), ("/too", other)):
        memory.put(str(place), name, recursive=True)
    room = sum(s.bytes for place in (pair[0], other) for s in Dataset(place).shards("train"))

    def opened(size: int, folder: Path) -> list[Dataset]:
        cache = Cache(folder=folder, bytes=size)
        return [Dataset(f"memory:/{name}", cache=cache) for name in ("/cached", "/too")]

    place = pair[0].parent / "cache"
    with pytest.raises(ConfigError, match="is too small for 8 shards of"):
        Loader(opened(room - 1, place), batch_size=4)
    assert len(samples_of(Loader(opened(room, place), batch_size=4).epoch(0))) == 27


@pytest.mark.parametrize("options", [{}, {"weights": [1, 2]}])
def test_images_of_several_datasets_share_the_tokens_of_a_batch(pair, options):
    loader = Loader(pair, batch_size=6, mean_tokens=10, gain_discount=0, **options)
    counts: list[set[int]] = [set(), set()]
    for batch in loader.epoch(0):
        assert batch.lengths is not None
        assert 0 <= 10 * batch.total - int(batch.lengths.sum()) <= 2
        for number, length in zip(batch.dataset.tolist(), batch.lengths.tolist(), strict=True):
            counts[number].add(length)
        assert batch.lengths.max() <= 16
    assert all(len(found) > 1 for found in counts)
    halves = [
        Loader(
            pair, batch_size=6, mean_tokens=10, gain_discount=0, rank=rank, world_size=2, **options
        ).epoch(0)
        for rank in range(2)
    ]
    for whole, one, other in zip(loader.epoch(0), *halves, strict=True):
        assert torch.equal(whole.tokens, torch.cat([one.tokens, other.tokens]))


def test_gains_are_pooled_in_the_shares_of_an_epoch(pair):
    gains = [
        np.repeat(np.arange(16.0)[:, None], 4, 1),
        np.repeat(np.arange(11.0)[:, None], 6, 1) + 100,
    ]
    for weights, repeat, counts in ((None, False, (16, 11)), ([1, 3], True, (16, 48))):
        loader = Loader(pair, batch_size=4, weights=weights, repeat=repeat)
        pooled = loader.mixture.in_proportion(gains)
        assert pooled.shape == (sum(counts), 4)
        assert ((pooled[:, 0] < 100).sum(), (pooled[:, 0] >= 100).sum()) == counts
        assert len(set(pooled[:, 0])) == 27  # evenly, so none is left out


def test_gains_of_other_scorers_are_not_compared(pair, make):
    other = make(scorer="laplacian")
    with pytest.raises(
        ConfigError, match="cannot be compared, .* scored differently: scorer saliency and lapl"
    ):
        Loader([pair[0], other], batch_size=4, mean_tokens=10)
    assert len(read([pair[0], other])) == 27


def test_a_damaged_sample_of_one_dataset_is_skipped_in_its_place(pair, tmp_path):
    damaged = [Path(shutil.copytree(p, tmp_path / str(n))) for n, p in enumerate(pair)]
    for place in damaged:
        shard = place / "train-000001.tar"
        data = bytearray(shard.read_bytes())
        data[1000] ^= 1
        shard.write_bytes(data)
    whole = Loader(pair, batch_size=27).epoch(0)
    loader = Loader(damaged, batch_size=27, on_error="skip")
    for one, other in zip(whole, loader.epoch(0), strict=True):
        lost = other.weight == 0
        assert lost.sum() == other.skipped == 2
        assert other.dataset is not None
        assert sorted(other.dataset[lost].tolist()) == [0, 1]
        assert torch.equal(one.tokens[~lost], other.tokens[~lost])
        assert torch.equal(one.label[~lost], other.label[~lost])
    assert len(loader.skipped.messages) == 2
    assert {str(place) in " ".join(loader.skipped.messages) for place in damaged} == {True}


def test_labels_are_indices_of_given_classes(pair):
    names = ["up", "left", "none", "right"]
    stored = {s.key: s.info["class"] for s in Dataset(pair[1]).samples("train")}
    (batch,) = Loader(pair[1], batch_size=11, classes=names).epoch(0)
    assert [names[label] for label in batch.label] == [stored[key] for key in batch.keys]
