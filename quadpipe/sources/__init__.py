"""Where images come from: a folder, WebDataset tars, or a list of paths."""

import os
from collections import Counter
from pathlib import Path

from quadpipe.errors import ConfigError, SourceError
from quadpipe.sources.folder import list_folder, walk
from quadpipe.sources.listing import Input, Inputs, Listing, read_input
from quadpipe.sources.names import TAR_EXTENSIONS, is_image_name
from quadpipe.sources.path_list import list_paths
from quadpipe.sources.tars import list_tars

__all__ = ["Input", "Inputs", "Listing", "list_inputs", "read_input", "source_root"]


def list_inputs(
    source: Path, *, split: str | None = None, labels: Path | None = None, use_labels: bool = True
) -> Inputs:
    """All inputs of a source; what it is follows from its name and what lies in it.

    SourceError when it cannot be read or holds no image, ConfigError when `labels` is given for
    a source that has labels of its own.
    """
    if labels and not use_labels:
        raise ConfigError("--labels and --no-labels exclude each other; give one of them")
    if not os.path.exists(source):
        raise SourceError(f"{source} does not exist; give a folder, a .csv list or a .tar")
    if source.is_dir() and not _begins_with_tar(source):
        inputs = list_folder(source, split=split, labels=labels, use_labels=use_labels)
    else:
        if labels:
            raise ConfigError("--labels is for a folder of images; this source has its own labels")
        if source.is_dir() or source.suffix.lower() == ".tar":
            inputs = list_tars(source, split=split, use_labels=use_labels)
        elif source.suffix.lower() in (".csv", ".txt"):
            inputs = list_paths(source, split=split, use_labels=use_labels)
        else:
            raise SourceError(f"{source} is no folder, no .csv list and no .tar; give one of these")
    if not any(len(listing) for listing in inputs.splits.values()):
        raise SourceError(
            f"no images found in {source} (skipped: {inputs.skipped or 'nothing'}); give a folder "
            f"of images or of tars, or a .csv list"
        )
    return inputs


def source_root(source: Path) -> Path:
    """The folder that the inputs' paths are relative to."""
    return source if source.is_dir() else source.parent


def _begins_with_tar(source: Path) -> bool:
    """Whether the first file that is an image or a tar is a tar; mixtures are refused later."""
    for path in walk(source, b"", Counter()):
        if is_image_name(path):
            return False
        if path.lower().endswith(TAR_EXTENSIONS):
            return True
    return False
