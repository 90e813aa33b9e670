"""`quadpipe show`: pictures of mosaics."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from quadpipe.cli.gallery import exhibits, share_tokens
from quadpipe.cli.options import options_of, sharing_options
from quadpipe.cli.pictures import check_suffix, write_page, write_picture
from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError, QuadpipeError, SourceError
from quadpipe.page.build import build_page
from quadpipe.render import Exhibit, draw, draw_quadtrees, draw_scorers
from quadpipe.scorers import Scorer, scorer_type
from quadpipe.scorers.maps import read_array
from quadpipe.shards.reader import Dataset
from quadpipe.tokenizer import Tokenizer, TokenizerConfig

_COLUMNS = 4


@click.command("show")
@click.argument("what", type=click.Path())
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: a picture .png, or a page .html.",
)
@click.option(
    "--tokens",
    "budgets",
    type=int,
    multiple=True,
    help="Token budget to show; repeat it for several.",
)
@sharing_options
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
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    default=[TokenizerConfig.scorer],
    show_default=True,
    help="Scorer of an image; repeat it to compare several.",
)
@options_of(TokenizerConfig, leave_out=("tokens", "scorer"))
@click.pass_context
def command(
    context: click.Context,
    /,
    what: str,
    out: Path,
    budgets: tuple[int, ...],
    mean: int | None,
    limits: tuple[int | None, int | None, int],
    samples: int,
    split: str | None,
    source: Path | None,
    class_name: str | None,
    map_path: Path | None,
    scorers: tuple[str, ...],
    scorer_weights: Path | None,
    **options: Any,
) -> None:
    """Draw an image, its quadtree and its mosaic. WHAT is an image file, or a dataset in a folder
    or at a URL.

    Repeat --tokens to compare budgets side by side, and --scorer to compare scorers, with their
    importance as a heat map. With --in, a dataset's mosaics are shown beside their source images.
    With --mean-tokens, the samples share the tokens of a batch, and only their quadtrees are drawn.

    An --out that ends in .html becomes a page about the dataset, a single file that needs no
    network: samples with a slider over budgets, classes, rejects, and how it was made.
    """
    page = check_suffix(out, ".png", ".html") == ".html"
    if "://" in what or Path(what).is_dir():
        of_images = [f.name for f in fields(TokenizerConfig)]
        of_images += ["class_name", "map_path", "scorers", "scorer_weights"]
        _refuse_given(context, of_images, "an image file")
        if mean is not None:
            _refuse_given(context, ["budgets"], "pictures without --mean-tokens")
        if page and len(budgets) > 1:
            raise ConfigError("a page has a slider over budgets; give one --tokens, or none")
        dataset = Dataset(what)
        allowed = CountLimits.of(
            dataset.manifest.geometry, dataset.manifest.tokenizer.tokens, *limits
        )
        split = split or next(iter(dataset.manifest.splits))
        shown = exhibits(dataset, split, samples, source)
        if page:
            tokens = budgets[0] if budgets else None
            text = build_page(dataset, split, shown, allowed, tokens=tokens, mean=mean)
            write_page(text, out)
            return
        if mean is not None:
            picture = draw_quadtrees(share_tokens(shown, mean, allowed), columns=_COLUMNS)
        else:
            picture = draw(shown, sorted(budgets or (dataset.manifest.tokenizer.tokens,)))
    else:
        if not Path(what).exists():
            raise SourceError(f"{what} does not exist; give an image file, or a dataset")
        _refuse_given(context, ["samples", "split", "source", "mean_tokens"], "a dataset")
        if page:
            raise ConfigError(f"a page is about a dataset, not an image; {out} must end in .png")
        shown = _of_scorers(Path(what), budgets, class_name, map_path, scorers,
                            options | {"scorer_weights": scorer_weights})  # fmt: skip
        drawn = sorted(budgets or (TokenizerConfig.tokens,))
        picture = (draw_scorers if len(shown) > 1 else draw)(shown, drawn)
    write_picture(picture, out)


def _of_scorers(
    path: Path,
    budgets: Sequence[int],
    class_name: str | None,
    map_path: Path | None,
    scorers: Sequence[str],
    options: dict[str, Any],
) -> list[Exhibit]:
    """An image under each scorer."""
    tokenizers = [
        Tokenizer(tokens=max(budgets or (TokenizerConfig.tokens,)), scorer=name, **own)
        for name, own in _options_by_scorer(scorers, options)
    ]
    given = {"--class": class_name, "--map": map_path and read_array(map_path)}
    hints = _hints([tokenizer.scorer for tokenizer in tokenizers], given)
    return [_exhibit(path, *pair) for pair in zip(tokenizers, hints, strict=True)]


def _options_by_scorer(
    scorers: Sequence[str], given: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each scorer with its options: without those that only others of the scorers take.

    An option that none of them takes is left to all, which refuse it.
    """
    kinds = {name: scorer_type(name) for name in scorers}
    taken = {
        name: {*kind.option_names(), *(("scorer_weights",) if kind.uses_network else ())}
        for name, kind in kinds.items()
    }
    for name in scorers:
        others = set().union(*taken.values()) - taken[name]
        yield name, {option: value for option, value in given.items() if option not in others}


def _hints(scorers: Sequence[Scorer], given: dict[str, Any]) -> list[Any]:
    """Each scorer's extra input for the image; ConfigError when it is missing or not needed."""
    wanted = ["--class" if s.label_aware else "--map" if s.hint else "" for s in scorers]
    for option, value in given.items():
        if value is not None and option not in wanted:
            names = " and ".join(scorer.name for scorer in scorers)
            raise ConfigError(f"{option} does not apply to scorer {names}; omit it")
    for scorer, option in zip(scorers, wanted, strict=True):
        if option and given[option] is None:
            raise ConfigError(
                f"scorer {scorer.name} needs {scorer.hint} of the image; give {option}"
            )
    return [given.get(option) for option in wanted]


def _exhibit(path: Path, tokenizer: Tokenizer, hint: Any) -> Exhibit:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        image = tokenizer.prepare_file(data)
    except QuadpipeError as error:
        raise SourceError(f"{path} cannot be decoded: {error}") from error
    maps = tokenizer.scorer.score(image[None], [hint])
    return Exhibit(
        mosaic=tokenizer.cut(image[None], maps)[0],
        title=path.name,
        scorer=tokenizer.scorer.name,
        image=image,
        importance=maps[-1][0] if maps else None,
    )


def _refuse_given(context: click.Context, names: list[str], kind: str) -> None:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise ConfigError(f"{parameter.opts[0]} applies to {kind} only; omit it")
