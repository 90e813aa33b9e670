"""The scorers feature and grad-cam: against the paper's numbers and their definitions."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.quadtree import grow, join_maps, leaf_indices
from quadpipe.scorers import make_scorer
from quadpipe.scorers.backbones import imagenet_classes
from quadpipe.scorers.feature_saliency import FeatureSaliency
from quadpipe.scorers.network_scorer import _reproducible
from reference import saliency
from reference.shufflenet import ShuffleNet, feature_maps

GOLDEN = Path(__file__).parents[1] / "golden" / "feature.npz"
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def test_feature_equals_the_papers_code(shufflenet, scores_of, geometry):
    with np.load(GOLDEN) as golden:
        images, leaves = golden["images"], golden["leaves_100"]
        expected = [golden["importance_64"], golden["importance_32"]]
    maps = scores_of("feature", shufflenet, images)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-3)
    trees = grow(join_maps(maps, geometry, len(images)), geometry, 100)
    for nodes, wanted in zip(trees.nodes, leaves, strict=True):
        boxes = nodes[leaf_indices(nodes, geometry.roots, geometry.num_splits(100)), :3]
        order = np.lexsort((boxes[:, 0], boxes[:, 1], boxes[:, 2]))
        np.testing.assert_array_equal(boxes[order], wanted)


@pytest.mark.parametrize("blur", ["each", "2x"])
@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("stride", [32, 16])
def test_feature_equals_its_definition(
    stride, distance, blur, shufflenet, shufflenet_weights, square, scores_of
):
    twin = ShuffleNet(torch.load(shufflenet_weights, weights_only=True))
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        expected = feature_maps(twin, pixels, [64, 32], stride, distance, blur)
    options = {"stride": stride, "distance": distance, "blur": blur}
    found = scores_of("feature", shufflenet, square, **options)
    for level, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(level, wanted.numpy(), rtol=2e-3, atol=1e-6)


def test_one_blur_for_all_scales_is_two_passes_and_is_recorded(
    shufflenet, square, geometry, monkeypatch
):
    passes = {}
    for blur in ("each", "2x"):
        scorer: Any = make_scorer("feature", geometry, network=shufflenet, blur=blur)
        whole, calls = scorer._features, []
        monkeypatch.setattr(scorer, "_features", lambda *a: (calls.append(a), whole(*a))[1])  # noqa: B023
        scorer.score(square[:1])
        passes[scorer.parameters.get("blur")] = len(calls)
    assert passes == {None: 3, "2x": 2}


def test_the_manifest_has_a_blur_only_where_one_is_given():
    given = quadpipe.TokenizerConfig(scorer="feature", scorer_blur="2x")
    assert given.as_json()["scorer_blur"] == "2x"
    assert "scorer_blur" not in quadpipe.TokenizerConfig(scorer="feature").as_json()


def test_feature_saliency_is_that_of_its_definition(
    shufflenet, shufflenet_weights, square, scores_of
):
    twin = ShuffleNet(torch.load(shufflenet_weights, weights_only=True))
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.no_grad():
        features = {stride: twin.features(pixels, stride).numpy() for stride in (32, 16)}
    maps = scores_of("feature-saliency", shufflenet, square)
    for level, side in zip(maps, (64, 32), strict=True):
        assert level.dtype == np.float32
        for number, image in enumerate(square):
            given = {stride: values[number] for stride, values in features.items()}
            expected = saliency.feature_importance(image, given, side)
            np.testing.assert_allclose(level[number], expected, rtol=2e-3)


def test_feature_saliency_is_one_pass(shufflenet, square, geometry, monkeypatch):
    scorer = make_scorer("feature-saliency", geometry, network=shufflenet)
    calls = []
    assert isinstance(scorer, FeatureSaliency)
    module: Any = scorer._backbone.module
    module.conv1.register_forward_hook(lambda *given: calls.append(given))
    scorer.score(square)
    assert len(calls) == 1


def test_feature_saliency_of_a_constant_image_is_finite(shufflenet, scores_of):
    for level in scores_of("feature-saliency", shufflenet, np.full((1, 256, 256, 3), 7, np.uint8)):
        assert np.isfinite(level).all()


@pytest.mark.parametrize("name", ["shufflenet", "efficientnet"])
def test_features_of_several_strides_are_those_of_each(name, square, request):
    backbone = request.getfixturevalue(name).build()
    pixels = torch.from_numpy(square).permute(0, 3, 1, 2).float() / 128 - 1
    with torch.no_grad():
        together = backbone.features(pixels, (32, 16))
        for features, stride in zip(together, (32, 16), strict=True):
            (alone,) = backbone.features(pixels, (stride,))
            assert features.equal(alone)


def test_batches_of_a_fixed_size_change_nothing(shufflenet, square, scores_of):
    """Alone or among others, padded, at any position: on a CPU the bits are equal."""
    maps = scores_of("feature", shufflenet, square, batch=4)
    for batch in (1, 3, 16):
        for level, other in zip(
            maps, scores_of("feature", shufflenet, square, batch=batch), strict=True
        ):
            np.testing.assert_array_equal(level, other)
    turned = scores_of("feature", shufflenet, square[::-1].copy(), batch=4)
    for level, other in zip(maps, turned, strict=True):
        np.testing.assert_array_equal(level, other[::-1])


@pytest.mark.parametrize("name", ["feature", "feature-saliency", "grad-cam"])
def test_the_packaged_network_gives_the_same_bits_in_batches_of_one_size(
    name, efficientnet, square, scores_of
):
    hints = [985, 425, 985, 425] if name == "grad-cam" else None
    maps = scores_of(name, efficientnet, square, hints, batch=4)
    turned = scores_of(name, efficientnet, square[::-1].copy(), hints and hints[::-1], batch=4)
    for level, other in zip(maps, turned, strict=True):
        np.testing.assert_array_equal(level, other[::-1])
    for level, other in zip(
        maps, scores_of(name, efficientnet, square, hints, batch=3), strict=True
    ):
        np.testing.assert_allclose(level, other, rtol=1e-4, atol=1e-6)


def test_zero_features_have_distance_zero(shufflenet, geometry):
    scorer: Any = make_scorer("feature", geometry, network=shufflenet, distance="cosine")
    zero, one = torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)
    assert (scorer._distances(zero, zero) == 0).all()
    assert (scorer._distances(zero, one) == 1).all()
    np.testing.assert_allclose(scorer._distances(one, one), 0, atol=1e-6)


@pytest.mark.parametrize("setting", ["matmul.fp32_precision", "matmul.allow_tf32"])
def test_scoring_uses_exact_kernels_and_restores_the_settings(setting):
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")

    def settings() -> list[Any]:
        parts: Any = (matmul, cudnn.conv, cudnn.rnn)
        flags = [cudnn.enabled, cudnn.benchmark, cudnn.deterministic]
        return [*(part.fp32_precision for part in parts), *flags]

    name, usual = setting.partition(".")[2], matmul.fp32_precision
    try:
        setattr(matmul, name, "tf32" if name == "fp32_precision" else True)
        before = settings()
        with _reproducible(torch.device("cpu")):
            assert settings() == before
        with _reproducible(torch.device("cuda")):
            assert settings() == ["ieee", "ieee", "ieee", True, False, True]
            assert not matmul.allow_tf32  # refused if the settings differ
        assert settings() == before
    finally:
        if name == "allow_tf32":
            matmul.allow_tf32 = False
        matmul.fp32_precision = usual


def test_scoring_uses_one_thread_and_restores_the_number(shufflenet, square, monkeypatch, geometry):
    scorer: Any = make_scorer("feature", geometry, network=shufflenet)
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
def test_half_precision_is_close_to_float32_but_not_equal(dtype, shufflenet, square, scores_of):
    long = scores_of("feature", shufflenet, square)
    short = scores_of("feature", shufflenet, square, dtype=dtype)
    for level, other in zip(long, short, strict=True):
        assert other.dtype == np.float32
        assert (level != other).any()
        assert np.corrcoef(level.ravel(), other.ravel())[0, 1] > 0.98


def test_the_packaged_network_scores_photographs(efficientnet, square, geometry):
    """Sharper places score higher: the blurred half of a photograph against the other."""
    scorer = make_scorer("feature", geometry, network=efficientnet)
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
        found, fine = backbone.features(
            pixels.contiguous(memory_format=torch.channels_last), (32, 16)
        )
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(backbone.head(found), plain(pixels), rtol=1e-3, atol=1e-3)
        assert fine.shape == (4, 112, 16, 16)


def test_grad_cam_finds_the_flower(efficientnet, photographs, scores_of):
    """On scikit-learn's photograph of a dahlia; 985 is ImageNet's daisy."""
    flower = quadpipe.Tokenizer().prepare(photographs[1])
    _, fine = scores_of("grad-cam", efficientnet, flower[None], [985])
    rows, columns = np.unravel_index(np.argsort(fine[0].ravel())[-8:], (8, 8))
    # The blossom fills the middle of the picture.
    assert abs(rows.mean() - 3.5) < 1.5
    assert abs(columns.mean() - 3.5) < 1.5
    assert fine[0, 2:6, 2:6].mean() > 2 * fine[0, [0, 0, 7, 7], [0, 7, 0, 7]].mean()


def test_grad_cam_is_its_closed_form_for_a_linear_head(efficientnet, square, scores_of):
    """With a global mean and a linear layer, the gradient is the layer's weights over the cells."""
    backbone = efficientnet.build()
    pixels = (torch.from_numpy(square).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        (features,) = backbone.features(pixels.contiguous(memory_format=torch.channels_last), (32,))
        weights = backbone.module._fc.weight[[7, 8, 9, 10]] / 64
        expected = (weights[:, :, None, None] * features).sum(dim=1).relu().numpy()
    _, fine = scores_of("grad-cam", efficientnet, square, [7, 8, "9", imagenet_classes()[10]])
    np.testing.assert_allclose(fine, expected, rtol=1e-3, atol=1e-5)


def test_grad_cam_refuses_unknown_classes(efficientnet, square, geometry):
    scorer = make_scorer("grad-cam", geometry, network=efficientnet)
    scorer.check_classes(["n02119022", "277", "n15075141"])
    with pytest.raises(
        ConfigError, match="class 'zebra' is not one of the classifier's 1000 classes"
    ):
        scorer.check_classes(["n02119022", "zebra"])
    with pytest.raises(ConfigError, match="scorer grad-cam needs labels"):
        scorer.check_classes(None)
    for hint in (1000, -1, "1000", "²", None, 1.5):
        with pytest.raises(ConfigError, match="not one of the classifier's 1000 classes"):
            scorer.score(square[:1], [hint])
    with pytest.raises(ConfigError, match="scorer grad-cam needs the class for each image"):
        scorer.score(square[:1])


def test_imagenet_has_its_thousand_classes_in_order():
    classes = imagenet_classes()
    assert len(set(classes)) == 1000
    assert list(classes) == sorted(classes)
    assert classes[277] == "n02119022"
