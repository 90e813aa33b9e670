"""Shards -> batches for torch: order, reading, augmentation, and a plain WebDataset pipeline."""

from quadpipe.loader.augment import Augmentation
from quadpipe.loader.batch import Batch
from quadpipe.loader.batches import Loader
from quadpipe.loader.plain import webdataset

__all__ = ["Augmentation", "Batch", "Loader", "webdataset"]
