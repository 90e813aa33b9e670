"""The difference between two datasets as text, for `quadpipe info`."""

import json
from collections.abc import Iterator
from typing import Any

from quadpipe.cli.text import printable, table

_NAMES = 8


def difference_text(found: dict[str, Any]) -> str:
    """Tables of what `shards.difference.difference` found, and a first line that says whether
    the datasets are equal."""
    one, other = found["fingerprints"]
    if found["equal"]:
        lines = [f"the same tokens, classes and shards: fingerprint {one}"]
    else:
        lines = [f"fingerprints differ: {one}", f"                 and {other}"]
    parts = ["\n".join(lines)]
    rows = [(printable(name), *map(_value, pair)) for name, pair in found["fields"].items()]
    rows += [
        (f"{split}, {name}", *map(_value, pair))
        for split, counts in found["splits"].items()
        for name, pair in counts.items()
        if name != "of_shards"
    ]
    if rows:
        parts.append(table(("differs", *map(printable, found["locations"])), rows))
    if found["classes"]:
        parts.append("\n".join(_classes(found["classes"])))
    shards = [
        f"shards of {split}: {counts['of_shards']['same']:,} have the same bytes, "
        f"{counts['of_shards']['only'][0]:,} are only in the first dataset, "
        f"{counts['of_shards']['only'][1]:,} only in the second"
        for split, counts in found["splits"].items()
        if "of_shards" in counts
    ]
    if shards:
        parts.append("\n".join(shards))
    return "\n\n".join(parts)


def _value(value: Any) -> str:
    if type(value) is int:
        return f"{value:,}"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _classes(found: dict[str, Any]) -> Iterator[str]:
    before, after = ("no" if n is None else f"{n:,}" for n in found["numbers"])
    yield f"classes: {before} and {after}"
    for key, where in (("removed", "first"), ("added", "second")):
        names = found[key]
        if names:
            shown = ", ".join(printable(name, 40) for name in names[:_NAMES])
            more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
            yield f"  only in the {where}: {shown}{more}"
    if found["reordered"]:
        yield "  those in both are in another order: the same label means another class"
