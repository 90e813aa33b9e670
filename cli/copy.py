"""`quadpipe copy`: a dataset, a part of it, or several as one, to another folder or URL."""

from typing import Any

import click

from quadpipe.cli.options import expect_option, options_of
from quadpipe.cli.progress import TerminalCopyProgress
from quadpipe.cli.text import counted
from quadpipe.fields import declared_options
from quadpipe.job.run_config import RunConfig
from quadpipe.sharing.config import CopyConfig
from quadpipe.sharing.copying import copy

_NOT_OURS = tuple(declared_options(RunConfig).keys() - {"workers", "address", "in_process"})


@click.command("copy")
@click.argument("sources", type=click.Path(), nargs=-1, metavar="SOURCES...")
@click.argument("destination", type=click.Path())
@options_of(CopyConfig)
@click.option(
    "--labels", type=click.Path(), help="A file of `path,label` rows: labels for all images."
)
@expect_option
@click.option(
    "--provenance",
    is_flag=True,
    help="Also copy how the dataset was made: plan, listing, done-markers, rejects.",
)
@click.option("--replace", is_flag=True, help="Replace another dataset at the destination.")
@click.option(
    "--public", is_flag=True, help="Make a new repository on the Hub public, not private."
)
@options_of(RunConfig, leave_out=_NOT_OURS)
def command(sources: tuple[str, ...], destination: str, **options: Any) -> None:
    """Copy the dataset in SOURCES to DESTINATION: folders, or any fsspec URLs; the Hugging
    Face Hub is hf://datasets/ORG/NAME.

    Every byte is compared with its checksum on the way. Without options that change them, files are
    copied as they are, otherwise shards are made from those of the source, without the images.
    Several sources become one dataset. Rerun the same command after an interruption.
    """
    if not sources:
        raise click.UsageError(f"{destination} is given alone; give SOURCES and a DESTINATION")
    made = copy(sources, destination, progress=TerminalCopyProgress(), **options)
    splits = made.manifest.splits.values()
    click.echo(
        f"{destination}: {counted(sum(split.samples for split in splits), 'sample')} in "
        f"{counted(sum(split.shards for split in splits), 'shard')}, fingerprint "
        f"{made.manifest.fingerprint}"
    )
