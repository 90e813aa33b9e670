"""Files of importance maps, for the scorer `precomputed`."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, RejectError
from quadpipe.geometry import Geometry
from quadpipe.names import path_to_text, text_to_path
from quadpipe.scorers.precomputed import map_levels
from quadpipe.sources import Input
from quadpipe.sources.folder import FolderSource
from quadpipe.sources.roots import LocalRoot


def read_map(folder: Path, image_path: str, geometry: Geometry) -> list[np.ndarray]:
    """The map of an image, from a folder that mirrors the images' paths; see `map_levels`.

    For `a/cat.jpg` the map is `a/cat.npy`, or, one per scale, `a/cat.64.npy` and `a/cat.32.npy`,
    named by the patches' sides in pixels. Raises RejectError `no_map` or `bad_map`, SourceError
    when an existing map cannot be read.
    """
    path = text_to_path(image_path)
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise RejectError("no_map", "the image's path leads out of the folder of maps")
    stem = os.path.splitext(path)[0]
    sides = [geometry.patch_size << scale for scale in range(geometry.max_scale, 0, -1)]
    if _is_there(folder, stem + b".npy"):
        hint: Any = _read_array(folder, stem + b".npy")
    elif all(_is_there(folder, stem + b".%d.npy" % side) for side in sides):
        hint = [_read_array(folder, stem + b".%d.npy" % side) for side in sides]
    else:
        raise RejectError("no_map", f"there is no map {path_to_text(stem)}.npy")
    try:
        return map_levels(hint, geometry)
    except ConfigError as error:
        raise RejectError("bad_map", str(error)) from error


def _is_there(folder: Path, name: bytes) -> bool:
    try:
        os.stat(os.path.join(os.fsencode(folder), name))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # reading the file retries, and reports the error
    return True


def read_array(path: Path) -> np.ndarray:
    """A map from a file; SourceError when it cannot be read, ConfigError when it is not a map."""
    try:
        return _read_array(path.parent, os.fsencode(path.name))
    except RejectError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _read_array(folder: Path, name: bytes) -> np.ndarray:
    """Parse a NumPy file without pickles, and without allocating more than its bytes."""
    data = FolderSource(LocalRoot(folder)).read(Input(path_to_text(name), None))
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError("it holds Python objects, or has a negative shape")
        values = np.frombuffer(data, dtype, offset=file.tell())
        return values.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # NumPy's parser raises many kinds on damaged files
        raise RejectError(
            "bad_map", f"{path_to_text(name)} is not a NumPy array of numbers: {error}"
        ) from error
