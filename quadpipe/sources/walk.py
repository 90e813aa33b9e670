"""The files below a folder, in the order of their paths' bytes."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text


class Walk:
    """Lists the plain files below `root`.

    Symbolic links are followed, but not in circles. skipped: hidden files and folders, broken
    links and what is not a plain file, with counts. read_twice: how many of the files given to
    `note_read` lie behind a link to another place below the root, where they are listed too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self.read_twice = 0
        self._first_twice = b""
        self._real_root = os.path.realpath(os.fsencode(root))
        # Links to what this walk reads in its own place too; of folders, with a slash at the end.
        self._inner_links: set[bytes] = set()

    def files(self, below: bytes = b"") -> Iterator[bytes]:
        """Paths relative to the root, sorted by their bytes.

        below: a folder, with a slash at the end. SourceError when a folder cannot be listed.
        """
        # By folder the paths still to come, last first, and the folders that hold it. A folder's
        # path ends with a slash, so that it sorts as the full paths below it do.
        levels = [([below], frozenset[tuple[int, int]]())]
        if below and os.path.islink(self._absolute(below.rstrip(b"/"))):
            self._note_link(below)
        while levels:
            paths, above = levels[-1]
            if not paths:
                levels.pop()
                continue
            path = paths.pop()
            if path and not path.endswith(b"/"):
                yield path
                continue
            folder = self._absolute(path)
            try:
                status = os.stat(folder)
                identity = (status.st_dev, status.st_ino)
                if identity in above:
                    self.skipped["a link in a circle"] += 1
                    continue
                found = self.entries(path)
            except OSError as error:
                raise SourceError(
                    f"cannot list {os.fsdecode(folder)}: {error.strerror}; "
                    f"make it readable, or move it away"
                ) from error
            found.reverse()
            levels.append((found, above | {identity}))

    def entries(self, folder: bytes = b"") -> list[bytes]:
        """Paths of the files and folders in a folder, the latter with a slash at the end, sorted.

        OSError when it cannot be listed.
        """
        return sorted(self._entries(folder))

    def note_read(self, path: bytes) -> None:
        """Count a listed file in `read_twice` if it is."""
        if not self._inner_links:
            return
        ends = [index + 1 for index, byte in enumerate(path) if byte == ord("/")] + [len(path)]
        if any(path[:end] in self._inner_links for end in ends):
            self._first_twice = self._first_twice or path
            self.read_twice += 1

    @property
    def warnings(self) -> list[str]:
        if not self.read_twice:
            return []
        return [
            f"{self.read_twice:,} files are read more than once, through links to other folders of "
            f"{self.root}; the first is {path_to_text(self._first_twice)}"
        ]

    def _entries(self, folder: bytes) -> Iterator[bytes]:
        with os.scandir(self._absolute(folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    self.skipped["hidden"] += 1
                    continue
                kind = _kind(entry)
                if kind is None:
                    self.skipped["a broken link or no plain file"] += 1
                    continue
                path = folder + entry.name + (b"/" if kind == "folder" else b"")
                if entry.is_symlink():
                    self._note_link(path)
                yield path

    def _note_link(self, path: bytes) -> None:
        """Remember a link that leads to the root or below it, where files are not hidden."""
        real = os.path.realpath(self._absolute(path))
        inside = os.path.relpath(real, self._real_root)
        if inside == b"." or not any(part.startswith(b".") for part in inside.split(b"/")):
            self._inner_links.add(path)

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(os.fsencode(self.root), path)


def _kind(entry: "os.DirEntry[bytes]") -> str | None:
    """`file` or `folder`, also behind a link; None for what is neither."""
    try:
        if entry.is_file():
            return "file"
        return "folder" if entry.is_dir() else None
    except OSError:  # a link to itself
        return None
