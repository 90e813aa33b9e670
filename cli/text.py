"""Numbers and tables as text, and messages on standard error."""

from collections.abc import Sequence
from contextlib import suppress

import click

from quadpipe.text import bytes_text as bytes_text
from quadpipe.text import counted as counted


def say(text: str) -> None:
    """Print to standard error; when it is closed, the run continues without it."""
    with suppress(OSError, RuntimeError, ValueError):
        click.echo(text, err=True)


def count_text(count: float) -> str:
    """4.6 G, in powers of 1000."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000 or unit == " T":
            break
        count /= 1000
    return f"{count:,.0f}" if not unit else f"{count:,.2f}{unit}"


def budgets_text(budgets: Sequence[int]) -> str:
    """64, or 19, 37 and 64, or 19 to 100."""
    if len(budgets) > 5:
        return f"{budgets[0]} to {budgets[-1]}"
    return " and ".join(filter(None, (", ".join(map(str, budgets[:-1])), str(budgets[-1]))))


def duration_text(seconds: float) -> str:
    """1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str, longest: int = 60) -> str:
    """A stranger's text for a terminal: without control characters, cut at its end."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:longest])
    return shown if len(text) <= longest else f"{shown}.."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as needed; the first flush left, the others flush right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[c]) for line in lines) for c in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if c else cell.ljust(width)
            for c, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
