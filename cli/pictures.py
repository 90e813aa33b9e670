"""Write pictures and pages to disk."""

from collections.abc import Callable
from pathlib import Path

import click
from PIL import Image

from quadpipe.errors import ConfigError, OutputError


def check_suffix(out: Path, *allowed: str) -> str:
    """The ending of a file's name; ConfigError before any work if it is not an allowed one."""
    if out.suffix.lower() not in allowed:
        raise ConfigError(f"{out} does not end in {' or '.join(allowed)}; rename it")
    return out.suffix.lower()


def check_png(out: Path) -> None:
    """Raise ConfigError before any work unless a picture's name ends in .png."""
    check_suffix(out, ".png")


def write_picture(picture: Image.Image, out: Path) -> None:
    """Save a picture as PNG and print its name."""
    _write(out, lambda: picture.save(out))


def write_page(page: str, out: Path) -> None:
    """Save a page and print its name. Text that UTF-8 cannot have becomes question marks."""
    _write(out, lambda: out.write_bytes(page.encode(errors="replace")))


def _write(out: Path, save: Callable[[], object]) -> None:
    try:
        save()
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo(out)
