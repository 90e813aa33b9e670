"""WebDataset tars of images: cut into shards in the order found.

A sample is consecutive members with one key, the path up to the first dot of the file name; its
label is the `cls` member, or `label`, `cls` or `class` in the `json` member.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from quadpipe.errors import SourceError
from quadpipe.sources.folder import walk
from quadpipe.sources.labels import ClassTable
from quadpipe.sources.listing import Inputs, Listing, Span
from quadpipe.sources.names import (
    SPLIT_FOLDERS,
    SPLITS,
    TAR_EXTENSIONS,
    is_image_name,
    path_to_text,
)

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")
_MAX_LABEL_BYTES = 1 << 20


def list_tars(root: Path, *, split: str | None = None, use_labels: bool = True) -> Inputs:
    """The images in the tars below a folder, or in one tar.

    All are of `split`; without it, splits when every tar's path names exactly one of train, val,
    validation, test as a word, otherwise train.
    SourceError when a tar cannot be read, is compressed, or only some samples have a label.
    """
    skipped: Counter[str] = Counter()
    if root.is_file():
        root, names = root.parent, [os.fsencode(root.name)]
    else:
        names = list(walk(root, b"", skipped))
    tars = [name for name in names if name.lower().endswith(b".tar")]
    skipped["not a tar"] += len(names) - len(tars)
    for name in names:
        if is_image_name(name):
            raise SourceError(
                f"{root} holds tars and images ({path_to_text(name)}); point --in at a folder that "
                f"holds one of the two"
            )
        if name.lower().endswith(TAR_EXTENSIONS) and not name.lower().endswith(b".tar"):
            raise SourceError(
                f"{root / os.fsdecode(name)} is compressed; unpack it to a plain .tar"
            )
    named = [_split_of(name) for name in tars]
    if split is None and not all(named):
        split = "train"
    table = ClassTable()
    listings: dict[str, Listing] = {}
    for name, named_split in zip(tars, named, strict=True):
        listing = listings.setdefault(split or named_split or "train", Listing())
        _list_tar(root, name, listing, table if use_labels else None, skipped)
    total = sum(len(listing) for listing in listings.values())
    without = sum(listing.unlabelled for listing in listings.values())
    if 0 < without < total:
        raise SourceError(
            f"{without} of {total} samples in the tars of {root} have no label; give --no-labels "
            f"to leave all of them without"
        )
    classes = None
    if total and not without:
        found = table.settle(list(listings.values()), numbers_are_indices=True)
        classes = [path_to_text(label) for label in found]
    order = {name: listings[name] for name in SPLITS if name in listings}
    return Inputs(
        splits=order, classes=classes, ordered=True, skipped={k: n for k, n in skipped.items() if n}
    )


def _split_of(name: bytes) -> str | None:
    words = {SPLIT_FOLDERS[w] for w in re.split(rb"[-._/ \d]+", name) if w in SPLIT_FOLDERS}
    return words.pop() if len(words) == 1 else None


def _list_tar(
    root: Path, name: bytes, listing: Listing, table: ClassTable | None, skipped: Counter[str]
) -> None:
    path = root / os.fsdecode(name)
    text = path_to_text(name)
    try:
        with tarfile.open(path, "r:", errorlevel=2) as tar:
            for _, members in groupby(_plain_files(tar, skipped), key=lambda m: _key(m.name)):
                group = list(members)
                fields = {_field(member.name): member for member in group}
                images = [m for m in group if _field(m.name) in IMAGE_MEMBERS]
                if not images:
                    skipped["a sample without an image"] += 1
                    continue
                skipped["another image of a sample"] += len(images) - 1
                image = images[0]
                label = _label(tar, fields, path) if table else None
                listing.append(
                    name + b"/" + os.fsencode(image.name),
                    table.id(label) if table and label is not None else None,
                    Span(text, image.offset_data, image.size),
                )
            _check_end(tar)
    except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise SourceError(
            f"cannot read {path}: {error}; fetch it again, or move it away"
        ) from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile's error unless the archive ended where its end is marked.

    tarfile takes a damaged header for the end and says nothing.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset}")


def _plain_files(tar: tarfile.TarFile, skipped: Counter[str]) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member otherwise
        if member.isreg() and not member.issparse():
            yield member
        elif not member.isdir():
            skipped["a link or no plain file in a tar"] += 1


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _field(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _label(tar: tarfile.TarFile, fields: dict[str, tarfile.TarInfo], path: Path) -> bytes | None:
    """The label of a sample as bytes; None when it has none."""
    member = fields.get("cls") or fields.get("json")
    if member is None:
        return None
    if member.size > _MAX_LABEL_BYTES:
        raise SourceError(
            f"{path}: {member.name} has {member.size:,} bytes, too many for a "
            f"label; give --no-labels"
        )
    file = tar.extractfile(member)
    data = file.read() if file else b""
    if "cls" in fields:
        return data.strip() or None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{path}: {member.name} is not JSON: {error}; mend it, or give --no-labels"
        ) from error
    for name in ("label", "cls", "class"):
        value = document.get(name) if isinstance(document, dict) else None
        if isinstance(value, int | str) and not isinstance(value, bool):
            return str(value).encode("utf-8", "replace") or None
    return None
