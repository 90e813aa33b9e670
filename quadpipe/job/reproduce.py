"""Compares a dataset with the bytes of retokenizing its source."""

import io
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError, ShardError, SourceError, UnreadableError
from quadpipe.job.decoding import Decoder
from quadpipe.job.isolation import IsolatedDecoder
from quadpipe.job.plan import ShardId, changed_fields, check_unchanged, read_inputs, read_plan
from quadpipe.job.shard import check_machine, decided_rejects, local_scorer
from quadpipe.job.steps import Steps, View
from quadpipe.mosaic import Mosaic
from quadpipe.names import text_to_path
from quadpipe.scorers.precomputed import Precomputed
from quadpipe.shards.format import marker_name
from quadpipe.shards.marker import FinishedTar, Identity, Marker, Reject
from quadpipe.shards.reader import Dataset
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Input, open_source
from quadpipe.tokenizer import Tokenizer


class Reproducer:
    """Retokenizes inputs of a dataset and compares the bytes; writes nothing.

    source: what the dataset was made from. maps, scorer, backbone, scorer_weights: as for
    `tokenize`; a scorer or backbone `module:callable` is never taken from the dataset.

    Raises ConfigError when the dataset has no plan, or the network is not the one that it was made
    with, JobError when this machine would write other bytes, SourceError when the source cannot be
    opened, ShardError when the plan is damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: str | os.PathLike[str],
        *,
        maps: str | os.PathLike[str] | None = None,
        scorer: str | None = None,
        backbone: str | None = None,
        scorer_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self._folder = dataset.folder
        self._plan = plan = read_plan(dataset.folder)
        self._batch = plan.config.dataset.score_batch
        config = plan.config.tokenizer
        if (config.scorer == Precomputed.name) != (maps is not None):
            raise ConfigError(
                f"the dataset was made with scorer {config.scorer}; --maps is for precomputed, "
                f"which needs it"
            )
        check_machine(plan)
        code = config.same_code(
            plan.scorer.get("weights_sha256"),
            scorer=scorer,
            backbone=backbone,
            weights=scorer_weights,
        )
        self._source = open_source(source)
        self._maps = None if maps is None else Path(maps)
        self._tokenizer = Tokenizer(config, scorer=local_scorer(plan, code))
        now = self._tokenizer.scorer.as_json()
        check_unchanged(dataset.folder, list(changed_fields(plan.scorer, now, "scorer")))

    def check(self, inputs: int, seed: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """Compare at least `inputs` inputs, drawn at random, in whole batches of the scorer.

        Yields for each batch its number of inputs, and a line for each difference. Raises
        ConfigError at once when none of the inputs is in the source.
        """
        if inputs < 1:
            raise ConfigError(f"inputs {inputs} is below 1")
        drawn: dict[ShardId, list[int]] = defaultdict(list)
        for shard, start in self._draw(inputs, random.Random(seed)):  # noqa: S311  no secret
            drawn[shard].append(start)
        self._check_source(drawn)
        return self._compare_all(drawn)

    def _draw(self, inputs: int, numbers: random.Random) -> Iterator[tuple[ShardId, int]]:
        """Batches with at least `inputs` inputs: shard, and number of the first input there."""
        shards = list(self._plan.shards())
        ends = np.cumsum([-(-len(self._plan.inputs_of(shard)) // self._batch) for shard in shards])
        total = int(ends[-1])
        for number in numbers.sample(range(total), min(total, -(-inputs // self._batch))):
            place = int(np.searchsorted(ends, number, side="right"))
            before = int(ends[place - 1]) if place else 0
            yield shards[place], (number - before) * self._batch

    def _check_source(self, drawn: dict[ShardId, list[int]]) -> None:
        for shard, starts in drawn.items():
            try:
                listed = read_inputs(self._folder, self._plan, shard)
            except ShardError:
                return  # a finding of the comparison
            batches = [listed[start : start + self._batch] for start in starts]
            if any(self._source.has(entry) for batch in batches for entry in batch):
                return
        raise ConfigError(
            f"none of the inputs that were drawn is in {self._source}, such as "
            f"{batches[0][0].path}; give --in what the dataset was made from"
        )

    def _compare_all(self, drawn: dict[ShardId, list[int]]) -> Iterator[tuple[int, list[str]]]:
        with closing(IsolatedDecoder(self._plan)) as decoder:
            for shard, starts in drawn.items():
                try:
                    listed = read_inputs(self._folder, self._plan, shard)
                except ShardError as error:
                    yield 0, [str(error)]
                    continue
                for start in sorted(starts):
                    count = min(self._batch, len(listed) - start)
                    try:
                        yield count, list(self._compare(decoder, shard, listed, start))
                    except UnreadableError:  # the samples may be intact
                        raise
                    except (SourceError, ShardError) as error:
                        yield count, [str(error)]

    def _compare(
        self, decoder: Decoder, shard: ShardId, listed: list[Input], start: int
    ) -> Iterator[str]:
        """The differences of one batch of a shard's inputs."""
        batch = listed[start : start + self._batch]
        for entry in batch:
            self._check_inside(entry)
            if not self._source.has(entry):  # reading would retry
                raise SourceError(f"cannot read {entry.path} in {self._source}: no such file")
        marker = self._read_marker(shard)
        before = {reject.identity: reject for reject in marker.rejected}
        samples, after = self._tokenize(decoder, shard, batch, start)
        first = self._plan.inputs_of(shard).start + start
        rank = sum(entry.identity not in before for entry in listed[:start])
        for index, entry in enumerate(batch, start=first):
            was, now = before.get(entry.identity), after.get(entry.identity)
            if was != now:
                yield f"{entry.path}: was {_fate(was)}, is {_fate(now)} when retokenized"
            elif was is None:
                for view, tar in enumerate(marker.tars or ()):
                    if self._stored(tar, rank) != samples[index, view]:
                        where = self._folder.where(tar.info.name)
                        yield f"{where}: {entry.path} gives other bytes when retokenized"
            rank += was is None

    def _tokenize(
        self, decoder: Decoder, shard: ShardId, batch: list[Input], start: int
    ) -> tuple[dict[tuple[int, int], bytes], dict[Identity, Reject]]:
        """Bytes of the samples by index and view, and the rejects by input."""
        steps = Steps(
            plan=self._plan,
            shard=shard,
            source=self._source,
            maps=self._maps,
            decoder=decoder,
            tokenizer=self._tokenizer,
            decided=decided_rejects(self._folder, shard),
        )
        samples, rejects = {}, {}
        for item in steps.samples(batch, start):
            if isinstance(item, Reject):
                rejects[item.identity] = item
            else:
                view, mosaic = item
                samples[view.index, view.view] = self._bytes(view, mosaic)
        return samples, rejects

    def _bytes(self, view: View, mosaic: Mosaic) -> bytes:
        file = io.BytesIO()
        writer = ShardWriter(file, self._plan.config.make_codec())
        writer.add(view.key, mosaic, view.label, view.info, view.extra)
        return file.getvalue()

    def _stored(self, tar: FinishedTar, rank: int) -> bytes:
        """The bytes of a sample by its number in the shard."""
        if rank >= len(tar.rows):
            raise ShardError(f"the marker of {tar.info.name} does not fit the listing")
        start = tar.rows["offset"][rank : rank + 1]
        stop = start + tar.rows["size"][rank]
        contents, begins = self._folder.open_ranges(tar.info.name)(start, stop)
        return contents[begins[0] : begins[0] + stop[0] - start[0]].tobytes()

    def _read_marker(self, shard: ShardId) -> Marker:
        marker = Marker.read(self._folder, shard.split, shard.index)
        inputs = len(self._plan.inputs_of(shard))
        if marker is None or marker.tars is None or marker.inputs != inputs:
            where = self._folder.where(marker_name(shard.split, shard.index))
            raise ShardError(f"{where} is not the marker of shard {shard}; fetch it again")
        return marker

    def _check_inside(self, entry: Input) -> None:
        """Raise ShardError on a path that leads out of the source: the listing may be forged."""
        path = text_to_path(entry.span.tar if entry.span else entry.path)
        if os.path.isabs(path) or b".." in path.split(b"/"):
            raise ShardError(f"{entry.path} leads out of {self._source.root}; it is not read")


def _fate(reject: Reject | None) -> str:
    return "a sample" if reject is None else f"rejected ({reject})"
