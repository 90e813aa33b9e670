"""WebDataset tars of images: cut into shards in the order found.

A sample is consecutive members with one key, the path up to the first dot of the file name; its
label is the `cls` member, or `label`, `cls` or `class` in the `json` member. Its image is the first
member named KEY.jpg, .jpeg, .png or .webp; else the first with another image extension alone; else
the first whose last extension is one, such as KEY.rgb.jpg.
"""

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from quadpipe.errors import SourceError
from quadpipe.names import SPLITS, path_to_text
from quadpipe.sources.base import ListOptions, Source
from quadpipe.sources.kept import Keeper, Place
from quadpipe.sources.labels import ClassTable
from quadpipe.sources.listing import Inputs, Listing, Span
from quadpipe.sources.names import is_compressed_tar_name, is_image_name, is_tar_name, split_of_word
from quadpipe.sources.roots import Root
from quadpipe.sources.walk import Walk
from quadpipe.text import counted

_COMMON_IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_LABEL_BYTES = 1 << 20


class TarSource(Source):
    """The images in the tars below a folder, or in one tar.

    All are of `split`; without it, splits when every tar's path names exactly one split as a word
    (train, val or test, or another name that a folder of a split may have), and train when none
    does.

    Listing raises SourceError when a tar cannot be read or is compressed, when only some tars name
    a split, or when only some samples have a label.
    """

    @classmethod
    def matches(cls, root: Root, file: bytes) -> bool:
        """A folder when its first image or plain tar is a tar; without both, when there is a
        compressed tar. Listing refuses mixtures."""
        if file:
            return is_tar_name(file)
        compressed = False
        for path in Walk(root).files():
            if is_image_name(path):
                return False
            if is_tar_name(path):
                return True
            compressed = compressed or is_compressed_tar_name(path)
        return compressed

    def _list(self, options: ListOptions) -> Inputs:
        walk = Walk(self.root)
        names = [self.file] if self.file else [*walk.files()]
        for name in names:
            _check_name(walk.root, name)
        tars = [name for name in names if is_tar_name(name)]
        table = ClassTable(options.classes)
        keeper = Keeper(options.wanted)
        samples = _Samples(walk.root, table if options.use_labels else None, keeper)
        listings: dict[str, Listing] = {}
        for name, named in zip(tars, _splits(walk.root, tars, options.split), strict=True):
            samples.list_tar(name, listings.setdefault(named, Listing()))
            walk.note_read(name)
        total = sum(len(listing) for listing in listings.values())
        without = sum(listing.unlabelled for listing in listings.values())
        if 0 < without < total:
            raise SourceError(
                f"{without} of {total} samples in the tars of {walk.root} have no label; give "
                f"--no-labels to leave all of them without"
            )
        found = None
        if total and not without:
            found = table.settle([*listings.values()], numbers_are_indices=True)
        skipped = walk.skipped + samples.skipped
        skipped["not a tar"] += len(names) - len(tars)
        return Inputs(
            splits={name: listings[name] for name in SPLITS if name in listings},
            classes=found,
            unused_classes=table.unused,
            ordered=True,
            read_twice=walk.read_twice,
            skipped={cause: count for cause, count in skipped.items() if count},
            kept=keeper.result(str(walk.root)),
            warnings=table.warnings + walk.warnings + samples.warnings,
        )


def _check_name(root: Root, name: bytes) -> None:
    """SourceError for an image, or for a tar that cannot be read in place."""
    if is_image_name(name):
        raise SourceError(
            f"{root} holds tars and images ({path_to_text(name)}); point --in at a folder that "
            f"holds one of the two"
        )
    if is_compressed_tar_name(name):
        raise SourceError(
            f"{root.where(name)} is compressed; unpack it to a plain .tar, or move it away"
        )


def _splits(root: Root, tars: list[bytes], split: str | None) -> list[str]:
    """The split of each tar; SourceError when only some of them name one."""
    if split:
        return [split] * len(tars)
    named = [_split_of(name) for name in tars]
    unnamed = [name for name, found in zip(tars, named, strict=True) if not found]
    if unnamed and len(unnamed) < len(tars):
        other = next(name for name, found in zip(tars, named, strict=True) if found)
        raise SourceError(
            f"{len(unnamed)} of {len(tars)} tars in {root} name no split, such as "
            f"{path_to_text(unnamed[0])}, and others do, such as {path_to_text(other)}; rename "
            f"them, or give --split train to read all as one split"
        )
    return [found or "train" for found in named]


def _split_of(name: bytes) -> str | None:
    words = {split for word in re.split(rb"[-._/ \d]+", name) if (split := split_of_word(word))}
    return words.pop() if len(words) == 1 else None


class _Samples:
    """Lists the samples of tars, and counts in `skipped` what is not listed."""

    def __init__(self, root: Root, table: ClassTable | None, keeper: Keeper) -> None:
        self._root, self._table, self._keeper = root, table, keeper
        self.skipped: Counter[str] = Counter()
        self._unsure, self._first_unsure = 0, ""

    def list_tar(self, name: bytes, listing: Listing) -> None:
        """Append the samples of a tar; SourceError when it cannot be read."""
        path = self._root.where(name)
        text = path_to_text(name)
        try:
            with (
                self._root.open(name) as file,
                tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar,
            ):
                for _, members in groupby(self._plain_files(tar), key=lambda m: _key(m.name)):
                    group = list(members)
                    image = self._image(group, text)
                    if image is None:
                        continue
                    fields = self._fields(group, path)
                    label = _label(tar, fields, path) if self._table else None
                    kept = self._keeper.take(self._places(fields), f"{path}: {image.name}")
                    listing.append(
                        name + b"/" + os.fsencode(image.name),
                        self._table.id(label) if self._table and label is not None else None,
                        Span(text, image.offset_data, image.size),
                        kept=kept if self._keeper.wanted else None,
                    )
                _check_end(tar)
        except (OSError, tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as e:
            raise SourceError(f"cannot read {path}: {e}; fetch it again, or move it away") from e

    def _plain_files(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every member otherwise
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                self.skipped["a link or no plain file in a tar"] += 1
            elif member.name.rpartition("/")[2].startswith("."):
                self.skipped["hidden"] += 1
            else:
                yield member

    def _image(self, members: list[tarfile.TarInfo], tar: str) -> tarfile.TarInfo | None:
        """The image of a sample; None when it has none."""
        fields = [(_field(member.name), member) for member in members]
        images = [m for name, m in fields if _is_image(name) and name not in self._keeper.masks]
        if not images:
            self.skipped["a sample without an image"] += 1
            return None
        plain = [m for m in images if "." not in _field(m.name)]
        if not plain and len(images) > 1:
            self._unsure += 1
            self._first_unsure = self._first_unsure or f"{images[0].name} in {tar}"
        common = [m for m in plain if _field(m.name) in _COMMON_IMAGES]
        chosen = (common or plain or images)[0]
        self.skipped["another image of a sample (--masks keeps masks)"] += sum(
            image is not chosen and _field(image.name) not in self._keeper.wanted
            for image in images
        )
        return chosen

    def _fields(self, members: list[tarfile.TarInfo], path: str) -> dict[str, tarfile.TarInfo]:
        """The members of a sample by name; SourceError when two have one that is to be read."""
        fields = {_field(member.name): member for member in members}
        if len(fields) == len(members):
            return fields
        label = ("cls" if "cls" in fields else "json") if self._table else None
        for name in fields:
            same = [member.name for member in members if _field(member.name) == name]
            if len(same) > 1 and (name == label or name in self._keeper.wanted):
                raise SourceError(
                    f"{path}: sample {_key(same[0])} has {len(same)} members {name}: "
                    f"{', '.join(same[:3])}; rename or remove the others"
                )
            if not _is_image(name):
                self.skipped["another member of a sample with the same name"] += len(same) - 1
        return fields

    def _places(self, fields: dict[str, tarfile.TarInfo]) -> dict[str, Place]:
        """Where the members of a sample are, without its images and label that are not kept."""
        read = {"cls", *filter(_is_image, fields)}
        return {
            name: (member.offset_data, member.size)
            for name, member in fields.items()
            if name not in read or name in self._keeper.wanted
        }

    @property
    def warnings(self) -> list[str]:
        if not self._unsure:
            return []
        return [
            f"{counted(self._unsure, 'sample')} with several images, none with a plain extension "
            f"such as .jpg: the first is read, such as {self._first_unsure}"
        ]


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise tarfile's error unless the archive ended where its end is marked.

    tarfile takes a damaged header for the end, without an error.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"damaged or cut short at byte {tar.offset}")


def _is_image(field: str) -> bool:
    return is_image_name(b"." + os.fsencode(field))


def _key(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _field(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _label(tar: tarfile.TarFile, fields: dict[str, tarfile.TarInfo], path: str) -> bytes | None:
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
            f"{path}: {member.name} is not JSON: {error}; fix it, or give --no-labels"
        ) from error
    for name in ("label", "cls", "class"):
        value = document.get(name) if isinstance(document, dict) else None
        if isinstance(value, int | str) and not isinstance(value, bool):
            return str(value).encode("utf-8", "replace") or None
    return None
