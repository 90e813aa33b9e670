"""Shards and runs that the tests of the model share."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from job_runs import tokenize_small
from PIL import Image
from runs import ADAPTIVE, SMALL

from quadpipe.cli import commands
from quadpipe.model import train


@pytest.fixture(scope="session")
def shards(photographs, tmp_path_factory) -> Path:
    """70 crops of 64 pixels, classified by which of two photographs they are of; 59 to train on."""
    root = tmp_path_factory.mktemp("train")
    chance = random.Random(0)
    for number in range(70):
        photograph = photographs[number % 2]
        y, x = chance.randrange(427 - 96), chance.randrange(640 - 96)
        folder = root / "images" / ("temple", "flower")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[y : y + 96, x : x + 96]).save(folder / f"{number}.png")
    tokenize_small(root / "images", root / "shards", val_share=0.16, samples_per_shard=16, views=2)
    return root / "shards"


@pytest.fixture
def stderr_of(capsys) -> Callable[..., str]:
    """Runs a command in this process and returns its standard error."""

    def run(*arguments: object) -> str:
        commands.main([str(argument) for argument in arguments], standalone_mode=False)
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="session")
def undisturbed(shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(shards, run, **SMALL)
    return run


@pytest.fixture(scope="session")
def adaptive(shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("adaptive") / "run"
    train(shards, run, **ADAPTIVE)
    return run


@pytest.fixture(scope="session")
def made_otherwise(shards, tmp_path_factory) -> Callable[..., Path]:
    """The images of `shards` tokenized with other options."""

    def make(**options: Any) -> Path:
        out = tmp_path_factory.mktemp("otherwise") / "shards"
        given: dict[str, Any] = {"val_share": 0.16, "limit": 16} | options
        tokenize_small(shards.parent / "images", out, **given)
        return out

    return make


@pytest.fixture(scope="session")
def scored_by_a_network(shards, shufflenet_weights, tmp_path_factory) -> Path:
    """A run on shards of scorer feature, with weights from a file."""
    root = tmp_path_factory.mktemp("feature")
    tokenize_small(
        shards.parent / "images",
        root / "shards",
        limit=16,
        scorer="feature",
        scorer_weights=shufflenet_weights,
        scorer_distance="cosine",
    )
    train(root / "shards", root / "run", **SMALL | {"epochs": 1})
    return root / "run"
