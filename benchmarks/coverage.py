"""What a scorer is for, without training: how much of an object is in the smallest patches.

    python benchmarks/coverage.py [--images FOLDER --maps FOLDER] [--scorers NAME[,OPTION=VALUE] ..]
        [--sets test hard] [--scenes 300] [--page docs/coverage.md] [--pictures FOLDER]
        [--data FOLDER] [--objects FOLDER] [--backgrounds FOLDER]

The score is the share of the object's pixels that lie in patches of scale 0, at 37, 64 and 100
tokens of 256 x 256 pixels. Scenes are those of benchmarks/scenes.py. --images and --maps add
photographs with importance maps, `maps/a/cat.npy` for `images/a/cat.jpg`: the share of the map's
mass that lies in patches of scale 0. `precomputed` is an oracle: it is given the mask, or the map.

Standard errors are between photographs: scenes on the same photograph are not independent.
Milliseconds are the CPU time of the scorer alone, per image on one core; the scorers take turns.

--page writes the page and, beside it, a picture of trees. --pictures draws the first scenes of each
set under some scorers; the material's licenses are not those of this project.
"""

# numba looks for the package `coverage`, in the folder of the script that runs first of all, and
# must not take this file, or any script beside it, for that package.
if __name__ != "__main__":
    raise ImportError("this is a script, not the package coverage")

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import USUAL_BACKBONE, machine, scorer_options, scorer_title
from PIL import Image
from scenes import COVERAGE_SETS, SIDE, Material, add_arguments, fetch_backgrounds, load

import quadpipe
from quadpipe.errors import ConfigError
from quadpipe.render import Exhibit, draw_quadtrees

PATCH = 16
BUDGETS = (37, 64, 100)
BATCH = 8  # as in jobs
ROUNDS = 5  # of timing
RANDOM_SEEDS = 5
FEATURE = f"feature,{USUAL_BACKBONE}"
ORACLE = "precomputed"
SCORERS = (
    "random",
    "pixel-blur",
    "pixel-blur,scale_weight=0.5",
    "upsample-mse",
    "laplacian",
    "entropy",
    FEATURE,
    f"{FEATURE},scorer_blur=2x",
    "rarity",
    "barrier",
    "saliency",
    "feature-saliency",
    ORACLE,
)
BASE = "pixel-blur"  # the others are compared with it
COMPARED_TOKENS = 64
SHOWN = (BASE, FEATURE, "saliency", "feature-saliency", ORACLE)
SHOWN_ON_PAGE = (BASE, "laplacian", FEATURE, "rarity", "barrier", "saliency", "feature-saliency")
SHOWN_TOKENS, SHOWN_SCENES = 64, 8
# Their licenses allow a picture in the documentation.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")
TEMPLATE = Path(__file__).with_name("coverage.template.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scorers", nargs="+", default=SCORERS, metavar="NAME[,OPTION=VALUE]")
    parser.add_argument("--sets", nargs="+", default=("test", "hard"), choices=COVERAGE_SETS)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, help="photographs with maps, as a further set")
    parser.add_argument("--maps", type=Path, help="their maps")
    parser.add_argument("--page", type=Path, help="the page to write")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of trees")
    add_arguments(parser)
    options = parser.parse_args()
    if (options.images is None) != (options.maps is None):
        parser.error("--images and --maps go together")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    material = load(options)
    sets = {name: scene_set(material, name, options.scenes, options.seed) for name in options.sets}
    if options.images:
        sets["photographs"] = photograph_set(options.images, options.maps)
    tokenizers = make_tokenizers(options.scorers)
    tables = "\n\n".join(
        f"### {name[0].upper()}{name[1:]}: {len(given.images)} images\n\n"
        f"{coverage_table(given, tokenizers)}"
        for name, given in sets.items()
    )
    times = time_table(tokenizers, next(iter(sets.values())))
    print(f"{machine()}\n{material}\n\n{tables}\n\n{times}")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for name, given in sets.items():
            trees(given, tokenizers, SHOWN).save(options.pictures / f"{name}.png")
    if options.page:
        page = TEMPLATE.read_text()
        for name, text in {
            "machine": machine(),
            "material": str(material),
            "tables": tables,
            "times": times,
        }.items():
            page = page.replace(f"{{{name}}}", text)
        options.page.write_text(page)
        photographs = shown_photographs(fetch_backgrounds(options.data))
        shown = trees(photographs, tokenizers, SHOWN_ON_PAGE)
        shown.resize((shown.width // 2, shown.height // 2), Image.Resampling.LANCZOS).save(
            options.page.with_suffix(".jpg"), quality=75
        )


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """images: uint8 `[B, 256, 256, 3]`. maps: float `[B, 16, 16]`, how much of the object, or of
    what is important, each smallest patch holds. groups: int `[B]`; images of different groups are
    independent."""

    images: np.ndarray
    maps: np.ndarray
    groups: np.ndarray


def scene_set(material: Material, name: str, count: int, seed: int) -> ImageSet:
    scenes = material.coverage_set(name, count, seed=seed)
    cells = SIDE // PATCH
    return ImageSet(
        images=scenes.images,
        maps=scenes.masks.reshape(-1, cells, PATCH, cells, PATCH).mean(axis=(2, 4)),
        groups=scenes.photographs,
    )


def photograph_set(images: Path, maps: Path) -> ImageSet:
    """SystemExit when an image has no map of 16 x 16 numbers."""
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    tokenizer = quadpipe.Tokenizer(tokens=max(BUDGETS))
    found = []
    for path in paths:
        file = (maps / path.relative_to(images)).with_suffix(".npy")
        if not file.exists():
            raise SystemExit(f"{path} has no map {file}; give one for each image")
        found.append(np.load(file, allow_pickle=False).astype(float))
        if found[-1].shape != (SIDE // PATCH, SIDE // PATCH):
            raise SystemExit(f"{file} is {list(found[-1].shape)}; give maps of 16 x 16 numbers")
    if len(found) < 2:
        raise SystemExit(f"{images} needs two images or more")
    return ImageSet(
        images=np.stack([tokenizer.prepare_file(path.read_bytes()) for path in paths]),
        maps=np.stack(found),
        groups=np.arange(len(paths)),
    )


def shown_photographs(backgrounds: Path) -> ImageSet:
    tokenizer = quadpipe.Tokenizer(tokens=max(BUDGETS))
    images = []
    for name in PHOTOGRAPHS:
        (path,) = backgrounds.glob(f"scikit-image-*-{name}.png")
        images.append(tokenizer.prepare_file(path.read_bytes()))
    maps = np.zeros((len(images), SIDE // PATCH, SIDE // PATCH))
    return ImageSet(images=np.stack(images), maps=maps, groups=np.arange(len(images)))


def make_tokenizers(scorers: Sequence[str]) -> dict[str, quadpipe.Tokenizer]:
    """By the scorer with its options; those that cannot be made get a line instead."""
    made = {}
    for text in scorers:
        try:
            made[text] = quadpipe.Tokenizer(tokens=max(BUDGETS), **scorer_options(text))
        except ConfigError as error:
            print(f"{text} is left out: {error}")
    return made


def title(scorer: str) -> str:
    return "the mask or map itself" if scorer == ORACLE else scorer_title(scorer)


def coverage_table(given: ImageSet, tokenizers: dict[str, quadpipe.Tokenizer]) -> str:
    """Means with standard errors, and how far each scorer is ahead of BASE on the same images."""
    shares = {name: coverage(given, tokenizer) for name, tokenizer in tokenizers.items()}
    if "random" in shares:  # another seed is as good: the mean of several
        others = [
            coverage(given, quadpipe.Tokenizer(tokens=max(BUDGETS), scorer="random", seed=seed))
            for seed in range(1, RANDOM_SEEDS)
        ]
        shares["random"] = np.mean([shares["random"], *others], axis=0)

    def cell(values: np.ndarray, form: str) -> str:
        error = clustered_error(values, given.groups)
        return f"{100 * values.mean():{form}} ± {100 * error:.1f}"

    lines = [
        f"| scorer | {' | '.join(f'{budget} tokens' for budget in BUDGETS)} | "
        f"{COMPARED_TOKENS} tokens, less `{BASE}` |",
        "|---" * (len(BUDGETS) + 2) + "|",
    ]
    column = BUDGETS.index(COMPARED_TOKENS)
    for name, values in shares.items():
        cells = [cell(share, ".1f") for share in values.T]
        ahead = ""
        if BASE in shares and name != BASE:
            ahead = cell(values[:, column] - shares[BASE][:, column], "+.1f")
        lines.append(f"| {title(name)} | {' | '.join(cells)} | {ahead} |")
    return "\n".join(lines)


def coverage(given: ImageSet, tokenizer: quadpipe.Tokenizer) -> np.ndarray:
    """Share of each image's map that lies in patches of scale 0, float `[B, budgets]`."""
    shares = np.empty((len(given.images), len(BUDGETS)))
    for number, mosaic in enumerate(mosaics(given, tokenizer)):
        for column, budget in enumerate(BUDGETS):
            boxes = mosaic.leaves(budget).boxes
            left, top = boxes[boxes[:, 2] == 0, :2].T
            shares[number, column] = given.maps[number, top, left].sum() / given.maps[number].sum()
    return shares


def mosaics(given: ImageSet, tokenizer: quadpipe.Tokenizer) -> list[quadpipe.Mosaic]:
    found = []
    for first in range(0, len(given.images), BATCH):
        part = slice(first, first + BATCH)
        hints = list(given.maps[part]) if tokenizer.scorer.hint else None
        found += tokenizer.tokenize(given.images[part], hints)
    return found


def clustered_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of the mean when values of one group depend on each other.

    The cluster-robust estimate of Liang and Zeger (Biometrika 73, 1986), with its correction for
    few groups.
    """
    sums = np.bincount(groups, values - values.mean())[np.unique(groups)]
    correction = len(sums) / (len(sums) - 1)
    return float(np.sqrt(correction * (sums**2).sum()) / len(values))


def time_table(tokenizers: dict[str, quadpipe.Tokenizer], given: ImageSet) -> str:
    """Milliseconds per image, the median of rounds in which the scorers take turns."""
    images, hints = given.images[:BATCH], list(given.maps[:BATCH])
    times: dict[str, list[float]] = {name: [] for name in tokenizers}
    for _ in range(ROUNDS):
        for name, tokenizer in tokenizers.items():
            scorer = tokenizer.scorer
            calls, started = 0, time.process_time()
            while (elapsed := time.process_time() - started) < 0.2:
                scorer.score(images, hints if scorer.hint else None)
                calls += 1
            times[name].append(1000 * elapsed / calls / len(images))
    medians = {name: statistics.median(values) for name, values in times.items()}
    lines = [f"| scorer | ms per image | times `{BASE}` |", "|---|---|---|"]
    for name, ms in medians.items():
        ratio = f"{ms / medians[BASE]:.1f}" if BASE in medians else ""
        lines.append(f"| {title(name)} | {ms:.2f} | {ratio} |")
    return "\n".join(lines)


def trees(
    given: ImageSet, tokenizers: dict[str, quadpipe.Tokenizer], scorers: Sequence[str]
) -> Image.Image:
    """The first images in rows, some scorers in columns."""
    columns = [name for name in scorers if name in tokenizers]
    some = ImageSet(
        images=given.images[:SHOWN_SCENES],
        maps=given.maps[:SHOWN_SCENES],
        groups=given.groups[:SHOWN_SCENES],
    )
    drawn = [mosaics(some, tokenizers[name]) for name in columns]
    exhibits = [
        Exhibit(mosaic=column[row], title=title(name).replace("`", ""), image=some.images[row])
        for row in range(len(some.images))
        for name, column in zip(columns, drawn, strict=True)
    ]
    return draw_quadtrees(exhibits, SHOWN_TOKENS, columns=len(columns))


if __name__ == "__main__":
    main()
