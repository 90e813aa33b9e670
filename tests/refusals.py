"""Checks that every reader refuses a dataset, without running, writing or allocating anything."""

import re
import tracemalloc
from pathlib import Path

import pytest

import quadpipe
from forging import READERS, count_with_skip
from quadpipe.errors import ShardError
from quadpipe.shards.verify import verify

SHARD, KEY = "train-000001.tar", "0000000005"
MEGABYTE = 10**6


def refused(dataset: Path, message: str) -> None:
    """Every reader raises a ShardError that says so, without taking memory or writing files."""
    before = sorted(dataset.rglob("*"))
    tracemalloc.start()
    try:
        for name, read in READERS.items():
            with pytest.raises(ShardError) as error:
                read(dataset)
            assert re.search(message, str(error.value)), f"{name}: {error.value}"
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert sorted(dataset.rglob("*")) == before


def check_shard(dataset: Path, message: str, lost: int) -> None:
    """A shard is refused with its name, found by verify, and skipped and counted."""
    refused(dataset, rf"{re.escape(SHARD)}: .*{message}")
    assert any(re.search(rf"{re.escape(SHARD)}: .*{message}", line) for line in findings(dataset))
    for name, count in count_with_skip(dataset).items():
        assert count == (16 - lost, lost), name


def findings(dataset: Path) -> list[str]:
    return list(verify(quadpipe.Dataset(dataset)))
