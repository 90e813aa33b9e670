"""Write pictures to disk."""

from pathlib import Path

import click
from PIL import Image

from quadpipe.errors import ConfigError, OutputError


def check_png(out: Path) -> None:
    """Raise ConfigError before any work unless a picture's name ends in .png."""
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out} does not end in .png; rename it")


def write_picture(picture: Image.Image, out: Path) -> None:
    """Save a picture as PNG and print its name."""
    try:
        picture.save(out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo(out)
