"""`quadpipe info`: a summary of a dataset."""

import json

import click

from quadpipe.cli.options import sharing_options
from quadpipe.cli.summary import summary_text
from quadpipe.counts import CountLimits
from quadpipe.shards.reader import Dataset
from quadpipe.shards.summary import summarize, summarize_counts


@click.command("info")
@click.argument("dataset", type=click.Path())
@sharing_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    dataset: str,
    mean: int | None,
    limits: tuple[int | None, int | None, int],
    as_json: bool,
) -> None:
    """Describe a dataset: contents, configuration, and the token budgets it serves.

    With --mean-tokens, how many tokens its images get.
    """
    opened = Dataset(dataset)
    summary = summarize(opened)
    if mean is not None:
        tokenizer = opened.manifest.tokenizer
        allowed = CountLimits.of(tokenizer.geometry, tokenizer.tokens, *limits)
        summary["counts"] = summarize_counts(opened, mean, allowed)
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))
