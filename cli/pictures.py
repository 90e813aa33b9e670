"""Write pictures to disk."""

from collections.abc import Sequence
from pathlib import Path

import click

from quadpipe.errors import ConfigError, OutputError
from quadpipe.render import Exhibit, draw


def check_png(out: Path) -> None:
    """Raise ConfigError before any work unless a picture's name ends in .png."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out} does not end in .png; rename it")


def write_picture(exhibits: Sequence[Exhibit], budgets: Sequence[int], out: Path) -> None:
    """Draw exhibits into a PNG and print its name."""
    try:
        draw(exhibits, budgets).save(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo(out)
