"""`quadpipe verify`: check a dataset against its manifest and checksums."""

from pathlib import Path
from typing import Any

import click

from quadpipe.cli.options import dataset_options
from quadpipe.cli.progress import byte_bar
from quadpipe.cli.text import counted, say
from quadpipe.errors import ConfigError
from quadpipe.files import Cache
from quadpipe.job.reproduce import Reproducer
from quadpipe.shards.reader import Dataset
from quadpipe.shards.verify import verify


@click.command("verify")
@click.argument("dataset", type=click.Path())
@click.option("--deep", is_flag=True, help="Also retokenize some inputs and compare the bytes.")
@click.option(
    "--in",
    "source",
    type=click.Path(path_type=Path),
    help="With --deep: the source of the dataset.",
)
@click.option(
    "--inputs",
    type=int,
    help="With --deep: smallest number of random inputs to compare; 64 by default.",
)
@click.option("--seed", type=int, help="With --deep: seed of the random inputs.")
@click.option(
    "--maps",
    type=click.Path(path_type=Path),
    help="With --deep: folder of importance maps, as for tokenize.",
)
@click.option("--scorer", help="With --deep: the scorer, if it is your own: MODULE:CALLABLE.")
@click.option("--backbone", help="With --deep: the scorer's own network, as for tokenize.")
@click.option(
    "--scorer-weights",
    type=click.Path(path_type=Path),
    help="With --deep: weights of the scorer's network, as for tokenize.",
)
@dataset_options
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
    expect: str | None,
    **options: Any,
) -> None:
    """Read every byte of a DATASET and print one line per problem.

    With --deep, also retokenize inputs of its source and compare the bytes. Exit code 1 if there
    are problems.
    """
    opened = Dataset(dataset, cache=cache, expect=expect)
    again = None
    if deep:
        if source is None:
            raise ConfigError("--deep needs --in, the source of the dataset")
        again = Reproducer(opened, source, **options)
    elif any(value is not None for value in (source, inputs, seed, *options.values())):
        raise ConfigError("--in, --inputs, --seed and options of scorers need --deep; add it")
    # Draws the inputs first, so that a wrong --in is reported before every byte is read.
    batches = again.check(64 if inputs is None else inputs, seed) if again else iter(())
    findings, compared = 0, 0
    with byte_bar(sum(split.bytes for split in opened.manifest.splits.values())) as bar:
        for finding in verify(opened, bar.update):
            findings += 1
            bar.clear()
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
            f"was made, or a shard named above was changed"
        )
    if findings or changed:
        say(counted(findings + changed, "problem"))
        context.exit(1)
    samples = sum(split.samples for split in opened.manifest.splits.values())
    deeper = f", {counted(compared, 'input')} retokenized" if again else ""
    click.echo(f"{dataset}: intact, {counted(samples, 'sample')} checked{deeper}")
