"""`quadpipe export`: a trained model for timm."""

from pathlib import Path

import click

from quadpipe.cli.text import say
from quadpipe.model.export import export
from quadpipe.model.run_folder import RunFolder


@click.command("export")
@click.argument("run", type=click.Path())
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), help="The .safetensors file to write."
)
def command(run: str, to: Path) -> None:
    """Write the weights of a RUN under timm's names, and print the Python that loads them.

    timm's model computes the same on the plain grid of patches of the smallest size.
    """
    folder = RunFolder(run)
    exported = export(folder, to)
    say(f"model    {run}: {folder.describe_checkpoint()}")
    for name, how in exported.changed.items():
        say(f"note     {name} {how}")
    click.echo(exported.code)
