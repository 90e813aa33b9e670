"""The interface of a source."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quadpipe import faults
from quadpipe.errors import ConfigError, SourceError
from quadpipe.names import text_to_path
from quadpipe.retries import retry
from quadpipe.sources.labels import ClassNames
from quadpipe.sources.listing import Input, Inputs
from quadpipe.sources.roots import MAX_FILE_BYTES, Root

_HEADERS = 1 << 14  # bytes between the members of a sample


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """How inputs are listed: see `Source.list`."""

    split: str | None
    labels: Path | None
    use_labels: bool
    classes: ClassNames | None
    wanted: Mapping[str, str] = field(default_factory=dict)


class Source(ABC):
    """Where images come from: `list` finds the inputs, `read` gives the bytes of one.

    root: the folder that paths are relative to. file: name of the source in it, empty when the
    source is the folder. A new kind of source is a subclass in its own file and a line of
    `SOURCES`; one whose inputs are not files of the root overrides `read` and `has`. Sources are
    sent to workers, so they can be pickled.
    """

    takes_labels = False
    """Whether `labels` is for this kind of source."""
    has_members = True
    """Whether its images have members or columns that can be kept."""

    def __init__(self, root: Root, file: bytes = b"") -> None:
        self.root = root
        self.file = file

    def __str__(self) -> str:
        return self.root.where(self.file) if self.file else str(self.root)

    @classmethod
    @abstractmethod
    def matches(cls, root: Root, file: bytes) -> bool:
        """Whether a location is a source of this kind, by its name or contents."""

    @abstractmethod
    def _list(self, options: ListOptions) -> Inputs:
        """As `list`, whose checks are done."""

    def list(
        self,
        *,
        split: str | None = None,
        labels: Path | None = None,
        use_labels: bool = True,
        classes: ClassNames | None = None,
        wanted: Mapping[str, str] | None = None,
    ) -> Inputs:
        """All inputs.

        wanted: members or columns to keep, kind by name; see `kept.Keeper`. SourceError when the
        source cannot be read, holds no image, or has labels that are not among `classes`;
        ConfigError when `labels` is given for a source that has its own labels, or `classes` for
        one that has none.
        """
        if labels and not use_labels:
            raise ConfigError("--labels and --no-labels exclude each other; give one of them")
        if classes and not use_labels:
            raise ConfigError("--classes and --no-labels exclude each other; give one of them")
        if labels and not self.takes_labels:
            raise ConfigError("--labels is for a folder of images; this source has its own labels")
        if wanted and not self.has_members:
            raise ConfigError(
                f"--keep, --boxes and --masks are for tars and tables, {self} is a folder of "
                f"images; omit them"
            )
        options = ListOptions(
            split=split,
            labels=labels,
            use_labels=use_labels,
            classes=classes,
            wanted=wanted or {},
        )
        inputs = self._list(options)
        if not any(len(listing) for listing in inputs.splits.values()):
            skipped = ", ".join(f"{n:,} {why}" for why, n in sorted(inputs.skipped.items()))
            raise SourceError(
                f"no images found in {self} (skipped: {skipped or 'nothing'}); give a folder of "
                f"images or of tars, or a .csv list"
            )
        if classes and inputs.classes is None:
            raise ConfigError(f"--classes is for images with labels, {self} has none; omit it")
        return inputs

    def read(self, entry: Input) -> bytes:
        """The bytes of one input; see `read_all`."""
        return self.read_all(entry)[0]

    def read_all(self, entry: Input) -> tuple[bytes, dict[str, bytes]]:
        """The bytes of one input, and of its kept members by name.

        I/O errors are retried with back-off, also a missing file: network folders come and go.
        SourceError when they persist, RejectError on a file that is too large to be an image.
        """

        def attempt() -> tuple[bytes, dict[str, bytes]]:
            faults.point("reading", entry.path)
            return self._read(entry)

        try:
            return retry(attempt, final=())
        except OSError as error:
            place = f" in {self.root}" if entry.row is None else f", row {entry.row} of {self}"
            raise SourceError(
                f"cannot read {entry.path}{place}: {error.strerror or error}; fix it and rerun the "
                f"same command"
            ) from error

    def _read(self, entry: Input) -> tuple[bytes, dict[str, bytes]]:
        path, span = self._path(entry), entry.span
        texts = {
            name: place.encode() for name, place in entry.kept.items() if isinstance(place, str)
        }
        if span is None:
            return self.root.read(path), texts
        spans = {name: place for name, place in entry.kept.items() if not isinstance(place, str)}
        places = [(span.offset, span.size), *spans.values()]
        first = min(offset for offset, _ in places)
        whole = max(offset + size for offset, size in places) - first
        most = min(2 * sum(size for _, size in places) + _HEADERS, MAX_FILE_BYTES)
        if whole <= most:  # one request to a server
            data = self.root.read(path, first, whole)
            parts = [data[offset - first :][:size] for offset, size in places]
        else:
            parts = [self.root.read(path, offset, size) for offset, size in places]
        return parts[0], texts | dict(zip(spans, parts[1:], strict=True))

    def has(self, entry: Input) -> bool:
        """Whether the file of an input exists; SourceError as for `read`."""
        return self.root.exists(self._path(entry))

    def _path(self, entry: Input) -> bytes:
        """The path of an input's file, or of its tar, in the root."""
        if entry.row is None:
            return text_to_path(entry.span.tar if entry.span else entry.path)
        path = self._path_in_row(entry.row)
        if path is None or os.path.basename(path) != text_to_path(entry.path):
            raise SourceError(
                f"row {entry.row} of {self} does not name {entry.path}; give the list that the job "
                f"was planned with"
            )
        return path

    def _path_in_row(self, row: int) -> bytes | None:
        """The path in a row of a table, None for a source without it."""
        return None
