"""Jobs under Ray whose processes are killed at random: is any sample lost or duplicated?

    python tests/soak/kills.py [--minutes 5] [--seed 0] [--scorers 1]

Each round starts `quadpipe tokenize`, kills processes of it at random moments (the driver, Ray's
own, workers, scorers), runs it again until it ends, and compares the bytes with the undisturbed
run's. With --scorers, half of the rounds score with a network in actors.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from PIL import Image
from sklearn.datasets import load_sample_images

sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability import compare, tree

_OPTIONS = ("--samples-per-shard", "2", "--views", "4", "--tokens", "40", "--workers", "2")
_NETWORK = ("--scorer", "feature", "--backbone", "efficientnet-lite0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scorers", type=int, default=0)
    options = parser.parse_args()
    numbers = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    killed: Counter[str] = Counter()
    rounds = runs = lost = doubled = differing = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_images(folder / "images")
        wholes: dict[tuple[str, ...], dict[str, bytes]] = {}
        while time.monotonic() < end:
            scoring = _NETWORK if options.scorers and rounds % 2 else ()
            pool = ("--scorers", str(options.scorers)) if scoring else ()
            if scoring not in wholes:
                run(folder, "whole", *scoring, "--workers", "1").wait()
                wholes[scoring] = tree(folder / "whole")
                shutil.rmtree(folder / "whole")
            shutil.rmtree(folder / "out", ignore_errors=True)
            status = None
            for kills in (numbers.randint(1, 3), numbers.randint(0, 2), 0, 0):
                process = run(folder, "out", *scoring, *pool)
                killed += disturb(process, kills, numbers)
                status = process.wait()
                runs += 1
                if status == 0:
                    break
            found = tree(folder / "out")
            missing, extra = compare(found, wholes[scoring])
            lost, doubled = lost + missing, doubled + extra
            if status or found != wholes[scoring]:
                differing += 1
                print(f"round {rounds}: exit code {status}, files differ", flush=True)
            rounds += 1
    print(f"{rounds} rounds of {runs} runs from seed {options.seed}; killed: {dict(killed)}")
    print(f"lost {lost}, doubled {doubled} samples; {differing} rounds with other bytes")
    return int(bool(lost or doubled or differing))


def make_images(root: Path) -> None:
    for number, photograph in enumerate(load_sample_images().images * 10):
        target = root / ("a", "b")[number % 2] / f"{number:02d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        top, left = number * 7, number * 13
        Image.fromarray(photograph[top : top + 200, left : left + 300]).save(target)


def run(folder: Path, out: str, *more: str) -> subprocess.Popen:
    places = ("--in", str(folder / "images"), "--out", str(folder / out))
    return subprocess.Popen(
        [sys.executable, "-m", "quadpipe.cli", "tokenize", *places, *_OPTIONS, *more],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def disturb(process: subprocess.Popen, kills: int, numbers: random.Random) -> Counter[str]:
    """Kill `kills` processes of a run at random times; count them by kind."""
    killed: Counter[str] = Counter()
    for _ in range(kills):
        time.sleep(numbers.uniform(0.2, 5))
        try:
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
            victim = numbers.choice(family)
            kind = "driver" if victim.pid == process.pid else kind_of(victim)
            victim.kill()
        except psutil.Error:
            continue
        killed[kind] += 1
    return killed


def kind_of(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    if words[0].startswith("ray::"):
        return words[0].partition("(")[0].partition(".")[0]
    return process.name()


if __name__ == "__main__":
    sys.exit(main())
