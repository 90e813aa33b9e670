"""The members of a sample: one table of how each is encoded, decoded and checked.

A new member is one entry in `MEMBERS`. A member that is not in the table is unknown: it stays
bytes, and readers pass it through.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, ShardError
from quadpipe.geometry import Geometry
from quadpipe.names import is_path_text
from quadpipe.shards.format import PREVIEW, Codec, json_bytes, npy_array, npy_bytes
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.tar import read_part

_LARGEST_SIDE = 2**32

Content = bytes | memoryview


@dataclass(frozen=True, kw_only=True)
class Member:
    """encode: bytes of a value. decode: the value of bytes. check: raises ShardError when a value
    does not fit the manifest. Samples may lack a member that is optional.
    """

    encode: Callable[[Any, Codec], bytes]
    decode: Callable[[Content, Manifest], Any]
    check: Callable[[Any, Manifest], None] = lambda value, manifest: None
    optional: bool = False


def sample_members(codec: Codec, *, labels: bool) -> dict[str, Member]:
    """The table for one dataset: members by their name in a tar, after the key and a dot."""
    return {
        codec.member if name == "tokens" else name: member
        for name, member in MEMBERS.items()
        if labels or name != "cls"
    }


def encode_members(values: Mapping[str, Any], codec: Codec, *, labels: bool) -> dict[str, bytes]:
    """Contents of members by name, in the order of the table, then unknown ones, sorted by name.

    Values that are bytes are encoded already.
    """
    table = sample_members(codec, labels=labels)
    known = {
        name: value
        if isinstance(value := values[name], bytes)
        else table[name].encode(value, codec)
        for name in table
        if name in values
    }
    return known | {name: values[name] for name in sorted(values.keys() - table.keys())}


def sample_contents(data: memoryview) -> tuple[str, dict[str, memoryview]]:
    """Key of a sample, and the contents of its members by name after the key.

    ShardError when the bytes are not the members of one sample.
    """
    members = list(read_part(data))
    key = members[0][0].partition(".")[0] if members else ""
    if any(name.partition(".")[0] != key for name, _, _ in members) or not members:
        raise ShardError(f"{key}: its offsets do not hold one sample")
    contents = {name.partition(".")[2]: content for name, _, content in members}
    if len(contents) != len(members):
        raise ShardError(f"{key}: two members have the same name")
    return key, contents


def decode_members(
    contents: Mapping[str, Content], manifest: Manifest, *, encoded: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Values of members by name; unknown members, and those in `encoded`, stay bytes.

    ShardError names the member that is missing, damaged or does not fit the manifest.
    """
    table = sample_members(manifest.make_codec(), labels=manifest.classes is not None)
    values: dict[str, Any] = {
        name: bytes(data) for name, data in contents.items() if name not in table
    }
    for name, member in table.items():
        if name in contents and name in encoded:
            values[name] = bytes(contents[name])
        elif name in contents:
            try:
                values[name] = member.decode(contents[name], manifest)
                member.check(values[name], manifest)
            except ShardError as error:
                raise ShardError(f"{name}: {error}") from error
        elif not member.optional:
            raise ShardError(f"{name}: missing")
    return values


def decode_info(contents: Mapping[str, Content], manifest: Manifest) -> dict[str, Any]:
    """The `json` of a sample alone; ShardError when it is missing or damaged."""
    member = MEMBERS["json"]
    if "json" not in contents:
        raise ShardError("json: missing")
    info: dict[str, Any] = member.decode(contents["json"], manifest)
    member.check(info, manifest)
    return info


def checked_members(manifests: Mapping[str, Manifest], names: Sequence[str]) -> tuple[str, ...]:
    """Names of members that samples of at least one dataset may have; ConfigError on others.

    manifests: by where the datasets are. Of a dataset of an earlier version, which did not record
    its members, all names are possible.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    there: dict[str, Any] = {}
    for manifest in manifests.values():
        there |= sample_members(manifest.make_codec(), labels=manifest.classes is not None)
        there |= dict.fromkeys([PREVIEW] if manifest.preview is not None else [])
        there |= dict.fromkeys(sorted(manifest.members or ()))
    unknown = [name for name in given if name not in there]
    if unknown and all(manifest.members is not None for manifest in manifests.values()):
        raise ConfigError(
            f"the samples of {' and '.join(manifests)} have no member {unknown[0]!r}; use "
            f"{', '.join(there)}, or keep others with quadpipe tokenize --keep"
        )
    return given


def _count_nodes(manifest: Manifest) -> int:
    return manifest.geometry.num_nodes(manifest.tokenizer.tokens)


def _check_finite(importance: np.ndarray, manifest: Manifest) -> None:
    if not np.isfinite(importance).all():
        raise ShardError("holds numbers that are not finite")


def _decode_label(data: Content, manifest: Manifest) -> int:
    text, classes = bytes(data), len(manifest.classes or ())
    if not (text.isdigit() and len(text) < 10 and int(text) < classes):
        raise ShardError(f"{text[:20]!r} is not a class index below {classes}")
    return int(text)


def _decode_info(data: Content, manifest: Manifest) -> Any:
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise ShardError(f"not JSON: {error}") from error


def _check_info(info: Any, manifest: Manifest) -> None:
    if not isinstance(info, dict):
        raise ShardError("not a JSON object")
    if not is_path_text(info.get("path")) or not _is_box(info.get("box")):
        raise ShardError("has no path, or no box of four numbers")


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or any(type(v) not in (int, float) for v in box):
        return False
    x0, y0, x1, y1 = box
    return bool(0 <= x0 < x1 < _LARGEST_SIDE and 0 <= y0 < y1 < _LARGEST_SIDE)


def check_nodes(nodes: np.ndarray, geometry: Geometry, splits: int) -> None:
    """Raise ShardError unless int32 `[M, 4]` nodes are the roots and the quarters of K splits."""
    roots = geometry.roots
    step = nodes[:, 3]
    if not np.array_equal(nodes[:roots, :3], geometry.boxes[:roots]):
        raise ShardError("the first nodes are not the largest patches in raster order")
    split_nodes = np.flatnonzero(step != -1)
    steps = step[split_nodes]
    if not np.array_equal(np.sort(steps), np.arange(splits)):
        raise ShardError(f"the split steps are not 0 to {splits - 1}, each once")
    parents = split_nodes[np.argsort(steps)]
    if (parents >= roots + 4 * np.arange(splits)).any():
        raise ShardError("a patch is split before it exists")
    x, y, scale = nodes[parents, :3].T
    if (scale < 1).any():
        raise ShardError("a patch of the smallest scale is split")
    half = 1 << (scale - 1)
    quarters = [(x + dx * half, y + dy * half, scale - 1) for dy in (0, 1) for dx in (0, 1)]
    expected = np.stack([np.stack(quarter, axis=-1) for quarter in quarters], axis=1)
    if not np.array_equal(nodes[roots:, :3], expected.reshape(-1, 3)):
        raise ShardError("a split patch is not followed by its quarters")


MEMBERS: dict[str, Member] = {
    "tokens": Member(
        encode=lambda tokens, codec: codec.encode(tokens),
        decode=lambda data, manifest: manifest.make_codec().decode(data, _count_nodes(manifest)),
    ),
    "nodes.npy": Member(
        encode=lambda nodes, codec: npy_bytes(nodes.astype("<i4", copy=False)),
        decode=lambda data, manifest: npy_array(data, "<i4", (_count_nodes(manifest), 4)),
        check=lambda nodes, manifest: check_nodes(
            nodes, manifest.geometry, manifest.tokenizer.num_splits
        ),
    ),
    "importance.npy": Member(
        encode=lambda importance, codec: npy_bytes(importance.astype("<f4", copy=False)),
        decode=lambda data, manifest: npy_array(data, "<f4", (manifest.tokenizer.num_splits,)),
        check=_check_finite,
    ),
    "cls": Member(encode=lambda label, codec: str(label).encode(), decode=_decode_label),
    "json": Member(
        encode=lambda info, codec: json_bytes(info), decode=_decode_info, check=_check_info
    ),
}
"""By name after the key, in the order of a tar. `tokens` is tokens.npy, .jpg or .png, as the codec
writes them; `cls` is in datasets with labels only. The compiled reader (loader/gather.py) reads
tokens, nodes, importance and cls; it leaves the content of all others alone."""
