"""Markers -> shard lists, rejects, card and, last, the manifest."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import islice
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from quadpipe.errors import ShardError, TooManyRejectsError
from quadpipe.files import Folder, LocalFolder
from quadpipe.job.plan import Plan, ShardId
from quadpipe.shards.arrays import write_array
from quadpipe.shards.card import card
from quadpipe.shards.croissant import read_croissant
from quadpipe.shards.format import (
    CARD,
    CROISSANT,
    MANIFEST,
    REJECTED,
    WITHDRAWN,
    gains_name,
    index_name,
    json_bytes,
    marker_name,
    npy_array,
    shard_gains_name,
    shard_list_name,
)
from quadpipe.shards.gains import DTYPE as GAINS
from quadpipe.shards.gains import sample_gains
from quadpipe.shards.index import FIELDS, complete, parts
from quadpipe.shards.manifest import Manifest, SplitInfo
from quadpipe.shards.marker import FinishedTar, Marker, Reject

_MARKERS_AT_ONCE = 1024
_LONGEST_ROW = 1 << 20  # of a reject, whose path is at most some kilobytes


def read_markers(out: Folder, shards: Iterable[ShardId]) -> Iterator[Marker | None]:
    """The done-markers of shards whose tars all exist with the right sizes; None for others."""
    size_of = out.sizes()
    waiting = iter(shards)
    while batch := list(islice(waiting, _MARKERS_AT_ONCE)):
        names = [marker_name(shard.split, shard.index) for shard in batch]
        for data in out.read_many(names):
            yield None if data is None else _done(data, size_of)


def _done(data: bytes, size_of: Callable[[str], int | None]) -> Marker | None:
    try:
        marker = Marker.parse(data)
        if marker.tars is None or any(size_of(t.info.name) != t.info.bytes for t in marker.tars):
            return None
    except ShardError:
        return None
    return marker


def withdraw(out: Folder, shards: list[ShardId]) -> None:
    """Withdraw a dataset before some of its shards are remade; `merge` republishes it.

    The manifest is kept under another name for its revision; a folder without it is not finished.
    shards: those whose rejects are retried too.
    """
    if out.exists(MANIFEST):
        out.write(WITHDRAWN, out.read(MANIFEST))
        out.remove(MANIFEST)
    for shard in shards:
        out.remove(marker_name(shard.split, shard.index))


def merge(out: Folder, plan: Plan, *, allowed_rejects: int) -> None:
    """Publish the dataset of the finished shards.

    A dataset that was published before and has changed gets the next revision. Raises
    TooManyRejectsError before the manifest is written when more than `allowed_rejects` inputs were
    rejected.
    """
    reasons: Counter[str] = Counter()
    with out.staged(REJECTED) as rejects:
        splits = {name: merge_split(out, plan, name, rejects, reasons) for name in plan.splits}
    rejected = reasons.total()
    if rejected > allowed_rejects:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        row = bytes(out.beginning(REJECTED, _LONGEST_ROW)).partition(b"\n")[0]
        first = Reject.parse(json.loads(row))
        raise TooManyRejectsError(
            f"{rejected:,} of {plan.inputs:,} inputs were rejected ({listed}), more than "
            f"{allowed_rejects:,}; the first is {first.path} ({first}); see "
            f"{out.where(REJECTED)}, then rerun the same command with a larger "
            f"--max-rejected: all shards are done, only the manifest is missing"
        )
    before = _published(out)
    manifest = plan.manifest(splits=splits, revision=_revision(out))
    if before and replace(manifest, quadpipe=before.quadpipe) != before:
        manifest = replace(manifest, revision=before.revision + 1)
    ours = card(before).encode() if before else None
    if not out.exists(CARD) or out.read(CARD) == ours:  # not edited by users
        out.write(CARD, card(manifest).encode())
    out.write(CROISSANT, read_croissant(out, manifest))
    out.write(MANIFEST, manifest.to_bytes())


def _published(out: Folder) -> Manifest | None:
    """The current manifest, or the withdrawn one."""
    for name in (MANIFEST, WITHDRAWN):
        with suppress(ShardError):
            return Manifest.read(out, name)
    return None


def _revision(out: Folder) -> int:
    """The revision of the published dataset, even of a damaged manifest; 1 if there is none."""
    for name in (MANIFEST, WITHDRAWN):
        found = re.search(rb'"revision": ([1-9][0-9]{0,8})\b', out.get(name) or b"")
        if found:
            return int(found[1])
    return 1


def merge_split(
    out: Folder, plan: Plan, split: str, rejects: Any, reasons: Counter[str]
) -> SplitInfo:
    """Write the shard list, the index and the gains of a split, and the rows of its rejects."""
    planned = plan.splits[split]
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    name = shard_list_name(split)
    # Beside the output: the temporary folder of the machine may be small.
    place = out.root if isinstance(out, LocalFolder) else None
    with (
        TemporaryFile(dir=place) as index,
        TemporaryFile(dir=place) as gains,
        out.staged(name) as file,
    ):
        for number, marker in enumerate(_markers(out, planned.shards, split)):
            for reject in marker.rejected:
                reasons[reject.reason] += 1
                rejects.write(json_bytes({"split": split, **reject.as_json()}))
            counts["rejected"] += len(marker.rejected)
            each_gains = _shard_gains(out, plan, ShardId(split=split, index=number), marker)
            for tar, its_gains in zip(marker.tars or (), each_gains, strict=True):
                line = json_bytes(asdict(tar.info))
                file.write(line)
                digest.update(line)
                tar.rows["shard"] = counts["shards"]
                if not tar.rows["checksum"].all() or its_gains is None:
                    its_gains = _complete(out, plan, tar)
                index.write(tar.rows.tobytes())
                gains.write(its_gains.tobytes())
                counts["shards"] += 1
                counts["samples"] += tar.info.samples
                counts["bytes"] += tar.info.bytes
        samples, splits = counts["samples"], plan.config.tokenizer.num_splits
        index_sha256 = write_array(out, index_name(split), FIELDS, (samples,), index)
        gains_sha256 = write_array(out, gains_name(split), GAINS, (samples, splits), gains)
    return SplitInfo(
        inputs=planned.inputs,
        rejected=counts["rejected"],
        samples=counts["samples"],
        views=planned.views,
        shards=counts["shards"],
        bytes=counts["bytes"],
        shard_list=name,
        shard_list_sha256=digest.hexdigest(),
        index_sha256=index_sha256,
        gains_sha256=gains_sha256,
    )


def _shard_gains(
    out: Folder, plan: Plan, shard: ShardId, marker: Marker
) -> Sequence[np.ndarray | None]:
    """float32 `[samples, K]` for each view, None where an earlier version wrote the marker."""
    tars = marker.tars or []
    data = out.get(shard_gains_name(shard.split, shard.index)) if tars else None
    if data is None:
        return [None] * len(tars)
    try:
        shape = (len(tars), tars[0].info.samples, plan.config.tokenizer.num_splits)
        return list(npy_array(data, GAINS, shape))
    except ShardError:
        return [None] * len(tars)


def _complete(out: Folder, plan: Plan, tar: FinishedTar) -> np.ndarray:
    """The gains of a tar; fills in labels and checksums where an earlier version wrote none."""
    splits = plan.config.tokenizer.num_splits
    try:
        contents = out.contents(tar.info.name)
        each = [sample_gains(part, splits) for _, part in parts(tar.rows, contents)]
        if not tar.rows["checksum"].all():
            complete(tar.rows, contents, labelled=plan.classes is not None)
    except ShardError as error:
        raise ShardError(
            f"{out.where(tar.info.name)}: {error}; remove it and rerun the same command"
        ) from error
    return np.array(each, GAINS).reshape(-1, splits)


def _markers(out: Folder, shards: int, split: str) -> Iterator[Marker]:
    def planned() -> Iterator[ShardId]:
        return (ShardId(split=split, index=index) for index in range(shards))

    for shard, marker in zip(planned(), read_markers(out, planned()), strict=True):
        if marker is None:
            raise ShardError(
                f"{out}: shard {shard} was changed while it was merged; rerun the same command"
            )
        yield marker
