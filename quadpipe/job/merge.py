"""Markers -> shard lists, rejects, card and, last, the manifest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from quadpipe.errors import ShardError, TooManyRejectsError
from quadpipe.files import Folder
from quadpipe.job.plan import Plan, ShardId
from quadpipe.shards.card import card
from quadpipe.shards.format import (
    CARD,
    MANIFEST,
    REJECTED,
    json_bytes,
    marker_name,
    shard_list_name,
)
from quadpipe.shards.manifest import SplitInfo


def read_marker(out: Folder, shard: ShardId) -> dict[str, Any] | None:
    """The done-marker of a shard whose tars are all there with their sizes; None otherwise."""
    name = marker_name(shard.split, shard.index)
    if not out.exists(name):
        return None
    try:
        marker = json.loads(out.read(name))
        done = all(out.size(view["name"]) == view["bytes"] for view in marker["views"])
    except (ValueError, TypeError, KeyError, ShardError):
        return None
    return marker if done else None


def merge(out: Folder, plan: Plan, *, allowed_rejects: int) -> None:
    """Make the dataset whole from its finished shards.

    Raises TooManyRejectsError before the manifest is written when more than `allowed_rejects`
    inputs were rejected.
    """
    reasons: Counter[str] = Counter()
    with out.staged(REJECTED) as rejects:
        splits = {name: _merge_split(out, plan, name, rejects, reasons) for name in plan.splits}
    rejected = reasons.total()
    if rejected > allowed_rejects:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        raise TooManyRejectsError(
            f"{rejected:,} of {plan.inputs:,} inputs were rejected ({listed}), more than "
            f"{allowed_rejects:,}; see {out.path(REJECTED)}, then run the same command with a "
            f"larger --max-rejected: all shards are done, only the manifest is missing"
        )
    manifest = plan.manifest(splits=splits)
    if not out.exists(CARD):  # people may have edited it
        out.write(CARD, card(manifest).encode())
    out.write(MANIFEST, manifest.to_bytes())


def _merge_split(
    out: Folder, plan: Plan, split: str, rejects: Any, reasons: Counter[str]
) -> SplitInfo:
    """Write the shard list of a split and the rows of its rejects."""
    planned = plan.splits[split]
    digest = hashlib.sha256()
    counts: Counter[str] = Counter()
    name = shard_list_name(split)
    with out.staged(name) as file:
        for marker in _markers(out, planned.shards, split):
            for row in marker["rejected"]:
                reasons[row["reason"]] += 1
                rejects.write(json_bytes({"split": split, **row}))
            counts["rejected"] += len(marker["rejected"])
            for view in marker["views"]:
                line = json_bytes({k: v for k, v in view.items() if k != "offsets"})
                file.write(line)
                digest.update(line)
                counts["shards"] += 1
                counts["samples"] += view["samples"]
                counts["bytes"] += view["bytes"]
    return SplitInfo(
        inputs=planned.inputs,
        rejected=counts["rejected"],
        samples=counts["samples"],
        views=planned.views,
        shards=counts["shards"],
        bytes=counts["bytes"],
        shard_list=name,
        shard_list_sha256=digest.hexdigest(),
    )


def _markers(out: Folder, shards: int, split: str) -> Iterator[dict[str, Any]]:
    for index in range(shards):
        shard = ShardId(split=split, index=index)
        marker = read_marker(out, shard)
        if marker is None:
            raise ShardError(
                f"{out}: shard {shard} was changed while it was merged; run the same command again"
            )
        yield marker
