"""Where images come from: a folder, WebDataset tars, or a list of paths."""

import os
from dataclasses import dataclass
from pathlib import Path

from quadpipe.errors import ConfigError, SourceError
from quadpipe.sources.folder import list_folder
from quadpipe.sources.labels import ClassNames, read_class_names
from quadpipe.sources.listing import Input, Inputs, Listing, locate, read_input
from quadpipe.sources.names import is_compressed_tar_name, is_image_name, is_tar_name
from quadpipe.sources.path_list import list_paths
from quadpipe.sources.rows import PathList
from quadpipe.sources.tars import list_tars
from quadpipe.sources.walk import Walk

__all__ = [
    "ClassNames",
    "Input",
    "Inputs",
    "Listing",
    "Source",
    "list_inputs",
    "read_class_names",
    "read_input",
    "source_root",
]


def list_inputs(
    source: Path,
    *,
    split: str | None = None,
    labels: Path | None = None,
    use_labels: bool = True,
    classes: ClassNames | None = None,
) -> Inputs:
    """All inputs of a source; what it is follows from its name and what lies in it.

    SourceError when it cannot be read, holds no image, or has labels that are not among `classes`;
    ConfigError when `labels` is given for a source that has labels of its own, or `classes` for
    one that has none.
    """
    if labels and not use_labels:
        raise ConfigError("--labels and --no-labels exclude each other; give one of them")
    if classes and not use_labels:
        raise ConfigError("--classes and --no-labels exclude each other; give one of them")
    if not os.path.exists(source):
        raise SourceError(f"{source} does not exist; give a folder, a .csv list or a .tar")
    if source.is_dir() and not _holds_tars(source):
        inputs = list_folder(
            source, split=split, labels=labels, use_labels=use_labels, classes=classes
        )
    else:
        if labels:
            raise ConfigError("--labels is for a folder of images; this source has its own labels")
        if source.is_dir() or is_tar_name(os.fsencode(source.name)):
            inputs = list_tars(source, split=split, use_labels=use_labels, classes=classes)
        elif _is_path_list(source):
            inputs = list_paths(source, split=split, use_labels=use_labels, classes=classes)
        else:
            raise SourceError(f"{source} is no folder, no .csv list and no .tar; give one of these")
    if not any(len(listing) for listing in inputs.splits.values()):
        raise SourceError(
            f"no images found in {source} (skipped: {inputs.skipped or 'nothing'}); give a folder "
            f"of images or of tars, or a .csv list"
        )
    if classes and inputs.classes is None:
        raise ConfigError(f"--classes is for images with labels, {source} has none; leave it out")
    return inputs


@dataclass(frozen=True)
class Source:
    """Where inputs are read: the folder, tar or list of paths that they were listed in.

    root: the folder that their paths are relative to. path_list: the list, if it is one.
    """

    root: Path
    path_list: PathList | None = None

    @classmethod
    def at(cls, path: Path) -> "Source":
        """SourceError when a list cannot be read."""
        path = path.absolute()
        is_list = path.is_file() and _is_path_list(path)
        return cls(source_root(path), PathList.at(path) if is_list else None)

    def __str__(self) -> str:
        return str(self.path_list.file if self.path_list else self.root)

    def has(self, entry: Input) -> bool:
        """Whether the file of an input is there; SourceError as `read` has it."""
        return os.path.exists(locate(self.root, entry, self.path_list))

    def read(self, entry: Input) -> bytes:
        """As `read_input`."""
        return read_input(self.root, entry, self.path_list)


def source_root(source: Path) -> Path:
    """The folder that the inputs' paths are relative to."""
    return source if source.is_dir() else source.parent


def _is_path_list(source: Path) -> bool:
    return source.suffix.lower() in (".csv", ".txt")


def _holds_tars(source: Path) -> bool:
    """Whether the first file that is an image or a plain tar is a tar; mixtures are refused later.

    Without both, whether there is a compressed tar.
    """
    compressed = False
    for path in Walk(source).files():
        if is_image_name(path):
            return False
        if is_tar_name(path):
            return True
        compressed = compressed or is_compressed_tar_name(path)
    return compressed
