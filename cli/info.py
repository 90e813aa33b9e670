"""`quadpipe info`: a summary of a dataset."""

import json

import click

from quadpipe.cli.options import mean_options
from quadpipe.cli.summary import summary_text
from quadpipe.counts import CountLimits
from quadpipe.shards.reader import Dataset
from quadpipe.shards.summary import summarize, summarize_counts


@click.command("info")
@click.argument("dataset", type=click.Path())
@mean_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    dataset: str,
    mean_tokens: int | None,
    min_tokens: int | None,
    max_tokens: int | None,
    as_json: bool,
) -> None:
    """Describe a dataset: contents, configuration, and the token budgets it serves.

    With --mean-tokens, how many tokens its images get.
    """
    opened = Dataset(dataset)
    summary = summarize(opened)
    if mean_tokens is not None:
        stored = opened.manifest.tokenizer.tokens
        limits = CountLimits.of(opened.manifest.geometry, stored, min_tokens, max_tokens)
        summary["counts"] = summarize_counts(opened, mean_tokens, limits)
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))
