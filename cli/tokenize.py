"""`quadpipe tokenize`: the main job."""

from typing import Any

import click

from quadpipe.cli.options import options_of
from quadpipe.cli.progress import TerminalProgress, print_preview
from quadpipe.cli.summary import print_summary
from quadpipe.cli.text import say
from quadpipe.job.config import DatasetConfig, JobConfig
from quadpipe.job.run import Job
from quadpipe.job.run_config import RunConfig
from quadpipe.tokenizer import TokenizerConfig


@click.command("tokenize")
@click.option(
    "--in",
    "inputs",
    required=True,
    type=click.Path(),
    help="A folder of images or of WebDataset tars, or a .tar, or a URL of these; or a .csv of "
    "`path,label` rows.",
)
@click.option("--out", required=True, type=click.Path(), help="The folder or URL of the dataset.")
@click.option(
    "--labels", type=click.Path(), help="A file of `path,label` rows for a folder of images."
)
@click.option(
    "--classes",
    type=click.Path(),
    help="Class names in index order, one per line, or a dataset with the same classes.",
)
@click.option("--no-labels", is_flag=True, help="Write no labels, even if the source has them.")
@click.option(
    "--scorer-weights",
    type=click.Path(),
    help="Weights of the scorer's network, a .safetensors or .pth file.",
)
@click.option(
    "--maps",
    type=click.Path(),
    help="Scorer precomputed: a folder with a .npy map per image, under the image's path.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and exit.")
@options_of(TokenizerConfig, DatasetConfig, RunConfig)
def command(
    inputs: str,
    out: str,
    labels: str | None,
    classes: str | None,
    no_labels: bool,
    scorer_weights: str | None,
    maps: str | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Tokenize images into WebDataset shards of quadtree mosaics.

    Rerun the same command to resume. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 too many
    rejected inputs, 130 interrupted.
    """
    config = JobConfig.from_options(**options)
    job = Job(
        inputs,
        out,
        config,
        labels=labels,
        use_labels=not no_labels,
        classes=classes,
        scorer_weights=scorer_weights,
        maps=maps,
    )
    if dry_run:
        print_preview(job.preview(), out)
        return
    print_summary(job.run(TerminalProgress(out)))
    for note in job.notes:
        say(f"note     {note}")
