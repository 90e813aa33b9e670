"""Arrays of a split in NumPy files beside its shards, named in the manifest by their checksum."""

import hashlib
import logging
import math
import shutil
from typing import IO

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import Folder, ReadableFolder
from quadpipe.shards.format import MANIFEST, npy_header
from quadpipe.text import bytes_text

_LARGE = 2**30
"""Bytes that take some seconds to read."""

_log = logging.getLogger(__name__)

Dtype = str | tuple[tuple[str, str], ...]
"""A dtype as NumPy files have it; a structured one is given as (name, dtype) pairs."""


def write_array(
    out: Folder, name: str, dtype: Dtype, shape: tuple[int, ...], content: IO[bytes]
) -> str:
    """Commit an array whose bytes are those of an open file; returns the sha256 of the new file."""
    digest = hashlib.sha256()
    with out.staged(name) as file:
        header = npy_header(dtype, shape)
        file.write(header)
        digest.update(header)
        content.seek(0)
        while block := content.read(shutil.COPY_BUFSIZE):  # type: ignore[attr-defined]
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def read_array(
    folder: ReadableFolder, name: str, dtype: Dtype, shape: tuple[int, ...], sha256: str | None
) -> np.ndarray:
    """The array of this dtype and shape; ShardError when it is not the one of the manifest."""
    where = folder.where(name)
    header = npy_header(dtype, shape)
    kind = np.dtype(dtype if isinstance(dtype, str) else list(dtype))
    size = folder.size(name)
    expected = len(header) + math.prod(shape) * kind.itemsize
    if size != expected:
        found = "missing" if size is None else f"{size} bytes, expected {expected}"
        raise ShardError(f"{where}: {found}; fetch it again")
    if expected > _LARGE:
        _log.warning("reading %s, %s, to compare its checksum", where, bytes_text(expected))
    data = folder.beginning(name, expected)  # mapped, if it is a local file
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(
            f"{where} was changed: its checksum is not the one in {MANIFEST}; fetch both again"
        )
    if bytes(data[: len(header)]) != header:
        raise ShardError(f"{where} holds another kind of numbers; report it to the publisher")
    return np.frombuffer(data, kind, offset=len(header)).reshape(shape)
