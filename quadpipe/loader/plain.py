"""The same shards as a plain WebDataset pipeline, for existing training code."""

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
    `.batched(..)` as usual. Order and resuming are WebDataset's. It can be pickled, so the
    workers of a DataLoader may be spawned. The tars are read by `Dataset.read_shard` (see there for
    on_error), since tarfile, which WebDataset uses, allocates the memory that an archive claims.
    """
    import webdataset as wds

    from quadpipe.loader.pipeline import Pipeline, ReadShards

    check_on_error(on_error)
    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    budget = opened.manifest.tokenizer.tokens if tokens is None else tokens
    opened.manifest.geometry.num_splits(budget)
    names = list(opened.shards(split).of_view(view).names())
    stages = [
        (wds.ResampledShards if resampled else wds.SimpleShardList)(names),
        nodesplitter or wds.single_node_only,
        workersplitter or wds.split_by_worker,
        wds.shuffle(shardshuffle) if shardshuffle else None,
        ReadShards(opened, split, budget, on_error),
    ]
    return Pipeline(*(stage for stage in stages if stage))
