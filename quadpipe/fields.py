"""The types of a configuration's fields, checked where it comes from people or from files."""

import types
import typing
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any

from quadpipe.errors import ConfigError


def check_types(instance: Any) -> None:
    """Raise ConfigError unless each field of a frozen dataclass holds what it is declared to.

    Whole numbers of any kind become int, numbers become float where a float is declared, lists
    become tuples where a tuple is.
    """
    for name, hint in _hints(type(instance)).items():  # type: ignore[arg-type]
        value = getattr(instance, name)
        try:
            object.__setattr__(instance, name, _converted(value, hint))
        except TypeError as error:
            raise ConfigError(f"{name} must be {error}, not {value!r}") from None


def known_fields(kind: type, document: Any) -> dict[str, Any]:
    """The entries of a JSON object that a dataclass has fields for; later versions may have more.

    Raises TypeError when it is no object.
    """
    if not isinstance(document, dict):
        raise TypeError(f"{document!r} is not an object")
    names = _hints(kind)
    return {name: value for name, value in document.items() if name in names}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Declared types of a dataclass's fields, by name."""
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _converted(value: Any, hint: Any) -> Any:
    """The value as its declared type; TypeError saying what it must be."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
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
            return hint(value)
        except OverflowError:
            raise TypeError(f"{name} of a usual size") from None
    if hint is str:
        if not isinstance(value, str):
            raise TypeError("text")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise TypeError("text in UTF-8")
    return value
