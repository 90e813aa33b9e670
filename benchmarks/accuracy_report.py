"""Write the page and the picture of what benchmarks/accuracy.py has found.

    python benchmarks/accuracy_report.py RESULTS.jsonl [--page docs/accuracy.md]

Lines that differ in the seed alone make one figure: its mean and its standard error over seeds. The
picture shows top-1 over multiply-adds. The longest runs of a setting show when top-1 stops rising.
"""

import argparse
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import scorer_title
from PIL import Image

from quadpipe.plot import Curve, draw_curves

TEMPLATE = Path(__file__).with_name("accuracy.template.md")
BASE = "uniform"
BUDGET = 37  # of the tables: all scorers are trained at it
CLEAR = 2.8  # standard errors of a difference: 95 % of t with 4 degrees of freedom, 3 seeds each
ORDER = (BASE, "random", "pixel-blur", "saliency", "feature-saliency", "precomputed")
TITLES = {
    BASE: "`uniform` (plain ViT)",
    "precomputed": "the object's mask",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, help="the page to write, and its picture beside it")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    # Models for one number of tokens; budgets_report.py has the others.
    rows = [row | {"tokens": int(row["tokens"])} for row in rows if f"{row['tokens']}".isdecimal()]
    usual = statistics.multimode(row["epochs"] for row in rows)[0]
    figures = [figure for figure in gather(rows) if figure.epochs == usual]
    settings = list(dict.fromkeys(figure.setting for figure in figures))
    tables = {setting: table(setting, figures) for setting in settings}
    texts = {
        "machine": rows[-1]["machine"],
        "runs": runs(rows, usual),
        "budgets": budgets(figures),
        "rising": "\n\n".join(rising(setting, rows) for setting in settings),
    } | {f"table {setting}": text for setting, text in tables.items()}
    for name, text in texts.items():
        print(f"{name}:\n{text}\n")
    if options.page:
        page = TEMPLATE.read_text()
        for name, text in texts.items():
            page = page.replace(f"{{{name}}}", text)
        options.page.write_text(page)
        draw(settings, figures).save(options.page.with_suffix(".png"), optimize=True)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One setting, scorer and budget. tokens: the real number. top1: one per seed, 0 to 1."""

    setting: str
    scorer: str
    budget: int
    tokens: int
    epochs: int
    multiply_adds: int
    top1: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1)

    @property
    def error(self) -> float:
        """Standard error of the mean over seeds; nan of a single seed."""
        if len(self.top1) < 2:
            return math.nan
        return statistics.stdev(self.top1) / math.sqrt(len(self.top1))

    def __str__(self) -> str:
        if len(self.top1) < 2:
            return f"{100 * self.mean:.1f} (one seed)"
        return f"{100 * self.mean:.1f} ± {100 * self.error:.1f}"


def gather(rows: Sequence[dict[str, Any]]) -> list[Figure]:
    """In the order of ORDER, then of the results.

    SystemExit when seeds of one figure were trained on different data.
    """
    cells = defaultdict(list)
    for row in rows:
        cells[row["setting"], row["scorer"], row["tokens"], row["model"], row["epochs"]].append(row)
    for same in cells.values():
        if len({row["shards_sha256"] for row in same}) > 1:
            raise SystemExit(
                f"{same[0]['setting']}, {same[0]['scorer']}, {same[0]['tokens']} tokens: the seeds "
                f"were trained on different data; remove the older lines and run them again"
            )
    figures = [
        Figure(
            setting=same[0]["setting"],
            scorer=same[0]["scorer"],
            budget=same[0]["tokens"],
            tokens=same[0]["real_tokens"],
            epochs=same[0]["epochs"],
            multiply_adds=same[0]["multiply_adds"],
            top1=tuple(row["top1"] for row in same),
        )
        for same in cells.values()
    ]
    return sorted(figures, key=lambda f: (f.setting != "small", f.setting, rank(f.scorer)))


def rank(scorer: str) -> int:
    name = scorer.partition(",")[0]
    return ORDER.index(name) if name in ORDER else len(ORDER)


def title(scorer: str) -> str:
    return TITLES.get(scorer) or scorer_title(scorer)


def table(setting: str, figures: Sequence[Figure]) -> str:
    """All scorers at BUDGET tokens, each against the plain grid."""
    shown = [f for f in figures if f.setting == setting and f.budget == BUDGET]
    base = next((f for f in shown if f.scorer == BASE), None)
    lines = [
        "| scorer | tokens | million multiply-adds | seeds | top-1, % | against the plain ViT |",
        "|---" * 6 + "|",
    ]
    for figure in shown:
        lines.append(
            f"| {title(figure.scorer)} | {figure.tokens} | {figure.multiply_adds / 1e6:.1f} | "
            f"{len(figure.top1)} | {figure} | {verdict(figure, base)} |"
        )
    return "\n".join(lines)


def verdict(figure: Figure, base: Figure | None) -> str:
    """The difference, and whether it is clear."""
    if base is None or figure is base:
        return ""
    difference, error = figure.mean - base.mean, math.hypot(figure.error, base.error)
    words = "win" if difference > 0 else "loss"
    if not abs(difference) > CLEAR * error:  # also when the error is not known
        words = "no clear difference"
    return f"{100 * difference:+.1f} ± {100 * error:.1f}: {words}".replace(" ± nan", "")


def budgets(figures: Sequence[Figure]) -> str:
    """The scorers that were trained at several budgets."""
    counts = Counter((figure.setting, figure.scorer) for figure in figures)
    several = [figure for figure in figures if counts[figure.setting, figure.scorer] > 1]
    if not several:
        return "None were run."
    lines = ["| scenes | scorer | tokens | million multiply-adds | top-1, % |", "|---" * 5 + "|"]
    for figure in sorted(several, key=lambda f: (f.setting != "small", rank(f.scorer), f.tokens)):
        lines.append(
            f"| {figure.setting} | {title(figure.scorer)} | {figure.tokens} | "
            f"{figure.multiply_adds / 1e6:.1f} | {figure} |"
        )
    return "\n".join(lines)


def runs(rows: Sequence[dict[str, Any]], epochs: int) -> str:
    """How much was trained. epochs: of the runs in the tables."""
    first = next(row for row in rows if row["epochs"] == epochs)
    minutes = sum(row["train_seconds"] + row["tokenize_seconds"] for row in rows) / 60
    return (
        f"{len(rows)} models, {minutes:,.0f} minutes of wall time in all; "
        f"{first['train_samples']:,} training and {first['val_samples']:,} validation images per "
        f"setting; {first['steps']:,} steps of {first['batch']} images ({epochs} epochs)"
    )


def rising(setting: str, rows: Sequence[dict[str, Any]]) -> str:
    """Top-1 by step of the longest runs of a setting."""
    longest = max(row["epochs"] for row in rows if row["setting"] == setting)
    shown = [row for row in rows if row["setting"] == setting and row["epochs"] == longest]
    shown = [row for row in shown if row["seed"] == 0 and row["tokens"] == BUDGET]
    shown.sort(key=lambda row: rank(row["scorer"]))
    steps = [step for step, _ in shown[0]["top1_by_step"]]
    lines = [f"| {setting}, steps | {' | '.join(f'{step:,}' for step in steps)} |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for row in shown:
        scores = [f"{100 * top1:.1f}" for _, top1 in row["top1_by_step"]]
        lines.append(f"| {title(row['scorer'])} | {' | '.join(scores)} |")
    return "\n".join(lines)


def draw(settings: Sequence[str], figures: Sequence[Figure]) -> Image.Image:
    """A panel for each setting: top-1 over multiply-adds, bars of one standard error."""
    panels: dict[str, list[Curve]] = {}
    for setting in settings:
        mine = [f for f in figures if f.setting == setting]
        curves = panels[f"scenes {setting}"] = []
        for scorer in sorted({f.scorer for f in mine}, key=lambda scorer: (rank(scorer), scorer)):
            line = sorted((f for f in mine if f.scorer == scorer), key=lambda f: f.multiply_adds)
            curve = Curve(
                name=title(scorer).replace("`", ""),
                x=[f.multiply_adds / 1e6 for f in line],
                y=[100 * f.mean for f in line],
                errors=[100 * f.error for f in line],
            )
            curves.append(curve)
    return draw_curves(panels, x="million multiply-adds", y="top-1 in %")


if __name__ == "__main__":
    main()
