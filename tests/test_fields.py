from dataclasses import dataclass

import numpy as np
import pytest

from quadpipe.errors import ConfigError
from quadpipe.fields import check_types, known_fields


@dataclass(frozen=True, kw_only=True)
class Example:
    count: int = 1
    share: float = 0.5
    name: str | None = None
    flag: bool = False
    size: tuple[int, int] = (1, 2)
    names: list[str] | None = None

    def __post_init__(self) -> None:
        check_types(self)


def test_values_become_their_declared_types():
    example = Example(count=np.int64(3), share=1, size=[4, np.int32(5)], names=["a"])
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
def test_other_values_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Example(**options)


def test_what_a_later_version_added_is_left_out():
    assert known_fields(Example, {"count": 2, "later": 3}) == {"count": 2}
    with pytest.raises(TypeError, match="5 is not an object"):
        known_fields(Example, 5)
