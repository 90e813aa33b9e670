"""The stages of `plain.webdataset`. Imports webdataset, so import this module where needed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import webdataset as wds

from quadpipe.shards.reader import Dataset


class Pipeline(wds.DataPipeline, wds.FluidInterface):  # type: ignore[misc]
    """Like `webdataset.WebDataset`, with given stages."""


@dataclass(frozen=True)
class ReadShards:
    """Names of shards -> their samples at a budget; see `plain.webdataset`."""

    dataset: Dataset
    split: str
    budget: int
    on_error: str

    def __call__(self, sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        shards = self.dataset.shards(self.split)
        for source in sources:
            shard = shards[shards.position(source["url"])]
            for sample in self.dataset.read_shard(shard, self.on_error):
                leaves = sample.mosaic.leaves(self.budget)
                yield {
                    "tokens": leaves.tokens,
                    "boxes": leaves.boxes.astype("int16"),
                    "label": -1 if sample.label is None else sample.label,
                    "key": sample.key,
                }
