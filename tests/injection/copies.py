"""Kill a copy at every point, one after the other, and run it again each time.

    python copies.py SOURCE BEFORE FOLDER OPTIONS

BEFORE: a dataset that is at the destination already, as another copy. FOLDER: to work in. OPTIONS:
of `quadpipe.copy`, as JSON. Prints the rows of `everywhere.kills`; `seen` is the fingerprint of the
dataset at the destination after the kill, null without one, and "broken" when it is damaged.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from everywhere import kills

import quadpipe
from quadpipe.shards.verify import verify


def fingerprint(out: Path) -> str | None:
    if not (out / "dataset.json").exists():
        return None
    dataset = quadpipe.Dataset(out)
    return "broken" if list(verify(dataset)) else dataset.manifest.fingerprint


def main(source: Path, before: Path, folder: Path, options: dict[str, Any]) -> None:
    quadpipe.copy(before, folder / "before")

    def start(out: Path) -> None:
        shutil.copytree(folder / "before", out)

    def run(out: Path) -> None:
        quadpipe.copy(source, out, replace=True, **options)

    for row in kills(start, run, folder, fingerprint):
        print(json.dumps(row))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
