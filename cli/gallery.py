"""Samples of a dataset as exhibits for `render`."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from quadpipe.counts import CountLimits
from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.images.crop import Box, decode_and_resample
from quadpipe.images.decode import EncodedImage
from quadpipe.names import text_to_path
from quadpipe.render import Exhibit
from quadpipe.shards.excerpt import spread_samples
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.sources import Input, open_source


def exhibits(dataset: Dataset, split: str, count: int, source: Path | None = None) -> list[Exhibit]:
    """Samples of a split at equal distances; with their source images when `source` is given.

    Raises SourceError when an image cannot be read, ConfigError when it is not below `source`.
    """
    if count < 1:
        raise ConfigError(f"--samples {count} is below 1; give 1 or more")
    classes = dataset.manifest.classes
    return [
        Exhibit(
            mosaic=sample.mosaic,
            title=_title(sample),
            label="" if classes is None or sample.label is None else classes[sample.label],
            image=None if source is None else _original(dataset, sample, source),
        )
        for sample in spread_samples(dataset, split, count)
    ]


def _title(sample: Sample) -> str:
    """The path of the image, and the view if it is a random crop."""
    path, view = sample.info["path"], sample.key.partition("-v")[2]
    return f"{path}, view {view}" if view else path


def share_tokens(shown: list[Exhibit], mean: int, limits: CountLimits) -> list[Exhibit]:
    """The exhibits, each with its number of tokens in a batch of them, from few to many."""
    limits.check_mean(mean)
    if not shown:
        raise ConfigError("no samples to draw")
    splits = limits.share(np.stack([exhibit.mosaic.gains for exhibit in shown]), mean)
    counts = [limits.geometry.roots + 3 * count for count in splits.tolist()]
    own = [
        replace(exhibit, tokens=count, title=f"{count} tokens")
        for exhibit, count in zip(shown, counts, strict=True)
    ]
    return sorted(own, key=lambda exhibit: exhibit.tokens or 0)


def _original(dataset: Dataset, sample: Sample, source: Path) -> np.ndarray:
    """The pixels that a mosaic was cut from, read from its image below `source`."""
    path = sample.info["path"]
    decoded = text_to_path(path)  # %2e%2e leads out of the folder too
    if b".tar/" in decoded or b".." in decoded.split(b"/") or decoded[:1] == b"/" or 0 in decoded:
        raise ConfigError(f"{path!r} is not an image file below {source}; omit --in")
    if "row" in sample.info:
        raise ConfigError(f"{path!r} is outside the folder of its list; omit --in")
    data = open_source(source).read(Input(path, sample.label))
    try:
        image = EncodedImage(data, dataset.manifest.tokenizer.max_pixels)
        box = Box(*sample.info["box"])
        if box.x1 > image.width or box.y1 > image.height:
            raise ConfigError(
                f"{path} in {source} is smaller than when it was tokenized; omit --in"
            )
        return decode_and_resample(image, box, dataset.manifest.tokenizer.image_size)
    except RejectError as error:
        raise SourceError(f"{path} in {source} cannot be decoded: {error}") from error
