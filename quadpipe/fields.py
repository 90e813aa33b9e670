"""Configuration dataclasses: options are declared once, and checked on every construction.

A field declared with `option` is also a command-line option (`cli.options`): its name, type,
default, help, choices and bounds are in one place.
"""

import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from math import isfinite
from numbers import Integral, Real
from typing import Any

from quadpipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Option:
    """The rules of one option, beside its name, type and default.

    choices: the allowed values. low, high: the smallest and largest value. above, below: bounds
    that are not allowed themselves. They hold for each number of a tuple, and not for None.
    formerly: the name of the option in an earlier version; it still works on the command line and
    in files. metavar: what the command line's help shows for a value.
    """

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    formerly: str | None = None
    metavar: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError unless the value is allowed."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ConfigError(f"{name} {value!r} is not one of {', '.join(self.choices)}")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not (
                (self.low is None or number >= self.low)
                and (self.above is None or number > self.above)
                and (self.high is None or number <= self.high)
                and (self.below is None or number < self.below)
            ):
                shown = f"{number:g}" if isinstance(number, float) else number
                raise ConfigError(f"{name} {shown} is {self._bounds()}")

    def _bounds(self) -> str:
        """The end of the message about a value outside the bounds."""
        upper = None
        if self.high is not None:
            upper = f"{self.high:,}" if isinstance(self.high, int) else f"{self.high:g}"
        elif self.below is not None:
            upper = f"below {self.below:g}"
        if self.above is not None:
            return f"not above {self.above:g}" + (f" and at most {upper}" if upper else "")
        return f"not from {self.low:g} to {upper}" if upper else f"below {self.low:g}"


def option(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field that is also a command-line option. rules: see `Option`."""
    rules["choices"] = tuple(rules.get("choices", ()))
    return field(default=default, metadata={"option": Option(help=help, **rules)})


def same_option(owner: type, name: str, default: Any = None) -> Any:
    """A field like the one of that name in another dataclass; default: another default."""
    (item,) = (item for item in fields(owner) if item.name == name)
    return field(default=item.default if default is None else default, metadata=item.metadata)


def declared_options(kind: type) -> dict[str, Option]:
    """By name the fields of a dataclass that are options."""
    return {i.name: i.metadata["option"] for i in fields(kind) if "option" in i.metadata}


def check_fields(instance: Any) -> None:
    """Raise ConfigError unless each field of a frozen dataclass has its declared type and bounds.

    Whole numbers of any kind become int, numbers become float where a float is declared, lists
    become tuples where a tuple is.
    """
    kind: Any = type(instance)
    for name, hint in _hints(kind).items():
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, _converted(value, hint))
        except TypeError as error:
            raise ConfigError(f"{name} must be {error}, not {value!r}") from None
    for name, declared in _declared(kind).items():
        declared.check(name, getattr(instance, name))


def check_known(options: Iterable[str], *kinds: Any) -> None:
    """Raise ConfigError if names of options are not fields of these configurations."""
    known = {item.name for kind in kinds for item in fields(kind)}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"unknown option {', '.join(unknown)}; use {', '.join(sorted(known))}")


def known_fields(kind: type, document: Any) -> dict[str, Any]:
    """The entries of a JSON object that are fields of a dataclass, under their current names.

    Other entries are ignored: later versions may have more. Raises TypeError when the document is
    not an object.
    """
    if not isinstance(document, dict):
        raise TypeError(f"{document!r} is not an object")
    names = _names(kind)
    return {names[name]: value for name, value in document.items() if name in names}


def unknown_fields(kind: type, document: dict[str, Any]) -> list[str]:
    """The names in a JSON object that `known_fields` leaves out."""
    return [name for name in document if name not in _names(kind)]


def _names(kind: type) -> dict[str, str]:
    """The fields' names of today by those of today and of before."""
    names = {name: name for name in _hints(kind)}
    return names | {o.formerly: name for name, o in _declared(kind).items() if o.formerly}


_declared = cache(declared_options)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Declared types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _converted(value: Any, hint: Any) -> Any:
    """The value as its declared type; the message of a TypeError is the expected type."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        choices = [part for part in typing.get_args(hint) if part is not type(None)]
        hint = str if isinstance(value, str) and str in choices else choices[0]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and parts[-1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        return tuple(_converted(one, parts[0]) for one in value)
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            raise TypeError(f"{len(parts)} numbers")
        return tuple(_converted(one, part) for one, part in zip(value, parts, strict=True))
    if origin is list:
        if not isinstance(value, list) or not all(isinstance(one, parts[0]) for one in value):
            raise TypeError("a list of names")
        return [_converted(one, parts[0]) for one in value]
    if hint is bool and not isinstance(value, bool):
        raise TypeError("true or false")
    if hint in (int, float):
        kind, name = (Integral, "a whole number") if hint is int else (Real, "a number")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(name)
        try:
            number = hint(value)
        except OverflowError:
            raise TypeError(f"{name} in range") from None
        if hint is float and not isfinite(number):
            raise TypeError("a finite number")
        return number
    if hint is str:
        if not isinstance(value, str):
            raise TypeError("text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise TypeError("text in UTF-8")
    return value
