"""Images and options for the tests of scorers in the job."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import quadpipe

CLASSES = {"flower": "n11939491", "temple": "n03788195", "zebra": "n02391049"}


@pytest.fixture(scope="module")
def images(image_folder, tmp_path_factory) -> Path:
    """The photographs under ImageNet's names of their classes, two of them broken."""
    root = tmp_path_factory.mktemp("named") / "images"
    for folder, name in CLASSES.items():
        shutil.copytree(image_folder / folder, root / name)
    for broken in sorted(root.rglob("*.jpg"))[3:5]:
        broken.write_bytes(b"not an image")
    return root


@pytest.fixture(scope="module")
def options(shufflenet_weights) -> dict[str, Any]:
    return {
        "scorer": "feature",
        "scorer_weights": shufflenet_weights,
        "samples_per_shard": 3,
        "score_batch": 2,
        "views": 2,
        "max_rejected": "10%",
    }


@pytest.fixture(scope="module")
def undisturbed(images, options, tmp_path_factory, files_of) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    quadpipe.tokenize(images, out, in_process=True, **options)
    return files_of(out)
