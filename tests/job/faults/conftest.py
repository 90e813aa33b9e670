"""Images for the tests of faults, and the dataset of an undisturbed run."""

from pathlib import Path

import pytest
from fault_runs import OPTIONS

import quadpipe


@pytest.fixture
def images(tmp_path, jpeg) -> Path:
    """Eleven photographs in two classes."""
    root = tmp_path / "images"
    for number in range(11):
        folder = root / ("flower", "zebra")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(jpeg(number, (120, 100)))
    return root


@pytest.fixture
def undisturbed(images, tmp_path, files_of) -> dict[str, bytes]:
    quadpipe.tokenize(images, tmp_path / "undisturbed", in_process=True, **OPTIONS)
    return files_of(tmp_path / "undisturbed")
