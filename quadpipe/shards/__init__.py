"""The format on disk: names and bytes, members, writer, reader, manifest, verify."""

from quadpipe.shards.reader import Dataset, Sample

__all__ = ["Dataset", "Sample"]
