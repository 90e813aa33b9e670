"""The shard list read line by line."""

import json
from typing import Any

from quadpipe.errors import ConfigError
from quadpipe.fields import known_fields
from quadpipe.shards.format import shard_name
from quadpipe.shards.manifest import ShardInfo


def read_lines(data: bytes, split: str, views: int, samples_per_shard: int) -> list[ShardInfo]:
    """ValueError with the number of the first line that is not one of a shard."""
    shards = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1):
        try:
            document: dict[str, Any] = json.loads(line)
            shard = ShardInfo(**known_fields(ShardInfo, document))
        except (ValueError, TypeError, ConfigError) as error:
            raise ValueError(f"line {number}") from error
        digits = shard.name.removesuffix(".tar").rpartition("-")[2]
        right = (
            digits.isascii()
            and digits.isdigit()
            and len(digits) <= 10
            and shard.name == shard_name(split, shard.view, int(digits))
            and shard.view < views
            and 1 <= shard.samples <= samples_per_shard
            and 1 <= shard.bytes <= 2**62
            and len(shard.sha256) == 64
            and set(shard.sha256) <= set("0123456789abcdef")
        )
        if not right:
            raise ValueError(f"line {number}")
        shards.append(shard)
    return shards
