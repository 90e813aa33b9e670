"""Images for the tests of the job."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def images(image_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))
