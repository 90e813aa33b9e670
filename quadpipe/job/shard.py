"""One shard's work: read, decode, crop, score, cut, write, commit. The same under any engine."""

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import JobError, RejectError
from quadpipe.files import Folder
from quadpipe.images.crop import Box, decode_and_resample, random_box
from quadpipe.images.decode import EncodedImage
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.plan import SCORE_BATCH, Plan, ShardId, read_inputs
from quadpipe.shards.format import json_bytes, marker_name, sample_key, shard_name
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Input, read_input
from quadpipe.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the driver hears of a finished shard; its results are in its marker."""

    shard: ShardId
    inputs: int
    rejected: int
    seconds: float
    host: str
    process: int


@dataclass(frozen=True)
class View:
    """One crop of an input, ready to be tokenized."""

    index: int
    view: int
    pixels: np.ndarray
    info: dict[str, Any]
    label: int | None


def make_shard(plan: Plan, source: Path, out: Folder, shard: ShardId) -> Report:
    """Write the tars of all views of one shard, then its done-marker.

    Raises SourceError when an input cannot be read for a cause outside its bytes, OutputError
    when the output cannot be written, JobError when this machine would write other bytes,
    ShardError when the stored listing is not the plan's.
    """
    started = time.monotonic()
    here = imaging_library()
    if here != plan.imaging_library:
        raise JobError(
            f"{socket.gethostname()} has {describe(here)}, the plan was made with "
            f"{describe(plan.imaging_library)}; install the same library on all machines"
        )
    inputs = read_inputs(out, plan, shard)
    rejects: list[dict[str, Any]] = []
    writers: list[ShardWriter] = []
    tokenizer = Tokenizer(plan.config.tokenizer)
    views = plan.splits[shard.split].views
    names = [shard_name(shard.split, view, shard.index) for view in range(views)]
    with ExitStack() as files:
        first = plan.inputs_of(shard).start
        for start in range(0, len(inputs), SCORE_BATCH):
            batch: list[View] = []
            for index, entry in enumerate(inputs[start : start + SCORE_BATCH], start=first + start):
                try:
                    batch += _prepare(plan, tokenizer, source, shard, index, entry)
                except RejectError as error:
                    rejects.append(
                        {"path": entry.path, "reason": error.reason, "message": error.message}
                    )
            if not batch:
                continue
            if not writers:  # a shard without samples has no tar
                codec = plan.config.make_codec()
                writers = [ShardWriter(files.enter_context(out.staged(n)), codec) for n in names]
            mosaics = tokenizer.tokenize(np.stack([view.pixels for view in batch]))
            for view, mosaic in zip(batch, mosaics, strict=True):
                key = sample_key(view.index, view.view)
                writers[view.view].add(key, mosaic, view.label, view.info)
        for writer in writers:
            writer.close()
    marker = {
        "split": shard.split,
        "shard": shard.index,
        "inputs": len(inputs),
        "rejected": rejects,
        "views": [
            {
                "name": name,
                "view": view,
                "samples": writer.samples,
                "bytes": writer.bytes,
                "sha256": writer.sha256,
                "offsets": writer.offsets,
            }
            for view, (name, writer) in enumerate(zip(names, writers, strict=False))
        ],
    }
    out.write(marker_name(shard.split, shard.index), json_bytes(marker))
    return Report(
        shard=shard,
        inputs=len(inputs),
        rejected=len(rejects),
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
        process=os.getpid(),
    )


def _prepare(
    plan: Plan, tokenizer: Tokenizer, source: Path, shard: ShardId, index: int, entry: Input
) -> list[View]:
    """All views of one input; RejectError when its bytes are no image we can use."""
    config = plan.config
    image = EncodedImage(read_input(source, entry))
    views = []
    for view in range(plan.splits[shard.split].views):
        box = tokenizer.view_box(image.width, image.height)
        if view:
            box = _random_view(plan, image, shard, index, view)
        info = {
            "path": entry.path,
            "width": image.width,
            "height": image.height,
            "view": view,
            "box": box.rounded(),
        }
        if plan.classes is not None and entry.label is not None:
            info["class"] = plan.classes[entry.label]
        pixels = decode_and_resample(image, box, config.tokenizer.image_size)
        views.append(View(index, view, pixels, info, entry.label))
    return views


def _random_view(plan: Plan, image: EncodedImage, shard: ShardId, index: int, view: int) -> Box:
    dataset, seed = plan.config.dataset, plan.config.tokenizer.seed
    return random_box(
        image.width,
        image.height,
        dataset.view_scale,
        dataset.view_ratio,
        "job/view",
        seed,
        shard.split,
        index,
        view,
    )
