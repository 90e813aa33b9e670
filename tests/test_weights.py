"""Files of weights that were made to do harm: their code is not run, and no memory is allocated for
what they claim."""

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pickles import MARKER, Hostile, saved
from safetensors.torch import save as save_safetensors

from quadpipe.errors import ConfigError, ShardError
from quadpipe.weights import load_torch, parse_weights, read_weights_file

GIB = 2**30


def repacked(data: bytes, *, pickled: bytes | None = None, compression: int = 0) -> bytes:
    """A torch file with another pickle, or compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for record in old.infolist():
            other = pickled if record.filename.endswith("data.pkl") else None
            new.writestr(record.filename, old.read(record) if other is None else other)
    return file.getvalue()


def pickle_in(document: object) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved(document))) as archive:
        return archive.read("archive/data.pkl")


def safetensors(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed) if length is None else length) + packed + body


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def bytearray_of(size: int) -> bytes:
    """A pickle of {"a": bytearray(size)}."""
    call = b"cbuiltins\nbytearray\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R"
    return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."


def tensor_of(size: int) -> bytes:
    """A pickle of {"a": torch.FloatTensor(size)}."""
    call = b"ctorch\nFloatTensor\n\x8a\x08" + size.to_bytes(8, "little") + b"\x85R"
    return b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s."


def nothing() -> bytes:
    return saved({"a": torch.zeros(3)})


def circle() -> dict[str, Any]:
    document: dict[str, Any] = {}
    document["state"] = [document]
    return document


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not MARKER.exists()


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever asks for much more address space than there is in use fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * GIB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


PICKLES = {
    "a pickle": lambda: pickle.dumps({"a": Hostile()}),
    "a pickle of protocol 0": lambda: pickle.dumps(Hostile(), protocol=0),
    "a torch file": lambda: saved({"a": Hostile()}),
    "a torch file of before": lambda: saved(
        {"state_dict": {"a": torch.zeros(1), "b": Hostile()}}, _use_new_zipfile_serialization=False
    ),
    "a torch file with another pickle": lambda: repacked(
        nothing(), pickled=pickle.dumps(Hostile(), protocol=2)
    ),
    "a module": lambda: saved(torch.nn.Linear(2, 2)),
    "eval": lambda: b"c__builtin__\neval\n(V__import__('pathlib').Path('was-run').touch()\ntR.",
}


@pytest.mark.fault(
    "weights, checkpoints and states that are pickles with code",
    "refused; nothing runs",
)
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_that_would_run_code_is_refused_and_not_run(kind):
    with pytest.raises(ShardError, match="x.pth does not hold plain weights") as caught:
        parse_weights(PICKLES[kind](), "x.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to load it with False


CLAIMS = {
    "a bytearray of terabytes": (lambda: repacked(nothing(), pickled=bytearray_of(2**43)), "bytea"),
    "a bytearray on its own": (lambda: bytearray_of(2**43), "bytearray"),
    "a tensor of terabytes": (lambda: repacked(nothing(), pickled=tensor_of(2**41)), ""),
    "a tensor of a gigabyte": (lambda: repacked(nothing(), pickled=tensor_of(2**28)), "claim"),
    "one number again and again": (
        lambda: saved({"a": torch.zeros(1).expand(2**40)}),
        r"a tensor of \[1099511627776\] has 4 bytes",
    ),
    "one number again and again, wrapped": (
        lambda: saved({"optimizer": [{"state": (torch.zeros(1).expand(2**40),)}]}),
        r"a tensor of \[1099511627776\] has 4 bytes",
    ),
    "more than is in the record": (
        lambda: repacked(saved({"a": torch.zeros(5)}), pickled=pickle_in({"a": torch.zeros(50)})),
        "size",
    ),
    "a compressed file": (
        lambda: repacked(saved({"a": torch.zeros(10**6)}), compression=zipfile.ZIP_DEFLATED),
        "it is compressed",
    ),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_torch_file_does_not_allocate_what_it_only_claims(kind, request):
    make, message = CLAIMS[kind]
    data = make()
    request.getfixturevalue("little_memory")
    with pytest.raises(ShardError, match=f"x.pth does not hold .*{message}") as caught:
        parse_weights(data, "x.pth")
    assert "\n" not in str(caught.value)


HEADERS = {
    "a header of terabytes": safetensors(b"{}", length=2**42),
    "a header of all there is": safetensors(b"{}", length=2**64 - 1),
    "a tensor of terabytes": safetensors({"a": tensor([2**40], 0, 2**42)}, bytes(16)),
    "more than can be counted": safetensors({"a": tensor([2**62, 4], 0, 16)}, bytes(16)),
    "overlapping": safetensors({"a": tensor([4], 0, 16), "b": tensor([4], 0, 16)}, bytes(16)),
    "partly overlapping": safetensors(
        {"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24)
    ),
    "outside the file": safetensors({"a": tensor([4], 1000, 1016)}, bytes(16)),
    "backwards": safetensors({"a": tensor([4], 16, 0)}, bytes(16)),
    "of negative size": safetensors({"a": tensor([-4], 0, 16)}, bytes(16)),
    "with a hole": safetensors({"a": tensor([4], 16, 32)}, bytes(32)),
    "of another size": safetensors({"a": tensor([3], 0, 16)}, bytes(16)),
    "of no known kind": safetensors({"a": tensor([4], 0, 16, "object")}, bytes(16)),
    "endless brackets": safetensors(b'{"a":' + b"[" * 10**6),
    "cut": save_safetensors({"a": torch.zeros(40)})[:-8],
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_with_false_headers_are_refused(kind, little_memory):
    with pytest.raises(ShardError, match="x.safetensors does not hold plain weights") as caught:
        parse_weights(HEADERS[kind], "x.safetensors")
    assert "\n" not in str(caught.value)


def test_checkpoints_of_training_programs_are_read():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.tensor(3)}
    state["tied"] = state["a"][1:]
    state["turned"] = state["a"].T
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    document = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3, **circle()}
    for new in (True, False):
        data = saved(document, _use_new_zipfile_serialization=new)
        found = parse_weights(data, "x.pth")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], values) for name, values in state.items())
        assert load_torch(data)["optimizer"]["state"].keys() == {0, 1}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ConfigError, match="cannot read .*; give a .safetensors"):
            read_weights_file(path)
