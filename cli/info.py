"""`quadpipe info`: what a dataset holds and how it was made."""

import json

import click

from quadpipe.cli.summary import summary_text
from quadpipe.shards.reader import Dataset
from quadpipe.shards.summary import summarize


@click.command("info")
@click.argument("dataset", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(dataset: str, as_json: bool) -> None:
    """Say what a dataset holds, how it was made and which budgets it serves."""
    summary = summarize(Dataset(dataset))
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))
