"""One shard's work: read, decode, crop, score, cut, write, commit. The same under any engine."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import JobError, RejectError
from quadpipe.files import Folder
from quadpipe.images.crop import Box, decode_and_resample, random_box
from quadpipe.images.decode import EncodedImage
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.plan import Plan, ShardId, read_inputs
from quadpipe.mosaic import Mosaic
from quadpipe.scorers import Network, Scorer
from quadpipe.scorers.precomputed import read_map
from quadpipe.shards.format import json_bytes, marker_name, sample_key, shard_name
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Input, read_input
from quadpipe.tokenizer import Tokenizer, TokenizerConfig


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
    hint: Any


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a job finds what it needs, which decides no bytes; workers get it whole.

    maps: folder of importance maps, for scorer precomputed. network: of a network scorer.
    """

    source: Path
    out: Folder
    maps: Path | None = None
    network: Network | None = None


def make_shard(plan: Plan, site: Site, shard: ShardId, scorer: Scorer | None = None) -> Report:
    """Write the tars of all views of one shard, then its done-marker.

    scorer: a stand-in for the plan's scorer, which by default runs here. Raises SourceError when
    an input cannot be read for a cause outside its bytes, OutputError when the output cannot be
    written, JobError when this machine would write other bytes or no scorer answers, ShardError
    when the stored listing is not the plan's.
    """
    started = time.monotonic()
    here = imaging_library()
    if here != plan.imaging_library:
        raise JobError(
            f"{socket.gethostname()} has {describe(here)}, the plan was made with "
            f"{describe(plan.imaging_library)}; install the same library on all machines"
        )
    inputs = read_inputs(site.out, plan, shard)
    rejects: list[dict[str, Any]] = []
    writers: list[ShardWriter] = []
    views = plan.splits[shard.split].views
    names = [shard_name(shard.split, view, shard.index) for view in range(views)]
    tokenizer = Tokenizer(plan.config.tokenizer, scorer=scorer or local_scorer(plan, site.network))
    with ExitStack() as files:
        batches = _batches(plan, tokenizer, site, shard, inputs, rejects)
        for view, mosaic in _tokenized(tokenizer, batches):
            if not writers:  # a shard without samples has no tar
                codec = plan.config.make_codec()
                staged = [files.enter_context(site.out.staged(name)) for name in names]
                writers = [ShardWriter(file, codec) for file in staged]
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
    site.out.write(marker_name(shard.split, shard.index), json_bytes(marker))
    return Report(
        shard=shard,
        inputs=len(inputs),
        rejected=len(rejects),
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
        process=os.getpid(),
    )


def _batches(
    plan: Plan,
    tokenizer: Tokenizer,
    site: Site,
    shard: ShardId,
    inputs: list[Input],
    rejects: list[dict[str, Any]],
) -> Iterator[list[View]]:
    """The views of `score_batch` consecutive inputs at a time; appends to `rejects`."""
    first, size = plan.inputs_of(shard).start, plan.config.dataset.score_batch
    for start in range(0, len(inputs), size):
        batch: list[View] = []
        for index, entry in enumerate(inputs[start : start + size], start=first + start):
            try:
                batch += _prepare(plan, tokenizer, site, shard, index, entry)
            except RejectError as error:
                rejects.append(
                    {"path": entry.path, "reason": error.reason, "message": error.message}
                )
        if batch:
            yield batch


def _tokenized(
    tokenizer: Tokenizer, batches: Iterator[list[View]]
) -> Iterator[tuple[View, Mosaic]]:
    """Views with their mosaics, in order.

    While a scorer elsewhere has `batches_out` batches, this waits for the first of them.
    """
    scorer = tokenizer.scorer
    out: deque[tuple[list[View], np.ndarray, Callable[[], list[np.ndarray]]]] = deque()
    for batch in chain(batches, repeat(None, scorer.batches_out)):
        if batch:
            images = np.stack([view.pixels for view in batch])
            maps = scorer.submit(images, [view.hint for view in batch])
            out.append((batch, images, maps))
        if out and (not batch or len(out) == scorer.batches_out):
            views, images, maps = out.popleft()
            yield from zip(views, tokenizer.cut(images, maps()), strict=True)


def _prepare(
    plan: Plan, tokenizer: Tokenizer, site: Site, shard: ShardId, index: int, entry: Input
) -> list[View]:
    """All views of one input; RejectError when its bytes are no image we can use."""
    config = plan.config
    image = EncodedImage(read_input(site.source, entry))
    hint = _hint(plan, site, entry)
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
        views.append(View(index, view, pixels, info, entry.label, hint))
    return views


def _hint(plan: Plan, site: Site, entry: Input) -> Any:
    """What the scorer must be told of an image beside its pixels; RejectError without its map."""
    if site.maps is not None:
        return read_map(site.maps, entry.path, plan.config.tokenizer.geometry)
    if plan.classes is not None and entry.label is not None:
        return plan.classes[entry.label]
    return None


def local_scorer(plan: Plan, network: Network | None) -> Scorer:
    """The plan's scorer in this process; a network is built once and kept.

    JobError when torch would give other bytes here.
    """
    scorer = _scorer(
        plan.config.tokenizer,
        network,
        plan.config.dataset.score_batch,
        plan.scorer["device"] or "cpu",
    )
    if scorer.torch_version != plan.scorer["torch"]:
        raise JobError(
            f"{socket.gethostname()} has torch {scorer.torch_version}, the plan was made with "
            f"{plan.scorer['torch']}; install the same version on all machines"
        )
    return scorer


@lru_cache(maxsize=1)
def _scorer(config: TokenizerConfig, network: Network | None, batch: int, device: str) -> Scorer:
    return config.make_scorer(network, batch=batch, device=device)


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
