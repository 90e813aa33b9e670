"""`precomputed`: importance maps that somebody else has made.

A map covers what the mosaic shows: the image after it was resized and cropped.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, RejectError
from quadpipe.geometry import Geometry
from quadpipe.names import path_to_text, text_to_path
from quadpipe.scorers.base import Scorer
from quadpipe.scorers.pooling import pool_to_patches
from quadpipe.sources import Input
from quadpipe.sources.folder import FolderSource
from quadpipe.sources.roots import LocalRoot

_LARGEST_MAP = 1 << 24  # cells


class Precomputed(Scorer):
    """The mean of a given map over each patch, or a given map for each scale.

    A hint is an array of real numbers or booleans `[rows, columns]` with square cells, of any
    resolution, or a sequence of such arrays, coarse to fine, of exactly the patches' rows and
    columns. True counts as 1, False as 0.
    """

    name = "precomputed"
    summary = "the mean of a given map, or given maps for each scale"
    cost = "reading the map"
    hint = "an importance map"

    def _score(self, images: np.ndarray, hints: Sequence[Any]) -> list[np.ndarray]:
        levels = [map_levels(hint, self.geometry) for hint in hints]
        return [np.stack(level) for level in zip(*levels, strict=True)]


def map_levels(hint: Any, geometry: Geometry) -> list[np.ndarray]:
    """Importance at each scale, float32 `[rows, columns]`, coarse to fine, from a hint.

    Raises ConfigError when it is misshapen or holds anything but finite real numbers.
    """
    several = isinstance(hint, list | tuple)
    arrays = [np.asarray(array) for array in (hint if several else [hint])]
    # A byte of a boolean from a file may be above 1.
    zero, one = np.uint8(0), np.uint8(1)
    arrays = [np.where(a, one, zero) if a.dtype.kind == "b" else a for a in arrays]
    for array in arrays:
        if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.size:
            raise ConfigError(
                f"an importance map must be real numbers [rows, columns]; this one is "
                f"{array.dtype} {list(array.shape)}"
            )
        if not np.isfinite(array).all() or abs(array).max() > np.finfo(np.float32).max:
            raise ConfigError(
                "an importance map must hold finite float32 numbers; this one does not"
            )
    if several:
        expected = [geometry.grid(scale) for scale in range(geometry.max_scale, 0, -1)]
        if [array.shape for array in arrays] != expected:
            raise ConfigError(
                f"maps of each scale must be {[list(grid) for grid in expected]}, coarse to fine; "
                f"these are {[list(array.shape) for array in arrays]}"
            )
        return [array.astype(np.float32) for array in arrays]
    rows, columns = arrays[0].shape
    if rows * geometry.width != columns * geometry.height or rows * columns > _LARGEST_MAP:
        raise ConfigError(
            f"an importance map must have square cells over {geometry.height} x {geometry.width} "
            f"pixels; this one is {rows} x {columns}"
        )
    return [level[0] for level in pool_to_patches(arrays[0][None], geometry)]


def read_map(folder: Path, image_path: str, geometry: Geometry) -> list[np.ndarray]:
    """The map of an image in a folder that mirrors the images' paths, as `map_levels` gives it.

    For `a/cat.jpg` the map is `a/cat.npy`, or, one per scale, `a/cat.64.npy` and `a/cat.32.npy`,
    named by the patches' sides in pixels. Raises RejectError `no_map` or `bad_map`, SourceError
    when a map that is there cannot be read.
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
        pass  # reading it says what is wrong, after some tries
    return True


def read_array(path: Path) -> np.ndarray:
    """A map from a file; SourceError when it cannot be read, ConfigError when it holds no map."""
    try:
        return _read_array(path.parent, os.fsencode(path.name))
    except RejectError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def _read_array(folder: Path, name: bytes) -> np.ndarray:
    """A NumPy file without pickles, which allocates nothing that its bytes do not hold."""
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
            raise ValueError("it holds Python objects, or has an odd shape")
        values = np.frombuffer(data, dtype, offset=file.tell())
        return values.reshape(shape, order="F" if fortran else "C")
    except Exception as error:  # whatever the file's bytes make NumPy's parser raise
        raise RejectError(
            "bad_map", f"{path_to_text(name)} is no NumPy array of numbers: {error}"
        ) from error
