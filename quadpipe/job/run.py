"""The driver: plan, make the shards that are not done, merge."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from quadpipe.errors import ConfigError, OutputError, ShardError, SourceError
from quadpipe.files import Folder, LocalFolder, open_folder
from quadpipe.job.config import JobConfig
from quadpipe.job.engines import Engine, in_process, make_all, on_ray
from quadpipe.job.log import RunLog
from quadpipe.job.merge import merge, read_markers, withdraw
from quadpipe.job.plan import ShardId
from quadpipe.job.planner import Planner
from quadpipe.job.progress import Preview, Progress
from quadpipe.job.shard import ShardReport, Site
from quadpipe.names import text_to_path
from quadpipe.scorers import Scorer
from quadpipe.scorers.precomputed import Precomputed
from quadpipe.shards.format import LOGS, MANIFEST, WITHDRAWN
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.reader import Dataset
from quadpipe.sources import ClassNames, open_source, read_class_names


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
        self.out = open_folder(out)
        self.out.check_shared()
        _check_apart(os.fspath(source), self.out)
        code = config.tokenizer.find_code(scorer_weights)
        scorer = config.tokenizer.make_scorer(code)
        self._site = Site(
            source=open_source(source),
            out=self.out,
            maps=_checked_maps(scorer, maps, config),
            code=code,
        )
        self._planner = Planner(
            self._site.source,
            config,
            scorer,
            labels=Path(labels) if labels else None,
            use_labels=use_labels,
            classes=None if classes is None else _class_names(classes),
        )
        self.plan = self._planner.plan

    @property
    def warnings(self) -> list[str]:
        """Warnings about possible mistakes in the source."""
        return self._planner.inputs.warnings

    @property
    def notes(self) -> list[str]:
        """What is not kept of the source, and which kept members some images do not have."""
        return self._planner.inputs.kept.notes

    def preview(self) -> Preview:
        """What `run` would do; raises its errors about the output."""
        stored = self._planner.check(self.out)
        return self._preview(self._pending() if stored else list(self.plan.shards()))

    def run(self, progress: Progress | None = None) -> Dataset:
        """Make the shards that are not done; a rerun continues after an interruption.

        Raises what `tokenize` does.
        """
        progress = progress or Progress()
        self._planner.check(self.out)  # refuse before anything is touched
        self.out.check_writable()
        with self.out.lock(f"{LOGS}/lock"), RunLog(self.out).session() as log:
            self.out.clear_staging()
            stored = self._planner.check(self.out)
            pending = self._pending() if stored else list(self.plan.shards())
            preview = self._preview(pending)
            if preview.free_bytes is not None and preview.write_bytes > preview.free_bytes:
                raise OutputError(
                    f"{self.out} has {preview.free_bytes:,} bytes free, the job will write about "
                    f"{preview.write_bytes:,}; free some space, lower --tokens, or use --codec jpg"
                )
            has_other_texts = stored and self._planner.has_other_texts(self.out)
            if stored and (pending or has_other_texts):
                withdraw(self.out, pending if self.config.run.retry_rejected else [])
            if has_other_texts:
                self._planner.store_plan(self.out)
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
        """Whether manifest, shard lists, indexes and gains exist and agree; sizes of tars were
        checked. A dataset of an earlier version, without one of them, is not whole."""
        try:
            dataset = Dataset(self.out)
            for name, info in dataset.manifest.splits.items():
                if info.index_sha256 is None or info.gains_sha256 is None:
                    return False
                dataset.index(name)
                dataset.gains(name)
        except ShardError:
            return False
        return True

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
        listed = sum(map(len, self._planner.inputs.splits.values()))
        sample_bytes = self.plan.bytes_per_sample + self._planner.inputs.kept.bytes // listed
        return Preview(
            plan=self.plan,
            done=self.plan.inputs - left.total(),
            skipped=self._planner.inputs.skipped,
            unused_classes=self._planner.inputs.unused_classes,
            warnings=self.warnings,
            notes=self.notes,
            write_samples=samples,
            write_bytes=samples * sample_bytes,
            free_bytes=self.out.free_bytes(),
        )

    def _work(
        self, pending: list[ShardId], progress: Progress, log: RunLog, *, store: bool
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

    def _make(self, make: Engine, pending: list[ShardId], progress: Progress, log: RunLog) -> None:
        """Make the shards; JobError names those that could not be made."""

        def note(shard: ShardId, outcome: Any) -> None:
            log.outcome(shard, outcome)
            if isinstance(outcome, ShardReport):
                progress.shard_done(outcome)

        make_all(make, pending, note)


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
    A rerun with the same options resumes.

    Issues a UserWarning for a suspicious source, such as one with a single class, and for members
    or columns of the source that are not kept.

    Raises ConfigError on options that are invalid or differ from the stored plan, SourceError on
    an input that cannot be listed, OutputError on an output that cannot be written, JobError when
    shards could not be made, TooManyRejectsError when too many inputs are rejected, ShardError
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
    for warning in job.warnings + job.notes:
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
            raise ConfigError(f"--maps is for scorer precomputed, not {scorer.name}; omit it")
        return None
    if maps is None:
        raise ConfigError("scorer precomputed needs maps; give their folder with --maps")
    if not Path(maps).is_dir():
        raise ConfigError(f"{maps} is not a folder; give one with a map per image")
    if config.dataset.views > 1:
        raise ConfigError("maps are of whole images, not of random crops; omit --views")
    return Path(maps).absolute()


def _check_apart(source: str, out: Folder) -> None:
    """Raise ConfigError when the output is inside the input: the next run would list it."""
    if isinstance(out, LocalFolder):
        inside, around = os.path.realpath(out.root), os.path.realpath(source)
        within = os.path.isdir(source) and os.path.commonpath([inside, around]) == around
    else:
        within = f"{out}/".startswith(f"{source.rstrip('/')}/")
    if within:
        raise ConfigError(f"--out {out} is inside --in {source}; choose a folder beside it")
