"""Write the page on fine-tuning, from benchmarks/finetuning.py.

    python benchmarks/finetuning_report.py RESULTS.jsonl [--page docs/finetuning.md]

Models that differ in the seed alone make one line of a table: the mean and its standard error over
seeds. Differences are taken per seed, since each seed has its own pretrained model.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budgets_report import text_of
from finetuning import ARMS

TEMPLATE = Path(__file__).with_name("finetuning.template.md")
BASE, MOSAICS = "grid", "mosaics"
COMPARED = {
    "grid": "all tokens",
    "grid, part of the epoch": "equal multiply-adds of training",
    "smaller grid": "equal tokens, and multiply-adds per image",
}
BLOCKS = 4  # of the nano model

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, help="the page to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    texts = {"machine": rows[-1]["machine"], "runs": runs(rows)}
    texts |= {f"table {setting}": table(rows, setting) for setting in settings}
    texts |= {f"compared {setting}": compared(rows, setting) for setting in settings}
    page = TEMPLATE.read_text()
    for name, text in texts.items():
        print(f"{name}:\n{text}\n")
        page = page.replace(f"{{{name}}}", text)
    if options.page:
        options.page.write_text(page)


def by_arm(rows: Sequence[Row], setting: str) -> dict[str, dict[int, Row]]:
    """The row of each seed."""
    arms: dict[str, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if row["setting"] == setting:
            arms[row["arm"]][row["seed"]] = row
    return arms


def apart(seeds: dict[int, Row], base: dict[int, Row]) -> str:
    """The difference in top-1 of two ways to continue the same models."""
    both = sorted(seeds.keys() & base.keys())
    return text_of([seeds[seed]["top1"] - base[seed]["top1"] for seed in both], sign="+")


def compared(rows: Sequence[Row], setting: str) -> str:
    """The mosaics against what has as many tokens, or multiply-adds."""
    arms = by_arm(rows, setting)
    found = (
        f"{apart(arms[MOSAICS], arms[name])} points against {name} ({why})"
        for name, why in COMPARED.items()
        if arms[MOSAICS].keys() & arms[name].keys()
    )
    return "; ".join(found)


def table(rows: Sequence[Row], setting: str) -> str:
    """All ways to continue, each against the whole epoch with the grid."""
    arms = by_arm(rows, setting)
    base = arms[BASE]
    usual = cost(next(iter(base.values())))
    lines = [
        "| continued with | tokens | million multiply-adds per image | training | seeds | top-1, % "
        "| against the grid |",
        "|---" * 7 + "|",
    ]
    for name in (name for name in ARMS if name in arms):
        seeds = arms[name]
        first = next(iter(seeds.values()))
        tops = [row["top1"] for row in seeds.values()]
        lines.append(
            f"| {name} | {first['tokens']} | {first['multiply_adds'] / 1e6:.1f} | "
            f"{cost(first) / usual:.2f} | {len(tops)} | {text_of(tops)} | "
            f"{'' if name == BASE else apart(seeds, base)} |"
        )
    return "\n".join(lines)


def cost(row: Row) -> float:
    """Multiply-adds of continuing, where a backward pass counts as two forward passes."""
    frozen = row["options"].get("freeze", 0)
    trained = 0.0 if frozen == "backbone" else 1 - int(frozen) / BLOCKS
    return float(row["multiply_adds"] * row["samples"] * (1 + 2 * trained))


def runs(rows: Sequence[Row]) -> str:
    """How much was trained."""
    whole = next(row for row in rows if row["arm"] == BASE)
    return (
        f"{len(rows)} results; {whole['samples']:,} scenes in each half, {whole['val_samples']:,} "
        f"in the validation split; {whole['epochs']} epochs of pretraining"
    )


if __name__ == "__main__":
    main()
