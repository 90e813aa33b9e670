"""`quadpipe verify`: does a dataset hold what it says?"""

import click

from quadpipe.shards.reader import Dataset
from quadpipe.shards.verify import verify


@click.command("verify")
@click.argument("dataset", type=click.Path())
@click.pass_context
def command(context: click.Context, dataset: str) -> None:
    """Read every byte of a dataset and print one line for each thing that is wrong.

    Exit code 1 when something is.
    """
    opened = Dataset(dataset)
    findings = 0
    for finding in verify(opened):
        findings += 1
        click.echo(finding)
    if findings:
        things = "1 thing is" if findings == 1 else f"{findings} things are"
        advice = "fetch the named files again, or delete them and run quadpipe tokenize again"
        click.echo(f"{things} wrong; {advice}", err=True)
        context.exit(1)
    samples = sum(split.samples for split in opened.manifest.splits.values())
    click.echo(f"{dataset}: whole, {samples:,} samples checked")
