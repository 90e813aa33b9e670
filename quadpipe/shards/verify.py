"""Does a dataset hold what its manifest says? Every byte is read."""

import json
from collections.abc import Iterator

from quadpipe.errors import ShardError
from quadpipe.shards.format import MANIFEST, PLAN, REJECTED, marker_name, sample_key
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.reader import Dataset
from quadpipe.tokenizer import TokenizerConfig


def verify(dataset: Dataset) -> Iterator[str]:
    """One line for each thing that is wrong; none when the dataset is whole."""
    expected = set()
    for split, info in dataset.manifest.splits.items():
        expected.add(info.shard_list)
        try:
            shards = dataset.shards(split)
        except ShardError as error:
            yield str(error)
            continue
        for shard in shards:
            expected.add(shard.name)
            try:
                offsets = _check_shard(dataset, split, shard)
            except ShardError as error:
                yield str(error)
                continue
            yield from _readable(_check_marker(dataset, split, shard, offsets))
    for name in dataset.folder.names() or ():
        if name not in expected and name.endswith((".tar", ".shards.jsonl")):
            yield f"{dataset.folder.where(name)}: extra: the manifest does not name it"
    yield from _readable(_check_rejects(dataset))
    yield from _readable(_check_plan(dataset))


def _readable(findings: Iterator[str]) -> Iterator[str]:
    """The findings; that a file cannot be read is one of them."""
    try:
        yield from findings
    except ShardError as error:
        yield str(error)


def _check_shard(dataset: Dataset, split: str, shard: ShardInfo) -> list[int]:
    """Offsets of the samples of a shard that is as the shard list says; ShardError otherwise."""
    where = dataset.folder.where(shard.name)
    size = dataset.folder.size(shard.name)
    if size is None:
        raise ShardError(f"{where}: missing")
    if size != shard.bytes:
        raise ShardError(f"{where}: {size} bytes, expected {shard.bytes}")
    if dataset.folder.sha256(shard.name) != shard.sha256:
        raise ShardError(f"{where}: its checksum is not the one in {split}'s shard list")
    per_shard = dataset.manifest.samples_per_shard
    first = shard.index * per_shard
    offsets = []
    for sample in dataset.read_shard(shard):
        digits = sample.key[:10]
        index = int(digits) if digits.isdecimal() else -1
        ours = first <= index < first + per_shard
        if not ours or sample.key != sample_key(index, shard.view):
            raise ShardError(f"{where}: {sample.key} does not belong to this shard")
        offsets.append(sample.offset)
    return offsets


def _check_marker(
    dataset: Dataset, split: str, shard: ShardInfo, offsets: list[int]
) -> Iterator[str]:
    """Offsets in the done-marker, where there is one, must be those of the tar."""
    name = marker_name(split, shard.index)
    data = dataset.folder.get(name)
    if data is None:
        return
    try:
        views = json.loads(data)["views"]
        stored = next(view for view in views if view["name"] == shard.name)
        if stored["offsets"] != offsets or stored["sha256"] != shard.sha256:
            yield f"{dataset.folder.where(name)}: does not describe {shard.name}"
    except (ValueError, TypeError, KeyError, StopIteration, RecursionError):
        yield f"{dataset.folder.where(name)}: not a readable marker of {shard.name}"


def _check_rejects(dataset: Dataset) -> Iterator[str]:
    data = dataset.folder.get(REJECTED)
    if data is None:
        return
    found = data.count(b"\n")
    expected = sum(info.rejected for info in dataset.manifest.splits.values())
    if found != expected:
        yield f"{dataset.folder.where(REJECTED)}: {found} lines, expected {expected}"


def _check_plan(dataset: Dataset) -> Iterator[str]:
    """What plan and manifest both say must be the same."""
    data = dataset.folder.get(PLAN)
    if data is None:
        return
    try:
        plan = json.loads(data)
        manifest = json.loads(dataset.folder.read(MANIFEST))
        shared = ("tokenizer", "scorer", "codec", "imaging_library", "classes")
        for document in (plan, manifest):  # a field that is absent has its default
            document["tokenizer"] = TokenizerConfig().as_json() | document["tokenizer"]
        differing = [key for key in shared if plan[key] != manifest[key]]
    except (ValueError, TypeError, KeyError, RecursionError):
        differing = ["all of it"]
    if differing:
        yield f"{dataset.folder.where(PLAN)}: not the plan of {MANIFEST}: {', '.join(differing)}"
