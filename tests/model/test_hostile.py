"""Runs that were made to do harm: their code is not run, other files are not read, and no memory
is allocated for what they claim."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import tokenize_small
from pickles import MARKER, Hostile, hostile
from PIL import Image
from runs import with_torch_state
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import quadpipe
from quadpipe.errors import ShardError
from quadpipe.model import train
from quadpipe.model.quadformer import Quadformer
from quadpipe.model.run_folder import RunFolder

OPTIONS: dict[str, Any] = {
    "model": "nano",
    "tokens": 16,
    "epochs": 1,
    "batch_size": 8,
    "warmup_epochs": 1.0,
    "workers": 0,
    "device": "cpu",
}
HOSTILE = hostile({"optimizer": Hostile()})


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not MARKER.exists()


@pytest.fixture(scope="module")
def shards(photographs, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for number in range(24):
        folder = root / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        part = photographs[number % 2][number * 9 :][:96, :96]
        Image.fromarray(part).save(folder / f"{number}.png")
    tokenize_small(root / "images", root / "shards", val_share=0.2, samples_per_shard=16)
    return root / "shards"


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(shards, run, **OPTIONS)
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def uses(shards, run) -> dict[str, Callable[[], object]]:
    """What people do with a run they were given."""
    return {
        "best.safetensors": lambda: RunFolder(run).model(torch.device("cpu")),
        "last.safetensors": lambda: train(shards, run, **OPTIONS, resume=True),
    }


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_state_that_would_run_code_is_refused(kind, shards, run):
    with_torch_state(run).write_bytes(HOSTILE[kind])
    with pytest.raises(ShardError, match=r"state-\d+\.pt cannot be loaded: it is dam") as caught:
        train(shards, run, **OPTIONS, resume=True)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "pickled",
    [
        b"}X\x01\0\0\0acbuiltins\nbytearray\n\x8a\x08" + (2**43).to_bytes(8, "little") + b"\x85Rs.",
        b"R.",
        b")R.",
        b"}(K\x01u.",
        b"X\x01\0\0\0\xff.",
    ],
)
def test_a_pickle_of_invalid_state_is_refused(pickled, shards, run):
    with_torch_state(run).write_bytes(b"\x80\x02" + pickled)
    with pytest.raises(ShardError, match=r"state-\d+\.pt cannot be loaded: ."):
        train(shards, run, **OPTIONS, resume=True)


def test_a_state_with_expanded_tensors_is_refused(shards, run):
    path = with_torch_state(run)
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1).expand(2**40)
    torch.save(state, path)
    with pytest.raises(ShardError, match=r"a tensor of \[1099511627776\] has 4 bytes"):
        train(shards, run, **OPTIONS, resume=True)


@pytest.mark.parametrize(
    "counters", ["[" * 10**6, "9" * 10**6, "[]", "null", "", '{"step": 1e400}']
)
def test_invalid_counters_are_refused(counters, shards, run):
    path = next(run.glob("state-*"))
    save_file(load_file(path), path, {"counters": counters})
    with pytest.raises(ShardError, match=r"state-\d+\.safetensors cannot be loaded: .") as caught:
        train(shards, run, **OPTIONS, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"width": 16_384, "heads": 16, "depth": 1000}, "does not fit config.json: "),
        ("model", {"depth": 1000}, "does not fit config.json: "),
        ("model", {"positions": "learned"}, "does not fit config.json: missing pos_embed"),
        ("model", {"mlp_ratio": 1e12}, "mlp_ratio 1e.12 is not above 0 and at most 64"),
        ("model", {"mlp_ratio": float("inf")}, "mlp_ratio must be a finite number, not inf"),
        ("model", {"mlp_ratio": float("nan")}, "mlp_ratio must be a finite number, not nan"),
        ("model", {"mlp_ratio": -4.0}, "mlp_ratio -4 is not above 0"),
        ("train", {"lr": 10**400}, "lr must be a number in range"),
    ],
)
def test_a_model_that_does_not_fit_its_weights_is_not_built(part, change, message, run):
    config = json.loads((run / "config.json").read_text())
    config[part] |= change
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShardError, match=message):
        RunFolder(run).model(torch.device("cpu"))


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_weights_that_are_not_floating_point_are_refused(name, uses, run):
    with safe_open(run / name, "pt") as file:
        metadata = file.metadata()
    weights = load_file(run / name)
    save_file(weights | {"norm.bias": weights["norm.bias"].long()}, run / name, metadata)
    with pytest.raises(ShardError, match="norm.bias torch.int64, expected torch.float32"):
        uses[name]()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_in_the_place_of_weights_is_refused(kind, name, uses, run):
    (run / name).write_bytes(HOSTILE[kind])
    with pytest.raises(ShardError, match=rf"{name} is damaged: .*; copy the run again"):
        uses[name]()


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [1000, 1016]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        None,
    ],
)
def test_weights_that_claim_missing_bytes_are_refused(tensor, name, uses, run):
    header = json.dumps({"a": tensor}).encode() if tensor else b"{}"
    length = len(header) if tensor else 2**42
    (run / name).write_bytes(struct.pack("<Q", length) + header + bytes(16))
    with pytest.raises(ShardError, match=rf"{name} is damaged: .*; copy the run again"):
        uses[name]()


@pytest.mark.parametrize(
    "name",
    ["../other/state-0000000003.pt", "../other/state-0000000003.safetensors", "/etc/passwd", ".."],
)
def test_a_checkpoint_does_not_lead_out_of_its_run(name, shards, run):
    shutil.copytree(run, run.parent / "other")
    weights = load_file(run / "last.safetensors")
    save_file(weights, run / "last.safetensors", {"step": "3", "state": name})
    with pytest.raises(ShardError, match="is not the name of a file in a dataset"):
        train(shards, run, **OPTIONS, resume=True)


@pytest.mark.parametrize(
    "data",
    [b"[" * 10**6, b'{"train":' * 10**5, b"\xff\xfe" * 9, b"[]", b"null", b"", b"9" * 10**6],
    ids=["brackets", "objects", "no text", "a list", "null", "empty", "digits"],
)
def test_an_invalid_configuration_file_is_refused(data, run):
    (run / "config.json").write_bytes(data)
    with pytest.raises(ShardError, match=r"config\.json cannot be used: ") as caught:
        RunFolder(run).config()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("model", "width", 2**40),
        ("model", "depth", 10**9),
        ("model", "classes", 10**12),
        ("model", "grid", [2**20, 2**20]),
        ("model", "__class__", "os.system"),
        ("tokenizer", "image_size", [2**30, 2**30]),
        ("tokenizer", "tokens", 2**50),
        ("train", "seed", 10**400),
        ("train", "model", "os:system"),
        ("train", "device", ["cpu"]),
    ],
)
def test_configuration_values_out_of_bounds_are_refused(part, name, value, run):
    config = json.loads((run / "config.json").read_text())
    config[part][name] = value
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShardError, match=r"config\.json cannot be used: "):
        RunFolder(run).model(torch.device("cpu"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_initial_weights_that_would_run_code_are_refused(kind, shards, tmp_path):
    (tmp_path / "vit.pth").write_bytes(HOSTILE[kind])
    with pytest.raises(ShardError, match=r"vit\.pth does not hold plain weights"):
        train(shards, tmp_path / "new", **OPTIONS, init=tmp_path / "vit.pth")
    assert not (tmp_path / "new").exists()


def test_initial_weights_do_not_take_the_memory_that_they_claim(shards, trained, tmp_path):
    weights = Quadformer(RunFolder(trained).config().model).state_dict()
    weights["patch_embed.proj.weight"] = torch.zeros(1).expand(2**40)
    torch.save(weights, tmp_path / "vit.pth")
    with pytest.raises(ShardError, match=r"a tensor of \[1099511627776\] has 4 bytes"):
        train(shards, tmp_path / "new", **OPTIONS, init=tmp_path / "vit.pth")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_scorers_weights_that_would_run_code_are_refused(kind, image_folder, tmp_path):
    (tmp_path / "scorer.pth").write_bytes(HOSTILE[kind])
    with pytest.raises(ShardError, match=r"scorer\.pth does not hold plain weights"):
        quadpipe.tokenize(
            image_folder, tmp_path / "out", scorer="feature", in_process=True,
            scorer_weights=tmp_path / "scorer.pth",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()
