"""Does tokenizing the source again give the bytes that a dataset holds?"""

import io
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from quadpipe.errors import ConfigError, RejectError, ShardError, SourceError
from quadpipe.job.decoding import IsolatedDecoder
from quadpipe.job.plan import (
    ShardId,
    changed_fields,
    check_unchanged,
    read_inputs,
    read_plan,
)
from quadpipe.job.shard import View, Work, check_machine, decided_rejects, local_scorer, tokenized
from quadpipe.mosaic import Mosaic
from quadpipe.scorers.precomputed import Precomputed
from quadpipe.shards.format import marker_name
from quadpipe.shards.reader import Dataset
from quadpipe.shards.tar import END
from quadpipe.shards.writer import ShardWriter
from quadpipe.sources import Input, source_root
from quadpipe.sources.names import text_to_path
from quadpipe.tokenizer import Tokenizer


class Again:
    """Tokenizes inputs of a dataset again and compares the bytes; writes nothing.

    source: what the dataset was made from. maps, backbone, scorer_weights: as for `tokenize`; a
    backbone `module:callable` is never taken from the dataset.

    Raises ConfigError when the dataset does not say how it was made, or the network is another than
    it was made with, JobError when this machine would write other bytes, ShardError when the plan
    is damaged.
    """

    def __init__(
        self,
        dataset: Dataset,
        source: str | os.PathLike[str],
        *,
        maps: str | os.PathLike[str] | None = None,
        backbone: str | None = None,
        scorer_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        self._dataset = dataset
        self._plan = plan = read_plan(dataset.folder)
        config = plan.config.tokenizer
        if (config.scorer == Precomputed.name) != (maps is not None):
            raise ConfigError(
                f"the dataset was made with scorer {config.scorer}; --maps is for precomputed, "
                f"which needs it"
            )
        check_machine(plan)
        network = config.same_network(plan.scorer.get("weights_sha256"), backbone, scorer_weights)
        self._source = source_root(Path(source))
        self._maps = None if maps is None else Path(maps)
        self._tokenizer = Tokenizer(config, scorer=local_scorer(plan, network))
        scorer = self._tokenizer.scorer.as_json()
        check_unchanged(dataset.folder, list(changed_fields(plan.scorer, scorer, "scorer")))

    def check(self, inputs: int, seed: int | None = None) -> Iterator[tuple[int, list[str]]]:
        """Compare at least `inputs` inputs, drawn at random, in whole batches of the scorer.

        Gives for each batch how many inputs it had, and a line for each that came out otherwise.
        Raises ConfigError at once when none of the inputs is in the source.
        """
        if inputs < 1:
            raise ConfigError(f"inputs {inputs} is not above 0")
        drawn: dict[ShardId, list[int]] = defaultdict(list)
        for shard, start in self._draw(inputs, random.Random(seed)):  # noqa: S311  no secret
            drawn[shard].append(start)
        self._check_source(drawn)
        return self._compare_all(drawn)

    def _check_source(self, drawn: dict[ShardId, list[int]]) -> None:
        for shard, starts in drawn.items():
            try:
                listed = read_inputs(self._dataset.folder, self._plan, shard)
            except ShardError:
                return  # which comparing says
            size = self._plan.config.dataset.score_batch
            batches = [listed[start : start + size] for start in starts]
            if any(self._is_there(entry) for batch in batches for entry in batch):
                return
        raise ConfigError(
            f"none of the inputs that were drawn is in {self._source}, such as "
            f"{batches[0][0].path}; give --in what the dataset was made from"
        )

    def _compare_all(self, drawn: dict[ShardId, list[int]]) -> Iterator[tuple[int, list[str]]]:
        with closing(IsolatedDecoder(self._plan)) as self._decoder:
            for shard, starts in drawn.items():
                try:
                    listed = read_inputs(self._dataset.folder, self._plan, shard)
                except ShardError as error:
                    yield 0, [str(error)]
                    continue
                for start in sorted(starts):
                    count = min(self._plan.config.dataset.score_batch, len(listed) - start)
                    try:
                        yield count, list(self._compare(shard, listed, start, count))
                    except (SourceError, ShardError) as error:
                        yield count, [str(error)]

    def _draw(self, inputs: int, numbers: random.Random) -> Iterator[tuple[ShardId, int]]:
        """Batches as shard and number of their first input there; enough for so many inputs."""
        size = self._plan.config.dataset.score_batch
        shards = list(self._plan.shards())
        ends = np.cumsum([-(-len(self._plan.inputs_of(shard)) // size) for shard in shards])
        total = int(ends[-1])
        for number in numbers.sample(range(total), min(total, -(-inputs // size))):
            place = int(np.searchsorted(ends, number, side="right"))
            before = int(ends[place - 1]) if place else 0
            yield shards[place], (number - before) * size

    def _compare(
        self, shard: ShardId, listed: list[Input], start: int, count: int
    ) -> Iterator[str]:
        """What differs of one batch of the inputs of a shard."""
        batch = listed[start : start + count]
        for entry in batch:
            self._check_inside(entry)
            if not self._is_there(entry):  # reading would wait for it
                raise SourceError(f"cannot read {entry.path} in {self._source}: no such file")
        marker = self._read_marker(shard)
        before = _rejects(marker["rejected"])
        decided = decided_rejects(self._dataset.folder, shard)  # by a clock: not tried again
        samples, after = self._tokenize(shard, batch, start, decided)
        first = self._plan.inputs_of(shard).start + start
        rank = sum(entry.path not in before for entry in listed[:start])
        for index, entry in enumerate(batch, start=first):
            was, now = before.get(entry.path), after.get(entry.path)
            if str(was) != str(now):
                yield f"{entry.path}: was {_fate(was)}, tokenized again it is {_fate(now)}"
            elif was is None:
                for view, tar in enumerate(marker["views"]):
                    if self._stored(tar, rank) != samples[index, view]:
                        where = self._dataset.folder.where(tar["name"])
                        yield f"{where}: {entry.path}, tokenized again, gives other bytes"
            rank += was is None

    def _tokenize(
        self, shard: ShardId, batch: list[Input], start: int, decided: dict[str, RejectError]
    ) -> tuple[dict[tuple[int, int], bytes], dict[str, RejectError]]:
        """Bytes of the samples by index and view, and the rejects by path."""
        rows: list[dict[str, Any]] = []
        work = Work(self._plan, shard, self._source, self._maps, self._decoder, decided)
        samples = {
            (view.index, view.view): self._bytes(view, mosaic)
            for view, mosaic in tokenized(self._tokenizer, work.batches(batch, rows, start))
        }
        return samples, _rejects(rows)

    def _bytes(self, view: View, mosaic: Mosaic) -> bytes:
        file = io.BytesIO()
        writer = ShardWriter(file, self._plan.config.make_codec())
        writer.add(view.key, mosaic, view.label, view.info)
        return file.getvalue()

    def _stored(self, tar: dict[str, Any], rank: int) -> bytes:
        """The bytes of a sample by its number in the shard."""
        ends = [*tar["offsets"], tar["bytes"] - len(END)]
        start, stop = np.array(ends[rank : rank + 2], np.int64)[:, None]
        contents, begins = self._dataset.folder.open_ranges(tar["name"])(start, stop)
        begin = int(begins[0])
        return contents[begin : begin + int(stop[0] - start[0])].tobytes()

    def _read_marker(self, shard: ShardId) -> dict[str, Any]:
        folder, name = self._dataset.folder, marker_name(shard.split, shard.index)
        try:
            marker: dict[str, Any] = json.loads(folder.read(name))
            samples = marker["inputs"] - len(marker["rejected"])
            whole = marker["inputs"] == len(self._plan.inputs_of(shard)) and all(
                len(view["offsets"]) == samples and isinstance(view["bytes"], int)
                for view in marker["views"]
            )
            _rejects(marker["rejected"])
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(f"{folder.where(name)} is no marker: {error}") from error
        if not whole:
            raise ShardError(f"{folder.where(name)} is not the marker of shard {shard}")
        return marker

    def _is_there(self, entry: Input) -> bool:
        path = text_to_path(entry.span.tar if entry.span else entry.path)
        return os.path.exists(os.path.join(os.fsencode(self._source), path))

    def _check_inside(self, entry: Input) -> None:
        """Raise ShardError on a path that leads out of the source: the listing is a stranger's."""
        path = text_to_path(entry.span.tar if entry.span else entry.path)
        if os.path.isabs(path) or b".." in path.split(b"/"):
            raise ShardError(f"{entry.path} leads out of {self._source}; it is not read")


def _rejects(rows: list[dict[str, Any]]) -> dict[str, RejectError]:
    return {row["path"]: RejectError(row["reason"], row["message"]) for row in rows}


def _fate(reject: RejectError | None) -> str:
    return "a sample" if reject is None else f"rejected ({reject})"
