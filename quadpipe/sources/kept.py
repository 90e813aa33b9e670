"""What is kept of an input beside its image: members of tars, columns of tables."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from quadpipe.errors import ConfigError, SourceError
from quadpipe.names import MAX_KEPT_BYTES, is_format_member, is_member_name

Place = str | tuple[int, int]
"""The text of a column, or offset and size of a member in the tar of its image."""

_SUFFIXES = {"boxes": ".json", "mask": ".png"}
_SHOWN = 6
_MOST_NAMES = 1000  # keys with dots give each sample names of its own


@dataclass(frozen=True, kw_only=True)
class KeptMembers:
    """What a source keeps and leaves.

    kinds: kind (see `names.MEMBER_KINDS`) by the name that a member gets. images: how many were
    looked at. missing: how many of them lack a member, by its name. others: number of members or
    cells that are not kept, by their name in the source. bytes: of all kept members.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    images: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    bytes: int = 0

    @property
    def notes(self) -> list[str]:
        """Lines for the user about what is not kept and what is missing."""
        notes = []
        if self.others:
            names = sorted(self.others, key=lambda name: (-self.others[name], name))
            shown = ", ".join(f"{name} ({self.others[name]:,})" for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN:,} more" if names[_SHOWN:] else ""
            possible = ",".join(name for name in names[:_SHOWN] if is_member_name(name))
            advice = "; rename them to keep them"
            if possible:
                advice = f"; --keep {possible} keeps them (boxes: --boxes, masks: --masks)"
            notes.append(f"not kept: {shown}{more}{advice}")
        for name, count in self.missing.items():
            notes.append(f"{name} is missing in {count:,} of {self.images:,} images")
        return notes


class Keeper:
    """Takes what is wanted of each image, and counts the rest.

    wanted: kind by name in the source. columns: whether these are columns of a table. ConfigError
    when the names cannot be kept.
    """

    def __init__(self, wanted: Mapping[str, str], *, columns: bool = False) -> None:
        self.masks = {name for name, kind in wanted.items() if kind == "mask"}
        self.wanted = stored_names(wanted, columns=columns)
        self._kinds = {new: wanted[name] for name, new in self.wanted.items()}
        self._found: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._images = self._bytes = 0

    def take(
        self, found: Mapping[str, Place], where: str, *, again: bool = False
    ) -> dict[str, Place]:
        """What is kept of an image, by new name.

        found: everything that the image has, by its name in the source. where: for messages.
        again: whether the image was counted before. SourceError when something is too large.
        """
        count = 0 if again else 1
        self._images += count
        kept = {}
        for name, place in found.items():
            if name not in self.wanted:
                is_one_of_many = name not in self._others and len(self._others) >= _MOST_NAMES
                self._others["other names" if is_one_of_many else name] += count
                continue
            size = len(place.encode()) if isinstance(place, str) else place[1]
            if size > MAX_KEPT_BYTES:
                raise SourceError(
                    f"{where}: {name} has {size:,} bytes, more than the {MAX_KEPT_BYTES:,} of a "
                    f"kept member; leave {name} out"
                )
            self._found[name] += count
            self._bytes += size * count
            kept[self.wanted[name]] = place
        return kept

    def result(self, source: str) -> KeptMembers:
        """SourceError when no image has a wanted member: its name is a mistake."""
        unknown = [name for name in self.wanted if not self._found[name]]
        if unknown and self._images:
            there = sorted(self._found.keys() | self._others.keys())
            raise SourceError(
                f"no image in {source} has {unknown[0]!r}; there is "
                f"{', '.join(there[:_SHOWN]) or 'nothing beside the images'}"
            )
        missing = {
            new: count
            for name, new in self.wanted.items()
            if (count := self._images - self._found[name])
        }
        return KeptMembers(
            kinds=self._kinds,
            images=self._images,
            missing=missing,
            others=dict(+self._others),
            bytes=self._bytes,
        )


def stored_names(wanted: Mapping[str, str], *, columns: bool) -> dict[str, str]:
    """The name in the dataset by name in the source, after the key.

    A column gets an extension. `original.` goes before a name that the format uses itself.
    ConfigError when two get one name, or a kind has another extension.
    """
    names: dict[str, str] = {}
    for name, kind in wanted.items():
        suffix = _SUFFIXES.get(kind, ".txt")
        if columns and kind == "mask":
            raise ConfigError("--masks is for tars, which hold masks beside images; omit it")
        new = f"{name}{suffix}" if columns and "." not in name else name
        if is_format_member(new):
            new = f"original.{new}"
        if kind in _SUFFIXES and not f".{new}".endswith(suffix):
            option = "boxes" if kind == "boxes" else "masks"
            raise ConfigError(f"--{option} {name}: give a member whose name ends in {suffix}")
        if not is_member_name(new):
            raise ConfigError(f"{name!r} is too long for the name of a member; rename it")
        if new in names.values():
            other = next(old for old in names if names[old] == new)
            raise ConfigError(f"{other} and {name} would both be kept as {new}; leave one out")
        names[name] = new
    return names
