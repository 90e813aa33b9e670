"""`quadpipe info`: a summary of a dataset."""

import json

import click

from quadpipe.cli.summary import summary_text
from quadpipe.shards.reader import Dataset
from quadpipe.shards.summary import summarize


@click.command("info")
@click.argument("dataset", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(dataset: str, as_json: bool) -> None:
    """Describe a dataset: contents, configuration, and the token budgets it serves."""
    summary = summarize(Dataset(dataset))
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))
