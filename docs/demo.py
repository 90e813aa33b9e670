"""`make demo`: tokenize real photographs, look at the dataset, train on it, use the model.

    python docs/demo.py PHOTOGRAPHS OUT

PHOTOGRAPHS is a folder with the pictures that scikit-image ships. Each becomes a class, and its
random crops are the images of that class.
"""

import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
CROPS = 48


def main(photographs: Path, out: Path) -> None:
    images, shards = out / "images", out / "shards"
    shutil.rmtree(out, ignore_errors=True)
    make_images(photographs, images)
    quadpipe("tokenize", "--in", images, "--out", shards, "--tokens", 196, "--val-share", 0.15,
             "--samples-per-shard", 64, "--name", "Crops of photographs")  # fmt: skip
    quadpipe("verify", shards)
    picture, gallery, page = out / "coffee.png", out / "dataset.png", out / "page.html"
    budgets = [option for n in (64, 100, 196) for option in ("--tokens", n)]
    quadpipe("show", photographs / "coffee.png", *budgets, "--out", picture)
    quadpipe("show", shards, "--in", images, "--samples", 4, "--tokens", 100, "--out", gallery)
    quadpipe("show", shards, "--in", images, "--samples", 24, "--out", page)
    run, seen = out / "run", out / "seen.png"
    quadpipe("train", shards, "--out", run, "--model", "nano", "--tokens", 100, "--epochs", 15,
             "--batch-size", 32, "--warmup-epochs", 1.5, "--workers", 1)  # fmt: skip
    quadpipe("eval", run, shards, "--split", "val", "--tokens", 64, "--tokens", 100)
    quadpipe("predict", run, photographs / "chelsea.png", "--top", 3, "--show", seen)
    print(f"\nOpen these:\n  {picture}  a photograph, its quadtrees and mosaics at three budgets")
    print(f"  {page}  the dataset as a page with a slider over budgets")
    print(f"  {gallery}  samples of the dataset\n  {shards / 'README.md'}  its card")
    print(f"  {seen}  what the model saw of the photograph that it classified")


def make_images(photographs: Path, images: Path) -> None:
    """An ImageFolder: one class per photograph, crops of half to all of its shorter side."""
    chance = random.Random(0)
    for name in PHOTOGRAPHS:
        with Image.open(photographs / name) as file:
            photograph = file.convert("RGB")
        folder = images / Path(name).stem
        folder.mkdir(parents=True)
        for number in range(CROPS):
            side = int(min(photograph.size) * chance.uniform(0.5, 1))
            left = chance.randint(0, photograph.width - side)
            top = chance.randint(0, photograph.height - side)
            crop = photograph.crop((left, top, left + side, top + side))
            crop.save(folder / f"{number:03d}.jpg", quality=92)


def quadpipe(*arguments: object) -> None:
    words = ["quadpipe", *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "quadpipe.cli", *words[1:]], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
