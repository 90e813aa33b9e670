"""Write the page on one model for several numbers of tokens, from benchmarks/accuracy.py.

    python benchmarks/budgets_report.py RESULTS.jsonl [--page docs/budgets.md]

Lines that differ in the seed alone make one figure: its mean and its standard error over seeds. A
difference of two ways to use the same models is taken per seed.
"""

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accuracy import EQUAL, OWN, Training
from common import scorer_title
from PIL import Image

from quadpipe.counts import DISCOUNT
from quadpipe.plot import Curve, draw_curves

TEMPLATE = Path(__file__).with_name("budgets.template.md")

Row = dict[str, Any]


class Use(NamedTuple):
    """Models of one kind, used in one way; all of them differ in the seed alone."""

    setting: str
    scorer: str
    tokens: str
    epochs: int
    draw: str
    counts: str
    at: int
    discount: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--page", type=Path, help="the page to write, and its picture beside it")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()]
    uses = gather(rows)
    texts = {
        "machine": rows[-1]["machine"],
        "runs": runs(rows),
        "elastic": "\n\n".join(elastic(uses, setting) for setting in settings_with_ranges(uses)),
        "curves": curves(uses),
        "own": own_counts(uses),
    }
    for name, text in texts.items():
        print(f"{name}:\n{text}\n")
    if options.page:
        page = TEMPLATE.read_text()
        for name, text in texts.items():
            page = page.replace(f"{{{name}}}", text)
        options.page.write_text(page)
        draw(uses).save(options.page.with_suffix(".png"), optimize=True)


def gather(rows: Sequence[Row]) -> dict[Use, dict[int, Row]]:
    """The row of each seed. SystemExit when seeds were trained on different data."""
    uses: dict[Use, dict[int, Row]] = defaultdict(dict)
    for row in rows:
        fields: Row = {name: row.get(name) for name in Use._fields}
        uses[Use(**fields)][row["seed"]] = row
    for use, seeds in uses.items():
        if len({row["shards_sha256"] for row in seeds.values()}) > 1:
            raise SystemExit(
                f"{use}: the seeds were trained on different data; remove the older lines and run "
                f"them again"
            )
    return dict(uses)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """In percent; the error is nan of a single value."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, 100 * statistics.stdev(values) / math.sqrt(len(values))


def text_of(values: Sequence[float], *, sign: str = "") -> str:
    mean, error = mean_and_error(values)
    return f"{mean:{sign}.1f}" if math.isnan(error) else f"{mean:{sign}.1f} ± {error:.1f}"


def tops(seeds: dict[int, Row]) -> list[float]:
    return [row["top1"] for row in seeds.values()]


def settings_with_ranges(uses: dict[Use, dict[int, Row]]) -> list[tuple[str, str]]:
    """Settings and scorers with specialists and models for a range."""
    pairs = dict.fromkeys((use.setting, use.scorer) for use in uses)
    return [pair for pair in pairs if len(specialists(uses, *pair)) > 1]


def specialists(
    uses: dict[Use, dict[int, Row]], setting: str, scorer: str
) -> dict[int, dict[int, Row]]:
    """Models that were trained at one budget, by it."""
    found = {
        use.at: seeds
        for use, seeds in uses.items()
        if (use.setting, use.scorer) == (setting, scorer) and use.tokens.isdecimal()
    }
    return dict(sorted(found.items()))


def elastic(uses: dict[Use, dict[int, Row]], pair: tuple[str, str]) -> str:
    """Models for a range of budgets against a model for each, and what their training costs."""
    setting, scorer = pair
    base = specialists(uses, setting, scorer)
    lines = [
        f"| {setting}, {scorer_title(scorer)} | seeds | training, in specialists | "
        + " | ".join(f"{budget} tokens" for budget in base)
        + " |",
        "|---" * (len(base) + 3) + "|",
    ]
    costs = {n: row["multiply_adds"] * row["steps"] for n, s in base.items() for row in s.values()}
    usual = statistics.mean(costs.values())
    cells = [text_of(tops(seeds)) for seeds in base.values()]
    count = min(map(len, base.values()))
    lines.append(f"| one model per budget | {count} | {len(base)} | {' | '.join(cells)} |")
    for (tokens, epochs, draw), found in models_for_ranges(uses, pair).items():
        cost = training_cost(tokens, draw, next(iter(next(iter(found.values())).values())), base)
        cells = [text_of(tops(found[budget])) if budget in found else "" for budget in base]
        name = f"{tokens}, {epochs} epochs" + (f", drawn by {draw}" if draw != "even" else "")
        count = min(map(len, found.values()))
        lines.append(f"| one model, {name} | {count} | {cost / usual:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def models_for_ranges(
    uses: dict[Use, dict[int, Row]], pair: tuple[str, str]
) -> dict[tuple[str, int, str], dict[int, dict[int, Row]]]:
    """Models for a range of equal budgets, and their rows by budget."""
    found: dict[tuple[str, int, str], dict[int, dict[int, Row]]] = defaultdict(dict)
    for use, seeds in uses.items():
        is_range = not use.tokens.isdecimal() and not use.tokens.startswith("~")
        if is_range and (use.setting, use.scorer) == pair and use.counts == EQUAL:
            found[use.tokens, use.epochs, use.draw][use.at] = seeds
    return found


def training_cost(tokens: str, draw: str, row: Row, base: dict[int, dict[int, Row]]) -> float:
    """Multiply-adds per image times steps, of the mean budget of an even draw."""
    known: dict[int, int] = {
        n: next(iter(seeds.values()))["multiply_adds"] for n, seeds in base.items()
    }
    drawn = Training.parse(tokens).budgets
    # Multiply-adds are nearly linear in the number of tokens, so the ends of a range are enough.
    drawn = drawn if "," in tokens else [drawn[0], drawn[-1]]
    assert draw == "even"
    return statistics.mean(known[n] for n in drawn) * int(row["steps"])


def own_counts(uses: dict[Use, dict[int, Row]]) -> str:
    """What numbers of their own change, against equal numbers of the same model."""
    means = sorted({use.at for use in uses if use.counts == OWN})
    lines = [
        "| scenes | scorer | trained | discount | seeds | "
        + " | ".join(f"mean {mean}" for mean in means)
        + " |",
        "|---" * (len(means) + 5) + "|",
    ]
    kinds = {use._replace(at=0) for use in uses if use.counts == OWN}
    for kind in sorted(kinds):
        gained = {mean: gains_over_equal(uses, kind._replace(at=mean)) for mean in means}
        cells = [text_of(values, sign="+") if values else "" for values in gained.values()]
        lines.append(
            f"| {kind.setting} | {scorer_title(kind.scorer)} | {kind.tokens}, {kind.epochs} epochs "
            f"| {kind.discount} | {max(map(len, gained.values()))} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def gains_over_equal(uses: dict[Use, dict[int, Row]], own: Use) -> list[float]:
    """Differences in top-1 per seed."""
    equal = uses.get(own._replace(counts=EQUAL, discount=None), {})
    seeds = uses.get(own, {})
    return [seeds[n]["top1"] - equal[n]["top1"] for n in sorted(seeds.keys() & equal.keys())]


def curves(uses: dict[Use, dict[int, Row]]) -> str:
    """Top-1 of all models for ranges, however used."""
    budgets = sorted({use.at for use in uses})
    lines = [
        "| scenes | scorer | trained | used | "
        + " | ".join(f"{budget} tokens" for budget in budgets)
        + " |",
        "|---" * (len(budgets) + 4) + "|",
    ]
    chosen = {u._replace(at=0) for u in uses if u.discount in (None, DISCOUNT)}
    for kind in sorted(chosen, key=lambda use: (*use[:5], use.counts)):
        found = [uses.get(kind._replace(at=budget)) for budget in budgets]
        if sum(map(bool, found)) < 2:
            continue
        cells = [text_of(tops(seeds)) if seeds else "" for seeds in found]
        lines.append(
            f"| {kind.setting} | {scorer_title(kind.scorer)} | {kind.tokens}, {kind.epochs} epochs "
            f"| {kind.counts} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def runs(rows: Sequence[Row]) -> str:
    """How much was trained."""
    models = {tuple(row[n] for n in (*Use._fields[:5], "seed")): row for row in rows}
    minutes = sum(row["train_seconds"] for row in models.values()) / 60
    first = rows[0]
    return (
        f"{len(models)} models, {minutes:,.0f} minutes of wall time on a busy machine; "
        f"{first['train_samples']:,} training and {first['val_samples']:,} validation images per "
        f"setting; batches of {first['batch']}"
    )


def draw(uses: dict[Use, dict[int, Row]]) -> Image.Image:
    """Top-1 over multiply-adds: a panel for each setting and scorer."""
    panels: dict[str, list[Curve]] = defaultdict(list)
    lines: dict[tuple[str, str], list[tuple[Use, dict[int, Row]]]] = defaultdict(list)
    for use, seeds in sorted(uses.items(), key=lambda item: item[0].at):
        if use.discount not in (None, DISCOUNT):
            continue
        name = "one model per budget" if use.tokens.isdecimal() else f"{use.tokens}, {use.counts}"
        title = f"{use.setting}, {scorer_title(use.scorer).replace('`', '')}"
        lines[title, f"{name}, {use.epochs} epochs"].append((use, seeds))
    for (title, name), points in lines.items():
        if len(points) < 2:
            continue
        figures = [mean_and_error(tops(seeds)) for _, seeds in points]
        costs = [
            statistics.mean(row["multiply_adds"] for row in seeds.values()) for _, seeds in points
        ]
        panels[title].append(
            Curve(
                name=name,
                x=[cost / 1e6 for cost in costs],
                y=[mean for mean, _ in figures],
                errors=[error for _, error in figures],
            )
        )
    return draw_curves(panels, x="million multiply-adds", y="top-1 in %")


if __name__ == "__main__":
    main()
