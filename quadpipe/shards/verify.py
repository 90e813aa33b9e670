"""Verify a dataset against its manifest and checksums; every byte is read."""

import hashlib
import json
from collections.abc import Callable, Iterator

import numpy as np

from quadpipe.errors import MissingError, ShardError, UnreadableError
from quadpipe.files import CachedFolder, Contents
from quadpipe.shards.format import (
    MANIFEST,
    PLAN,
    REJECTED,
    gains_name,
    index_name,
    marker_name,
    sample_key,
)
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.marker import Marker
from quadpipe.shards.presence import is_shard_of, missing_shards
from quadpipe.shards.reader import Dataset
from quadpipe.tokenizer import TokenizerConfig

_BYTES_AT_ONCE = 2**20
_SHOWN = 3


def verify(dataset: Dataset, advanced: Callable[[int], None] = lambda count: None) -> Iterator[str]:
    """One line per finding, with the next step; none when the dataset is intact.

    advanced: called with the bytes of each shard. Raises UnreadableError where the dataset cannot
    be reached: it may be intact.
    """
    folder = dataset.folder
    unlisted = []  # splits whose shard list cannot be read
    unindexed = set()  # splits whose index or gains cannot be used, so that no sample is checked
    expected: dict[str, tuple[str, ShardInfo]] = {}
    missing = []
    for split, info in dataset.manifest.splits.items():
        try:
            expected |= {shard.name: (split, shard) for shard in dataset.shards(split)}
        except UnreadableError:
            raise
        except MissingError:
            missing.append(info.shard_list)
            unlisted.append(split)
            continue
        except ShardError as error:
            yield str(error)
            unlisted.append(split)
            continue
        try:
            dataset.index(split)
            if info.gains_sha256 is not None:
                dataset.gains(split)
        except UnreadableError:
            raise
        except ShardError as error:
            unindexed.add(split)
            yield str(error)
    names = folder.names()
    if names is not None:  # missing files are reported before anything is read
        gone = missing_shards(folder, dataset.manifest, names)
        missing += [name for name in gone if name in expected]
        yield from _missing(dataset, missing, len(gone))
    for name, (split, shard) in expected.items():
        advanced(shard.bytes)
        if name in missing:
            continue
        try:
            contents = _check_bytes(dataset, split, shard)
            if split not in unindexed:
                _check_samples(dataset, split, shard, contents)
        except UnreadableError:
            raise
        except MissingError:
            missing.append(name)
        except ShardError as error:
            yield str(error)
        else:
            yield from _readable(_check_marker(dataset, split, shard, contents))
    if names is None:
        yield from _missing(dataset, missing, len(missing))
    lists = {
        name
        for split, info in dataset.manifest.splits.items()
        for name in (info.shard_list, index_name(split), gains_name(split))
    }
    for name in names or ():
        known = name in expected or name in lists or any(is_shard_of(s, name) for s in unlisted)
        if not known and name.endswith((".tar", ".shards.jsonl", ".index.npy", ".gains.npy")):
            yield f"{folder.where(name)}: extra file: not in the manifest, readers ignore it"
    yield from _readable(_check_rejects(dataset))
    yield from _readable(_check_plan(dataset))


def _missing(dataset: Dataset, missing: list[str], shards: int) -> Iterator[str]:
    """One line for all files that are missing; shards: how many of the shards are."""
    total = sum(info.shards for info in dataset.manifest.splits.values())
    if len(missing) == 1 and shards <= 1:
        yield f"{dataset.folder.where(missing[0])}: missing; fetch it again"
    elif missing:
        more = f" and {len(missing) - _SHOWN:,} more" if len(missing) > _SHOWN else ""
        yield (
            f"{dataset.folder}: the dataset is incomplete: {total - shards:,} of {total:,} "
            f"shards; {', '.join(missing[:_SHOWN])}{more} are missing; finish copying it, or "
            f"rerun the quadpipe tokenize command that wrote it"
        )


def _readable(findings: Iterator[str]) -> Iterator[str]:
    """The findings; an error while reading is one of them."""
    try:
        yield from findings
    except UnreadableError:
        raise
    except ShardError as error:
        yield str(error)


def _check_bytes(dataset: Dataset, split: str, shard: ShardInfo) -> Contents:
    """The contents of a shard that has the checksum of the shard list; ShardError otherwise.

    A shard is read once; a remote shard is in memory as a whole.
    """
    folder, where = dataset.folder, dataset.folder.where(shard.name)
    advice = "fetch it again, or delete it and rerun the quadpipe tokenize command that wrote it"
    if isinstance(folder, CachedFolder):
        advice = f"remove its copy {shard.sha256}.tar from the cache"
    contents = folder.contents(shard.name)
    if len(contents) != shard.bytes:
        raise ShardError(f"{where}: {len(contents)} bytes, expected {shard.bytes}; {advice}")
    digest = hashlib.sha256()
    for start in range(0, len(contents), _BYTES_AT_ONCE):
        digest.update(contents[start : start + _BYTES_AT_ONCE])
    if digest.hexdigest() != shard.sha256:
        raise ShardError(f"{where}: its checksum is not the one in {split}'s shard list; {advice}")
    return contents


def _check_samples(dataset: Dataset, split: str, shard: ShardInfo, contents: Contents) -> None:
    """Raise ShardError unless each sample fits manifest, index, gains and this shard."""
    where = dataset.folder.where(shard.name)
    per_shard = dataset.manifest.samples_per_shard
    first = shard.index * per_shard
    rows, _ = dataset.rows(shard, contents)
    samples = dataset.read_shard(shard, contents=contents)
    gains = None
    if dataset.split(split).gains_sha256 is not None:
        gains = dataset.gains(split)[dataset.place(split, shard)]
    for number, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        digits = sample.key[:10]
        index = int(digits) if digits.isdecimal() else -1
        ours = first <= index < first + per_shard
        if not ours or sample.key != sample_key(index, shard.view):
            raise ShardError(
                f"{where}: {sample.key} does not belong to this shard; report it to the publisher"
            )
        label = -1 if sample.label is None else sample.label
        if row["checksum"] and row["label"] != label:
            raise ShardError(
                f"{where}: {sample.key} has label {label}, in the index {row['label']}; report it "
                f"to the publisher"
            )
        if gains is not None and not np.array_equal(gains[number], sample.mosaic.gains):
            raise ShardError(
                f"{where}: {sample.key} has other gains than the file of gains; report it to the "
                f"publisher"
            )


def _check_marker(
    dataset: Dataset, split: str, shard: ShardInfo, contents: Contents
) -> Iterator[str]:
    """The done-marker, where there is one, must describe the tar."""
    try:
        marker = Marker.read(dataset.folder, split, shard.index)
    except UnreadableError:
        raise
    except ShardError as error:
        yield f"{error}; fetch it again"
        return
    if marker is None:
        return
    tar = next((tar for tar in marker.tars or () if tar.info == shard), None)
    if tar is None or not np.array_equal(
        tar.rows["offset"], dataset.rows(shard, contents)[0]["offset"]
    ):
        where = dataset.folder.where(marker_name(split, shard.index))
        yield f"{where}: does not describe {shard.name}; fetch it again"


def _check_rejects(dataset: Dataset) -> Iterator[str]:
    data = dataset.folder.get(REJECTED)
    if data is None:
        return
    found = data.count(b"\n")
    expected = sum(info.rejected for info in dataset.manifest.splits.values())
    if found != expected:
        yield (
            f"{dataset.folder.where(REJECTED)}: {found} lines, expected {expected}; fetch it again"
        )


def _check_plan(dataset: Dataset) -> Iterator[str]:
    """Entries that plan and manifest share must be equal."""
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
        differing = ["not readable"]
    if differing:
        yield (
            f"{dataset.folder.where(PLAN)}: not the plan of {MANIFEST}: {', '.join(differing)}; "
            f"fetch both again"
        )
