"""A user's own network, and options of network scorers that do not fit."""

import importlib
import sys
from typing import Any

import numpy as np
import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError, JobError
from quadpipe.scorers import find_network, make_scorer
from reference import saliency

OWN = """
import torch

class Edges(torch.nn.Module):
    classes = ["left", "right"]

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, images):
        return self.conv(images).relu()

    def head(self, features):
        return features.mean((2, 3))[:, :2]

def make():
    return Edges(), 16

def other():
    module = Edges()
    module.conv.weight.data += 1
    return module, 16

def wrong():
    return Edges()

def fails():
    raise RuntimeError("no GPU")

class Odd(Edges):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        features = super().forward(images)
        if self.kind == "tuple":
            return features, features
        if self.kind == "raises":
            raise KeyError("layer")
        if self.kind == "nan":
            return features / 0
        if self.kind == "random":
            return torch.nn.functional.dropout(features, training=True)
        return {"pooled": features.mean((2, 3)), "one": features[:, :, :1, :1],
                "last": features.permute(0, 2, 3, 1), "first": features[:1]}[self.kind]

def odd(kind):
    return lambda: (Odd(kind), 16)

odd_tuple, odd_raises, odd_nan, odd_random = map(odd, ("tuple", "raises", "nan", "random"))
odd_pooled, odd_one, odd_last = map(odd, ("pooled", "one", "last"))

def names():
    module = Edges()
    module.classes = 4
    return module, 16

class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 16, stride=16)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, images):
        return self.conv(images)

def layer():
    return Bare(), 16

def strange():
    return "network", 16
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's module, in the working folder."""
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_networks"
    sys.modules.pop("my_networks", None)
    importlib.invalidate_caches()


def test_a_users_network_scores_images(own, square, scores_of):
    tokenizer = quadpipe.Tokenizer(scorer="feature", backbone="my_networks:make")
    assert tokenizer.scorer.parameters == {
        "backbone": "my_networks:make", "dtype": "float32", "stride": 16, "distance": "mse",
    }  # fmt: skip
    assert len(tokenizer(square)) == 4
    maps = scores_of("grad-cam", find_network("my_networks:make"), square, ["left", "right", 0, 1])
    assert maps[0].shape == (4, 4, 4)
    with pytest.raises(ConfigError, match="has no features of stride 32; use 16"):
        quadpipe.Tokenizer(scorer="feature", backbone="my_networks:make", scorer_stride=32)


def test_feature_saliency_of_a_network_with_one_stride_has_no_z_score(own, square, scores_of):
    network = find_network("my_networks:make")
    backbone = network.build()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    with torch.no_grad():
        features = backbone.module(
            (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - mean) / std
        )
    maps = scores_of("feature-saliency", network, square)
    for level, side in zip(maps, (64, 32), strict=True):
        for image, last, found in zip(square, features.numpy(), level, strict=True):
            expected = saliency.feature_importance(image, {16: last}, side)
            np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_a_users_network_takes_weights_from_a_file(own, tmp_path, square, scores_of):
    changed = find_network("my_networks:other")
    torch.save(changed.build().module.state_dict(), tmp_path / "other.pth")
    loaded = find_network("my_networks:make", tmp_path / "other.pth")
    for level, wanted in zip(
        scores_of("feature", loaded, square), scores_of("feature", changed, square), strict=True
    ):
        np.testing.assert_array_equal(level, wanted)


def test_a_network_that_has_changed_is_not_run(own):
    network = find_network("my_networks:make")
    module: Any = sys.modules["my_networks"]
    module.make = module.other
    with pytest.raises(JobError, match="my_networks:make has other weights than when it was first"):
        network.build()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:make", "cannot be made: ModuleNotFoundError: No module named"),
        ("my_networks:nothing", "cannot be made: AttributeError: module 'my_networks' has no"),
        ("my_networks:wrong", "cannot be made: TypeError: cannot unpack"),
        ("my_networks:fails", "cannot be made: RuntimeError: no GPU; give MODULE:CALLABLE"),
        ("my_networks:names", "the classes of backbone my_networks:names must be a list of names"),
        ("my_networks:strange", "returned str and 16; it must return an nn.Module"),
        ("resnet50", "unknown backbone 'resnet50'; use one of shufflenet-v2-x0.5, eff"),
    ],
)
def test_networks_that_cannot_be_made_are_refused(own, target, message):
    with pytest.raises(ConfigError, match=message):
        find_network(target)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tuple", "gave tuple for images .*its features must be"),
        ("raises", "failed on images .*KeyError: 'layer'; fix it"),
        ("nan", "gave features that are not finite"),
        ("random", "gives different features for the same image; switch off its rand"),
        ("pooled", r"gave \[1, 4\] for images"),
        ("one", r"gave \[1, 4, 1, 1\] for images"),
        ("last", r"gave \[1, 16, 16, 4\] for images"),
    ],
)
def test_networks_with_invalid_outputs_are_refused(own, kind, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.Tokenizer(scorer="feature", backbone=f"my_networks:odd_{kind}")


def test_importances_that_are_not_finite_name_the_network(
    shufflenet, square, monkeypatch, geometry
):
    scorer: Any = make_scorer("feature", geometry, network=shufflenet)
    whole = scorer._distances
    monkeypatch.setattr(scorer, "_distances", lambda *both: whole(*both) / 0)
    with pytest.raises(ConfigError, match="shufflenet-v2-x0.5 gave importances that are not fin"):
        scorer.score(square[:1])


def test_a_head_that_fails_is_a_clear_error(own, square, scores_of):
    with pytest.raises(ConfigError, match="the head of backbone my_networks:layer"):
        scores_of("grad-cam", find_network("my_networks:layer"), square, [0] * 4)


def test_a_configuration_from_a_file_runs_no_code(own):
    config = quadpipe.TokenizerConfig(scorer="feature", backbone="my_networks:make")
    with pytest.raises(ConfigError, match="scorer feature needs its network; name it yourself"):
        quadpipe.Tokenizer(config)
    assert "my_networks" not in sys.modules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorer_stride": 0}, "shufflenet-v2-x0.5 has no features of stride 0; use 32 or 16"),
        ({"scorer_stride": 8}, "shufflenet-v2-x0.5 has no features of stride 8; use 32 or 16"),
        ({"scorer_distance": "l1"}, "scorer_distance 'l1' is not one of mse, cosine"),
        ({"scorer_dtype": "int8"}, "scorer_dtype 'int8' is not one of float32"),
        (
            {"image_size": 240, "patch_size": 10, "max_patch_size": 40, "tokens": 36},
            "needs an image_size that is a multiple of its features' stride 32, not 240",
        ),
        (
            {"scorer": "pixel-blur", "scorer_stride": 16},
            "scorer_stride is for scorer feature, not pixel-blur; omit it",
        ),
        (
            {"scorer": "entropy", "backbone": "efficientnet-lite0"},
            "backbone is for scorer feature-saliency and feature and grad-cam, not entropy",
        ),
        ({"scorer_blur": "4x"}, "scorer_blur '4x' is not one of each, 2x"),
        (
            {"scorer": "feature-saliency", "scorer_blur": "2x"},
            "scorer_blur is for scorer feature, not feature-saliency; omit it",
        ),
        (
            {"scorer": "saliency", "scorer_blur": "2x"},
            "scorer_blur is for scorer feature, not saliency; omit it",
        ),
        ({"scorer": "entropy"}, "scorer entropy has no network; omit the scorer's weights"),
    ],
)
def test_options_that_do_not_apply_are_refused(options, message, shufflenet_weights):
    if options.get("scorer", "feature") == "feature" or len(options) == 1:
        options = options | {"scorer_weights": shufflenet_weights}
    with pytest.raises(ConfigError, match=message):
        quadpipe.Tokenizer(**{"scorer": "feature", **options})


def test_a_missing_gpu_is_a_clear_error(shufflenet, geometry):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="torch finds no GPU here"):
        make_scorer("feature", geometry, network=shufflenet, device="cuda")
