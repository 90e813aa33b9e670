"""The summary of a dataset as text, for `quadpipe info` and `quadpipe tokenize`."""

from collections.abc import Iterator, Sequence
from typing import Any

import click

from quadpipe.cli.text import bytes_text, counted, printable, table
from quadpipe.images.library import describe
from quadpipe.shards.reader import Dataset
from quadpipe.shards.summary import summarize
from quadpipe.shards.tables import (
    Statistics,
    balance_table,
    classes_table,
    originals_table,
    rejects_table,
    tokens_table,
)


def print_summary(dataset: Dataset) -> None:
    """Print the summary of a dataset to standard output."""
    click.echo(summary_text(summarize(dataset)))


def summary_text(summary: dict[str, Any]) -> str:
    tokenizer = summary["tokenizer"]
    height, width = tokenizer["image_size"]
    classes = "no labels" if summary["classes"] is None else counted(summary["classes"], "class")
    budgets = summary["budgets"]
    served = f"{budgets[0]} to {budgets[-1]} in steps of 3" if budgets[1:] else f"{budgets[0]}"
    codec = " ".join(f"{value}" for _, value in sorted(summary["codec"].items()))
    lines = [
        ("dataset", f"{summary['name'] or summary['location']}, {classes}"),
        (
            "format",
            f"{summary['format_version']}, tokenizer {summary['tokenizer_version']}, "
            f"revision {summary['revision']}",
        ),
        ("fingerprint", summary["fingerprint"]),
        (
            "images",
            f"{height} x {width} pixels, patches of {tokenizer['patch_size']} to "
            f"{tokenizer['max_patch_size']}, {tokenizer['resize']}, crop_pct "
            f"{tokenizer['crop_pct']:g}, {tokenizer['resample']}, codec {codec}",
        ),
        ("scorer", summary["scorer"]["name"]),
        ("budgets", f"{served} tokens"),
        (
            "made with",
            describe(summary["imaging_library"])
            + (f", quadpipe {summary['quadpipe']}" if summary["quadpipe"] else ""),
        ),
    ]
    if summary["members"]:
        kept = summary["members"].items()
        lines.append(("members", ", ".join(n if k == "bytes" else f"{n} ({k})" for n, k in kept)))
    lines += [(key, summary[key]) for key in ("license", "source") if summary[key]]
    parts = [_splits(summary), _scales(summary)]
    if "counts" in summary:
        parts.append(_counts(summary["counts"]))
    if "statistics" in summary:
        parts += _statistics(summary["statistics"], summary["class_names"])
    return "\n\n".join(["\n".join(f"{key:<11} {value}" for key, value in lines), *parts])


def _splits(summary: dict[str, Any]) -> str:
    header = ("split", "inputs", "rejected", "views", "samples", "shards", "size", "per sample")
    rows = [
        (
            name,
            f"{split['inputs']:,}",
            f"{split['rejected']:,}",
            f"{split['views']}",
            f"{split['samples']:,}",
            f"{split['shards']:,}",
            bytes_text(split["bytes"]),
            bytes_text(split["bytes_per_sample"] or 0),
        )
        for name, split in summary["splits"].items()
    ]
    return table(header, rows)


def _statistics(statistics: Statistics, classes: Sequence[str] | None) -> Iterator[str]:
    each = [classes_table(statistics, split, classes) for split in statistics]
    for found in (balance_table(statistics), *each, rejects_table(statistics),
                  tokens_table(statistics), originals_table(statistics)):  # fmt: skip
        lines = [f"({found.note})"] if found.note else []
        if found.rows:
            rows = [[printable(cell) for cell in row] for row in found.rows]
            lines.insert(0, table(found.header, rows))
        if lines:
            yield "\n".join(lines)


def _counts(counts: dict[str, dict[str, float]]) -> str:
    names = ("mean", "smallest", "10%", "50%", "90%", "largest")
    header = ("tokens per image", *names, "at the least", "at the most")
    rows = [
        (
            split,
            *(f"{found[name]:g}" for name in names),
            f"{found['at_least']:.1%}",
            f"{found['at_most']:.1%}",
        )
        for split, found in counts.items()
    ]
    return table(header, rows)


def _scales(summary: dict[str, Any]) -> str:
    sides = list(next(iter(summary["splits"].values()))["scales"])
    header = (f"{summary['tokenizer']['tokens']} tokens", *(f"{side} px" for side in sides))
    rows = [
        (
            f"{name}, share of {share}",
            *(f"{split['scales'][side][share]:.1%}" for side in sides),
        )
        for name, split in summary["splits"].items()
        for share in ("tokens", "area")
    ]
    looked_at = ", ".join(f"{s['looked_at']:,} of {n}" for n, s in summary["splits"].items())
    note = f"(shares in the first samples: {looked_at})"
    return f"{table(header, rows)}\n{note}"
