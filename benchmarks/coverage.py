"""What a scorer is for, without training: how much of an object ends in the smallest patches.

    python benchmarks/coverage.py [--images 300] [--seed 0] [--parts 0.25 0.4]
        [--photographs FOLDER] [--shufflenet-weights PATH] [--save FOLDER]

Handwritten digits of scikit-learn are blended into real photographs, 256 x 256 pixels: square parts
of the two that scikit-learn ships, or of those in a folder. --parts are their sides, smallest and
largest, as shares of the photograph's shorter side: small parts show little but the background, and
with 0.5 1 whole scenes compete with the digit. Of many random parts, smooth backgrounds are from
the quarter whose roughest blocks of 16 pixels vary least, textured ones from the quarter whose
smoothest blocks vary most. A digit, 48 to 112 pixels wide, anywhere, with edges three pixels wide,
is a translucent sheet of the colour of the place, made 120 grey levels brighter or darker: a
contrast of 0.15 is 18 grey levels on any background. The same scenes are shown at all contrasts.

The score is the share of the digit's pixels that lie in scale-0 patches. It stands beside `area`,
the share of the whole image in scale-0 patches: what the same tree gives an object that it has not
seen. `mask` is the scorer `precomputed`, told where the digit is. 37 tokens are the legal budget
next to 36. grad-cam is left out: its classifier has no class for digits.
"""

# numba looks for the package `coverage`, in the folder of the script that runs first of all, and
# must not take this file, or any script beside it, for that package.
if __name__ != "__main__":
    raise ImportError("this is a script, not the package coverage")

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.geometry import Geometry
from quadpipe.render import Exhibit, draw
from quadpipe.scorers import Scorer, find_network, make_scorer

SIDE, PATCH, LARGEST_PATCH = 256, 16, 64
BUDGETS = (37, 64, 100)
BACKGROUNDS = ("smooth", "textured")
CONTRASTS = {"faint": 0.15, "medium": 0.35, "strong": 0.7}  # opacities of the digit
CELLS = [(background, contrast) for background in BACKGROUNDS for contrast in CONTRASTS]

LEVELS = 120  # grey levels between the digit's colour and the place's
DIGIT_SIDES = (48, 112)
EDGE = 3  # pixels
SHORTEST_SIDE = 320  # of a photograph, so that its parts are sharp enough
CROPS = 8  # random parts for each scene that is kept, at least
RANDOM_SEEDS = 5
BATCH = 25

GREY = np.array([0.299, 0.587, 0.114])
GEOMETRY = Geometry(height=SIDE, width=SIDE, patch_size=PATCH, max_patch_size=LARGEST_PATCH)
ORACLE, SHOWN = "mask (oracle)", ("pixel-blur", "feature, EfficientNet-Lite0 / 32", "mask (oracle)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=float, nargs=2, default=(0.25, 0.4), metavar="SHARE")
    parser.add_argument("--photographs", type=Path, help="a folder of images instead of two")
    parser.add_argument("--shufflenet-weights", type=Path)
    parser.add_argument("--save", type=Path, help="where to put an example of each cell as PNG")
    options = parser.parse_args()
    each = options.images // len(CELLS)
    if each < 2:
        parser.error(f"--images must be at least {2 * len(CELLS)}")
    if not 0 < options.parts[0] <= options.parts[1] <= 1:
        parser.error("--parts must be two shares, smallest first, above 0 and at most 1")
    chance = np.random.default_rng(options.seed)
    photographs = read_photographs(options.photographs)
    cells = make_cells(photographs, each, options.parts, chance)
    print(
        f"{len(CELLS)} x {each} images from {len(photographs)} photographs, seed {options.seed}, "
        f"parts of {options.parts[0]:g} to {options.parts[1]:g}"
    )
    for contrast in CONTRASTS:
        steps = [cells[background, contrast].step for background in BACKGROUNDS]
        print(f"{contrast}: {np.mean(steps):.0f} grey levels between digit and background")
    scorers = make_scorers(options.shufflenet_weights)
    results = {name: measure(scorer, cells) for name, scorer in scorers.items()}
    results["random"] = mean_of(
        measure(make_scorer("random", GEOMETRY, seed=seed), cells) for seed in range(RANDOM_SEEDS)
    )
    for budget in BUDGETS:
        print_table(results, budget)
    print_winners(results)
    if options.save:
        save_examples(options.save, scorers, cells)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Images of one background and contrast. step: grey levels by which the digits stand out."""

    images: np.ndarray  # uint8 [B, H, W, 3]
    masks: np.ndarray  # bool [B, H, W]
    step: float


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of scale-0 patches, float `[B]` by cell and budget: of the object, of the image."""

    objects: dict[tuple[tuple[str, str], int], np.ndarray]
    areas: dict[tuple[tuple[str, str], int], np.ndarray]


def read_photographs(folder: Path | None) -> list[Image.Image]:
    """RGB; without a folder the two of scikit-learn."""
    if folder is None:
        return [Image.fromarray(image) for image in load_sample_images().images]
    photographs = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            with Image.open(path) as image:
                photographs.append(image.convert("RGB"))
        except OSError:
            print(f"{path.name} is no image, left out")
    large = [photograph for photograph in photographs if min(photograph.size) >= SHORTEST_SIDE]
    if not large:
        raise SystemExit(f"{folder} has no image whose sides are {SHORTEST_SIDE} pixels or more")
    return large


def make_cells(
    photographs: Sequence[Image.Image],
    each: int,
    shares: tuple[float, float],
    chance: np.random.Generator,
) -> dict[tuple[str, str], Cell]:
    """`each` scenes on smooth and on textured backgrounds, at all contrasts."""
    crops = [
        random_crop(photographs[number % len(photographs)], shares, chance)
        for number in range(CROPS * each)
    ]
    variances = np.array([local_variances(crop) for crop in crops])
    quarter = len(crops) // 4
    smoothest = np.percentile(variances, 95, axis=1).argsort()[:quarter]
    roughest = np.percentile(variances, 5, axis=1).argsort()[-quarter:]
    digits = load_digits().images / 16
    cells = {}
    for background, pool in zip(BACKGROUNDS, (smoothest, roughest), strict=True):
        chosen = [crops[k] for k in chance.choice(pool, each, replace=False)]
        inks = [place_digit(digits[chance.integers(len(digits))], chance) for _ in range(each)]
        masks = np.stack(inks) > 0.5
        for contrast, opacity in CONTRASTS.items():
            images = np.stack([blend(*scene, opacity) for scene in zip(chosen, inks, strict=True)])
            steps = [
                abs(((image - crop) @ GREY)[mask].mean())
                for image, crop, mask in zip(images.astype(float), chosen, masks, strict=True)
            ]
            cells[background, contrast] = Cell(
                images=images, masks=masks, step=float(np.mean(steps))
            )
    return cells


def random_crop(
    photograph: Image.Image, shares: tuple[float, float], chance: np.random.Generator
) -> np.ndarray:
    """uint8 `[256, 256, 3]`, of a random square."""
    side = round(min(photograph.size) * chance.uniform(*shares))
    left = int(chance.integers(photograph.width - side + 1))
    top = int(chance.integers(photograph.height - side + 1))
    box = (left, top, left + side, top + side)
    return np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box))


def local_variances(image: np.ndarray) -> np.ndarray:
    """Variance of the grey levels of each block of 16 x 16 pixels."""
    blocks = (image @ GREY).reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    variances: np.ndarray = blocks.var(axis=(1, 3)).ravel()
    return variances


def place_digit(digit: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """How much ink each pixel of an image has, float `[256, 256]`, 0 to 1.

    digit: float `[8, 8]`, 0 to 1, which is enlarged smoothly and given sharper edges.
    """
    side = int(chance.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
    smooth = Image.fromarray(digit.astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    sharpness = side / len(digit) / EDGE
    ink = np.zeros((SIDE, SIDE))
    left, top = chance.integers(0, SIDE - side + 1, 2)
    ink[top : top + side, left : left + side] = (
        0.5 + (np.asarray(smooth, float) - 0.5) * sharpness
    ).clip(0, 1)
    return ink


def blend(image: np.ndarray, ink: np.ndarray, opacity: float) -> np.ndarray:
    """The image behind a sheet of its own mean colour under the digit, brighter or darker."""
    place = image[ink > 0.5].mean(axis=0)
    colour = place + (LEVELS if place @ GREY < 128 else -LEVELS)
    cover = (opacity * ink)[..., None]
    blended: np.ndarray = (1 - cover) * image + cover * colour
    return blended.round().clip(0, 255).astype(np.uint8)


def make_scorers(shufflenet_weights: Path | None) -> dict[str, Scorer]:
    """Those that can be made here by the name they have in the tables, without `random`."""
    scorers: dict[str, Scorer] = {}
    for name in ("pixel-blur", "entropy", "laplacian", "upsample-mse"):
        scorers[name] = make_scorer(name, GEOMETRY)
    networks: list[tuple[str, str, Path | None]] = [
        ("EfficientNet-Lite0", "efficientnet-lite0", None)
    ]
    if shufflenet_weights:
        networks.append(("ShuffleNetV2 x0.5", "shufflenet-v2-x0.5", shufflenet_weights))
    for title, backbone, weights in networks:
        try:
            network = find_network(backbone, weights)
            for stride in (32, 16):
                scorers[f"feature, {title} / {stride}"] = make_scorer(
                    "feature", GEOMETRY, network=network, batch=BATCH, stride=stride
                )
        except ConfigError as error:
            print(f"feature with {title} is left out: {error}")
    scorers[ORACLE] = make_scorer("precomputed", GEOMETRY)
    return scorers


def measure(scorer: Scorer, cells: dict[tuple[str, str], Cell]) -> Coverage:
    tokenizer = quadpipe.Tokenizer(scorer=scorer, tokens=max(BUDGETS))
    coverage = Coverage(objects={}, areas={})
    for name, cell in cells.items():
        mosaics = []
        for first in range(0, len(cell.images), BATCH):
            part = slice(first, first + BATCH)
            hints = mask_maps(cell.masks[part]) if scorer.hint else None
            mosaics += tokenizer.tokenize(cell.images[part], hints)
        for budget in BUDGETS:
            fine = np.stack([finest(mosaic.leaves(budget).boxes) for mosaic in mosaics])
            covered = (fine & cell.masks).sum(axis=(1, 2)) / cell.masks.sum(axis=(1, 2))
            coverage.objects[name, budget] = covered
            coverage.areas[name, budget] = fine.mean(axis=(1, 2))
    return coverage


def mask_maps(masks: np.ndarray) -> list[np.ndarray]:
    """Share of each smallest patch that the mask covers, float `[16, 16]`."""
    grid = SIDE // PATCH
    return list(masks.reshape(-1, grid, PATCH, grid, PATCH).mean(axis=(2, 4)))


def finest(boxes: np.ndarray) -> np.ndarray:
    """bool `[256, 256]`: the pixels in patches of scale 0."""
    cells = np.zeros((SIDE // PATCH, SIDE // PATCH), bool)
    left, top = boxes[boxes[:, 2] == 0, :2].T
    cells[top, left] = True
    return cells.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def mean_of(several: Iterable[Coverage]) -> Coverage:
    """Image by image the mean of several runs."""
    runs = list(several)
    objects, areas = (
        {key: np.mean([getattr(run, kind)[key] for run in runs], axis=0) for key in runs[0].objects}
        for kind in ("objects", "areas")
    )
    return Coverage(objects=objects, areas=areas)


def print_table(results: dict[str, Coverage], budget: int) -> None:
    print(f"\n### {budget} tokens\n")
    print("Percent of the digit in scale-0 patches, +- the standard error of the mean.\n")
    print(f"| scorer | {' | '.join(map(' '.join, CELLS))} | all | area |")
    print("|---" * (len(CELLS) + 3) + "|")
    for name, coverage in results.items():
        values = [coverage.objects[cell, budget] for cell in CELLS]
        area = 100 * np.concatenate([coverage.areas[cell, budget] for cell in CELLS]).mean()
        # The contrasts show the same scenes: these are the independent ones.
        scenes = np.concatenate(
            [
                np.mean([coverage.objects[(background, c), budget] for c in CONTRASTS], axis=0)
                for background in BACKGROUNDS
            ]
        )
        shown = [mean_and_error(value) for value in (*values, scenes)]
        print(f"| {name} | {' | '.join(shown)} | {area:.1f} |")


def mean_and_error(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} +- {100 * standard_error(values):.1f}"


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def print_winners(results: dict[str, Coverage]) -> None:
    """Who is best in each cell, who is not clearly behind, and who is below random."""
    print("\n### Who wins where\n")
    print("In brackets: not behind the best by two standard errors of the difference of pairs.\n")
    for budget in BUDGETS:
        for cell in CELLS:
            values = {name: coverage.objects[cell, budget] for name, coverage in results.items()}
            del values[ORACLE]
            best = max(values, key=lambda name: values[name].mean())
            near = [n for n in values if n != best and not clearly_less(values[n], values[best])]
            others = f" ({'; '.join(near)})" if near else ""
            print(f"- {budget} tokens, {' '.join(cell)}: {best}{others}")
            below = [
                f"{name} by {100 * (values['random'] - value).mean():.1f}"
                + (", clearly" if clearly_less(value, values["random"]) else "")
                for name, value in values.items()
                if value.mean() < values["random"].mean()
            ]
            if below:
                print(f"  - below random: {'; '.join(below)}")


def clearly_less(values: np.ndarray, others: np.ndarray) -> bool:
    difference = others - values
    return float(difference.mean()) > 2 * standard_error(difference)


def save_examples(
    folder: Path, scorers: dict[str, Scorer], cells: dict[tuple[str, str], Cell]
) -> None:
    """For each cell a picture of its first image under some scorers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, cell in cells.items():
        exhibits = []
        for title in SHOWN:
            if title in scorers:
                scorer = scorers[title]
                tokenizer = quadpipe.Tokenizer(scorer=scorer, tokens=max(BUDGETS))
                hints = mask_maps(cell.masks[:1]) if scorer.hint else None
                (mosaic,) = tokenizer.tokenize(cell.images[:1], hints)
                exhibits.append(Exhibit(mosaic=mosaic, title=title, image=cell.images[0]))
        draw(exhibits, [64]).save(folder / f"{'-'.join(name)}.png")


if __name__ == "__main__":
    main()
