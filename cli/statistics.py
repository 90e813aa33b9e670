"""Statistics of a dataset as text, for `quadpipe info`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quadpipe.cli.text import printable, table

_CLASSES = 5
_QUANTILES = ("smallest", "10%", "50%", "90%", "largest")


def statistics_parts(
    statistics: Mapping[str, dict[str, Any]], classes: Sequence[str] | None
) -> list[str]:
    """Tables of what `shards.statistics.statistics` found; those without content are left out."""
    parts = (_balance(statistics), *_largest_and_smallest(statistics, classes or ()),
             _rejects(statistics), _tokens(statistics), _originals(statistics))  # fmt: skip
    return [part for part in parts if part]


def counts_table(counts: Mapping[str, dict[str, float]]) -> str:
    """Numbers of tokens per image; the rows have the names of `counts`."""
    names = ("mean", *_QUANTILES)
    header = ("tokens per image", *names, "at the least", "at the most")
    rows = [
        (
            name,
            *(f"{found[column]:g}" for column in names),
            f"{found['at_least']:.1%}",
            f"{found['at_most']:.1%}",
        )
        for name, found in counts.items()
    ]
    return table(header, rows)


def _balance(statistics: Mapping[str, dict[str, Any]]) -> str:
    known = {split: found["classes"] for split, found in statistics.items() if found["classes"]}
    header = ("images per class", "smallest", "median", "largest", "imbalance", "empty classes")
    rows = [
        (
            split,
            f"{classes['smallest']:,}",
            f"{classes['median']:,g}",
            f"{classes['largest']:,}",
            "-" if classes["imbalance"] is None else f"{classes['imbalance']:,g}",
            f"{classes['empty']:,}",
        )
        for split, classes in known.items()
    ]
    return table(header, rows) if rows else ""


def _largest_and_smallest(
    statistics: Mapping[str, dict[str, Any]], names: Sequence[str]
) -> Iterator[str]:
    for split, found in statistics.items():
        if not found["classes"]:
            continue
        counts = found["classes"]["counts"]
        order = sorted(range(len(counts)), key=lambda index: (-counts[index], index))
        shown = order if len(order) <= 2 * _CLASSES else order[:_CLASSES] + order[-_CLASSES:]
        total = max(sum(counts), 1)
        rows = [
            (printable(names[index], 40), f"{counts[index]:,}", f"{counts[index] / total:.1%}")
            for index in shown
        ]
        if len(shown) < len(order):
            rows.insert(_CLASSES, ("..", "", ""))
        yield table((f"classes of {split}", "images", "share"), rows)


def _rejects(statistics: Mapping[str, dict[str, Any]]) -> str:
    if any(found["rejected"] is None for found in statistics.values()):
        return "(the reasons of the rejects are not known: this is a copy without its provenance)"
    rows = [
        (f"{split}, {printable(reason)}", f"{count:,}")
        for split, found in statistics.items()
        for reason, count in found["rejected"].items()
    ]
    return table(("rejected", "inputs"), rows) if rows else ""


def _tokens(statistics: Mapping[str, dict[str, Any]]) -> str:
    known = {split: found["tokens"] for split, found in statistics.items() if found["tokens"]}
    if not known:
        return ""
    counts = {
        f"{split}, {mean} on average": quantiles
        for split, tokens in known.items()
        for mean, quantiles in tokens["means"].items()
    }
    looked_at = ", ".join(f"{tokens['of']:,} of {split}" for split, tokens in known.items())
    return f"{counts_table(counts)}\n(samples: {looked_at})"


def _originals(statistics: Mapping[str, dict[str, Any]]) -> str:
    known = {split: found["originals"] for split, found in statistics.items() if found["originals"]}
    if not known:
        return ""
    header = ("size of originals", *_QUANTILES)
    rows = [
        (f"{split}, {side}", *(f"{found[side][name]:,}" for name in _QUANTILES))
        for split, found in known.items()
        for side in ("width", "height")
    ]
    looked_at = ", ".join(
        f"{found['of']:,} samples of {split}, {found['enlarged']:.1%} were enlarged"
        for split, found in known.items()
    )
    return f"{table(header, rows)}\n(pixels; {looked_at})"
