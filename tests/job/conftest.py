"""Images for the tests of the job, and the Ray that they share."""

import shutil
from pathlib import Path

import pytest
from ray_runs import joined, on_ray, shared_ray

__all__ = ["joined", "on_ray", "shared_ray"]


@pytest.fixture
def images(image_folder, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))
