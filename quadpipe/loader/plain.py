"""The same shards as a plain WebDataset pipeline, for people who have one."""

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

from quadpipe.shards.reader import Dataset
from quadpipe.shards.skipped import check_on_error


def webdataset(
    dataset: Dataset | str | PathLike[str],
    split: str = "train",
    *,
    tokens: int | None = None,
    view: int = 0,
    on_error: str = "raise",
    shardshuffle: int = 0,
    resampled: bool = False,
    nodesplitter: Any = None,
    workersplitter: Any = None,
) -> Any:
    """A pipeline of `webdataset` over the shards of one view of a split.

    Its samples are dicts of `tokens` uint8 `[N, P, P, 3]`, `boxes` int16 `[N, 3]`, `label` int (-1
    without labels) and `key`, at a legal budget up to the stored one. shardshuffle, resampled,
    nodesplitter and workersplitter are those of `webdataset.WebDataset`; chain `.shuffle(..)`,
    `.batched(..)` as usual. The order and the resuming are WebDataset's. The tars
    are read by `Dataset.read_shard`, which says what on_error does: tarfile, which WebDataset
    uses, gives a stranger's archive the memory that it claims.
    """
    import webdataset as wds

    class Pipeline(wds.DataPipeline, wds.FluidInterface):  # type: ignore[misc]
        """What a `webdataset.WebDataset` is."""

    check_on_error(on_error)
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    shards = {shard.name: shard for shard in opened.shards(split) if shard.view == view}
    budget = opened.manifest.tokenizer.tokens if tokens is None else tokens
    opened.manifest.geometry.splits(budget)

    def read(sources: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for source in sources:
            for sample in opened.read_shard(shards[source["url"]], on_error):
                leaves = sample.mosaic.leaves(budget)
                yield {
                    "tokens": leaves.tokens,
                    "boxes": leaves.boxes.astype("int16"),
                    "label": -1 if sample.label is None else sample.label,
                    "key": sample.key,
                }

    stages = [
        (wds.ResampledShards if resampled else wds.SimpleShardList)(list(shards)),
        nodesplitter or wds.single_node_only,
        workersplitter or wds.split_by_worker,
        wds.shuffle(shardshuffle) if shardshuffle else None,
        read,
    ]
    return Pipeline(*(stage for stage in stages if stage))
