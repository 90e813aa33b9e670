"""Images, tars and lists for tests of sources, and what was listed."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

from quadpipe.sources import Inputs, open_source


def write(root: Path, *names: str | bytes, data: bytes = b"x") -> Path:
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    return root


def list_inputs(location: str | Path, **options: Any) -> Inputs:
    return open_source(location).list(**options)


def rows(inputs: Inputs, split: str = "train") -> list[tuple[str, int | None]]:
    listing = inputs.splits[split]
    return [(listing[i].path, listing[i].label) for i in range(len(listing))]


def make_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
