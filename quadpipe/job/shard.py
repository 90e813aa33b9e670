"""One shard's work: read, decode, crop, score, cut, write, commit. The same under any engine."""

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import JobError, RejectError, ShardError
from quadpipe.files import Folder, ReadableFolder
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.decoding import CRASHED, TIMED_OUT, Decoder
from quadpipe.job.plan import Plan, ShardId, read_inputs
from quadpipe.mosaic import Mosaic
from quadpipe.scorers import Scorer, ScorerCode
from quadpipe.scorers.maps import read_map
from quadpipe.shards.format import marker_name, sample_key, shard_name
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.marker import FinishedTar, Marker
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Input, Source
from quadpipe.tokenizer import Tokenizer, TokenizerConfig

Identity = tuple[str, int | None]
"""Of an input: see `Input.identity`."""


@dataclass(frozen=True, kw_only=True)
class ShardReport:
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

    @property
    def key(self) -> str:
        return sample_key(self.index, self.view)


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a job finds what it needs, which decides no bytes; workers get it whole.

    maps: folder of importance maps, for scorer precomputed. network: of a network scorer,
    or the user's own scorer.
    """

    source: Source
    out: Folder
    maps: Path | None = None
    network: ScorerCode | None = None


def make_shard(
    plan: Plan,
    site: Site,
    shard: ShardId,
    scorer: Scorer | None = None,
    decoder: type[Decoder] = Decoder,
) -> ShardReport:
    """Write the tars of all views of one shard, then its done-marker.

    scorer: a stand-in for the plan's scorer, which by default runs here. Raises SourceError when
    an input cannot be read for a cause outside its bytes, OutputError when the output cannot be
    written, JobError when this machine would write other bytes or no scorer answers, ShardError
    when the stored listing is not the plan's.
    """
    started = time.monotonic()
    check_machine(plan)
    inputs = read_inputs(site.out, plan, shard)
    rejects: list[dict[str, Any]] = []
    writers: list[ShardWriter] = []
    views = plan.splits[shard.split].views
    names = [shard_name(shard.split, view, shard.index) for view in range(views)]
    tokenizer = Tokenizer(plan.config.tokenizer, scorer=scorer or local_scorer(plan, site.network))
    with ExitStack() as held:
        decided = _begin(site.out, shard)
        work = Work(plan, shard, site.source, site.maps, decoder(plan), decided)
        held.callback(work.decoder.close)
        batches = work.batches(inputs, rejects)
        for view, mosaic in tokenized(tokenizer, batches):
            if not writers:  # a shard without samples has no tar
                codec = plan.config.make_codec()
                staged = [held.enter_context(site.out.staged(name)) for name in names]
                writers = [ShardWriter(file, codec) for file in staged]
            writers[view.view].add(view.key, mosaic, view.label, view.info)
        for writer in writers:
            writer.close()
    if not writers:
        for name in names:  # of another try, in which there were samples
            site.out.remove(name)
    marker = Marker(
        inputs=len(inputs),
        rejected=rejects,
        tars=[
            FinishedTar(
                info=ShardInfo(
                    name=name,
                    view=view,
                    samples=writer.samples,
                    bytes=writer.bytes,
                    sha256=writer.sha256,
                ),
                rows=writer.rows(),
            )
            for view, (name, writer) in enumerate(zip(names, writers, strict=False))
        ],
    )
    _write(site.out, shard, marker)
    return ShardReport(
        shard=shard,
        inputs=len(inputs),
        rejected=len(rejects),
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
        process=os.getpid(),
    )


def _write(out: Folder, shard: ShardId, marker: Marker) -> None:
    out.write(marker_name(shard.split, shard.index), marker.to_bytes(shard.split, shard.index))


def _begin(out: Folder, shard: ShardId) -> dict[Identity, RejectError]:
    """Of a shard that was made before, keep what was decided for good, and that it is not done.

    Its marker describes the tars of before, which may have the size of those to come.
    """
    decided = decided_rejects(out, shard)
    if out.exists(marker_name(shard.split, shard.index)):
        rows = [_row(identity, error) for identity, error in decided.items()]
        _write(out, shard, Marker(inputs=len(rows), rejected=rows, tars=None))
    return decided


def _row(identity: Identity, error: RejectError) -> dict[str, Any]:
    """A reject in a marker, which `rejects_by_identity` reads."""
    path, number = identity
    row = {"path": path, "reason": error.reason, "message": error.message}
    return row if number is None else {**row, "row": number}


def rejects_by_identity(rows: list[dict[str, Any]]) -> dict[Identity, RejectError]:
    """The rejects in a marker by input; KeyError or TypeError when they are something else."""
    return {
        (row["path"], row.get("row")): RejectError(row["reason"], row["message"]) for row in rows
    }


def check_machine(plan: Plan) -> None:
    """Raise JobError where the imaging library is another than the plan's."""
    here = imaging_library()
    if here != plan.imaging_library:
        raise JobError(
            f"{socket.gethostname()} has {describe(here)}, the plan was made with "
            f"{describe(plan.imaging_library)}; install the same library on all machines"
        )


def decided_rejects(out: ReadableFolder, shard: ShardId) -> dict[Identity, RejectError]:
    """The inputs that a decoder has died of before, when the shard was made.

    They are not tried again, so that what a clock has decided stays decided.
    """
    try:
        marker = Marker.read(out, shard.split, shard.index)
    except ShardError:
        return {}
    rows = marker.rejected if marker else []
    return rejects_by_identity([row for row in rows if row["reason"] in (CRASHED, TIMED_OUT)])


@dataclass(frozen=True)
class Work:
    """What the inputs of one shard go through before they are scored.

    maps: folder of importance maps, for scorer precomputed. decided: rejects that are not
    tried again.
    """

    plan: Plan
    shard: ShardId
    source: Source
    maps: Path | None
    decoder: Decoder
    decided: dict[Identity, RejectError] = field(default_factory=dict)

    def batches(
        self, inputs: list[Input], rejects: list[dict[str, Any]], start: int = 0
    ) -> Iterator[list[View]]:
        """The views of `score_batch` consecutive inputs at a time; appends to `rejects`.

        start: number in the shard of the first of the inputs, which begins a batch.
        """
        first = self.plan.inputs_of(self.shard).start + start
        size = self.plan.config.dataset.score_batch
        for begin in range(0, len(inputs), size):
            batch: list[View] = []
            for index, entry in enumerate(inputs[begin : begin + size], start=first + begin):
                try:
                    batch += self._prepare(index, entry)
                except RejectError as error:
                    rejects.append(_row(entry.identity, error))
            if batch:
                yield batch

    def _prepare(self, index: int, entry: Input) -> list[View]:
        """All views of one input; RejectError when its bytes are no image we can use."""
        if entry.identity in self.decided:
            raise self.decided[entry.identity]
        data = self.source.read(entry)
        decoded = self.decoder(self.shard, index, entry.path, data)
        hint = self._hint(entry)
        views = []
        for view, (box, pixels) in enumerate(zip(decoded.boxes, decoded.pixels, strict=True)):
            info = {
                "path": entry.path,
                "width": decoded.width,
                "height": decoded.height,
                "view": view,
                "box": box.rounded(),
            }
            if entry.row is not None:
                info["row"] = entry.row
            if self.plan.classes is not None and entry.label is not None:
                info["class"] = self.plan.classes[entry.label]
            views.append(View(index, view, pixels, info, entry.label, hint))
        return views

    def _hint(self, entry: Input) -> Any:
        """What the scorer must be told beside the pixels; RejectError without its map."""
        if self.maps is not None and entry.row is not None:
            raise RejectError("no_map", "the image lies outside the list's folder")
        if self.maps is not None:
            return read_map(self.maps, entry.path, self.plan.config.tokenizer.geometry)
        if self.plan.classes is not None and entry.label is not None:
            return self.plan.classes[entry.label]
        return None


def tokenized(tokenizer: Tokenizer, batches: Iterator[list[View]]) -> Iterator[tuple[View, Mosaic]]:
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


def local_scorer(plan: Plan, network: ScorerCode | None) -> Scorer:
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
def _scorer(config: TokenizerConfig, network: ScorerCode | None, batch: int, device: str) -> Scorer:
    return config.make_scorer(network, batch=batch, device=device)
