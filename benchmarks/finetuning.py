"""What one epoch of fine-tuning with fewer tokens of mixed scales brings, and costs.

    python benchmarks/finetuning.py OUT --scenes small large
    python benchmarks/finetuning_report.py OUT/results.jsonl --page docs/finetuning.md

Trains a nano ViT on the uniform grid with one half of the scenes (benchmarks/scenes.py), and
continues it for one epoch on the other half: with mosaics of 60 % of the tokens, and with grids. It
adds a line per model to OUT/results.jsonl; a rerun skips what is in there, so the command can be
killed at any time. Images of 128 pixels and patches of 16 are a grid of 64 tokens; the smallest
patches of the mosaics have the size of the grid's. The accuracy is that of the last step.
"""

import argparse
import csv
import json
import shutil
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accuracy import BATCH, PATCH, Grid, append, claimed, make_scenes
from common import machine
from scenes import SETTINGS, add_arguments

import quadpipe
from quadpipe.errors import QuadpipeError
from quadpipe.loader import Loader
from quadpipe.model import train
from quadpipe.model.evaluate import evaluate
from quadpipe.model.run_folder import LAST, RunFolder

SIDE = 128  # of the images, in pixels
HALVES = ("first", "second")
PRETRAINED = "pretrained"
GRID, SMALL_GRID, MOSAICS = "grid 64", "grid 36", "mosaics 37"
# 37 is the legal budget nearest to 60 % of 64; 36 the square nearest to 37.
KINDS: dict[str, dict[str, Any]] = {
    GRID: {"scorer": "uniform", "tokens": 64, "image_size": SIDE, "max_patch_size": PATCH},
    SMALL_GRID: {"scorer": "uniform", "tokens": 36, "image_size": 96, "max_patch_size": PATCH},
    MOSAICS: {"scorer": "saliency", "tokens": 37, "image_size": SIDE},
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to continue. kind: of the tokens. share: of the second half; of 0 nothing is trained.
    options: for the trainer."""

    kind: str
    share: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    "not continued": Arm(kind=GRID, share=0),
    "not continued, mosaics": Arm(kind=MOSAICS, share=0),
    "grid": Arm(kind=GRID),
    "mosaics": Arm(kind=MOSAICS),
    # As many multiply-adds of training as the mosaics have: 20.6 of 36.7 million per image.
    "grid, part of the epoch": Arm(kind=GRID, share=0.5625),
    "smaller grid": Arm(kind=SMALL_GRID),
    "mosaics, half frozen": Arm(kind=MOSAICS, options={"freeze": "2"}),
    "mosaics, linear probe": Arm(kind=MOSAICS, options={"freeze": "backbone"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="where everything is written")
    parser.add_argument("--scenes", nargs="+", choices=tuple(SETTINGS), required=True)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="of pretraining")
    parser.add_argument("--train-scenes", type=int, default=12_000)
    parser.add_argument("--val-scenes", type=int, default=2_000)
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    for seed in range(options.seeds):
        for setting in options.scenes:
            study = Study(
                out=options.out,
                setting=setting,
                seed=seed,
                epochs=options.epochs,
                train_scenes=options.train_scenes,
                val_scenes=options.val_scenes,
            )
            with claimed(study.folder.with_name(f"{study.folder.name}.lock"), wait=True):
                make_scenes(study.scenes, options)
                for name in options.arms:
                    measure(study, name)


@dataclass(frozen=True, kw_only=True)
class Study:
    """One pretrained model. epochs: of pretraining."""

    out: Path
    setting: str
    seed: int
    epochs: int
    train_scenes: int
    val_scenes: int

    @property
    def work(self) -> Path:
        """Of all studies with as many scenes."""
        return self.out / f"{self.train_scenes}-{self.val_scenes}"

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    @property
    def folder(self) -> Path:
        return self.work / "runs" / f"{self.setting}-{self.seed}-{self.epochs}"

    @property
    def scenes(self) -> Grid:
        folder = self.work / "scenes"
        return Grid(
            out=self.work,
            setting=self.setting,
            images=folder / self.setting,
            maps=folder / f"{self.setting}-maps",
            discounts=(),
            stored=0,
        )

    def train(self, out: Path, shards: Path, **options: Any) -> RunFolder:
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        options |= {"batch_size": BATCH, "seed": self.seed, "workers": 0, "device": "cpu"}
        train(shards, partial, **options)
        partial.rename(out)
        return RunFolder(out)

    def pretrained(self) -> RunFolder:
        """The model that all arms continue, with the learned positions of the usual ViT."""
        out = self.folder / PRETRAINED
        if out.exists():
            return RunFolder(out)
        shards = self.shards(HALVES[0], GRID)
        out.parent.mkdir(parents=True, exist_ok=True)
        return self.train(out, shards, model="nano", positions="learned", epochs=self.epochs)

    def shards(self, part: str, kind: str) -> Path:
        """The shards of a half of the split train, or of the split val."""
        folder = self.work / "shards" / f"{self.setting}-{part}-{kind.replace(' ', '-')}"
        if not (folder / "dataset.json").exists():
            table = self.work / "scenes" / f"{self.setting}-{part}.csv"
            with table.open("w", newline="") as file:
                csv.writer(file).writerows(self.rows(part))
            split = "val" if part == "val" else "train"
            options = KINDS[kind] | {"crop_pct": 1.0, "split": split, "in_process": True}
            quadpipe.tokenize(table, folder, **options)
        return folder

    def rows(self, part: str) -> Iterator[tuple[str, str]]:
        """Paths and labels; the halves of each class are its scenes with even and odd turns."""
        split = "val" if part == "val" else "train"
        for folder in sorted((self.scenes.images / split).iterdir()):
            for turn, path in enumerate(sorted(folder.iterdir())):
                if part == "val" or turn % 2 == HALVES.index(part):
                    yield f"{path.relative_to(self.work / 'scenes')}", folder.name

    def share_of(self, shards: Path, share: float) -> Path:
        """A dataset of a fair draw of the samples."""
        if share == 1:
            return shards
        count = round(share * quadpipe.Dataset(shards).manifest.splits["train"].samples)
        part = shards.with_name(f"{shards.name}-{count}")
        if not (part / "dataset.json").exists():
            quadpipe.copy(shards, part, samples=count, in_process=True)
        return part


def measure(study: Study, name: str) -> None:
    """Continue the model in one way and add its line, unless it is done."""
    arm = ARMS[name]
    fields = ("setting", "seed", "epochs", "train_scenes", "val_scenes")
    known = {"arm": name} | {field: getattr(study, field) for field in fields}
    if any(known.items() <= row.items() for row in rows_of(study.results)):
        return
    run, samples, seconds = study.pretrained(), 0, 0.0
    if arm.share:
        shards = study.share_of(study.shards(HALVES[1], arm.kind), arm.share)
        samples = quadpipe.Dataset(shards).manifest.splits["train"].samples
        started = time.perf_counter()
        out = study.folder / name.replace(" ", "-").replace(",", "")
        shutil.rmtree(out, ignore_errors=True)
        init = run.folder.root
        run = study.train(out, shards, init=init, epochs=1, **arm.options)
        seconds = time.perf_counter() - started
    model = run.model(torch.device("cpu"), LAST)
    loader = Loader(study.shards("val", arm.kind), "val", batch_size=256, shuffle=False)
    score = evaluate(model, loader, torch.device("cpu"))
    line = known | {
        "tokens": score.tokens,
        "multiply_adds": score.multiply_adds,
        "samples": samples,
        "val_samples": score.samples,
        "top1": score.top1,
        "loss": score.loss,
        "train_seconds": round(seconds, 1),
        "machine": machine(),
        **asdict(arm),
    }
    append(study.results, [line])
    print(f"{known}: {score.top1:.1%}, {seconds:.0f} s", flush=True)


def rows_of(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    try:
        main()
    except QuadpipeError as error:
        raise SystemExit(f"finetuning: {error}") from error
