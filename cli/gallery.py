"""Samples of a dataset as exhibits for `render`."""

from itertools import islice
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError, RejectError, SourceError
from quadpipe.images.crop import Box, decode_and_resample
from quadpipe.images.decode import EncodedImage
from quadpipe.names import text_to_path
from quadpipe.render import Exhibit
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.sources import Input, read_input, source_root


def exhibits(dataset: Dataset, split: str, count: int, source: Path | None = None) -> list[Exhibit]:
    """The first samples of a split; with the images they were made from when `source` is given.

    Raises SourceError when an image cannot be read again, ConfigError when it lies elsewhere.
    """
    if count < 1:
        raise ConfigError(f"{count} samples cannot be shown; give 1 or more")
    return [
        Exhibit(
            mosaic=sample.mosaic,
            title=sample.info["path"],
            image=None if source is None else _original(dataset, sample, source),
        )
        for sample in islice(dataset.samples(split), count)
    ]


def _original(dataset: Dataset, sample: Sample, source: Path) -> np.ndarray:
    """The pixels that a mosaic was cut from, read again from below `source`."""
    path = sample.info["path"]
    decoded = text_to_path(path)  # %2e%2e leads out of the folder too
    if b".tar/" in decoded or b".." in decoded.split(b"/") or decoded[:1] == b"/" or 0 in decoded:
        raise ConfigError(f"{path!r} is no image file below {source}; leave out --in")
    if "row" in sample.info:
        raise ConfigError(f"{path!r} lies outside the folder of its list; leave out --in")
    data = read_input(source_root(source), Input(path, sample.label))
    try:
        image = EncodedImage(data, dataset.manifest.tokenizer.max_pixels)
        box = Box(*sample.info["box"])
        if box.x1 > image.width or box.y1 > image.height:
            raise ConfigError(f"{path} in {source} is smaller than it was; leave out --in")
        return decode_and_resample(image, box, dataset.manifest.tokenizer.image_size)
    except RejectError as error:
        raise SourceError(f"{path} in {source} is no image we can use: {error}") from error
