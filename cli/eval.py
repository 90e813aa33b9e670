"""`quadpipe eval`: accuracy at one or more budgets."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from quadpipe.cli.options import dataset_options, limit_options
from quadpipe.cli.pictures import check_png, write_picture
from quadpipe.cli.text import budgets_text, count_text, counted, say, table
from quadpipe.counts import check_given
from quadpipe.errors import ConfigError
from quadpipe.files import Cache
from quadpipe.loader import Loader
from quadpipe.loader.schedule import parse_tokens
from quadpipe.model.evaluate import check_fits, evaluate, find_differences
from quadpipe.model.precision import AMP, AMP_HELP
from quadpipe.model.run_folder import RunFolder, load_run, pick_device
from quadpipe.model.run_manifest import RunManifest
from quadpipe.plot import Curve, draw_curves
from quadpipe.shards.reader import Dataset
from quadpipe.shards.skipped import ON_ERROR

_CURVE_BUDGETS = 8


@click.command("eval")
@click.argument("run", type=click.Path())
@click.argument("dataset", type=click.Path())
@click.option("--split", default="val", show_default=True, help="The split to score.")
@click.option(
    "--tokens",
    multiple=True,
    metavar="N|LOW-HIGH|N,N,..",
    help="Tokens per image; may be repeated. By default the trained ones, "
    f"{_CURVE_BUDGETS} at most.",
)
@click.option(
    "--mean-tokens",
    "means",
    multiple=True,
    metavar="N|LOW-HIGH|N,N,..",
    help="Mean tokens per image, of which each image has as many as it needs; may be repeated.",
)
@limit_options
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw top-1 over multiply-adds to this .png."
)
@click.option("--batch-size", type=int, default=256, show_default=True, help="Images per step.")
@click.option(
    "--workers", type=int, default=2, show_default=True, help="Threads that read batches ahead."
)
@click.option(
    "--on-error",
    default="raise",
    show_default=True,
    type=click.Choice(ON_ERROR),
    help="Damaged samples: stop with an error, or skip and count them.",
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--amp", default="auto", show_default=True, type=click.Choice(AMP), help=AMP_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@dataset_options
def command(
    run: str,
    dataset: str,
    split: str,
    tokens: tuple[str, ...],
    means: tuple[str, ...],
    min_tokens: int | None,
    max_tokens: int | None,
    plot: Path | None,
    batch_size: int,
    workers: int,
    on_error: str,
    device: str,
    amp: str,
    as_json: bool,
    cache: Cache | None,
    expect: str | None,
) -> None:
    """Evaluate the model of a RUN on a DATASET, at one or more budgets or means of tokens."""
    if plot:
        check_png(plot)
    folder, config = load_run(run)
    where = pick_device(device)
    model = folder.model(where)
    opened = Dataset(dataset, cache=cache, expect=expect)
    check_fits(config.model, opened.manifest, config.classes, dataset)
    say(f"model    {run}: {folder.describe_checkpoint()}")
    if ignored := config.says_ignored():
        say(f"note     {run} {ignored}")
    if differences := find_differences(config, opened.manifest):
        say(
            f"note     {dataset} was made differently from the shards that {run} was trained on: "
            f"{'; '.join(differences)}"
        )
    if len(given := opened.manifest.classes or ()) < len(config.classes):
        say(f"note     {dataset} has {len(given)} of the {len(config.classes)} classes of {run}")
    loaders = [
        Loader(
            opened,
            split,
            batch_size=batch_size,
            shuffle=False,
            workers=workers,
            on_error=on_error,
            classes=config.classes,
            **options,
        )
        for options in _options(folder, config, opened, tokens, means, (min_tokens, max_tokens))
    ]
    counts = [loader.limits.counts if loader.limits else loader.budgets for loader in loaders]
    if unseen := config.unseen(sorted({n for several in counts for n in several})):
        say(f"note     {run} has not seen images with {budgets_text(unseen)} tokens")
    scores = [evaluate(model, loader, where, amp=amp) for loader in loaders]
    if plot:
        curve = Curve(
            name=run,
            x=[score.multiply_adds / 1e6 for score in scores],
            y=[100 * score.top1 for score in scores],
        )
        write_picture(draw_curves({"": [curve]}, x="million multiply-adds", y="top-1 in %"), plot)
    if as_json:
        click.echo(json.dumps([score.as_json() for score in scores], indent=2))
        return
    rows = [
        (
            f"{score.tokens}" if isinstance(score.tokens, int) else f"{score.tokens:.1f}",
            f"{score.samples:,}",
            f"{score.top1:.2%}",
            f"{score.top5:.2%}",
            f"{score.loss:.4f}",
            count_text(score.multiply_adds),
            f"{score.images_per_second:,.0f}",
        )
        for score in scores
    ]
    header = ("tokens", "samples", "top-1", "top-5", "loss", "multiply-adds", "images/s")
    click.echo(table(header, rows))
    if skipped := scores[0].skipped:
        say(f"skipped  {counted(skipped, 'damaged sample')} of {split}")


def _options(
    run: RunFolder,
    config: RunManifest,
    dataset: Dataset,
    tokens: Sequence[str],
    means: Sequence[str],
    given: tuple[int | None, int | None],
) -> Iterator[dict[str, Any]]:
    """A loader's options on tokens for each line of the table, by default those of training.

    tokens, means: as users give them. given: the limits of the number of tokens of an image.
    """
    geometry = dataset.manifest.geometry
    budgets = sorted({n for text in tokens for n in parse_tokens(text, geometry)})
    wanted = sorted({n for text in means for n in parse_tokens(text, geometry, means=True)})
    if not budgets and not wanted:
        trained = _spread(config.budgets, _CURVE_BUDGETS)
        budgets, wanted = ([], trained) if config.is_adaptive else (trained, [])
    check_given(wanted or None, *given)
    if wanted and geometry != config.tokenizer.geometry:
        raise ConfigError(
            f"{dataset.folder} has images or patches of other sizes than the run, whose threshold "
            f"for the tokens of an image does not hold there; give --tokens"
        )
    yield from ({"tokens": budget} for budget in budgets)
    for mean in wanted:
        limits = config.limits(*given)
        yield {"threshold": run.threshold(mean, limits)} | limits.options()


def _spread(budgets: Sequence[int], most: int) -> list[int]:
    """At most that many of the budgets, evenly spread, with the first and the last."""
    if len(budgets) <= most:
        return list(budgets)
    return [budgets[round(k * (len(budgets) - 1) / (most - 1))] for k in range(most)]
