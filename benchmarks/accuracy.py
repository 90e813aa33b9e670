"""What a scorer and a number of tokens bring in accuracy: tokenize, train, evaluate.

    python benchmarks/accuracy.py OUT --scenes small --scorers uniform pixel-blur --tokens 37
    python benchmarks/accuracy.py OUT --scenes mixed --scorers saliency --tokens 37 19-64 ~19-64
    python benchmarks/accuracy.py OUT --images FOLDER --scorers uniform feature,backbone=NAME
    python benchmarks/accuracy_report.py OUT/results.jsonl --page docs/accuracy.md

Trains a Quadformer for every scorer, number of tokens and seed, with quadpipe's own job and
trainer, and adds its lines to OUT/results.jsonl. A rerun skips what is in there, so the command can
be killed at any time. The same command may run several times at once: each takes what no other has
taken.

--tokens: 37 trains at 37 tokens per image. 19-64 draws a budget of that range at each step, 19,37
one of the list. ~37 and ~19-64 are means over the images of a step, each with a number of its own,
from 16 to all that are stored, or within limits, as in ~37:19-64. A model for one number is
evaluated at it, one for a range at up to five in it. Where images have numbers of their own in
training, or there are several budgets, both are evaluated: the same number for all images
("equal"), and a threshold on gains that gives this mean in training ("own"), with each of
--gain-discounts.

--scenes: `small`, `large` or `mixed`, made by benchmarks/scenes.py. --images: an image folder with
labels and with splits train and val.

A scorer may have options, as in pixel-blur,scale_weight=0.5. Scorer `uniform` is the plain ViT: for
37 tokens the whole image is resized to 96 pixels, which is 6 x 6 patches, the nearest square.
Scorer `precomputed` takes the object's mask in scenes, and --maps otherwise. The accuracy is that
of the last epoch, not of the best.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, scorer_options
from PIL import Image
from scenes import SETTINGS, SIDE, add_arguments, load, unfinished

import quadpipe
from quadpipe.counts import DISCOUNT
from quadpipe.errors import QuadpipeError
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.config import TOKENS_DRAW
from quadpipe.model.evaluate import evaluate
from quadpipe.model.run_folder import LAST, RunFolder

PATCH = 16
MASK_CELLS = SIDE // PATCH
BATCH = 32
BUDGETS = (19, 28, 37, 49, 64)  # at which a model for a range is evaluated
EQUAL, OWN = "equal", "own"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="where everything is written")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", choices=tuple(SETTINGS))
    source.add_argument("--images", type=Path, help="an image folder with splits train and val")
    parser.add_argument("--maps", type=Path, help="with --images: maps for scorer precomputed")
    parser.add_argument("--scorers", nargs="+", required=True, metavar="NAME[,OPTION=VALUE]")
    parser.add_argument("--tokens", nargs="+", default=["37"], metavar="[~]N|LOW-HIGH|N,N,..")
    parser.add_argument("--stored", type=int, help="tokens in the shards; by default the largest")
    parser.add_argument("--tokens-draw", default="even", choices=TOKENS_DRAW)
    parser.add_argument("--gain-discounts", nargs="+", type=int, default=[DISCOUNT])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-scenes", type=int, default=12_000)
    parser.add_argument("--val-scenes", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)
    grid = Grid(
        out=options.out,
        setting=options.scenes or options.images.name,
        images=options.images or options.out / "scenes" / options.scenes,
        maps=options.maps if options.images else options.out / "scenes" / f"{options.scenes}-maps",
        discounts=tuple(options.gain_discounts),
        stored=options.stored or max(Training.parse(text).largest for text in options.tokens),
    )
    if options.scenes:
        make_scenes(grid, options)
    for tokens in options.tokens:
        for seed in range(options.seeds):
            for scorer in options.scorers:
                cell = Cell(
                    setting=grid.setting,
                    scorer=scorer,
                    tokens=tokens,
                    seed=seed,
                    model=options.model,
                    draw=options.tokens_draw,
                    epochs=options.epochs,
                )
                measure(cell, grid)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the images of a setting are and its results go.

    stored: tokens in the shards. discounts: for the evaluation with numbers of their own.
    """

    out: Path
    setting: str
    images: Path
    maps: Path | None
    stored: int
    discounts: tuple[int, ...]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Training:
    """The numbers of tokens that --tokens names. numbers: as the trainer takes them. own: they are
    means. limits: options for the trainer."""

    numbers: str
    own: bool
    limits: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> "Training":
        numbers, _, limits = text.removeprefix("~").partition(":")
        named = zip(("min_tokens", "max_tokens"), limits.split("-"), strict=False)
        return cls(
            numbers=numbers,
            own=text.startswith("~"),
            limits={name: int(limit) for name, limit in named if limit},
        )

    @property
    def budgets(self) -> list[int]:
        """The budgets or means at which a model is evaluated."""
        if "-" in self.numbers:
            low, high = map(int, self.numbers.split("-"))
            return [n for n in BUDGETS if low <= n <= high]
        return [int(number) for number in self.numbers.split(",")]

    @property
    def largest(self) -> int:
        return max([*map(int, re.findall(r"[0-9]+", self.numbers)), *self.limits.values()])

    def options(self) -> dict[str, Any]:
        """For the trainer."""
        return {"mean_tokens" if self.own else "tokens": self.numbers} | self.limits

    def evaluated(self, discounts: Sequence[int]) -> list[tuple[str, int, int | None]]:
        """How the model is evaluated: counts, their number or mean, and the discount of gains."""
        equal = [(EQUAL, n, None) for n in self.budgets]
        own = [(OWN, n, discount) for n in self.budgets for discount in discounts]
        return [*equal] if self.numbers.isdecimal() and not self.own else [*equal, *own]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model to train. tokens: as in --tokens; a plain grid has the nearest square."""

    setting: str
    scorer: str
    tokens: str
    seed: int
    model: str
    epochs: int
    draw: str = "even"

    @property
    def is_uniform(self) -> bool:
        return self.scorer == "uniform"

    @property
    def name(self) -> str:
        return "-".join(str(v) for v in asdict(self).values() if v != "even").replace("/", "-")


def make_scenes(grid: Grid, options: argparse.Namespace) -> None:
    """An image folder of scenes, and beside it the share of each patch that the object covers."""
    assert grid.maps
    counts = {"train": options.train_scenes, "val": options.val_scenes}
    with claimed(grid.out / "scenes" / f"{grid.setting}.lock", wait=True):
        if grid.images.is_dir():
            return
        material = load(options)
        print(material, flush=True)
        shutil.rmtree(grid.maps, ignore_errors=True)
        with unfinished(grid.images) as images, unfinished(grid.maps) as maps:
            classes = material.classes(grid.setting)
            for split, count in counts.items():
                for name in classes:
                    (images / split / name).mkdir(parents=True)
                    (maps / split / name).mkdir(parents=True)
                scenes = material.labelled_scenes(grid.setting, split, count, seed=0)
                for number, (label, scene) in enumerate(scenes):
                    path = f"{split}/{classes[label]}/{number:05d}"
                    picture = Image.fromarray(scene.image)
                    picture.save(images / f"{path}.jpg", quality=95, subsampling=0)
                    blocks = scene.mask.reshape(MASK_CELLS, PATCH, MASK_CELLS, PATCH)
                    np.save(maps / f"{path}.npy", blocks.mean(axis=(1, 3), dtype=np.float32))


def measure(cell: Cell, grid: Grid) -> None:
    """Train a cell and add its line, unless it is done or another process is at it."""
    with claimed(grid.out / "cells" / f"{cell.name}.lock", wait=False) as is_ours:
        if not is_ours or cell in finished(grid.results):
            return
        started = time.perf_counter()
        dataset = tokenized(cell, grid)
        tokenizing = time.perf_counter() - started
        run = grid.out / "cells" / cell.name
        shutil.rmtree(run, ignore_errors=True)  # of a process that was killed
        started = time.perf_counter()
        training = Training.parse(cell.tokens)
        trained = train(
            dataset,
            run,
            model=cell.model,
            **(
                {"tokens": grid_side(training.largest) ** 2}
                if cell.is_uniform
                else training.options()
            ),
            tokens_draw=cell.draw,
            epochs=cell.epochs,
            batch_size=BATCH,
            seed=cell.seed,
            workers=0,
            device="cpu",
        )
        seconds = round(time.perf_counter() - started, 1)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scores = [row for row in rows if row["event"] == "eval"]
        manifest = quadpipe.Dataset(dataset).manifest
        common = asdict(cell) | {
            "steps": scores[-1]["step"],
            "batch": BATCH,
            "train_samples": manifest.splits["train"].samples,
            "classes": len(manifest.classes or ()),
            "top1_by_step": [[row["step"], row["top1"]] for row in scores],
            "tokenize_seconds": round(tokenizing, 1),
            "train_seconds": seconds,
            "shards_sha256": manifest.splits["train"].shard_list_sha256,
            "machine": machine(),
        }
        lines = [common | score for score in evaluated(trained, dataset, cell, grid)]
        append(grid.results, lines)
        shutil.rmtree(run)
        for line in lines:
            print(
                f"{cell.name}: {line['top1']:.1%} at {line['real_tokens']:.4g} ({line['counts']}), "
                f"{seconds:.0f} s",
                flush=True,
            )


def evaluated(run: RunFolder, dataset: Path, cell: Cell, grid: Grid) -> Iterator[dict[str, Any]]:
    """The last weights of a run at each number of tokens."""
    device = torch.device("cpu")
    model, limits = run.model(device, LAST), run.config().limits()
    for counts, tokens, discount in Training.parse(cell.tokens).evaluated(grid.discounts):
        if discount is not None:
            limits = replace(limits, discount=discount)
            options = {"threshold": run.threshold(tokens, limits)} | limits.options()
        else:
            options = {"tokens": grid_side(tokens) ** 2 if cell.is_uniform else tokens}
        loader = Loader(dataset, "val", batch_size=256, shuffle=False, **options)
        score = evaluate(model, loader, device)
        yield {
            "counts": counts,
            "discount": discount,
            "at": tokens,
            "real_tokens": round(score.tokens, 2),
            "val_samples": score.samples,
            "multiply_adds": score.multiply_adds,
            "top1": score.top1,
            "loss": score.loss,
        }


def tokenized(cell: Cell, grid: Grid) -> Path:
    """The shards of a cell; those of other budgets and seeds are the same."""
    options = scorer_options(cell.scorer)
    side = grid_side(Training.parse(cell.tokens).largest)
    if cell.is_uniform:
        options |= {"tokens": side**2, "image_size": side * PATCH, "max_patch_size": PATCH}
    else:
        options["tokens"] = grid.stored
    if options["scorer"] == "precomputed":
        options["maps"] = grid.maps
    if grid.images.is_relative_to(grid.out):
        options["crop_pct"] = 1.0  # scenes have the image size
    folder = grid.out / "shards" / f"{grid.setting}-{cell.scorer}-{options['tokens']}"
    with claimed(folder.with_name(f"{folder.name}.lock"), wait=True):
        if not (folder / "dataset.json").exists():
            quadpipe.tokenize(grid.images, folder, in_process=True, **options)
    return folder


def grid_side(tokens: int) -> int:
    """Patches in a row of the square grid whose number of patches is nearest."""
    return min(range(1, tokens + 1), key=lambda side: abs(side**2 - tokens))


def finished(results: Path) -> set[Cell]:
    lines = results.read_text().splitlines() if results.exists() else []
    rows = [{"draw": "even"} | json.loads(line) for line in lines]
    names = Cell.__dataclass_fields__
    return {
        Cell(**{name: row[name] for name in names} | {"tokens": str(row["tokens"])}) for row in rows
    }


def append(results: Path, lines: list[dict[str, Any]]) -> None:
    """In one write, so that processes do not mix their lines and none is written by half."""
    file = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    finally:
        os.close(file)


@contextmanager
def claimed(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the lock file is ours, until the block ends or the process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


if __name__ == "__main__":
    try:
        main()
    except QuadpipeError as error:
        raise SystemExit(f"accuracy: {error}") from error
