"""Class names and indices, from folders or from files."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text
from quadpipe.sources.listing import Listing
from quadpipe.sources.rows import read_rows
from quadpipe.text import counted

# Above ImageNet-21k's 21,841. Beyond, numbers of which most are missing are ids, not indices.
_LARGEST_SPARSE = 32_768
_MOST_DIGITS = 9  # an index is an int32


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """The given classes of a dataset, in index order. file: where they are from."""

    names: list[bytes]
    file: str

    def __post_init__(self) -> None:
        if not self.names:
            raise SourceError(f"{self.file} holds no class names; write one per line")
        name, count = Counter(self.names).most_common(1)[0]
        if count > 1:
            raise SourceError(f"{self.file} names class {_text(name)} twice; keep one of them")


class ClassTable:
    """Gives each class name an id in the order met, and at the end an index.

    given: the classes to be used; by default those met. After `settle`, unused is the number of
    classes without an input, and warnings are lines for the user about them.
    """

    def __init__(self, given: ClassNames | None = None) -> None:
        self._given = given
        self._ids: dict[bytes, int] = {}
        self.unused = 0
        self.warnings: list[str] = []

    def id(self, name: bytes) -> int:
        return self._ids.setdefault(name, len(self._ids))

    def settle(self, listings: list[Listing], *, numbers_are_indices: bool) -> list[str]:
        """Turn ids into indices in all listings; returns the names in index order, as text.

        Names are sorted by their bytes, unless they were given. With `numbers_are_indices`, labels
        that are all decimal numbers are taken as the indices themselves. SourceError when labels
        are not among the given classes, or are numbers that cannot be indices.
        """
        numbers = numbers_are_indices and all(name.isdigit() for name in self._ids)
        if self._given:
            names = self._given.names
            indices = _given_indices(list(self._ids), self._given, numbers)
        elif numbers:
            indices = _number_indices(list(self._ids))
            names = [str(index).encode() for index in range(max(indices.values()) + 1)]
        else:
            names = sorted(self._ids)
            indices = {name: index for index, name in enumerate(names)}
        new_ids = np.array([indices[name] for name in self._ids], np.int32)
        for listing in listings:
            listing.relabel(new_ids)
        unused = np.setdiff1d(np.arange(len(names)), new_ids)
        self.unused = len(unused)
        if self.unused and not self._given:
            first = ", ".join(map(str, unused[:3])) + (", .." if self.unused > 3 else "")
            self.warnings.append(
                f"labels are taken as indices from 0 to {len(names) - 1:,}, and {self.unused:,} of "
                f"these have no images: {first}; if that is not meant, give --classes FILE"
            )
        if len(names) == 1:
            self.warnings.append(
                f"all images are of one class, {_text(names[0])}; if its folder holds the folders "
                f"of the real classes, point --in at it"
            )
        return [path_to_text(name) for name in names]


def _number_indices(labels: list[bytes]) -> dict[bytes, int]:
    """The numbers themselves; SourceError when most indices up to the largest would be unused."""
    longest = max(labels, key=len)
    if len(longest) <= _MOST_DIGITS:
        indices = {label: int(label) for label in labels}
        count = max(indices.values()) + 1
        if count <= max(_LARGEST_SPARSE, 2 * len(set(indices.values()))):
            return indices
        longest = str(count - 1).encode()
    raise SourceError(
        f"labels such as {_text(longest)} are numbers but not class indices from 0: there are "
        f"{len(labels):,} different ones; give --classes FILE with all labels in index order, one "
        f"per line, or write names"
    )


def _given_indices(labels: list[bytes], given: ClassNames, numbers: bool) -> dict[bytes, int]:
    """The index of each label in the given classes; SourceError when it has none."""
    by_name = {name: index for index, name in enumerate(given.names)}
    missing = sorted(label for label in labels if label not in by_name)
    beyond = [label for label in labels if not _is_index(label, len(by_name))]
    if numbers and missing:
        if beyond:
            raise SourceError(
                f"label {_text(beyond[0])} is not an index of the {len(by_name):,} names in "
                f"{given.file}, which count from 0; correct the labels, or write names"
            )
        return {label: int(label) for label in labels}
    if missing:
        raise SourceError(
            f"{len(missing):,} of {len(labels):,} classes are not among the {len(by_name):,} names "
            f"in {given.file}, such as {', '.join(map(_text, missing[:3]))}; add them at its end, "
            f"or leave out their images"
        )
    if numbers and not beyond and any(int(label) != by_name[label] for label in labels):
        raise SourceError(
            f"labels are numbers that are names in {given.file} and also indices of other names; "
            f"write names that are not numbers in both"
        )
    return by_name


def _is_index(label: bytes, classes: int) -> bool:
    return label.isdigit() and len(label) <= _MOST_DIGITS and int(label) < classes


def _text(label: bytes) -> str:
    return repr(path_to_text(label[:60]))


def read_class_names(file: Path) -> ClassNames:
    """Class names in index order, one per line; SourceError when some are empty or the same."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise SourceError(
            f"cannot read {file}: {error.strerror}; give a file that can be read"
        ) from error
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    names = [line.removesuffix(b"\r") for line in lines]
    while names and not names[-1]:
        names.pop()
    if b"" in names:
        raise SourceError(f"{file}, line {names.index(b'') + 1} is empty; write one name per line")
    return ClassNames(names=names, file=str(file))


def settle_listings(
    where: object, listings: dict[str, Listing], table: ClassTable, labels: Path | None
) -> list[str] | None:
    """The names of the classes of all listings, None without labels; `where` holds their images.

    labels: the file that gave the labels, instead of the folders. SourceError when only some images
    have one, or none has one of the file.
    """
    total = sum(len(listing) for listing in listings.values())
    without = sum(listing.unlabelled for listing in listings.values())
    if without == total:
        if labels and total:
            raise SourceError(f"{labels} names none of the {total} images in {where}")
        return None
    if without:
        listing = next(listing for listing in listings.values() if listing.unlabelled)
        entries = (listing[index] for index in range(len(listing)))
        first = next(entry for entry in entries if entry.label is None)
        raise SourceError(
            f"{without} of {total} images in {where} have no class, the first is {first.path}; "
            + (
                f"add them to {labels}"
                if labels
                else "put every image into a class folder, or give --labels FILE or --no-labels"
            )
        )
    return table.settle(list(listings.values()), numbers_are_indices=labels is not None)


class GivenLabels:
    """The labels in a file of `path,label` rows, and which of its rows are of images.

    SourceError when a row has none or two rows disagree.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._labels = read_labels(file)
        self._of_name: dict[bytes, bytes] = {}
        self._used: set[bytes] = set()

    def label(self, path: bytes, inside: bytes) -> bytes | None:
        """The label of an image by its path below the source, below its split, or by its file name.

        SourceError when the row of a file name is of another path already.
        """
        names = (path, inside, os.path.basename(path))
        name = next((name for name in names if name in self._labels), None)
        if name is None:
            return None
        self._used.add(name)
        if b"/" not in name and (other := self._of_name.setdefault(name, path)) != path:
            raise SourceError(
                f"{self._file}: {_text(name)} is the name of {path_to_text(other)} and of "
                f"{path_to_text(path)}; write their paths instead"
            )
        return self._labels[name]

    @property
    def notes(self) -> list[str]:
        """A line about the rows that are of no image."""
        unused = [name for name in self._labels if name not in self._used]
        if not unused:
            return []
        return [
            f"{counted(len(unused), 'row')} of {self._file} "
            f"{'names' if len(unused) == 1 else 'name'} no image, such as {_text(unused[0])}"
        ]


def read_labels(file: Path) -> dict[bytes, bytes]:
    """Label by path or file name; SourceError when a row has none or two rows disagree."""
    labels: dict[bytes, bytes] = {}
    for name, label, *_ in read_rows(file, blanks=True):
        if not label:
            raise SourceError(f"{file}: {os.fsdecode(name)!r} has no label; write `path,label`")
        if labels.setdefault(name, label) != label:
            raise SourceError(f"{file}: {os.fsdecode(name)!r} has two labels; keep one of them")
    if not labels:
        raise SourceError(f"{file}: holds no `path,label` rows; write one per image")
    return labels
