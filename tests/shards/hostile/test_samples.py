"""Shards that were made to do harm are refused by every reader, or skipped and counted.

None of their code is run, nothing is written, and no memory is taken for what they claim.
"""

import gzip
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import KEY, MEGABYTE, SHARD, check_shard, findings

import quadpipe
from forging import (
    READERS,
    count_with_skip,
    make_dataset,
    members_of,
    replace_member,
    reseal,
    tar_of,
)
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import ConfigError, ShardError
from quadpipe.loader import Loader
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.tar import END, member_bytes


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npy(descr: str, shape: str, data: bytes = b"", *, fortran: bool = False) -> bytes:
    """A NumPy file with any header."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


NODES = bytes(20 * 16)


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("tokens.npy", npy("'|u1'", "(1099511627776, 4, 4, 3)"), "holds .*1099511627776"),
        ("nodes.npy", npy("'<i4'", "(1099511627776, 4)", NODES), "holds .*1099511627776"),
        ("importance.npy", npy("'<f4'", "(9" + "9" * 60 + ",)"), "holds "),
        ("importance.npy", npy("'<f4'", "(9" + "9" * 5000 + ",)"), "not a NumPy array"),
        ("nodes.npy", npy("'<i4'", "(-20, 4)", NODES), "not a NumPy array"),
        ("nodes.npy", npy("'<i4'", "(20, -4)", NODES), "not a NumPy array"),
        ("nodes.npy", npy("'<i4'", "(20, 4)", NODES, fortran=True), "fortran_order True"),
        ("nodes.npy", npy("'|O'", "(20, 4)", NODES), r"holds \|O"),
        ("nodes.npy", npy("__import__('os')", "(20, 4)", NODES), "not a NumPy array"),
        ("nodes.npy", npy("[('x', '<i4')]", "(20, 4)", NODES), "not a NumPy array"),
        ("nodes.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "not a NumPy array"),
        ("nodes.npy", b"", "not a NumPy array"),
        ("cls", b"2", "not a class index below 2"),
        ("cls", "²".encode(), "not a class index below 2"),
        ("cls", b"0" * 100_000, "not a class index below 2"),
        ("cls", b" 1", "not a class index below 2"),
    ],
)  # fmt: skip
def test_members_with_false_contents_are_refused(dataset, member, data, message):
    replace_member(dataset, SHARD, f"{KEY}.{member}", data)
    check_shard(dataset, rf"{KEY}\.{member}: .*{message}", lost=1)


@pytest.mark.parametrize("member", ["tokens.npy", "nodes.npy", "importance.npy", "json", "cls"])
def test_pickles_are_never_loaded(dataset, tmp_path, member):
    file = io.BytesIO()
    np.save(file, np.array([Payload(tmp_path / "was-run")]), allow_pickle=True)
    for data in (file.getvalue(), pickle.dumps(Payload(tmp_path / "was-run"))):
        replace_member(dataset, SHARD, f"{KEY}.{member}", data)
        if member == "json":
            with pytest.raises(ShardError, match=rf"{KEY}\.json: not JSON"):
                READERS["samples"](dataset)
        else:
            check_shard(dataset, rf"{KEY}\.{member}: ", lost=1)


def changed_nodes(*changes: tuple[int, int, int]) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        nodes = np.frombuffer(data[-20 * 16 :], "<i4").reshape(20, 4).copy()
        for row, column, value in changes:
            nodes[row, column] = value
        return npy_bytes(nodes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_nodes((5, 0, 99)), "not followed by its quarters"),
        (changed_nodes((5, 1, -1)), "not followed by its quarters"),
        (changed_nodes((4, 2, 2**31 - 1)), "not followed by its quarters"),
        (changed_nodes((6, 0, 0), (7, 1, 0)), "not followed by its quarters"),
        (changed_nodes((3, 0, 0)), "not the largest patches in raster order"),
        (changed_nodes((0, 2, 40)), "not the largest patches in raster order"),
        (changed_nodes((0, 3, 2**31 - 1)), "the split steps are not 0 to 3, each once"),
        (changed_nodes((0, 3, -(2**31))), "the split steps are not 0 to 3, each once"),
        (changed_nodes(*((row, 3, -1) for row in range(20))), "the split steps are not 0 to 3"),
        (changed_nodes(*((row, 3, 0) for row in range(20))), "the split steps are not 0 to 3"),
    ],
)
def test_boxes_that_do_not_tile_the_image_are_refused(dataset, change, message):
    nodes = members_of(dataset / SHARD)[f"{KEY}.nodes.npy"]
    replace_member(dataset, SHARD, f"{KEY}.nodes.npy", change(nodes))
    check_shard(dataset, rf"{KEY}\.nodes\.npy: .*{message}", lost=1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"path":"x","box":[0,0,1' + b"0" * 400 + b",1]}", "no box of four numbers"),
        (b'{"path":"x","box":[0,0,1' + b"0" * 5000 + b",1]}", "not JSON"),
        (b'{"path":"x","box":[0,0,NaN,1]}', "no box of four numbers"),
        (b'{"path":"x","box":[0,0,Infinity,1]}', "no box of four numbers"),
        (b'{"path":"x","box":[0,0,true,1]}', "no box of four numbers"),
        (b'{"path":"x","box":{"0":1}}', "no box of four numbers"),
        (b'{"path":"x","path":5,"box":[0,0,1,1]}', "has no path"),
        (b'{"path":"","box":[0,0,1,1]}', "has no path"),
        (rb'{"path":"\ud800","box":[0,0,1,1]}', "has no path"),
        (rb'{"path":"\u001b]0;title\u0007","box":[0,0,1,1]}', "has no path"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"path":"\xff\xfe"}', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"null", "not a JSON object"),
    ],
)
def test_invalid_json_members_are_refused(dataset, data, message):
    """The loader gives out no JSON and does not parse it."""
    replace_member(dataset, SHARD, f"{KEY}.json", data)
    for name in ("samples", "webdataset", "info", "show", "loader without its compiled reader"):
        with pytest.raises(ShardError, match=rf"{re.escape(SHARD)}: {KEY}\.json: .*{message}"):
            READERS[name](dataset)
    assert any(f"{SHARD}: {KEY}.json: " in line for line in findings(dataset))
    counts = count_with_skip(dataset)
    assert counts["samples"] == counts["webdataset"] == counts["slowly"] == (15, 1)
    assert len(list(Loader(dataset, "train", batch_size=5).epoch(0))) == 4


def inserted(*, kind: Any = tarfile.USTAR_FORMAT, **fields: Any) -> bytes:
    """A tar member with these fields of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(f"{KEY}.extra")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(kind)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (inserted(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is not a plain file"),
        (inserted(type=tarfile.LNKTYPE, linkname=f"{KEY}.json"), "is not a plain file"),
        (inserted(type=tarfile.CHRTYPE, devmajor=1, devminor=5), "is not a plain file"),
        (inserted(type=tarfile.BLKTYPE, devmajor=8), "is not a plain file"),
        (inserted(type=tarfile.FIFOTYPE), "is not a plain file"),
        (inserted(type=tarfile.DIRTYPE), "is not a plain file"),
        (inserted(type=tarfile.CONTTYPE), "is not a plain file"),
        (inserted(type=tarfile.GNUTYPE_SPARSE), "is not a plain file"),
        (inserted(kind=tarfile.PAX_FORMAT, pax_headers={"path": "../evil"}), "not a plain file"),
        (inserted(kind=tarfile.PAX_FORMAT, pax_headers={"size": "9" * 20}), "not a plain file"),
        (inserted(kind=tarfile.GNU_FORMAT, name="x" * 300), "is not a plain file"),
        (inserted(name="p" * 120 + "/" + "x" * 90), "is not a plain file"),
        (inserted(size=8 * 2**30 - 1), "cut short: .* ends beyond the"),
        (inserted(kind=tarfile.GNU_FORMAT, size=2**40), "damaged header"),
        (inserted(name=f"{KEY}\x1b[31m.extra"), "damaged header"),
    ],
)
def test_tars_hold_plain_files_with_short_names_only(dataset, header, message):
    members = list(members_of(dataset / SHARD).items())
    data = tar_of(members[:10])[: -len(END)] + header + tar_of(members[10:])
    reseal(dataset, SHARD, data)
    check_shard(dataset, message, lost=2)


def with_size(text: bytes) -> bytes:
    """The header of an empty member with any size, its checksum made to fit."""
    header = bytearray(member_bytes(f"{KEY}.extra", b""))
    header[124:136] = text.ljust(12, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "size", [b"-1000", b"-1", b"", b"9", b"77777777777", b"\x80" + b"\xff" * 11]
)
def test_false_sizes_of_members_are_refused(dataset, size):
    members = list(members_of(dataset / SHARD).items())
    data = tar_of(members[:10])[: -len(END)] + with_size(size) + tar_of(members[10:])
    reseal(dataset, SHARD, data)
    check_shard(dataset, "damaged header|cut short|is not a plain file", lost=2)


@pytest.mark.parametrize(
    "prefix", ["../../evil", "/etc/passwd", "..", "a/b", "https://example.org/x"]
)
def test_names_of_members_are_not_used_as_paths(dataset, prefix):
    members = [
        (name.replace(KEY, prefix), data) for name, data in members_of(dataset / SHARD).items()
    ]
    reseal(dataset, SHARD, tar_of(members))
    if "." not in prefix:  # a key like any other: it is a word in a batch, never a path
        assert any(prefix in b.keys for b in Loader(dataset, "train", batch_size=5).epoch(0))
        assert any(f"{prefix} does not belong to this shard" in line for line in findings(dataset))
    else:
        check_shard(dataset, r"tokens\.npy: missing", lost=1)


def test_compressed_archives_are_not_unpacked(dataset):
    reseal(
        dataset, SHARD, gzip.compress(member_bytes("0000000004.tokens.npy", bytes(64 * MEGABYTE)))
    )
    check_shard(dataset, "damaged header", lost=4)


def test_token_images_of_a_larger_size_are_refused(tmp_path):
    dataset = make_dataset(tmp_path, codec="png")
    file = io.BytesIO()
    Image.new("RGB", (8192, 8192)).save(file, "PNG", compress_level=9)
    replace_member(dataset, SHARD, f"{KEY}.tokens.png", file.getvalue())
    message = rf"{SHARD}: {KEY}\.tokens\.png: is a RGB image of 8192 x 8192 pixels, expected"
    program = (
        "import resource, sys; from forging import READERS\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for read in READERS.values():\n"
        "    try: read(sys.argv[1])\n"
        "    except Exception as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(dataset)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    *errors, grown = done.stdout.splitlines()
    assert len(errors) == len(READERS), done.stderr
    assert all(re.search(message, error) for error in errors)
    assert int(grown) * 1024 < 8192 * 8192 * 3


@pytest.mark.parametrize(
    "path",
    [
        "../a.png",
        "/a.png",
        "%2e%2e/a.png",
        "a/%2E./%2e%2e/a.png",
        "%2Fa.png",
        "a%00.png",
        "a.tar/b",
    ],
)
def test_paths_do_not_lead_to_images_outside_the_source(dataset, tmp_path, path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    info = json.dumps({"path": path, "box": [0, 0, 32, 32]}).encode()
    replace_member(dataset, "train-000000.tar", "0000000000.json", info)
    (tmp_path / "place").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="is not an image file below .*; omit --in"):
        exhibits(quadpipe.Dataset(dataset), "train", 1, tmp_path / "place")
