import pytest

from quadpipe.text import counted


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(1, "shard", "1 shard"), (0, "class", "0 classes"), (1, "class", "1 class"),
     (2000, "shard", "2,000 shards")],
)  # fmt: skip
def test_one_thing_is_named_in_the_singular(count, noun, text):
    assert counted(count, noun) == text
