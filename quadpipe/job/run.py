"""The driver: plan, work on what is not done, merge."""

import json
import os
import socket
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quadpipe import __version__
from quadpipe.errors import ConfigError, JobError, OutputError, ShardError, SourceError
from quadpipe.files import Folder, LocalFolder, open_folder
from quadpipe.job.config import JobConfig
from quadpipe.job.engines import Engine, in_process, on_ray
from quadpipe.job.merge import merge, read_markers, withdraw
from quadpipe.job.plan import Plan, Planner, ShardId
from quadpipe.job.shard import ShardReport, Site
from quadpipe.scorers import Scorer
from quadpipe.scorers.precomputed import Precomputed
from quadpipe.shards.format import LOGS, MANIFEST, WITHDRAWN
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset
from quadpipe.sources import ClassNames, Source, read_class_names
from quadpipe.sources.names import text_to_path

# Rows of the log are kept together: on object stores each addition is a file of its own.
_SECONDS_BETWEEN_LOGS = 10.0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a job is about to do.

    done: inputs whose shards are finished already. skipped: files passed over, by cause.
    unused_classes: classes without an input. warnings: lines about what may be wrong with the
    source. write_samples, write_bytes: what is still to be written, if nothing is rejected; the
    bytes are an estimate. free_bytes: what the output has room for, None where nobody knows.
    """

    plan: Plan
    done: int
    skipped: dict[str, int]
    unused_classes: int
    warnings: list[str]
    write_samples: int
    write_bytes: int
    free_bytes: int | None


class Progress:
    """Told how a job goes on; this one says nothing."""

    def planned(self, preview: Preview) -> None:
        """Work is about to begin: an engine is started, the plan stored."""

    def shard_done(self, report: ShardReport) -> None:
        """One more shard is on disk."""

    def close(self) -> None:
        """Work has ended, well or not."""


class Job:
    """One run of the main job; see `tokenize`."""

    def __init__(
        self,
        source: str | os.PathLike[str],
        out: str | os.PathLike[str],
        config: JobConfig,
        *,
        labels: str | os.PathLike[str] | None = None,
        use_labels: bool = True,
        classes: str | os.PathLike[str] | None = None,
        scorer_weights: str | os.PathLike[str] | None = None,
        maps: str | os.PathLike[str] | None = None,
    ) -> None:
        self.config = config
        self.source = Path(source)
        self.out = open_folder(out)
        _check_apart(self.source, self.out)
        network = config.tokenizer.find_code(scorer_weights)
        scorer = config.tokenizer.make_scorer(network)
        self._site = Site(
            source=Source.at(self.source),
            out=self.out,
            maps=_checked_maps(scorer, maps, config),
            network=network,
        )
        self._planner = Planner(
            self.source,
            config,
            scorer,
            labels=Path(labels) if labels else None,
            use_labels=use_labels,
            classes=None if classes is None else _class_names(classes),
        )
        self.plan = self._planner.plan

    @property
    def warnings(self) -> list[str]:
        """Lines about what may be wrong with the source."""
        return self._planner.inputs.warnings

    def preview(self) -> Preview:
        """What running would do, without doing it; the same errors for an output not ours."""
        stored = self._planner.check(self.out)
        return self._preview(self._pending() if stored else list(self.plan.shards()))

    def run(self, progress: Progress | None = None) -> Dataset:
        """Make what is not made yet; running again goes on where it was interrupted.

        Raises what `tokenize` does.
        """
        progress = progress or Progress()
        self._planner.check(self.out)  # refuse before anything is touched
        self.out.check_writable()
        with self.out.lock(f"{LOGS}/lock"), _RunLog(self.out).session() as log:
            self.out.clear_staging()
            stored = self._planner.check(self.out)
            pending = self._pending() if stored else list(self.plan.shards())
            preview = self._preview(pending)
            if preview.free_bytes is not None and preview.write_bytes > preview.free_bytes:
                raise OutputError(
                    f"{self.out} has {preview.free_bytes:,} bytes free, the job will write about "
                    f"{preview.write_bytes:,}; free some space, lower --tokens, or use --codec jpg"
                )
            if stored and pending:
                withdraw(self.out, pending if self.config.run.retry_rejected else [])
            progress.planned(preview)
            try:
                self._work(pending, progress, log, store=not stored)
            finally:
                progress.close()
            if pending or not self._is_whole():
                allowed = self.config.run.allowed_rejects(self.plan.inputs)
                merge(self.out, self.plan, allowed_rejects=allowed)
            self.out.remove(WITHDRAWN)
            self.out.clear_staging()
        return Dataset(self.out)

    def _is_whole(self) -> bool:
        """Whether manifest, shard lists and indexes are there and agree; the tars' sizes were
        looked at. A dataset that was written before there was an index gets one."""
        try:
            dataset = Dataset(self.out)
            splits = dataset.manifest.splits
            return all(info.index_sha256 and dataset.index(name) for name, info in splits.items())
        except ShardError:
            return False

    def _pending(self) -> list[ShardId]:
        """Shards that are not done; with `retry_rejected` those with rejects too."""
        retry = self.config.run.retry_rejected
        markers = read_markers(self.out, self.plan.shards())
        return [
            shard
            for shard, marker in zip(self.plan.shards(), markers, strict=True)
            if marker is None or (retry and marker.rejected)
        ]

    def _preview(self, pending: list[ShardId]) -> Preview:
        left = Counter[str]()
        for shard in pending:
            left[shard.split] += len(self.plan.inputs_of(shard))
        samples = sum(count * self.plan.splits[split].views for split, count in left.items())
        return Preview(
            plan=self.plan,
            done=self.plan.inputs - left.total(),
            skipped=self._planner.inputs.skipped,
            unused_classes=self._planner.inputs.unused_classes,
            warnings=self.warnings,
            write_samples=samples,
            write_bytes=samples * self.plan.bytes_per_sample,
            free_bytes=self.out.free_bytes(),
        )

    def _work(
        self, pending: list[ShardId], progress: Progress, log: "_RunLog", *, store: bool
    ) -> None:
        """Start the engine, store the plan once it runs, make the shards."""
        if not pending:
            return
        if self.config.run.in_process:
            engine = in_process(self.plan, self._site, resumed=not store)
        else:
            engine = on_ray(self.plan, self._site)
        with engine as make:
            if store:
                self._planner.store(self.out)
            self._make(make, pending, progress, log)

    def _make(
        self, make: Engine, pending: list[ShardId], progress: Progress, log: "_RunLog"
    ) -> None:
        """Make the shards; JobError names those that could not be made."""
        failed = []
        with closing(make(iter(pending))) as outcomes:
            for shard, outcome in outcomes:
                log.outcome(shard, outcome)
                if isinstance(outcome, ShardReport):
                    progress.shard_done(outcome)
                elif isinstance(outcome, OutputError):
                    raise outcome  # the next shard would meet the same
                else:
                    failed.append(f"shard {shard}: {outcome}")
        if failed:
            listed = "\n".join(failed[:20] + [f"and {len(failed) - 20} more"] * (len(failed) > 20))
            raise JobError(
                f"{len(failed)} of {len(pending)} shards could not be made; the others are kept. "
                f"Mend the cause and run the same command again\n{listed}"
            )


def tokenize(
    inputs: str | os.PathLike[str],
    out: str | os.PathLike[str],
    /,
    *,
    labels: str | os.PathLike[str] | None = None,
    use_labels: bool = True,
    classes: str | os.PathLike[str] | None = None,
    scorer_weights: str | os.PathLike[str] | None = None,
    maps: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Dataset:
    """Tokenize a folder of images, WebDataset tars or a list of paths into shards.

        dataset = quadpipe.tokenize("imagenet/", "shards/", tokens=196, workers=8)

    inputs: a folder, a .tar, or a .csv of paths. out: a folder or any fsspec URL. labels: a
    `path,label` file for a folder. classes: a file of class names in index order, or a finished
    dataset that has them. scorer_weights: file of a scorer's network. maps: folder of maps for
    scorer precomputed. options: the fields of TokenizerConfig, DatasetConfig and RunConfig.
    Running again with the same options resumes.

    Warns (UserWarning) of what may be wrong with the source, such as a single class.

    Raises ConfigError on options that cannot work or differ from the stored plan, SourceError on
    an input that cannot be listed, OutputError on an output that cannot be written, JobError when
    shards could not be made, TooManyRejectsError when too many inputs are no images, ShardError
    when what is stored in `out` is damaged.
    """
    config = JobConfig.from_options(**options)
    job = Job(
        inputs,
        out,
        config,
        labels=labels,
        use_labels=use_labels,
        classes=classes,
        scorer_weights=scorer_weights,
        maps=maps,
    )
    for warning in job.warnings:
        warnings.warn(warning, stacklevel=2)
    return job.run(progress)


def _class_names(given: str | os.PathLike[str]) -> ClassNames:
    """From a file of names, or from a finished dataset: its folder, its URL or its dataset.json."""
    text = os.fspath(given)
    if "://" not in text and not os.path.exists(text):
        raise SourceError(f"{text} does not exist; give a file of class names, or a dataset")
    if os.path.isfile(text) and os.path.basename(text) != MANIFEST:
        return read_class_names(Path(text))
    folder = open_folder(text.removesuffix(MANIFEST) or ".")
    classes = Manifest.read(folder).classes
    if classes is None:
        raise ConfigError(f"{folder} has no labels; give another dataset, or a file of names")
    return ClassNames(names=[text_to_path(name) for name in classes], file=str(folder))


def _checked_maps(
    scorer: Scorer, maps: str | os.PathLike[str] | None, config: JobConfig
) -> Path | None:
    """The folder of maps; ConfigError when it is missing, or given to a scorer without maps."""
    if not isinstance(scorer, Precomputed):
        if maps is not None:
            raise ConfigError(f"--maps is for scorer precomputed, not {scorer.name}; leave it out")
        return None
    if maps is None:
        raise ConfigError("scorer precomputed needs maps; give their folder with --maps")
    if not Path(maps).is_dir():
        raise ConfigError(f"{maps} is no folder; give one with a map for each image")
    if config.dataset.views > 1:
        raise ConfigError("maps are of whole images, not of random crops; leave out --views")
    return Path(maps).absolute()


def _check_apart(source: Path, out: Folder) -> None:
    """Raise ConfigError when the output lies in the input, where the next run would list it."""
    if not isinstance(out, LocalFolder):
        return
    inside, around = os.path.realpath(out.root), os.path.realpath(source)
    if os.path.isdir(source) and os.path.commonpath([inside, around]) == around:
        raise ConfigError(f"--out {out} lies in --in {source}; choose a folder beside it")


class _RunLog:
    """`.quadpipe/logs/`: clocks, hosts, rates; the one place that may differ between runs."""

    def __init__(self, out: Folder) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._out, self._name = out, f"{LOGS}/{stamp}-{os.getpid()}.jsonl"
        self._rows: list[bytes] = []
        self._written = time.monotonic()

    @contextmanager
    def session(self) -> Iterator["_RunLog"]:
        self._add(event="start", version=__version__, host=socket.gethostname())
        ended = "failed"
        try:
            yield self
            ended = "done"
        except KeyboardInterrupt:
            ended = "interrupted"
            raise
        finally:
            self._add(event=ended)
            self._write()

    def outcome(self, shard: Any, outcome: Any) -> None:
        if isinstance(outcome, ShardReport):
            rate = round(outcome.inputs / max(outcome.seconds, 1e-9), 1)
            self._add(
                event="shard",
                shard=str(shard),
                inputs=outcome.inputs,
                rejected=outcome.rejected,
                seconds=round(outcome.seconds, 3),
                inputs_per_second=rate,
                host=outcome.host,
                process=outcome.process,
            )
        else:
            details = getattr(outcome, "__notes__", [])
            self._add(event="shard failed", shard=str(shard), error=str(outcome), details=details)

    def _add(self, **row: Any) -> None:
        row["time"] = round(time.time(), 3)
        self._rows.append(json.dumps(row).encode() + b"\n")
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_LOGS:
            self._write()

    def _write(self) -> None:
        # A log that cannot be written must not stop the work, nor hide why it stopped.
        with suppress(OutputError):
            self._out.append(self._name, b"".join(self._rows))
        self._rows.clear()
        self._written = time.monotonic()
