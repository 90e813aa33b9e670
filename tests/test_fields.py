from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from quadpipe.errors import ConfigError
from quadpipe.fields import (
    check_fields,
    declared_options,
    known_fields,
    option,
    same_option,
    unknown_fields,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = 1
    share: float = 0.5
    name: str | None = None
    flag: bool = False
    size: tuple[int, int] = (1, 2)
    names: list[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def test_values_become_their_declared_types():
    given: dict[str, Any] = {"count": np.int64(3), "share": 1, "size": [4, np.int32(5)]}
    example = Example(**given, names=["a"])
    assert (example.count, example.share, example.size) == (3, 1.0, (4, 5))
    assert [type(v) for v in (example.count, example.share, *example.size)] == [
        int,
        float,
        int,
        int,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1.0}, "count must be a whole number, not 1.0"),
        ({"count": True}, "count must be a whole number, not True"),
        ({"share": "1"}, "share must be a number, not '1'"),
        ({"name": 5}, "name must be text, not 5"),
        ({"name": "\udcff"}, "name must be text in UTF-8"),
        ({"flag": 1}, "flag must be true or false, not 1"),
        ({"size": (1, 2, 3)}, "size must be 2 numbers, not"),
        ({"size": 5}, "size must be 2 numbers, not 5"),
        ({"names": ["a", 1]}, "names must be a list of names, not"),
    ],
)
def test_values_of_other_types_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Example(**options)


def test_fields_of_a_later_version_are_left_out():
    assert known_fields(Example, {"count": 2, "later": 3}) == {"count": 2}
    with pytest.raises(TypeError, match="5 is not an object"):
        known_fields(Example, 5)


@dataclass(frozen=True, kw_only=True)
class Declared:
    batch_size: int = option(256, "Images per step.", low=1, formerly="batch")
    lr: float = option(1e-3, "Peak learning rate.", above=0, high=10)
    share: float = option(0.0, "Share of inputs.", low=0, below=1)
    codec: str | None = option("raw", "Codec.", choices=("raw", "jpg"))
    limit: int | None = option(None, "Inputs.", low=1)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Borrowing:
    lr: float = same_option(Declared, "lr", 0.5)
    share: float = same_option(Declared, "share")

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"lr": 0.0}, "lr 0 is not above 0 and at most 10"),
        ({"lr": 11.0}, "lr 11 is not above 0 and at most 10"),
        ({"lr": float("nan")}, "lr must be a finite number, not nan"),
        ({"share": 1.0}, "share 1 is not from 0 to below 1"),
        ({"codec": "gif"}, "codec 'gif' is not one of raw, jpg"),
        ({"limit": 0}, "limit 0 is below 1"),
    ],
)
def test_values_outside_the_declared_bounds_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Declared(**options)


def test_an_option_can_be_redeclared_with_another_default():
    assert Borrowing() == Borrowing(lr=0.5, share=0.0)
    assert declared_options(Borrowing) == {
        name: declared_options(Declared)[name] for name in ("lr", "share")
    }
    with pytest.raises(ConfigError, match="lr 20 is not above 0 and at most 10"):
        Borrowing(lr=20)


def test_renamed_entries_of_an_earlier_version_are_read():
    document = {"batch": 5, "lr": 1.0, "later": 2}
    assert known_fields(Declared, document) == {"batch_size": 5, "lr": 1.0}
    assert unknown_fields(Declared, document) == ["later"]
