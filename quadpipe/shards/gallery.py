"""Samples of a dataset as exhibits for `render`."""

from itertools import islice
from pathlib import Path

import numpy as np

from quadpipe.errors import ConfigError
from quadpipe.images.crop import Box, decode_and_resample
from quadpipe.images.decode import EncodedImage
from quadpipe.render import Exhibit
from quadpipe.shards.reader import Dataset, Sample
from quadpipe.sources import Input, read_input, source_root


def exhibits(dataset: Dataset, split: str, count: int, source: Path | None = None) -> list[Exhibit]:
    """The first samples of a split; with the images they were made from when `source` is given.

    Raises SourceError or RejectError when an image cannot be read again.
    """
    if count < 1:
        raise ConfigError(f"{count} samples cannot be shown; give 1 or more")
    return [
        Exhibit(
            mosaic=sample.mosaic,
            title=str(sample.info.get("path", sample.key)),
            image=None if source is None else _original(dataset, sample, source),
        )
        for sample in islice(dataset.samples(split), count)
    ]


def _original(dataset: Dataset, sample: Sample, source: Path) -> np.ndarray:
    path = str(sample.info["path"])
    if ".tar/" in path:
        raise ConfigError("images inside tars cannot be shown beside their mosaics; leave out --in")
    image = EncodedImage(read_input(source_root(source), Input(path, sample.label)))
    size = dataset.manifest.tokenizer.image_size
    return decode_and_resample(image, Box(*sample.info["box"]), size)
