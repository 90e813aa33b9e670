"""`quadpipe info`: a summary of a dataset, or the difference between two."""

import json

import click

from quadpipe.cli.difference import difference_text
from quadpipe.cli.options import sharing_options
from quadpipe.cli.summary import summary_text
from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError
from quadpipe.shards.difference import difference
from quadpipe.shards.reader import Dataset
from quadpipe.shards.statistics import statistics, summarize_counts
from quadpipe.shards.summary import summarize


@click.command("info")
@click.argument("datasets", type=click.Path(), nargs=-1, required=True, metavar="DATASET [OTHER]")
@sharing_options
@click.option(
    "--stats",
    is_flag=True,
    help="Also print class balance, tokens per image, rejects, and sizes of the originals.",
)
@click.option(
    "--all", "whole", is_flag=True, help="With --stats: look at all samples, not at some of them."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    datasets: tuple[str, ...],
    mean: int | None,
    limits: tuple[int | None, int | None, int],
    stats: bool,
    whole: bool,
    as_json: bool,
) -> None:
    """Describe a DATASET: contents, configuration, and the token budgets it serves.

    With --mean-tokens, how many tokens its images get. With an OTHER dataset, what differs: exit
    code 0 if both have the same fingerprint, else 1.
    """
    if whole and not stats:
        raise ConfigError("--all is for --stats; give both")
    if len(datasets) > 2:
        raise ConfigError(f"info compares two datasets, not {len(datasets)}; give one or two")
    if len(datasets) == 2:
        if stats or mean is not None:
            raise ConfigError("--stats and --mean-tokens are for one dataset; omit the other one")
        found = difference(*map(Dataset, datasets))
        click.echo(json.dumps(found, indent=2) if as_json else difference_text(found))
        context.exit(0 if found["equal"] else 1)
    opened = Dataset(datasets[0])
    summary = summarize(opened)
    if mean is not None:
        tokenizer = opened.manifest.tokenizer
        allowed = CountLimits.of(tokenizer.geometry, tokenizer.tokens, *limits)
        summary["counts"] = summarize_counts(opened, mean, allowed)
    if stats:
        summary["class_names"] = opened.manifest.classes
        summary["statistics"] = statistics(opened, whole=whole)
    click.echo(json.dumps(summary, indent=2) if as_json else summary_text(summary))
