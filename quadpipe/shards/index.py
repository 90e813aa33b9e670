"""The index of a split: one row per sample, so that readers find and check samples by number.

Rows are in the order of the shard list and, in a shard, of its samples. A dataset whose manifest
names no index was written before indexes existed: its samples are found by their headers, and have
no checksums.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from quadpipe.errors import ShardError
from quadpipe.files import Contents, ReadableFolder
from quadpipe.shards.arrays import read_array
from quadpipe.shards.format import index_name
from quadpipe.shards.manifest import ShardInfo, SplitInfo
from quadpipe.shards.shard_list import ShardList
from quadpipe.shards.tar import BLOCK, END, read_headers, read_part
from quadpipe.text import counted

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


def read_index(
    folder: ReadableFolder, split: str, info: SplitInfo, shards: ShardList
) -> np.ndarray:
    """The rows of a split, `ROW` `[samples]`, in the order of the shard list.

    ShardError when the file is not the one that the manifest names, or does not fit the list.
    """
    name = index_name(split)
    rows = read_array(folder, name, FIELDS, (info.samples,), info.index_sha256)
    if not _fits(rows, shards):
        raise ShardError(
            f"{folder.where(name)} does not fit the shard list of {split}; fetch both again"
        )
    return rows


def _fits(rows: np.ndarray, shards: ShardList) -> bool:
    """Whether the samples of each shard are contiguous from its first byte, and end in it."""
    first, ends = np.array(shards.firsts), shards.bytes - len(END)
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
        damage = f"{counted(len(offsets), 'sample')}, expected {info.samples}"
    return make_rows(offsets, end, 0, -1), damage


def parts(rows: np.ndarray, contents: Contents) -> Iterator[tuple[np.void, memoryview]]:
    """Each row of a shard with the bytes of its sample; ShardError where a checksum differs."""
    for row in rows:
        yield row, part_of(row, contents)


def part_of(row: np.void, contents: Contents) -> memoryview:
    """The bytes of a sample of a shard; ShardError when they do not have the row's checksum."""
    offset = int(row["offset"])
    part = contents[offset : offset + int(row["size"])]
    if row["checksum"] and checksum(part) != row["checksum"]:
        raise mismatch(part, offset)
    return part


def complete(rows: np.ndarray, contents: Contents, *, labelled: bool) -> None:
    """Fill in checksums and labels from a shard; ShardError when it does not hold such samples."""
    for row, part in parts(rows, contents):
        row["checksum"] = checksum(part)
        labels = [bytes(content) for name, _, content in read_part(part) if name.endswith(".cls")]
        if labelled:
            if len(labels) != 1 or not labels[0].isdigit():
                raise ShardError(f"the sample at byte {row['offset']} has no label")
            row["label"] = int(labels[0])
