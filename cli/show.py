"""`quadpipe show`: pictures of mosaics."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from quadpipe.cli.gallery import exhibits
from quadpipe.cli.options import options_of
from quadpipe.cli.pictures import check_png, write_picture
from quadpipe.errors import ConfigError, QuadpipeError, SourceError
from quadpipe.render import Exhibit
from quadpipe.scorers.maps import read_array
from quadpipe.shards.reader import Dataset
from quadpipe.tokenizer import Tokenizer, TokenizerConfig


@click.command("show")
@click.argument("what", type=click.Path())
@click.option("--out", required=True, type=click.Path(path_type=Path), help="PNG file to write.")
@click.option(
    "--tokens",
    "budgets",
    type=int,
    multiple=True,
    help="Token budget to show; repeat it for several.",
)
@click.option(
    "--samples",
    type=int,
    default=4,
    show_default=True,
    help="Number of samples of a dataset to show.",
)
@click.option("--split", help="Split of a dataset, by default its first.")
@click.option(
    "--in", "source", type=click.Path(path_type=Path), help="Source images of the dataset."
)
@click.option("--class", "class_name", help="The image's class, for scorer grad-cam.")
@click.option(
    "--map",
    "map_path",
    type=click.Path(path_type=Path),
    help="The image's importance map, a .npy for scorer precomputed.",
)
@click.option(
    "--scorer-weights",
    type=click.Path(path_type=Path),
    help="Weights of the scorer's network, a .safetensors or .pth file.",
)
@options_of(TokenizerConfig, leave_out=("tokens",))
@click.pass_context
def command(
    context: click.Context,
    /,
    what: str,
    out: Path,
    budgets: tuple[int, ...],
    samples: int,
    split: str | None,
    source: Path | None,
    class_name: str | None,
    map_path: Path | None,
    scorer_weights: Path | None,
    **options: Any,
) -> None:
    """Draw an image, its quadtree and its mosaic. WHAT is an image file, or a dataset in a folder
    or at a URL.

    Repeat --tokens to compare budgets side by side. With --in, a dataset's mosaics are shown beside
    their source images.
    """
    check_png(out)
    if "://" in what or Path(what).is_dir():
        of_images = [f.name for f in fields(TokenizerConfig)]
        of_images += ["class_name", "map_path", "scorer_weights"]
        _refuse_given(context, of_images, "an image file")
        dataset = Dataset(what)
        shown = exhibits(dataset, split or next(iter(dataset.manifest.splits)), samples, source)
        budgets = budgets or (dataset.manifest.tokenizer.tokens,)
    else:
        _refuse_given(context, ["samples", "split", "source"], "a dataset")
        budgets = budgets or (TokenizerConfig.tokens,)
        tokenizer = Tokenizer(tokens=max(budgets), scorer_weights=scorer_weights, **options)
        hint = _hint(tokenizer, class_name, map_path)
        shown = [_image_exhibit(Path(what), tokenizer, hint)]
    write_picture(shown, sorted(budgets), out)


def _hint(tokenizer: Tokenizer, class_name: str | None, map_path: Path | None) -> Any:
    """The scorer's extra input for the image; ConfigError when it is missing or not needed."""
    scorer = tokenizer.scorer
    given = {"--class": class_name, "--map": map_path}
    wanted = "--class" if scorer.label_aware else "--map" if scorer.hint else None
    for option, value in given.items():
        if value is not None and option != wanted:
            raise ConfigError(f"{option} does not apply to scorer {scorer.name}; omit it")
    if wanted and given[wanted] is None:
        raise ConfigError(f"scorer {scorer.name} needs {scorer.hint} of the image; give {wanted}")
    return class_name if map_path is None else read_array(map_path)


def _image_exhibit(path: Path, tokenizer: Tokenizer, hint: Any) -> Exhibit:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        image = tokenizer.prepare_file(data)
    except QuadpipeError as error:
        raise SourceError(f"{path} cannot be decoded: {error}") from error
    return Exhibit(mosaic=tokenizer.tokenize(image[None], [hint])[0], title=path.name, image=image)


def _refuse_given(context: click.Context, names: list[str], kind: str) -> None:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise ConfigError(f"{parameter.opts[0]} applies to {kind} only; omit it")
