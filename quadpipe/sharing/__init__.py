"""Datasets from one place to another: whole copies, and smaller ones made from the shards alone."""

from quadpipe.sharing.copying import copy
from quadpipe.sharing.progress import CopyPreview, CopyProgress

__all__ = ["CopyPreview", "CopyProgress", "copy"]
