"""Write the page on fine-tuning, from benchmarks/finetuning.py.

    python benchmarks/finetuning_report.py RESULTS.jsonl [--page docs/finetuning.md]

Models that differ in the seed alone make one line of a table: the mean and, of three seeds or
more, its standard error over seeds. Differences are taken per seed, since each seed has its own
pretrained model.
"""

import argparse
import json
import math
import statistics
from collections import Counter, defaultdict
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
FEWEST = 3  # seeds for which an error is given
TITLES = {"small": "Small objects", "large": "Objects that fill the image", "mixed": "All sizes"}

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, help="the page to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    check(rows)
    texts = {
        "machine": rows[-1]["machine"],
        "runs": runs(rows),
        "binomial": binomial(rows),
        "settings": "\n\n".join(section(rows, setting) for setting in settings_of(rows)),
    }
    page = TEMPLATE.read_text()
    for name, text in texts.items():
        print(f"{name}:\n{text}\n")
        page = page.replace(f"{{{name}}}", text)
    if options.page:
        options.page.write_text(page)


def settings_of(rows: Sequence[Row]) -> list[str]:
    found = {row["setting"] for row in rows}
    return [setting for setting in TITLES if setting in found]


def check(rows: Sequence[Row]) -> None:
    """SystemExit unless the rows can be compared, and the grid is among them."""
    if not rows:
        raise SystemExit("finetuning_report: there are no results; run benchmarks/finetuning.py")
    for setting in settings_of(rows):
        ours = [row for row in rows if row["setting"] == setting]
        seen = Counter((row["arm"], row["seed"]) for row in ours)
        kinds = {(row["epochs"], row["val_samples"], row.get("train_scenes")) for row in ours}
        sizes = {(row["share"], row["samples"]) for row in ours}
        if len(kinds) > 1 or len(sizes) > len(dict(sizes)) or len(seen) < len(ours):
            raise SystemExit(
                f"finetuning_report: {setting} has results of several studies (epochs, samples, or "
                f"seeds twice); remove the lines of all but one"
            )
        if not any(row["arm"] == BASE for row in ours):
            raise SystemExit(
                f"finetuning_report: {setting} has no results of the arm {BASE}, which the others "
                f"are compared with; run benchmarks/finetuning.py --scenes {setting} --arms {BASE}"
            )


def section(rows: Sequence[Row], setting: str) -> str:
    parts = [f"## {TITLES[setting]}", table(rows, setting)]
    if found := compared(rows, setting):
        parts.append(f"Mosaics: {found}.")
    return "\n\n".join(parts)


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
    return figure([seeds[seed]["top1"] - base[seed]["top1"] for seed in both], sign="+")


def figure(values: Sequence[float], *, sign: str = "") -> str:
    """Mean and error; of few values the mean alone, of none nothing."""
    if 0 < len(values) < FEWEST:
        values = [statistics.mean(values)]
    return text_of(values, sign=sign) if values else ""


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
    """All ways to continue, each against the whole epoch with the grid, and against the same model
    with the same tokens that was not continued."""
    arms = by_arm(rows, setting)
    base = arms[BASE]
    usual = cost(next(iter(base.values())))
    lines = [
        "| continued with | tokens | million multiply-adds per image | training | seeds | top-1, % "
        "| against the grid | against not continued, same tokens |",
        "|---" * 8 + "|",
    ]
    for name in (name for name in ARMS if name in arms):
        seeds = arms[name]
        first = next(iter(seeds.values()))
        starts = (n for n, arm in ARMS.items() if not arm.share and arm.kind == ARMS[name].kind)
        start = next(starts, name)
        gained = apart(seeds, arms[start]) if start in arms and start != name else ""
        tops = [row["top1"] for row in seeds.values()]
        lines.append(
            f"| {name} | {first['tokens']} | {first['multiply_adds'] / 1e6:.1f} | "
            f"{cost(first) / usual:.2f} | {len(tops)} | {figure(tops)} | "
            f"{'' if name == BASE else apart(seeds, base)} | {gained} |"
        )
    return "\n".join(lines)


def cost(row: Row) -> float:
    """Multiply-adds of continuing, where a backward pass counts as two forward passes."""
    frozen = row["options"].get("freeze", 0)
    trained = 0.0 if frozen == "backbone" else 1 - int(frozen) / BLOCKS
    return float(row["multiply_adds"] * row["samples"] * (1 + 2 * trained))


def runs(rows: Sequence[Row]) -> str:
    """How much was trained."""
    parts = [f"{len(rows)} results"]
    for setting in settings_of(rows):
        whole = next(iter(by_arm(rows, setting)[BASE].values()))
        parts.append(
            f"**{setting}**: {whole['epochs']} epochs of pretraining, continued on "
            f"{whole['samples']:,} scenes, {whole['val_samples']:,} in the validation split"
        )
    return "; ".join(parts)


def binomial(rows: Sequence[Row]) -> str:
    """The standard error of the accuracy of one model, from the number of validation images."""
    errors = []
    for setting in settings_of(rows):
        seeds = by_arm(rows, setting)[BASE].values()
        top1 = statistics.mean(row["top1"] for row in seeds)
        images = next(iter(seeds))["val_samples"]
        errors.append(f"{100 * math.sqrt(top1 * (1 - top1) / images):.1f} points in {setting}")
    return " and ".join(errors)


if __name__ == "__main__":
    main()
