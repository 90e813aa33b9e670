"""The gains of a split: one row per sample, so that images can share a budget before any is read.

Rows are in the order of the index. A dataset whose manifest names no gains was written before this
file existed: its gains are read from the samples.
"""

import numpy as np

from quadpipe.errors import ShardError
from quadpipe.files import ReadableFolder
from quadpipe.quadtree import gains
from quadpipe.shards.arrays import read_array
from quadpipe.shards.format import gains_name, npy_array
from quadpipe.shards.manifest import SplitInfo
from quadpipe.shards.tar import read_part

DTYPE = "<f4"
_ROWS_AT_ONCE = 2**16


def read_gains(folder: ReadableFolder, split: str, info: SplitInfo, splits: int) -> np.ndarray:
    """float32 `[samples, K]`, K = `splits`: the gains of each sample, which never increase.

    ShardError when the file is not the one that the manifest names, or holds no gains.
    """
    name = gains_name(split)
    rows = read_array(folder, name, DTYPE, (info.samples, splits), info.gains_sha256)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE]
        if not np.isfinite(part).all() or (part[:, 1:] > part[:, :-1]).any():
            raise ShardError(f"{folder.where(name)}: not gains; report it to the publisher")
    return rows


def sample_gains(sample: memoryview, splits: int) -> np.ndarray:
    """float32 `[K]`, from the members of one sample; ShardError when it has no importances."""
    for name, _, content in read_part(sample):
        if name.partition(".")[2] == "importance.npy":
            importance = npy_array(content, DTYPE, (splits,))
            if not np.isfinite(importance).all():
                raise ShardError(f"{name}: holds numbers that are not finite")
            return gains(importance)
    raise ShardError("the sample has no importances")
