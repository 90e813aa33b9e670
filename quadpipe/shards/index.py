"""The index of a split: one row per sample, so that readers find and check samples by number.

Rows are in the order of the shard list and, in a shard, of its samples. A dataset whose manifest
names no index was written before indexes existed: its samples are found by their headers, and have
no checksums.
"""

import hashlib
import shutil
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import numpy as np
import xxhash

from quadpipe.errors import ShardError
from quadpipe.files import Contents, Folder, ReadableFolder
from quadpipe.shards.format import MANIFEST, index_name, npy_header
from quadpipe.shards.manifest import ShardInfo, SplitInfo
from quadpipe.shards.tar import BLOCK, END, read_headers, read_part

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ROWS_AT_ONCE = 1 << 16

FIELDS = (
    ("shard", "<i4"),
    ("offset", "<i8"),
    ("size", "<i4"),
    ("checksum", "<u8"),
    ("label", "<i4"),
)
ROW = np.dtype(list(FIELDS))
"""shard: its line in the shard list, from 0. offset, size: where the sample's members begin in the
tar, and their bytes with headers and padding. checksum: of these bytes, 0 where there is none.
label: -1 without labels."""


class SplitIndex:
    """The rows of a split by shard. rows: `ROW` `[samples]`, in the order of the shard list."""

    def __init__(self, rows: np.ndarray, shards: Sequence[ShardInfo]) -> None:
        self.rows = rows
        self._starts = np.cumsum([0, *(shard.samples for shard in shards)])

    def of(self, shard: int) -> np.ndarray:
        """The rows of a shard, given by its line in the shard list, from 0."""
        return self.rows[self._starts[shard] : self._starts[shard + 1]]


def checksum(sample: "Buffer") -> int:
    """XXH3 of a sample's bytes, 64 bits, seed 0."""
    return xxhash.xxh3_64_intdigest(sample)


def mismatch(sample: memoryview, offset: int) -> ShardError:
    """The error for a sample whose bytes do not have the checksum of the index.

    Its key comes from these bytes, and may itself be wrong.
    """
    key = bytes(sample[:100]).partition(b".")[0].decode("ascii", "replace")
    named = key if key.isprintable() and key.isascii() else "a sample"
    return ShardError(
        f"{named}: checksum mismatch at byte {offset}: it was changed after it was written; fetch "
        f"the shard again"
    )


def make_rows(
    offsets: Sequence[int], end: int, checksums: Sequence[int] | int, labels: Sequence[int] | int
) -> np.ndarray:
    """Rows of one shard whose samples begin at `offsets` and end together at `end`."""
    rows = np.zeros(len(offsets), ROW)
    rows["offset"] = offsets
    rows["size"] = np.diff([*offsets, end])
    rows["checksum"], rows["label"] = checksums, labels
    return rows


def write_index(out: Folder, split: str, rows: IO[bytes], count: int) -> str:
    """Commit the index of `count` rows from an open file; returns its sha256."""
    digest = hashlib.sha256()
    with out.staged(index_name(split)) as file:
        header = npy_header(FIELDS, (count,))
        file.write(header)
        digest.update(header)
        rows.seek(0)
        while block := rows.read(shutil.COPY_BUFSIZE):  # type: ignore[attr-defined]
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


def read_index(
    folder: ReadableFolder, split: str, info: SplitInfo, shards: Sequence[ShardInfo]
) -> SplitIndex:
    """The index of a split; ShardError when it is not the one that the manifest names, or
    does not fit the shard list."""
    name = index_name(split)
    where = folder.where(name)
    header = npy_header(FIELDS, (info.samples,))
    size = folder.size(name)
    expected = len(header) + info.samples * ROW.itemsize
    if size != expected:
        found = "missing" if size is None else f"{size} bytes, expected {expected}"
        raise ShardError(f"{where}: {found}; fetch it again")
    data = folder.read(name)
    if hashlib.sha256(data).hexdigest() != info.index_sha256:
        raise ShardError(
            f"{where} was changed: its checksum is not the one in {MANIFEST}; fetch both again"
        )
    rows = np.frombuffer(data, ROW, offset=len(header))
    if data[: len(header)] != header or not _fits(rows, shards):
        raise ShardError(f"{where} does not fit the shard list of {split}; fetch both again")
    return SplitIndex(rows, shards)


def _fits(rows: np.ndarray, shards: Sequence[ShardInfo]) -> bool:
    """Whether the samples of each shard are contiguous from its first byte, and end in it."""
    counts = np.array([shard.samples for shard in shards], np.int64)
    ends = np.array([shard.bytes for shard in shards], np.int64) - len(END)
    first = np.cumsum(counts) - counts
    before = np.zeros(1, np.int64)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[begin : begin + _ROWS_AT_ONCE]
        numbers = np.arange(begin, begin + len(part))
        shard = np.searchsorted(first, numbers, side="right") - 1
        stops = part["offset"] + part["size"].astype(np.int64)
        starts = np.concatenate([before, stops[:-1]])
        starts[numbers == first[shard]] = 0
        if not (
            np.array_equal(part["shard"], shard)
            and np.array_equal(part["offset"], starts)
            and (part["size"] >= BLOCK).all()
            and (stops <= ends[shard]).all()
        ):
            return False
        before = stops[-1:]
    return True


def scan(contents: Contents, info: ShardInfo) -> tuple[np.ndarray, str]:
    """Rows of a shard, without checksums and labels, from the headers of its members.

    Also the reason why the archive does not hold the samples of the shard list, empty when it does;
    the rows are then those of the samples that can be found.
    """
    offsets: list[int] = []
    keys: set[str] = set()
    last, end = "", 0
    damage = ""
    try:
        if len(contents) != info.bytes:
            raise ShardError(f"{len(contents)} bytes, expected {info.bytes}")
        for name, offset, _, stop in read_headers(contents):
            key = name.partition(".")[0]
            if key != last or not offsets:
                if key in keys:
                    raise ShardError(f"{key}: two samples have this key")
                if len(offsets) == info.samples:
                    raise ShardError(f"{key}: more than the {info.samples} samples of its list")
                keys.add(key)
                offsets.append(offset)
            last, end = key, -(-stop // BLOCK) * BLOCK
    except ShardError as error:
        damage = str(error)
    if not damage and len(offsets) < info.samples:
        damage = f"{len(offsets)} samples, expected {info.samples}"
    return make_rows(offsets, end, 0, -1), damage


def complete(rows: np.ndarray, contents: Contents, *, labelled: bool) -> None:
    """Fill in checksums and labels from a shard; ShardError when it does not hold such samples."""
    for row in rows:
        part = contents[int(row["offset"]) : int(row["offset"] + row["size"])]
        row["checksum"] = checksum(part)
        labels = [bytes(content) for name, _, content in read_part(part) if name.endswith(".cls")]
        if labelled:
            if len(labels) != 1 or not labels[0].isdigit():
                raise ShardError(f"the sample at byte {row['offset']} has no label")
            row["label"] = int(labels[0])
