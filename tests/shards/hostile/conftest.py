import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forging import READERS, count_with_skip, make_dataset


@pytest.fixture(scope="package")
def whole(tmp_path_factory) -> Path:
    dataset = make_dataset(tmp_path_factory.mktemp("whole"))
    for read in READERS.values():  # imports and compiles what takes memory on first use
        read(dataset)
    count_with_skip(dataset)
    return dataset


@pytest.fixture
def dataset(whole, tmp_path) -> Iterator[Path]:
    """A copy that a test may change; while it is read nothing is written and little allocated."""
    copy = Path(shutil.copytree(whole, tmp_path / "place" / "shards"))
    yield copy
    assert os.listdir(tmp_path / "place") == ["shards"]
    assert not (tmp_path / "was-run").exists()
