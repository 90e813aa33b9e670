"""Datasets that strangers made to do harm: refused by whatever reads them, or skipped and counted.

Nothing of them is run, nothing is written, and no memory is taken for what they claim.
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import quadpipe
from forging import (
    READERS,
    count_with_skip,
    edit_manifest,
    make_dataset,
    members_of,
    replace_member,
    reseal,
    rewrite_shard_list,
    tar_of,
)
from quadpipe.cli.gallery import exhibits
from quadpipe.errors import ConfigError, ShardError
from quadpipe.files import LocalFolder
from quadpipe.loader import Loader
from quadpipe.shards.format import npy_bytes
from quadpipe.shards.tar import END, member_bytes
from quadpipe.shards.verify import verify

SHARD, KEY = "train-000001.tar", "0000000005"
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    dataset = make_dataset(tmp_path_factory.mktemp("whole"))
    for read in READERS.values():  # so that imports and compilation on first use are not counted
        read(dataset)
    count_with_skip(dataset)
    return dataset


@pytest.fixture
def dataset(whole, tmp_path) -> Iterator[Path]:
    """A copy that a test may change; while it is read nothing is written and little allocated."""
    copy = Path(shutil.copytree(whole, tmp_path / "place" / "shards"))
    yield copy
    assert os.listdir(tmp_path / "place") == ["shards"]
    assert not (tmp_path / "was-run").exists()


def refused(dataset: Path, message: str) -> None:
    """Every reader raises a ShardError that says so, without taking memory or writing files."""
    before = sorted(dataset.rglob("*"))
    tracemalloc.start()
    try:
        for name, read in READERS.items():
            with pytest.raises(ShardError) as error:
                read(dataset)
            assert re.search(message, str(error.value)), f"{name}: {error.value}"
        assert tracemalloc.get_traced_memory()[1] < 8 * MEGABYTE
    finally:
        tracemalloc.stop()
    assert sorted(dataset.rglob("*")) == before


def check_shard(dataset: Path, message: str, lost: int) -> None:
    """A shard is refused with its name, found by verify, and skipped and counted."""
    refused(dataset, rf"{re.escape(SHARD)}: .*{message}")
    assert any(re.search(rf"{re.escape(SHARD)}: .*{message}", line) for line in findings(dataset))
    for name, count in count_with_skip(dataset).items():
        assert count == (16 - lost, lost), name


def findings(dataset: Path) -> list[str]:
    return list(verify(quadpipe.Dataset(dataset)))


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
def test_members_that_claim_other_things_are_refused(dataset, member, data, message):
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
def test_json_that_is_no_description_is_refused(dataset, data, message):
    """The loader gives out nothing of it and does not read it."""
    replace_member(dataset, SHARD, f"{KEY}.json", data)
    for name in ("samples", "webdataset", "info", "show", "loader without its compiled reader"):
        with pytest.raises(ShardError, match=rf"{re.escape(SHARD)}: {KEY}\.json: .*{message}"):
            READERS[name](dataset)
    assert any(f"{SHARD}: {KEY}.json: " in line for line in findings(dataset))
    counts = count_with_skip(dataset)
    assert counts["samples"] == counts["webdataset"] == counts["slowly"] == (15, 1)
    assert len(list(Loader(dataset, "train", batch_size=5).epoch(0))) == 4


def inserted(*changes: object, kind: int = tarfile.USTAR_FORMAT, **fields: object) -> bytes:
    """A tar member with these fields of `tarfile.TarInfo`."""
    info = tarfile.TarInfo(f"{KEY}.extra")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(kind)


SPARSE = {"type": tarfile.GNUTYPE_SPARSE, "size": 0}


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
def test_sizes_of_members_are_not_believed(dataset, size):
    members = list(members_of(dataset / SHARD).items())
    data = tar_of(members[:10])[: -len(END)] + with_size(size) + tar_of(members[10:])
    reseal(dataset, SHARD, data)
    check_shard(dataset, "damaged header|cut short|is not a plain file", lost=2)


@pytest.mark.parametrize(
    "prefix", ["../../evil", "/etc/passwd", "..", "a/b", "https://example.org/x"]
)
def test_names_of_members_lead_nowhere(dataset, prefix):
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


def test_pictures_are_not_larger_than_their_tokens(tmp_path):
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
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    *errors, grown = done.stdout.splitlines()
    assert len(errors) == len(READERS), done.stderr
    assert all(re.search(message, error) for error in errors)
    assert int(grown) * 1024 < 8192 * 8192 * 3


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"", b"5", b'{"views":5}', b"NaN"])
def test_markers_that_are_none_are_not_used(whole, dataset, data):
    for path in (dataset / ".quadpipe/markers/train").rglob("*.json"):
        path.write_bytes(data)
    for name in ("loader", "loader without its compiled reader"):
        READERS[name](dataset)
    assert len([line for line in findings(dataset) if "markers/train" in line]) == 4


def set_manifest(text: bytes) -> Callable[[Path], None]:
    def write(dataset: Path) -> None:
        (dataset / "dataset.json").write_bytes(text)

    return write


def in_manifest(**changes: object) -> Callable[[Path], None]:
    return lambda dataset: edit_manifest(dataset, **changes)


def doubled(dataset: Path) -> None:
    """Every key twice, the first time with a value of another kind."""
    text = (dataset / "dataset.json").read_text()
    keys = ",".join(f"{json.dumps(key)}:[7]" for key in json.loads(text))
    (dataset / "dataset.json").write_text("{" + keys + "," + text.removeprefix("{"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_manifest(tokenizer__image_size=[2**40, 2**40]), "has a side above 16,384"),
        (in_manifest(tokenizer__image_size=[10**400, 32]), "has a side above 16,384"),
        (in_manifest(tokenizer__image_size=[-32, 32]), "height -32 is not above 0"),
        (in_manifest(tokenizer__image_size=[16384, 16384], tokenizer__patch_size=1,
                     tokenizer__max_patch_size=1), "more than 1,048,576; use a larger patch_size"),
        (in_manifest(tokenizer__patch_size=0), "patch_size 0 is not above 0"),
        (in_manifest(tokenizer__tokens=10**18), "1000000000000000000 tokens cannot tile"),
        (in_manifest(tokenizer__tokens=-5), "-5 tokens cannot tile"),
        (in_manifest(tokenizer__crop_pct=10**400), "crop_pct must be a number in range"),
        (in_manifest(tokenizer__crop_pct=float("nan")), "crop_pct must be a finite number"),
        (in_manifest(tokenizer__seed=2**64), "is not from 0 to"),
        (in_manifest(tokenizer__thresholds=[[8, 10**400]]), "thresholds must be a number in ra"),
        (in_manifest(samples_per_shard=0), "samples_per_shard 0 is out of range"),
        (in_manifest(splits__val__views=10**12, splits__val__rejected=4, splits__val__samples=0),
         "views 1000000000000 is above 100"),
        (in_manifest(splits__train__samples=10**400), "are not 1 views of"),
        (in_manifest(splits__train__shard_list="https://example.org/x"), "is not the name of its"),
        (in_manifest(splits__train__shard_list="/etc/passwd"), "is not the name of its"),
        (in_manifest(classes=["left", None]), "classes must be a list of names"),
        (in_manifest(classes=["left", {"a": 1}]), "classes must be a list of names"),
        (in_manifest(classes={"left": 0, "right": 1}), "classes must be a list of names"),
        (in_manifest(classes="ab"), "classes must be a list of names"),
        (in_manifest(classes=["left", "\ud800"]), "classes must be text in UTF-8"),
        (in_manifest(imaging_library={"name": "Pillow"}), "imaging_library needs a name"),
        (in_manifest(codec={"name": ["raw"]}), "name must be text"),
        (in_manifest(name={"a": 1}), "name must be text"),
        (set_manifest(b'{"format_version":"1.0","revision":1' + b"0" * 5000 + b"}"), ""),
        (set_manifest(b'{"a":' * 100_000), "cannot be used"),
        (set_manifest(b"\xff\xfe{"), "cannot be used"),
        (set_manifest(b""), "cannot be used"),
        (set_manifest(b"[1]"), "cannot be used"),
    ],
)  # fmt: skip
def test_manifests_that_claim_the_impossible_are_refused_when_opened(dataset, change, message):
    change(dataset)
    refused(dataset, rf"dataset\.json cannot be used: .*{message}|dataset\.json {message}")
    with pytest.raises(ShardError):
        quadpipe.Dataset(dataset)


def test_of_a_key_that_stands_twice_the_last_value_counts(dataset):
    doubled(dataset)
    assert findings(dataset) == []
    assert len(list(quadpipe.Dataset(dataset).samples("train"))) == 16


def test_a_manifest_of_the_largest_images_is_opened_and_summed_up_in_little_memory(dataset):
    edit_manifest(
        dataset, tokenizer__image_size=[16384, 16384], tokenizer__patch_size=16,
        tokenizer__max_patch_size=16384, tokenizer__tokens=2**20,
    )  # fmt: skip
    tracemalloc.start()
    try:
        for read in READERS.values():
            with pytest.raises(ShardError, match=r"train-00000\d\.tar: .*tokens\.npy: holds "):
                read(dataset)
        assert len(findings(dataset)) >= 5
        # The boxes of a million patches; a sample of these images would be a gigabyte.
        assert tracemalloc.get_traced_memory()[1] < 100 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 10**12}, "1000000000000 samples, more than the 4 of a shard"),
        ({"samples": 100}, "100 samples, more than the 4 of a shard"),
        ({"samples": 10**400}, "samples, more than the 4 of a shard"),
        ({"bytes": 10**30}, "has more bytes than a file can have"),
        ({"bytes": 2**61}, "expected 2305843009213693952"),
        ({"samples": 5.0}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"view": -1}, "is not a shard of view -1 of train"),
        ({"view": 10**400}, "is not a shard of view 1"),
        ({"name": "/etc/passwd"}, "is not a shard of view 0 of train"),
        ({"name": "https://example.org/train-000000.tar"}, "is not a shard of view 0 of train"),
        ({"name": "train-000000.tar\n"}, "is not a shard of view 0 of train"),
        (
            {"name": "train-\u0660\u0660\u0660\u0660\u0660\u0660.tar"},
            "is not a shard of view 0 of train",
        ),
        ({"name": "val-000000.tar"}, "is not a shard of view 0 of train"),
        ({"name": "train-000009.tar"}, r"train-000009\.tar: (missing|no such file)|cannot read .*"),
        ({"sha256": "\ud800"}, "sha256 must be text in UTF-8"),
    ],
)
def test_shard_lists_that_claim_the_impossible_are_refused(dataset, change, message):
    rewrite_shard_list(dataset, lambda rows: rows[0].update(change), "train")
    refused(dataset, message)
    assert findings(dataset)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "line 1: "),
        (b'{"name":' * 400, "line 1: "),
        (b'{"samples":' + b"9" * 5000 + b"}", "too many for 4 shards|line 1: "),
        (b"\xff\xfe\n", "line 1: "),
        (b"NaN\n", "line 1: NaN|line 1: nan"),
        (b"", "holds 0 shards"),
        (b"\n" * 100, "line 1: "),
        (b"\0" * 1000, "line 1: "),
    ],
)
def test_shard_lists_that_are_none_are_refused(dataset, text, message):
    (dataset / "train.shards.jsonl").write_bytes(text)
    rewrite_digest(dataset)
    refused(dataset, rf"train\.shards\.jsonl,? .*({message}|too many for 4 shards)")
    assert findings(dataset)


def rewrite_digest(dataset: Path) -> None:
    digest = hashlib.sha256((dataset / "train.shards.jsonl").read_bytes()).hexdigest()
    edit_manifest(dataset, splits__train__shard_list_sha256=digest)


def test_a_shard_list_of_a_gigabyte_is_not_read(dataset):
    with (dataset / "train.shards.jsonl").open("r+b") as file:
        file.truncate(10**9)
    refused(dataset, "has 1000000000 bytes, too many for 4 shards")
    assert any("too many for 4 shards" in line for line in findings(dataset))


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
def test_paths_lead_to_no_image_outside_the_source(dataset, tmp_path, path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    info = json.dumps({"path": path, "box": [0, 0, 32, 32]}).encode()
    replace_member(dataset, "train-000000.tar", "0000000000.json", info)
    (tmp_path / "place").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="is not an image file below .*; omit --in"):
        exhibits(quadpipe.Dataset(dataset), "train", 1, tmp_path / "place")


def test_a_card_is_not_read_by_anything(dataset):
    (dataset / "README.md").write_text(
        "---\n!!python/object/apply:os.system [touch was-run]\n---\n"
    )
    for read in READERS.values():
        read(dataset)
    assert findings(dataset) == []


@pytest.mark.parametrize("name", [".quadpipe/plan.json", ".quadpipe/rejected.jsonl"])
@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff\xfe", b"5", b'{"codec":1' + b"0" * 5000])
def test_plans_and_rejects_that_are_none_are_findings(dataset, name, data):
    (dataset / name).write_bytes(data + b"\n")
    assert len(findings(dataset)) == 1
    for read in READERS.values():
        read(dataset)


def test_a_marker_that_cannot_be_read_is_a_finding(dataset, monkeypatch):
    real = LocalFolder.read

    def fail(folder: LocalFolder, name: str) -> bytes:
        if "/markers/" in name or "plan" in name:
            raise ShardError(f"cannot read {name}: Permission denied")
        return real(folder, name)

    monkeypatch.setattr(LocalFolder, "read", fail)
    lines = findings(dataset)
    assert len(lines) == 6
    assert all("Permission denied" in line for line in lines)
    for read in READERS.values():
        read(dataset)
