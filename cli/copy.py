"""`quadpipe copy`: a dataset to another folder or URL."""

from typing import Any

import click

from quadpipe.cli.options import expect_option
from quadpipe.cli.progress import TerminalCopyProgress
from quadpipe.sharing.copying import copy


@click.command("copy")
@click.argument("source", type=click.Path())
@click.argument("destination", type=click.Path())
@expect_option
@click.option(
    "--provenance",
    is_flag=True,
    help="Also copy how the dataset was made: plan, listing, done-markers, rejects.",
)
@click.option("--replace", is_flag=True, help="Replace another dataset at the destination.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Files to copy at a time, by default 8."
)
def command(source: str, destination: str, **options: Any) -> None:
    """Copy the dataset SOURCE to DESTINATION: folders, or any fsspec URLs.

    Every file is compared with its checksum on the way. Rerun the same command after an
    interruption.
    """
    made = copy(source, destination, progress=TerminalCopyProgress(), **options)
    splits = made.manifest.splits.values()
    click.echo(
        f"{destination}: {sum(split.samples for split in splits):,} samples in "
        f"{sum(split.shards for split in splits):,} shards, fingerprint "
        f"{made.manifest.fingerprint}"
    )
