"""The same shards as a plain WebDataset pipeline, for people who have one."""

from os import PathLike
from typing import Any

from quadpipe.shards.reader import Dataset


def webdataset(
    dataset: Dataset | str | PathLike[str],
    split: str = "train",
    *,
    tokens: int | None = None,
    view: int = 0,
    **options: Any,
) -> Any:
    """A `webdataset.WebDataset` over the shards of one view of a split.

    Its samples are dicts of `tokens` uint8 `[N, P, P, 3]`, `boxes` int16 `[N, 3]`, `label` int (-1
    without labels) and `key`, at a legal budget up to the stored one. `options` go to WebDataset
    (`shardshuffle`, `nodesplitter`, ..); chain `.shuffle(..)`, `.batched(..)` as usual. The order
    and the resuming are WebDataset's.
    """
    import webdataset as wds

    opened = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    urls = [opened.folder.where(shard.name) for shard in opened.shards(split) if shard.view == view]
    budget = opened.manifest.tokenizer.tokens if tokens is None else tokens
    opened.manifest.geometry.splits(budget)

    def to_leaves(raw: dict[str, Any]) -> dict[str, Any]:
        members = {name: data for name, data in raw.items() if isinstance(data, bytes)}
        sample = opened.make_sample(raw["__key__"], members)
        leaves = sample.mosaic.leaves(budget)
        return {
            "tokens": leaves.tokens,
            "boxes": leaves.boxes.astype("int16"),
            "label": -1 if sample.label is None else sample.label,
            "key": sample.key,
        }

    return wds.WebDataset(urls, **{"shardshuffle": False, **options}).map(to_leaves)
