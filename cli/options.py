"""Configuration dataclasses -> command-line options, so that a default and its help exist once."""

import functools
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from operator import or_
from pathlib import Path
from typing import Any

import click

from quadpipe.counts import DISCOUNT, check_given
from quadpipe.errors import ConfigError
from quadpipe.fields import Option, declared_options
from quadpipe.files.cache import Cache

_CACHE_SIZE = "50GB"


def _image_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} is neither a number nor HEIGHTxWIDTH")
    return int(parts[0]), int(parts[-1])


def _tokens(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not two numbers separated by a comma") from error
    return low, high


def _triple(text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not three numbers separated by commas") from error
    return red, green, blue


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not numbers separated by commas") from error


def _thresholds(text: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return tuple((int(side), float(value)) for side, value in pairs)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not SIDE=THRESHOLD,SIDE=THRESHOLD,..") from error


_TYPES: dict[Any, tuple[Any, str | None]] = {
    int: (int, None),
    float: (float, None),
    str: (str, None),
    int | str: (_tokens, "N|LOW-HIGH|N,N,.."),
    bool: (bool, None),
    tuple[int, int]: (_image_size, "N|HxW"),
    tuple[float, float]: (_range, "LOW,HIGH"),
    tuple[float, float, float]: (_triple, "R,G,B"),
    tuple[str, ...]: (_names, "NAME,.."),
    tuple[str, ...] | str: (str, None),
    tuple[float, ...]: (_numbers, "W,W,.."),
    tuple[tuple[int, float], ...]: (_thresholds, "SIDE=T,.."),
}


def options_of(*kinds: type, leave_out: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """A decorator that adds an option for each field of the dataclasses.

    The name of an option in an earlier version still works, hidden from the help.
    """

    def decorate(function: Any) -> Any:
        for kind in reversed(kinds):
            hints, declared = typing.get_type_hints(kind), declared_options(kind)
            for item in reversed(fields(kind)):
                if item.name not in leave_out:
                    add = _option(item.name, declared[item.name], hints[item.name], item.default)
                    function = add(function)
        return function

    return decorate


expect_option = click.option(
    "--expect",
    metavar="FINGERPRINT",
    help="Stop unless the dataset has this fingerprint, or one that begins so; of several datasets "
    "one each, separated by commas.",
)


def dataset_options(function: Any) -> Any:
    """Adds --expect, --cache and --cache-size; the command gets a `Cache` or None as `cache`."""

    @expect_option
    @click.option(
        "--cache",
        "folder",
        type=click.Path(path_type=Path),
        help="Cache shards of a DATASET at a URL in this local folder.",
    )
    @click.option(
        "--cache-size",
        "size",
        type=_bytes,
        metavar="SIZE",
        help=f"Maximum size of the cache, such as 500MB or 50GB; {_CACHE_SIZE} by default.",
    )
    @functools.wraps(function)
    def with_cache(*arguments: Any, folder: Path | None, size: int | None, **options: Any) -> Any:
        if folder is None and size is not None:
            raise ConfigError("--cache-size is for --cache DIR; give both")
        limit = _bytes(_CACHE_SIZE) if size is None else size
        cache = None if folder is None else Cache(folder=folder, bytes=limit)
        return function(*arguments, cache=cache, **options)

    return with_cache


def mean_options(function: Any) -> Any:
    """Adds --mean-tokens with its limits."""
    return click.option(
        "--mean-tokens",
        type=int,
        help="Instead of --tokens, the mean over images: each has as many as it needs.",
    )(limit_options(function))


def sharing_options(function: Any) -> Any:
    """Adds `mean_options` and the discount, for commands without a run that has one."""

    @mean_options
    @click.option(
        "--gain-discount",
        type=int,
        help=f"With --mean-tokens: as of quadpipe train.  [default: {DISCOUNT}]",
    )
    @functools.wraps(function)
    def with_mean(*arguments: Any, gain_discount: int | None, **options: Any) -> Any:
        names = ("mean_tokens", "min_tokens", "max_tokens")
        mean, least, most = (options.pop(name) for name in names)
        check_given(mean, least, most, gain_discount)
        discount = DISCOUNT if gain_discount is None else gain_discount
        return function(*arguments, mean=mean, limits=(least, most, discount), **options)

    return with_mean


def limit_options(function: Any) -> Any:
    """Adds --min-tokens and --max-tokens."""
    for name, what in (("--min-tokens", "fewest"), ("--max-tokens", "most")):
        text = f"With --mean-tokens: the {what} tokens of an image."
        function = click.option(name, type=int, help=text)(function)
    return function


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise click.BadParameter(f"{text!r} is not a size such as 500MB or 50GB")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def _option(name: str, declared: Option, hint: Any, default: Any) -> Callable[[Any], Any]:
    if isinstance(hint, types.UnionType):
        hint = functools.reduce(or_, (p for p in typing.get_args(hint) if p is not type(None)))
    default = _default(default)
    kind, metavar = (click.Choice(declared.choices), None) if declared.choices else _TYPES[hint]
    return click.option(
        _flag(name),
        name,
        cls=_Renamed if declared.formerly else click.Option,
        **({"formerly": _flag(declared.formerly)} if declared.formerly else {}),
        type=kind,
        metavar=declared.metavar or metavar,
        is_flag=hint is bool,
        default=default,
        show_default=default is not None and hint is not bool,
        help=declared.help,
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Renamed(click.Option):
    """An option that also accepts its flag of an earlier version, hidden from the help."""

    def __init__(self, *arguments: Any, formerly: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._formerly = formerly

    def add_to_parser(self, parser: Any, context: click.Context) -> None:
        shown = self.opts
        self.opts = [*shown, self._formerly]
        super().add_to_parser(parser, context)
        self.opts = shown


def _default(value: Any) -> Any:
    """A default as users type it."""
    if value is MISSING:
        return None
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], int):
        return f"{value[0]}" if value[0] == value[1] else f"{value[0]}x{value[1]}"
    return ",".join(f"{part:g}" for part in value)
