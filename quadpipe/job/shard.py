"""One shard's work: read > decode > score > cut > write, then the marker. On any engine."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from quadpipe.errors import JobError, ShardError
from quadpipe.files import Folder, ReadableFolder
from quadpipe.images.library import describe, imaging_library
from quadpipe.job.decoding import Decoder
from quadpipe.job.isolation import CRASHED, TIMED_OUT
from quadpipe.job.plan import Plan, ShardId, read_inputs
from quadpipe.job.steps import Sample, Steps
from quadpipe.scorers import Scorer, ScorerCode
from quadpipe.shards.format import marker_name, npy_bytes, shard_gains_name, shard_name
from quadpipe.shards.manifest import ShardInfo
from quadpipe.shards.marker import FinishedTar, Identity, Marker, Reject
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Source
from quadpipe.tokenizer import Tokenizer, TokenizerConfig


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A finished shard, for the progress of the job; its results are in its marker."""

    shard: ShardId
    inputs: int
    rejected: int
    seconds: float
    host: str
    process: int


@dataclass(frozen=True, kw_only=True)
class Site:
    """Locations, weights and code that a job needs besides its plan; every worker gets a copy.

    maps: folder of importance maps, for scorer precomputed. code: of a network scorer, or the
    user's own scorer.
    """

    source: Source
    out: Folder
    maps: Path | None = None
    code: ScorerCode | None = None


def make_shard(
    plan: Plan,
    site: Site,
    shard: ShardId,
    scorer: Scorer | None = None,
    decoder: type[Decoder] = Decoder,
) -> ShardReport:
    """Write the tars of all views of one shard, then its done-marker.

    scorer: replaces the plan's scorer, which by default runs in this process. Raises SourceError
    when an input cannot be read for a cause outside its bytes, OutputError when the output cannot
    be written, JobError when this machine would write other bytes or no scorer answers, ShardError
    when the stored listing is not the plan's.
    """
    started = time.monotonic()
    check_machine(plan)
    inputs = read_inputs(site.out, plan, shard)
    tokenizer = Tokenizer(plan.config.tokenizer, scorer=scorer or local_scorer(plan, site.code))
    decided = _begin(site.out, shard)
    with closing(decoder(plan)) as opened:
        steps = Steps(
            plan=plan,
            shard=shard,
            source=site.source,
            maps=site.maps,
            decoder=opened,
            tokenizer=tokenizer,
            decided=decided,
        )
        rejects, tars = _write(site.out, plan, shard, steps.samples(inputs))
    write_marker(site.out, shard, Marker(inputs=len(inputs), rejected=rejects, tars=tars))
    return ShardReport(
        shard=shard,
        inputs=len(inputs),
        rejected=len(rejects),
        seconds=time.monotonic() - started,
        host=socket.gethostname(),
        process=os.getpid(),
    )


def _write(
    out: Folder, plan: Plan, shard: ShardId, samples: Iterator[Sample | Reject]
) -> tuple[list[Reject], list[FinishedTar]]:
    """Write a tar for each view, atomically, and the gains; a shard without samples has none.

    Returns the rejects and the tars.
    """
    rejects: list[Reject] = []
    writers: list[ShardWriter] = []
    views = range(plan.splits[shard.split].views)
    names = [shard_name(shard.split, view, shard.index) for view in views]
    with ExitStack() as staged:
        for sample in samples:
            if isinstance(sample, Reject):
                rejects.append(sample)
                continue
            if not writers:
                codec = plan.config.make_codec()
                files = [staged.enter_context(out.staged(name)) for name in names]
                writers = [ShardWriter(file, codec) for file in files]
            view, mosaic = sample
            writers[view.view].add(view.key, mosaic, view.label, view.info, view.extra)
        for writer in writers:
            writer.close()
    write_gains(out, shard, writers)
    if not writers:
        for name in names:  # left by an earlier run, which had samples
            out.remove(name)
    tars = [
        finished_tar(name, view, writer)
        for view, name, writer in zip(views, names, writers, strict=False)
    ]
    return rejects, tars


def finished_tar(name: str, view: int, writer: ShardWriter) -> FinishedTar:
    """What a closed writer has written."""
    info = ShardInfo(
        name=name, view=view, samples=writer.samples, bytes=writer.bytes, sha256=writer.sha256
    )
    return FinishedTar(info=info, rows=writer.rows())


def write_gains(out: Folder, shard: ShardId, writers: Sequence[ShardWriter]) -> None:
    """Keep the gains of all views of a shard for the merge; a shard without samples has none."""
    name = shard_gains_name(shard.split, shard.index)
    if writers:
        out.write(name, npy_bytes(np.stack([writer.gains() for writer in writers])))
    else:
        out.remove(name)


def _begin(out: Folder, shard: ShardId) -> dict[Identity, Reject]:
    """Mark a shard that was made before as not done, and keep its final decisions.

    Its marker describes the earlier tars, which may have the same size as the new ones.
    """
    decided = decided_rejects(out, shard)
    if out.exists(marker_name(shard.split, shard.index)):
        marker = Marker(inputs=len(decided), rejected=[*decided.values()], tars=None)
        write_marker(out, shard, marker)
    return decided


def write_marker(out: Folder, shard: ShardId, marker: Marker) -> None:
    out.write(marker_name(shard.split, shard.index), marker.to_bytes(shard.split, shard.index))


def check_machine(plan: Plan) -> None:
    """Raise JobError when the imaging library of this machine differs from the plan's."""
    here = imaging_library()
    if here != plan.imaging_library:
        raise JobError(
            f"{socket.gethostname()} has {describe(here)}, the plan was made with "
            f"{describe(plan.imaging_library)}; install the same library on all machines"
        )


def decided_rejects(out: ReadableFolder, shard: ShardId) -> dict[Identity, Reject]:
    """The inputs that have killed a decoder in an earlier run of the shard.

    They are not retried, so that decisions that depend on a clock are final.
    """
    try:
        marker = Marker.read(out, shard.split, shard.index)
    except ShardError:
        return {}
    rejects = marker.rejected if marker else []
    return {r.identity: r for r in rejects if r.reason in (CRASHED, TIMED_OUT)}


def local_scorer(plan: Plan, code: ScorerCode | None) -> Scorer:
    """The plan's scorer in this process; a network is built once and kept.

    JobError when torch would give other bytes here.
    """
    scorer = _scorer(
        plan.config.tokenizer,
        code,
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
def _scorer(config: TokenizerConfig, code: ScorerCode | None, batch: int, device: str) -> Scorer:
    return config.make_scorer(code, batch=batch, device=device)
