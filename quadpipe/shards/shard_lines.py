"""Lines of a shard list -> one row per shard.

A million lines take half a second: of a block of text, the lines that have the form of its first
line are converted together. Other lines, which quadpipe does not write, are parsed one by one.

Letters: n lines of a block; L bytes of a line.
"""

import json
import re
from collections.abc import Iterator

import numpy as np

from quadpipe.errors import ConfigError, ShardError
from quadpipe.fields import known_fields
from quadpipe.files import Contents
from quadpipe.shards.format import shard_name
from quadpipe.shards.manifest import ShardInfo

ROW = np.dtype(
    [
        ("number", "<i8"),
        ("view", "u1"),
        ("samples", "<i4"),
        ("first", "<i8"),
        ("bytes", "<i8"),
        ("sha256", "u1", (32,)),
    ]
)
"""number: of the shard in the plan of its split. first: number of its first sample in the index."""

BLOCK = 2**18
"""Bytes of a list that are read and parsed at a time."""

_LARGEST_SHARD = 2**62
_SMALLEST_LINE = 130

# A line as `json_bytes` writes it. Numbers have too few digits to overflow.
_LINE = re.compile(
    rb'\{"bytes":(?P<bytes>[0-9]{1,18}),'
    rb'"name":"(?P<split>[a-z]+)-(?:v(?P<name_view>[0-9]{2})-)?(?P<number>[0-9]{6,10})\.tar",'
    rb'"samples":(?P<samples>[0-9]{1,9}),'
    rb'"sha256":"(?P<sha256>[0-9a-f]{64})",'
    rb'"view":(?P<view>[0-9]{1,2})\}'
)
_NEWLINE, _ZERO = b"\n"[0], b"0"[0]
_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = range(16)


def parts_of(contents: Contents) -> Iterator[memoryview]:
    """The contents in parts of `BLOCK` bytes."""
    for start in range(0, len(contents), BLOCK):
        yield contents[start : start + BLOCK]


class LineParser:
    """The parser of the list of one split, with that many views.

    where: the list, for errors. samples_per_shard: the largest number of samples of a shard.
    """

    def __init__(self, where: str, split: str, views: int, samples_per_shard: int) -> None:
        self._where, self._split = where, split
        self._views, self._most_samples = views, samples_per_shard

    def parse(self, contents: Contents) -> np.ndarray:
        """`ROW` `[shards]`; ShardError names the line that is not one of a shard."""
        rows, found = np.empty(len(contents) // _SMALLEST_LINE + 1, ROW), 0
        for lines in self._blocks(contents):
            text = np.frombuffer(lines, np.uint8)
            stops = np.flatnonzero(text == _NEWLINE)
            self._fill(rows[found : found + len(stops)], text, stops, found)
            found += len(stops)
        rows = rows[:found]
        rows["first"] = np.cumsum(rows["samples"], dtype=np.int64) - rows["samples"]
        rows.flags.writeable = False
        return rows

    def _blocks(self, contents: Contents) -> Iterator[bytes]:
        """The text in whole lines; the last one too ends with a newline."""
        rest = b""
        for part in parts_of(contents):
            whole, newline, after = part.tobytes().rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = b""
            rest += after
            if len(rest) > BLOCK:
                raise ShardError(f"{self._where} has a line of more than {BLOCK:,} bytes")
        if rest:
            yield rest + b"\n"

    def _fill(self, rows: np.ndarray, text: np.ndarray, stops: np.ndarray, before: int) -> None:
        """Fill in the rows of a block, whose lines end at `stops`. before: lines before it."""
        starts = np.concatenate([[0], stops[:-1] + 1])
        lengths = stops - starts
        left = np.ones(len(stops), np.bool_)
        while left.any():
            at = int(left.argmax())
            line = text[starts[at] : stops[at]].tobytes()
            match = _LINE.fullmatch(line)
            if match is not None and match["split"] == self._split.encode():
                same = np.flatnonzero(left & (lengths == len(line)))
                # A view of every part of the text that is as long as this line.
                parts = np.ndarray(len(text) - len(line), f"V{len(line)}", text, strides=(1,))
                lines = parts[starts[same]].view(np.uint8).reshape(len(same), -1)
                converted, good = self._convert(match, lines)
                rows[same[good]] = converted[good]
                left[same[good]] = False
            if left[at]:
                rows[at] = self._row(line, before + at + 1)
                left[at] = False

    def _convert(self, match: re.Match[bytes], lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of lines, uint8 `[n, L]`; bool `[n]`: valid ones, with the match's form."""
        rows = np.zeros(len(lines), ROW)
        good = np.ones(len(lines), np.bool_)
        fixed = np.ones(lines.shape[1], np.bool_)
        for name in ("number", "view", "samples", "bytes"):
            rows[name], right = _number(lines, match.span(name), 6 if name == "number" else 1)
            good &= right
        named = rows["view"] == 0
        if match["name_view"]:
            in_name, right = _number(lines, match.span("name_view"), 2)
            named = right & (in_name == rows["view"]) & (in_name > 0)
        digests = _NIBBLES.take(lines[:, slice(*match.span("sha256"))])
        rows["sha256"] = digests[:, ::2] << 4 | digests[:, 1::2]
        good &= named & (digests < 16).all(axis=1)
        good &= (rows["view"] < self._views) & (rows["samples"] <= self._most_samples)
        good &= (rows["samples"] > 0) & (rows["bytes"] > 0)
        for name in match.groupdict():
            fixed[slice(*match.span(name))] = name == "split"
        expected = np.frombuffer(match[0], np.uint8)
        good &= ((lines == expected) | ~fixed).all(axis=1)
        return rows, good

    def _row(self, line: bytes, number: int) -> np.ndarray:
        """One line, written in any way; ShardError when it is not valid."""
        row = np.zeros((), ROW)
        try:
            shard = ShardInfo(**known_fields(ShardInfo, json.loads(line)))
            self._check(shard)
        except (ValueError, TypeError, RecursionError, ConfigError) as error:
            raise ShardError(f"{self._where}, line {number}: {error}; fetch it again") from error
        row["number"], row["view"] = shard.index, shard.view
        row["samples"], row["bytes"] = shard.samples, shard.bytes
        row["sha256"] = np.frombuffer(bytes.fromhex(shard.sha256), np.uint8)
        return row

    def _check(self, shard: ShardInfo) -> None:
        """Raise ValueError unless it can be a shard of the split."""
        match = re.fullmatch(r".*-(\d{6,10})\.tar", shard.name, re.ASCII)
        if match is None or shard.name != shard_name(self._split, shard.view, int(match[1])):
            raise ValueError(f"{shard.name!r} is not a shard of view {shard.view} of {self._split}")
        if min(shard.samples, shard.bytes) < 1:
            raise ValueError(f"{shard.name} has no samples or no bytes")
        if shard.view >= self._views:
            raise ValueError(f"{shard.name} is of view {shard.view}, and there are {self._views}")
        if shard.samples > self._most_samples:
            raise ValueError(
                f"{shard.name} has {shard.samples} samples, more than the {self._most_samples} of "
                f"a shard"
            )
        if shard.bytes > _LARGEST_SHARD:
            raise ValueError(f"{shard.name} has more bytes than a file can have")
        if not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
            raise ValueError(f"the sha256 of {shard.name} is not 64 hex digits")


def _number(lines: np.ndarray, span: tuple[int, int], fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 `[n]`: the decimal number in these columns of lines; bool `[n]`: where there is one.

    fewest: digits to which numbers are filled up with zeros.
    """
    values = np.zeros(len(lines), np.int64)
    good = np.ones(len(lines), np.bool_)
    if span[1] - span[0] > fewest:
        good &= lines[:, span[0]] != _ZERO
    for column in range(*span):
        digits = lines[:, column] - _ZERO  # below the digits it wraps around
        good &= digits <= 9
        values = 10 * values + digits
    return values, good
