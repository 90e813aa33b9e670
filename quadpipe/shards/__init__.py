"""The format on disk: one page that is the format, writer, reader, manifest, verify."""

from quadpipe.shards.reader import Dataset, Sample

__all__ = ["Dataset", "Sample"]
