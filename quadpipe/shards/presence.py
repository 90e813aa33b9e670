"""Missing shards of a dataset, for example after an interrupted copy."""

from quadpipe.errors import ShardError, UnreadableError
from quadpipe.files import ReadableFolder
from quadpipe.shards.manifest import Manifest
from quadpipe.shards.shard_list import read_shard_list


def shards_here(folder: ReadableFolder, manifest: Manifest) -> str:
    """Number of shards that exist, and the next step, for the error that one is missing."""
    names = folder.names()
    if names is None:  # web servers do not list files
        return "the dataset is incomplete; finish copying it, or fetch the shard again"
    total = sum(info.shards for info in manifest.splits.values())
    here = total - len(missing_shards(folder, manifest, names))
    return (
        f"the dataset is incomplete: {here:,} of {total:,} shards; finish copying it, or "
        f"rerun the quadpipe tokenize command that wrote it"
    )


def missing_shards(folder: ReadableFolder, manifest: Manifest, names: list[str]) -> list[str]:
    """Names of the shards that do not exist, given the names of all files.

    If the shard list of a split cannot be read, its own name is given for each missing shard.
    """
    there = set(names)
    missing = []
    for split, info in manifest.splits.items():
        try:
            shards = read_shard_list(folder, split, info)
        except UnreadableError:
            raise
        except ShardError:
            here = sum(is_shard_of(split, name) for name in there)
            missing += [info.shard_list] * max(0, info.shards - here)
        else:
            missing += [name for name in shards.names() if name not in there]
    return missing


def is_shard_of(split: str, name: str) -> bool:
    """Whether a file has the name of a shard of a split."""
    return name.startswith(f"{split}-") and name.endswith(".tar")
