"""What differs between two datasets, from their manifests and shard lists."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from quadpipe.shards.manifest import Manifest, SplitInfo
from quadpipe.shards.reader import Dataset

_FIELDS = (
    "name",
    "license",
    "source",
    "format_version",
    "tokenizer_version",
    "revision",
    "quadpipe",
    "samples_per_shard",
    "imaging_library",
    "scorer",
    "codec",
    "tokenizer",
    "members",
    "preview",
    "parents",
)
_DEPTH = 4
_COUNTS = ("inputs", "rejected", "samples", "views", "shards", "bytes")


def difference(one: Dataset, other: Dataset) -> dict[str, Any]:
    """What differs, as JSON; each pair is of one dataset and of the other.

    equal: whether both have the same fingerprint: tokenizer, codec, classes and bytes of shards.
    fields: of the manifests, by name (`tokenizer.tokens`). classes: names that are `added` or
    `removed`, and whether those of both are `reordered`, in another order; None if nothing
    differs. splits: for each that differs, its counts and `of_shards`, the numbers of shards
    with the same bytes and of those that only one dataset has.
    """
    first, second = one.manifest, other.manifest
    splits = dict.fromkeys([*first.splits, *second.splits])
    compared = {split: _split_difference(one, other, split) for split in splits}
    return {
        "equal": first.fingerprint == second.fingerprint,
        "locations": [str(one.folder), str(other.folder)],
        "fingerprints": [first.fingerprint, second.fingerprint],
        "fields": dict(_fields(_document(first), _document(second))),
        "classes": _class_difference(first.classes, second.classes),
        "splits": {split: found for split, found in compared.items() if found},
    }


def _document(manifest: Manifest) -> dict[str, Any]:
    fields = {name: getattr(manifest, name) for name in _FIELDS}
    return fields | {"tokenizer": manifest.tokenizer.as_json(), "parents": list(manifest.parents)}


def _fields(
    one: Any, other: Any, name: str = "", depth: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    if isinstance(one, dict) and isinstance(other, dict) and depth < _DEPTH:
        for key in dict.fromkeys([*one, *other]):
            below = f"{name}.{key}" if name else key
            yield from _fields(one.get(key), other.get(key), below, depth + 1)
    elif one != other:
        yield name, [one, other]


def _class_difference(one: list[str] | None, other: list[str] | None) -> dict[str, Any] | None:
    if one == other:
        return None
    before, after = one or [], other or []
    old, new = set(before), set(after)
    return {
        "numbers": [None if names is None else len(names) for names in (one, other)],
        "added": [name for name in after if name not in old],
        "removed": [name for name in before if name not in new],
        "reordered": [n for n in before if n in new] != [n for n in after if n in old],
    }


def _split_difference(one: Dataset, other: Dataset, split: str) -> dict[str, Any] | None:
    first, second = (dataset.manifest.splits.get(split) for dataset in (one, other))
    counts = {
        name: pair
        for name in _COUNTS
        if (pair := [_count(first, name), _count(second, name)])[0] != pair[1]
    }
    if first and second and first.shard_list_sha256 == second.shard_list_sha256:
        return counts or None
    sums = [
        Counter(shard.sha256 for shard in dataset.shards(split)) if info else Counter[str]()
        for dataset, info in ((one, first), (other, second))
    ]
    only = [(sums[0] - sums[1]).total(), (sums[1] - sums[0]).total()]
    return counts | {"of_shards": {"same": sums[0].total() - only[0], "only": only}}


def _count(info: SplitInfo | None, name: str) -> int | None:
    return None if info is None else getattr(info, name)
