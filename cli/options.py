"""Configuration dataclasses -> command-line options, so that a default and its help exist once."""

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import click


class _ImageSize(click.ParamType):
    name = "N|HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            self.fail(f"{value!r} is neither a number nor HEIGHTxWIDTH", param, ctx)
        return (int(parts[0]), int(parts[-1]))


class _Range(click.ParamType):
    name = "LOW,HIGH"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            low, high = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not two numbers with a comma between them", param, ctx)
        return (low, high)


_TYPES: dict[Any, Any] = {
    int: int,
    float: float,
    str: str,
    bool: bool,
    tuple[int, int]: _ImageSize(),
    tuple[float, float]: _Range(),
}


def options_of(*kinds: type, leave_out: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """A decorator that adds an option for each field of the dataclasses."""

    def decorate(function: Any) -> Any:
        for kind in reversed(kinds):
            hints = typing.get_type_hints(kind)
            for item in reversed(fields(kind)):
                if item.name not in leave_out:
                    function = _option(item, hints[item.name])(function)
        return function

    return decorate


def _option(item: Field[Any], hint: Any) -> Callable[[Any], Any]:
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    default = _default(item.default)
    choices = item.metadata.get("choices")
    return click.option(
        "--" + item.name.replace("_", "-"),
        item.name,
        type=click.Choice(choices) if choices else _TYPES[hint],
        is_flag=hint is bool,
        default=default,
        show_default=default is not None and hint is not bool,
        help=item.metadata["help"],
    )


def _default(value: Any) -> Any:
    """As one would type it."""
    if value is MISSING:
        return None
    if not isinstance(value, tuple):
        return value
    if isinstance(value[0], int):
        return f"{value[0]}" if value[0] == value[1] else f"{value[0]}x{value[1]}"
    return ",".join(f"{part:g}" for part in value)
