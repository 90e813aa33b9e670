"""Statistics as tables of text, for the terminal and for pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quadpipe.text import counted

_QUANTILES = ("smallest", "10%", "50%", "90%", "largest")
_CLASSES = 6
_REASONS = 60

Statistics = Mapping[str, dict[str, Any]]
"""What `statistics` finds, by split."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """header: names of the columns. rows: their cells. note: what they are of, or why none."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def balance_table(statistics: Statistics) -> Table:
    """How many images the classes of each split have."""
    header = ("images per class", "smallest", "median", "largest", "imbalance", "empty")
    rows = [
        (
            split,
            f"{found['smallest']:,}",
            f"{found['median']:,g}",
            f"{found['largest']:,}",
            "-" if found["imbalance"] is None else f"{found['imbalance']:,g}",
            f"{found['empty']:,}",
        )
        for split, found in _known(statistics, "classes").items()
    ]
    return Table(header=header, rows=rows)


def classes_table(statistics: Statistics, split: str, names: Sequence[str] | None) -> Table:
    """The largest and the smallest classes of a split: name, images, percent of the largest."""
    header = (f"classes of {split}", "images", "of the largest")
    found = statistics[split]["classes"]
    if not found or not names:
        return Table(header=header, rows=[])
    counts = found["counts"]
    order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
    cut = len(order) - 2 * _CLASSES
    shown = order if cut <= 0 else order[:_CLASSES] + order[-_CLASSES:]
    largest = max(counts[order[0]], 1)
    rows = [(names[i], f"{counts[i]:,}", f"{100 * counts[i] / largest:.1f}%") for i in shown]
    note = f"{counted(cut, 'class')} between these not shown" if cut > 0 else ""
    return Table(header=header, rows=rows, note=note)


def rejects_table(statistics: Statistics) -> Table:
    """Numbers of rejected inputs by reason."""
    header = ("rejected", "split", "inputs")
    if any(found["rejected"] is None for found in statistics.values()):
        note = "the reasons of rejects are not known: this is a copy without its provenance"
        return Table(header=header, rows=[], note=note)
    rows = [
        (reason, split, f"{count:,}")
        for split, found in statistics.items()
        for reason, count in found["rejected"].items()
    ]
    cut = len(rows) - _REASONS
    note = f"{cut:,} more are not shown" if cut > 0 else ""
    return Table(header=header, rows=rows[:_REASONS], note=note)


def tokens_table(statistics: Statistics) -> Table:
    """Numbers of tokens where each image has as many as it needs, at several means."""
    known = _known(statistics, "tokens")
    rows = [
        (f"{split}, {mean}", f"{found['mean']:g}", *(f"{found[name]}" for name in _QUANTILES))
        for split, tokens in known.items()
        for mean, found in tokens["means"].items()
    ]
    of = ", ".join(f"{tokens['of']:,} of {split}" for split, tokens in known.items())
    note = f"samples: {of}; the means are those of train, or of the first split"
    return Table(header=("tokens at a mean", "mean", *_QUANTILES), rows=rows, note=note)


def originals_table(statistics: Statistics) -> Table:
    """Sizes of the images that were tokenized, in pixels."""
    known = _known(statistics, "originals")
    rows = [
        (f"{split}, {side}", *(f"{found[side][name]:,}" for name in _QUANTILES))
        for split, found in known.items()
        for side in ("width", "height")
    ]
    note = ", ".join(
        f"{counted(found['of'], 'sample')} of {split}, {found['enlarged']:.1%} enlarged"
        for split, found in known.items()
    )
    return Table(header=("pixels of originals", *_QUANTILES), rows=rows, note=note)


def _known(statistics: Statistics, name: str) -> dict[str, Any]:
    return {split: found[name] for split, found in statistics.items() if found[name]}
