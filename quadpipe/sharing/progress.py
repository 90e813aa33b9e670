"""The preview and the progress of a copy."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CopyPreview:
    """What a copy is about to do.

    bytes: of all files that are read, those included that are there already. notes: what the user
    should know. free_bytes: free space of the destination, None when unknown.
    """

    samples: int
    shards: int
    bytes: int
    free_bytes: int | None
    notes: tuple[str, ...] = ()


class CopyProgress:
    """Progress callbacks; the base class ignores them. Threads call `advanced` one at a time."""

    def planned(self, preview: CopyPreview) -> None:
        """The copy is about to begin."""

    def advanced(self, count: int) -> None:
        """This many more bytes are at the destination; below 0 when they have to be read again."""

    def close(self) -> None:
        """The copy has ended, with or without an error."""
