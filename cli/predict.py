"""`quadpipe predict`: classify images."""

import json
from pathlib import Path

import click

from quadpipe.cli.options import mean_options
from quadpipe.cli.pictures import check_png, write_picture
from quadpipe.cli.text import budgets_text, say
from quadpipe.model.predict import Predictor
from quadpipe.model.run_folder import load_run, pick_device
from quadpipe.render import draw


@click.command("predict")
@click.argument("run", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tokens", type=int, help="Tokens per image; by default as in training.")
@mean_options
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Classes per image."
)
@click.option(
    "--show", type=click.Path(path_type=Path), help="Draw the tokens of the images to this .png."
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--scorer", help="The shards' scorer, if it is your own: MODULE:CALLABLE.")
@click.option("--backbone", help="Network of the shards' scorer, if it is your own.")
@click.option(
    "--scorer-weights", type=click.Path(path_type=Path), help="Its weights, as for tokenize."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    run: str,
    images: tuple[Path, ...],
    tokens: int | None,
    mean_tokens: int | None,
    min_tokens: int | None,
    max_tokens: int | None,
    top: int,
    show: Path | None,
    device: str,
    scorer: str | None,
    backbone: str | None,
    scorer_weights: Path | None,
    as_json: bool,
) -> None:
    """Classify IMAGES with the model of a RUN, tokenized as in training."""
    if show:
        check_png(show)
    folder, config = load_run(run)
    predictor = Predictor(
        folder,
        pick_device(device),
        tokens,
        mean_tokens=mean_tokens,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        scorer=scorer,
        backbone=backbone,
        scorer_weights=scorer_weights,
    )
    say(f"model    {run}: {folder.describe_checkpoint()}")
    if ignored := config.says_ignored():
        say(f"note     {run} {ignored}")
    if predictor.unseen:
        say(f"note     {run} has not seen images with {budgets_text(predictor.unseen)} tokens")
    predictions = [predictor(path, top=top) for path in images]
    if as_json:
        rows = [
            {
                "path": str(p.path),
                "tokens": p.tokens,
                "classes": [{"class": c, "probability": s} for c, s in p.classes],
            }
            for p in predictions
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for prediction in predictions:
            click.echo(f"{prediction.path}: {prediction.tokens} tokens")
            for name, share in prediction.classes:
                click.echo(f"  {share:6.1%}  {name}")
    if show:
        write_picture(draw([p.exhibit for p in predictions]), show)
