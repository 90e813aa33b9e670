"""What a scorer brings in accuracy: tokenize, train, evaluate, at equal tokens.

    python benchmarks/accuracy.py OUT --scenes small --scorers uniform pixel-blur --tokens 37
    python benchmarks/accuracy.py OUT --images FOLDER --scorers uniform feature,backbone=NAME
    python benchmarks/accuracy_report.py OUT/results.jsonl --page docs/accuracy.md

Trains a Quadformer for every scorer, budget and seed, with quadpipe's own job and trainer, and adds
a line to OUT/results.jsonl for each. A rerun skips what is in there, so the command can be killed
at any time. The same command may run several times at once: each takes what no other has taken.

--scenes: `small` or `large`, made by benchmarks/scenes.py (small objects on photographs, or
objects that fill the image, of classes whose held-out cut-outs are the validation split).
--images: an image folder with labels and with splits train and val.

A scorer may have options, as in pixel-blur,scale_weight=0.5. Scorer `uniform` is the plain ViT: for
37 tokens the whole image is resized to 96 pixels, which is 6 x 6 patches, the nearest square.
Scorer `precomputed` takes the object's mask in scenes, and --maps otherwise. The accuracy is that
of the last epoch, not of the best.
"""

import argparse
import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, scorer_options
from PIL import Image
from scenes import SETTINGS, SIDE, add_arguments, load, unfinished

import quadpipe
from quadpipe.errors import QuadpipeError
from quadpipe.model import train

PATCH = 16
MASK_CELLS = SIDE // PATCH
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="where everything is written")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--scenes", choices=tuple(SETTINGS))
    source.add_argument("--images", type=Path, help="an image folder with splits train and val")
    parser.add_argument("--maps", type=Path, help="with --images: maps for scorer precomputed")
    parser.add_argument("--scorers", nargs="+", required=True, metavar="NAME[,OPTION=VALUE]")
    parser.add_argument("--tokens", nargs="+", type=int, default=[37])
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
        tokens=tuple(options.tokens),
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
                    epochs=options.epochs,
                )
                measure(cell, grid)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the images of a setting are and its results go. tokens: the budgets to be trained."""

    out: Path
    setting: str
    images: Path
    maps: Path | None
    tokens: tuple[int, ...]

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model to train. tokens: the budget asked for; a plain grid has the nearest square."""

    setting: str
    scorer: str
    tokens: int
    seed: int
    model: str
    epochs: int

    @property
    def is_uniform(self) -> bool:
        return self.scorer == "uniform"

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in asdict(self).values()).replace("/", "-")


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
        train(
            dataset,
            run,
            model=cell.model,
            tokens=grid_side(cell.tokens) ** 2 if cell.is_uniform else cell.tokens,
            epochs=cell.epochs,
            batch_size=BATCH,
            seed=cell.seed,
            workers=0,
            device="cpu",
        )
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        scores = [row for row in rows if row["event"] == "eval"]
        last = scores[-1]
        manifest = quadpipe.Dataset(dataset).manifest
        line = asdict(cell) | {
            "steps": last["step"],
            "batch": BATCH,
            "train_samples": manifest.splits["train"].samples,
            "val_samples": last["samples"],
            "classes": len(manifest.classes or ()),
            "real_tokens": last["tokens"],
            "multiply_adds": last["multiply_adds"],
            "top1": last["top1"],
            "loss": last["loss"],
            "top1_by_step": [[row["step"], row["top1"]] for row in scores],
            "tokenize_seconds": round(tokenizing, 1),
            "train_seconds": round(time.perf_counter() - started, 1),
            "shards_sha256": manifest.splits["train"].shard_list_sha256,
            "machine": machine(),
        }
        append(grid.results, line)
        shutil.rmtree(run)
        print(f"{cell.name}: {last['top1']:.1%} in {line['train_seconds']:.0f} s", flush=True)


def tokenized(cell: Cell, grid: Grid) -> Path:
    """The shards of a cell; those of other budgets and seeds are the same."""
    options = scorer_options(cell.scorer)
    side = grid_side(cell.tokens)
    if cell.is_uniform:
        options |= {"tokens": side**2, "image_size": side * PATCH, "max_patch_size": PATCH}
    else:
        options["tokens"] = max(grid.tokens)
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
    names = Cell.__dataclass_fields__
    lines = results.read_text().splitlines() if results.exists() else []
    return {Cell(**{name: row[name] for name in names}) for row in map(json.loads, lines)}


def append(results: Path, line: dict[str, Any]) -> None:
    """In one write, so that processes do not mix their lines and none is written by half."""
    file = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, f"{json.dumps(line)}\n".encode())
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
