"""`quadpipe verify`: does a dataset hold what it says?"""

from pathlib import Path
from typing import Any

import click

from quadpipe.cli.options import cache_options
from quadpipe.cli.text import say
from quadpipe.errors import ConfigError
from quadpipe.files import Cache
from quadpipe.job.again import Again
from quadpipe.shards.reader import Dataset
from quadpipe.shards.verify import verify


@click.command("verify")
@click.argument("dataset", type=click.Path())
@click.option("--deep", is_flag=True, help="Also tokenize inputs again and compare the bytes.")
@click.option(
    "--in",
    "source",
    type=click.Path(path_type=Path),
    help="With --deep: what the dataset was made from.",
)
@click.option(
    "--inputs",
    type=int,
    help="With --deep: how many at least, drawn at random; by default 64.",
)
@click.option("--seed", type=int, help="With --deep: draws the same inputs again.")
@click.option("--maps", type=click.Path(path_type=Path), help="With --deep: as for tokenize.")
@click.option("--scorer", help="With --deep: the scorer, if it is your own: MODULE:CALLABLE.")
@click.option("--backbone", help="With --deep: the network of the scorer, where it is your own.")
@click.option(
    "--scorer-weights",
    type=click.Path(path_type=Path),
    help="With --deep: its weights, as for tokenize.",
)
@cache_options
@click.pass_context
def command(
    context: click.Context,
    /,
    dataset: str,
    deep: bool,
    source: Path | None,
    inputs: int | None,
    seed: int | None,
    cache: Cache | None,
    **options: Any,
) -> None:
    """Read every byte of a DATASET and print one line for each thing that is wrong.

    With --deep, also see whether tokenizing inputs of its source again gives the same bytes. Exit
    code 1 when something is wrong.
    """
    opened = Dataset(dataset, cache=cache)
    again = None
    if deep:
        if source is None:
            raise ConfigError("--deep needs --in, what the dataset was made from")
        again = Again(opened, source, **options)
    elif any(value is not None for value in (source, inputs, seed, *options.values())):
        raise ConfigError("--in, --inputs, --seed and what scorers need are for --deep; add it")
    # Draws the inputs now, so that a wrong --in is said before every byte is read.
    batches = again.check(64 if inputs is None else inputs, seed) if again else iter(())
    findings, compared = 0, 0
    for finding in verify(opened):
        findings += 1
        click.echo(finding)
    changed = 0
    for count, differing in batches:
        compared += count
        changed += len(differing)
        for finding in differing:
            click.echo(finding)
    if changed:
        say(
            f"{changed:,} of {compared:,} inputs differ: the source was changed after the dataset "
            f"was made, or a shard was changed, which the lines before would name"
        )
    if findings or changed:
        things = "1 thing is" if findings + changed == 1 else f"{findings + changed:,} things are"
        say(f"{things} wrong")
        context.exit(1)
    samples = sum(split.samples for split in opened.manifest.splits.values())
    deeper = f", {compared:,} inputs tokenized again" if again else ""
    click.echo(f"{dataset}: whole, {samples:,} samples checked{deeper}")
