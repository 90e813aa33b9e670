"""Shard lists: read in blocks of lines, with the same result as line by line."""

import hashlib
import json
import pickle
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quadpipe.errors import ShardError
from quadpipe.files import LocalFolder
from quadpipe.shards.format import json_bytes, shard_name
from quadpipe.shards.manifest import ShardInfo, SplitInfo
from quadpipe.shards.shard_lines import BLOCK, LineParser
from quadpipe.shards.shard_list import FIRST_BYTES, ShardList, read_first_shards, read_shard_list
from reference.shard_list import read_lines

VIEWS, MOST = 12, 1000


def shard(number: int, view: int = 0, samples: int = 4, size: int = 20480) -> ShardInfo:
    return ShardInfo(
        name=shard_name("train", view, number),
        view=view,
        samples=samples,
        bytes=size,
        sha256=hashlib.sha256(b"%d %d" % (number, view)).hexdigest(),
    )


def text_of(shards: list[ShardInfo]) -> bytes:
    return b"".join(json_bytes(asdict(one)) for one in shards)


def parsed(data: bytes) -> ShardList:
    return ShardList("train", LineParser("list", "train", VIEWS, MOST).parse(memoryview(data)))


def write(folder: Path, data: bytes, shards: list[ShardInfo], views: int = 1) -> SplitInfo:
    (folder / "train.shards.jsonl").write_bytes(data)
    samples = sum(one.samples for one in shards)
    return SplitInfo(
        inputs=samples // views,
        rejected=0,
        samples=samples,
        views=views,
        shards=len(shards),
        bytes=sum(one.bytes for one in shards),
        shard_list="train.shards.jsonl",
        shard_list_sha256=hashlib.sha256(data).hexdigest(),
    )


numbers = st.sampled_from([0, 7, 99_999, 123_456, 999_999, 1_000_000, 9_999_999_999])
shards_of_all_kinds = st.builds(
    shard,
    numbers,
    st.sampled_from([0, 1, 9, 10, 11]),
    st.sampled_from([1, 9, 10, 999, 1000]),
    st.sampled_from([1, 512, 10**17, 10**18 - 1, 10**18, 2**62]),
)


def changed(one: ShardInfo, change: str) -> bytes:
    """A line that is written in another way, or that is wrong."""
    line = json_bytes(asdict(one)).rstrip(b"\n")
    document: dict[str, Any] = json.loads(line)
    replaced = {
        "view in the name only": (f'"view":{one.view}', f'"view":{one.view + 1}'),
        "leading zero": ('"bytes":', '"bytes":0'),
        "leading zero in the view": ('"view":', '"view":0'),
        "longer number": ("-000", "-0000"),
        "view 0 in the name": ("train-", "train-v00-"),
        "view not in the name": ("-v03", ""),
        "other split": ("train", "trawn"),
        "letters": (f'"samples":{one.samples}', f'"samples":{one.samples}a'),
        "a slash among digits": (f'"samples":{one.samples}', '"samples":/'),
        "capital": (one.sha256[:1], "G"),
        "twice": ('{"bytes":', '{"samples":1,"bytes":'),
        "no end": ("}", ""),
        "more after it": ("}", "} {}"),
        "null": (f'"samples":{one.samples}', '"samples":null'),
        "0": (f'"samples":{one.samples}', '"samples":0'),
        "fraction": (f'"samples":{one.samples}', f'"samples":{one.samples}.0'),
        "escaped": ("train-", "tr\\u0061in-"),
        "carriage return": ("}", "}\r"),
    }
    if change in replaced:
        old, new = replaced[change]
        return line.decode().replace(old, new, 1).encode()
    others = {
        "other order": json.dumps(dict(reversed(document.items()))).encode(),
        "spaces": b"  " + json.dumps(document).encode() + b" ",
        "unknown field": json_bytes(document | {"later": {"bytes": 5}}).rstrip(b"\n"),
        "missing field": json_bytes({k: v for k, v in document.items() if k != "view"}).rstrip(),
        "too many samples": json_bytes(document | {"samples": MOST + 1}).rstrip(b"\n"),
        "too many bytes": json_bytes(document | {"bytes": 2**63}).rstrip(b"\n"),
        "view of another dataset": json_bytes(asdict(shard(5, 12))).rstrip(b"\n"),
        "short sum": json_bytes(document | {"sha256": "ab"}).rstrip(b"\n"),
        "blank": b"",
        "not JSON": b"\xff" * 140,
    }
    return others[change]


CHANGES = (
    "view in the name only", "view 0 in the name", "view not in the name",
    "leading zero", "leading zero in the view", "longer number",
    "other split", "letters", "a slash among digits", "capital", "twice", "no end",
    "more after it", "null", "0", "fraction", "escaped", "carriage return", "other order",
    "spaces", "unknown field", "missing field", "too many samples", "too many bytes",
    "view of another dataset", "short sum", "blank", "not JSON",
)  # fmt: skip


@settings(max_examples=150)
@given(
    st.lists(shards_of_all_kinds, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(CHANGES)), max_size=2),
    st.booleans(),
)
def test_a_list_read_in_blocks_is_that_read_line_by_line(shards, changes, ends_with_newline):
    lines = [json_bytes(asdict(one)).rstrip(b"\n") for one in shards]
    for place, change in changes:
        if place < len(lines):
            lines[place] = changed(shards[place], change)
    data = b"\n".join(lines) + (b"\n" if ends_with_newline and lines else b"")
    try:
        expected = read_lines(data, "train", VIEWS, MOST)
    except ValueError as error:
        with pytest.raises(ShardError, match=rf"^list, {error}: .*; fetch it again"):
            parsed(data)
        return
    found = parsed(data)
    assert list(found) == expected
    assert [len(found), *found.names()] == [len(expected), *(one.name for one in expected)]
    assert found.samples.tolist() == [one.samples for one in expected]
    assert found.bytes.tolist() == [one.bytes for one in expected]
    assert found.views.tolist() == [one.view for one in expected]
    assert found.numbers.tolist() == [one.index for one in expected]


@pytest.mark.parametrize("place", [4, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_line_among_others_is_read_or_refused(change, place):
    shards = [shard(number, view) for number in range(8) for view in (0, 3)]
    lines = text_of(shards).splitlines()
    lines[place] = changed(shards[place], change)
    data = b"\n".join(lines)
    try:
        expected = read_lines(data, "train", VIEWS, MOST)
    except ValueError:
        with pytest.raises(ShardError, match=rf"list, line {place + 1}: .*; fetch it again"):
            parsed(data)
    else:
        assert list(parsed(data)) == expected


def test_shards_are_found_by_name_and_by_view_in_any_order():
    both = [(number, view) for number in range(50) for view in (0, 3)]
    shards = [shard(number, view, samples=number % 3 + 1) for number, view in both]
    shuffled = random.Random(0).sample(shards, len(shards))
    for given_order in (shards, shuffled):
        found = parsed(text_of(given_order))
        for place, one in enumerate(given_order):
            assert found.position(one.name) == place
            assert found.checksum(one.name) == (one.sha256, one.bytes)
        for name in ("train-000050.tar", "train-v01-000000.tar", "val-000000.tar", "train-0.tar"):
            assert found.checksum(name) is None
            with pytest.raises(ShardError, match="is not in the shard list of train"):
                found.position(name)
        third = found.of_view(3)
        assert list(third) == [one for one in given_order if one.view == 3]
        starts = np.cumsum([0, *(one.samples for one in given_order)])
        assert third.firsts.tolist() == [
            starts[place] for place, one in enumerate(given_order) if one.view == 3
        ]
        assert list(found[10:20]) == given_order[10:20]
        assert found[-1] == given_order[-1]
        assert given_order[3] in found
        with pytest.raises(IndexError):
            found[len(shards)]
        assert list(pickle.loads(pickle.dumps(found))) == given_order


def test_a_shard_that_is_listed_twice_is_found_in_any_order(tmp_path):
    shards = [shard(2), shard(0), shard(1), shard(0)]
    info = write(tmp_path, text_of(shards), shards)
    with pytest.raises(ShardError, match="names a shard twice; fetch it again"):
        read_shard_list(LocalFolder(tmp_path), "train", info, MOST)


def test_totals_beyond_64_bits_are_compared(tmp_path):
    shards = [shard(number, size=2**62) for number in range(5)]
    info = write(tmp_path, text_of(shards), shards)
    assert info.bytes > 2**64
    assert list(read_shard_list(LocalFolder(tmp_path), "train", info, MOST)) == shards


def test_views_of_different_numbers_of_samples_are_refused(tmp_path):
    shards = [shard(0), shard(0, 1, samples=2), shard(1), shard(1, 1, samples=6), shard(2, 1, 2)]
    info = write(tmp_path, text_of(shards), shards, views=2)
    with pytest.raises(ShardError, match=r"views have different numbers of samples, \[8, 10\]"):
        read_shard_list(LocalFolder(tmp_path), "train", info, MOST)


def test_a_line_without_an_end_is_refused(tmp_path):
    with pytest.raises(ShardError, match="list has a line of more than 262,144 bytes"):
        parsed(text_of([shard(0)]) + b" " * 2 * BLOCK)


def test_lines_of_a_long_list_are_not_parsed_one_by_one(tmp_path):
    """Whatever their sizes and numbers of digits, and across the blocks in which they are read."""
    random_sizes = random.Random(0)
    shards = [
        shard(number * 200, view, size=random_sizes.randrange(1, 10**9))
        for number in range(5_000)
        for view in (0, 1)
    ]
    data = text_of(shards)
    assert len(data) > FIRST_BYTES + BLOCK
    info = write(tmp_path, data, shards, views=2)
    with patch.object(LineParser, "_row", side_effect=AssertionError) as one_by_one:
        found = read_shard_list(LocalFolder(tmp_path), "train", info, MOST)
    assert not one_by_one.called
    assert found[7_654] == shards[7_654]
    assert list(found.names()) == [one.name for one in shards]
    with patch("quadpipe.shards.shard_list.ShardInfo", side_effect=AssertionError):
        assert found.of_view(1).samples.sum() == 20_000
    first = read_first_shards(LocalFolder(tmp_path), "train", info, MOST)
    assert list(first) == shards[: len(first)]
    assert FIRST_BYTES - 200 < len(text_of(list(first))) <= FIRST_BYTES
