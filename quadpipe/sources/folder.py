"""A folder of images: classes and splits from its folders, in the order of the paths' bytes."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quadpipe.errors import ConfigError, SourceError
from quadpipe.sources.labels import ClassTable, read_labels
from quadpipe.sources.listing import Inputs, Listing
from quadpipe.sources.names import (
    SPLIT_FOLDERS,
    SPLITS,
    TAR_EXTENSIONS,
    is_image_name,
    path_to_text,
)


def list_folder(
    root: Path, *, split: str | None = None, labels: Path | None = None, use_labels: bool = True
) -> Inputs:
    """The images below `root`.

    Splits when every top folder is one of train, val, validation, test; otherwise all images are
    of one `split`, by default train. The class of an image is its first folder, or what `labels`
    says of its path or file name; images that lie flat have none. SourceError when some have a
    class and some have not.
    """
    skipped: Counter[str] = Counter()
    roots = _split_roots(root)
    if roots and split:
        raise ConfigError(
            f"{root} has split folders ({', '.join(roots)}); leave out --split, or point --in at "
            f"one of them"
        )
    roots = roots or {split or "train": b""}
    given = read_labels(labels) if labels else None
    table = ClassTable()
    listings = {}
    for name in SPLITS:
        if name not in roots:
            continue
        prefix = roots[name]
        listing = listings[name] = Listing()
        for path in walk(root, prefix, skipped):
            if not is_image_name(path):
                if path.lower().endswith(TAR_EXTENSIONS):
                    raise _mixed(root, path)
                skipped["not an image's name"] += 1
                continue
            inside = path[len(prefix) + 1 :] if prefix else path
            label = _label(path, inside, given) if use_labels else None
            listing.append(path, None if label is None else table.id(label))
    return Inputs(
        splits=listings,
        classes=_settle(root, listings, table, labels),
        skipped=dict(skipped),
    )


def _mixed(root: Path, path: bytes) -> SourceError:
    return SourceError(
        f"{root} holds images and tars ({path_to_text(path)}); point --in at a folder that holds "
        f"one of the two"
    )


def walk(root: Path, prefix: bytes, skipped: Counter[str]) -> Iterator[bytes]:
    """Paths of the plain files below root/prefix, relative to root, sorted by their bytes.

    Symbolic links are followed, but not in circles. Hidden files and folders, broken links and
    what is no plain file are counted in `skipped`.
    """
    # By folder the paths still to come, last first, and the folders that hold it. A folder's path
    # ends with a slash, so that it sorts as the full paths below it do.
    levels = [([prefix + b"/" if prefix else b""], frozenset[tuple[int, int]]())]
    while levels:
        paths, above = levels[-1]
        if not paths:
            levels.pop()
            continue
        path = paths.pop()
        if path and not path.endswith(b"/"):
            yield path
            continue
        folder = os.path.join(os.fsencode(root), path)
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                skipped["a link in a circle"] += 1
                continue
            found = sorted(_entries(folder, path, skipped), reverse=True)
        except OSError as error:
            raise SourceError(
                f"cannot list {os.fsdecode(folder)}: {error.strerror}; "
                f"make it readable, or move it away"
            ) from error
        levels.append((found, above | {identity}))


def _entries(folder: bytes, path: bytes, skipped: Counter[str]) -> Iterator[bytes]:
    """Paths of the files and folders in a folder, the latter with a slash at the end."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                skipped["hidden"] += 1
                continue
            kind = _kind(entry)
            if kind == "file":
                yield path + entry.name
            elif kind == "folder":
                yield path + entry.name + b"/"
            else:
                skipped["a broken link or no plain file"] += 1


def _kind(entry: "os.DirEntry[bytes]") -> str | None:
    """`file` or `folder`, also behind a link; None for what is neither."""
    try:
        if entry.is_file():
            return "file"
        return "folder" if entry.is_dir() else None
    except OSError:  # a link to itself
        return None


def _split_roots(root: Path) -> dict[str, bytes]:
    """Top folders by split, when all of them are split folders and no image lies beside them."""
    folders = []
    try:
        with os.scandir(os.fsencode(root)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                is_folder = _kind(entry) == "folder"
                if entry.name not in SPLIT_FOLDERS if is_folder else is_image_name(entry.name):
                    return {}
                if is_folder:
                    folders.append(entry.name)
    except OSError as error:
        raise SourceError(
            f"cannot list {root}: {error.strerror}; give a folder that can be read"
        ) from error
    roots = {SPLIT_FOLDERS[name]: name for name in folders}
    if len(roots) < len(folders):
        raise SourceError(f"{root} has both val and validation; keep one of them")
    return roots


def _label(path: bytes, inside: bytes, given: dict[bytes, bytes] | None) -> bytes | None:
    """Of an image by its path below the source, below its split, or by its file name."""
    if given is not None:
        names = (path, inside, os.path.basename(path))
        return next((given[name] for name in names if name in given), None)
    folder, slash, _ = inside.partition(b"/")
    return folder if slash else None


def _settle(
    root: Path, listings: dict[str, Listing], table: ClassTable, labels: Path | None
) -> list[str] | None:
    total = sum(len(listing) for listing in listings.values())
    without = sum(listing.unlabelled for listing in listings.values())
    if without == total:
        if labels and total:
            raise SourceError(f"{labels} names none of the {total} images in {root}")
        return None
    if without:
        listing = next(listing for listing in listings.values() if listing.unlabelled)
        entries = (listing[index] for index in range(len(listing)))
        first = next(entry for entry in entries if entry.label is None)
        raise SourceError(
            f"{without} of {total} images in {root} have no class, the first is {first.path}; "
            + (
                f"add them to {labels}"
                if labels
                else "put every image into a class folder, or give --labels FILE or --no-labels"
            )
        )
    names = table.settle(list(listings.values()), numbers_are_indices=labels is not None)
    return [path_to_text(name) for name in names]
