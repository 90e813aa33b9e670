"""The files below a folder, in the order of their paths' bytes."""

from collections import Counter
from collections.abc import Iterator

from quadpipe.errors import SourceError
from quadpipe.names import path_to_text
from quadpipe.sources.roots import Root
from quadpipe.text import counted


class Walk:
    """Lists the plain files below `root`.

    Symbolic links are followed, but not in circles. skipped: number of hidden files and folders, of
    broken links and of other things that are not plain files. read_twice: number of the files given
    to `note_read` that are behind a link to another place below the root, and listed there too.
    """

    def __init__(self, root: Root) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self.read_twice = 0
        self._first_twice = b""
        # Links to files that this walk also lists under their own path; folders end with a slash.
        self._inner_links: set[bytes] = set()

    def files(self, below: bytes = b"") -> Iterator[bytes]:
        """Paths relative to the root, sorted by their bytes.

        below: a folder, with a slash at the end. SourceError when a folder cannot be listed.
        """
        # For each open folder the paths that remain, last first, and the folders around it. A
        # folder's path ends with a slash, so that it sorts as the full paths below it do.
        levels = [([below], frozenset[object]())]
        if below:
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
            try:
                identity = self.root.identity(path)
            except OSError as error:
                raise self._unlistable(path, error) from error
            if identity in above:
                self.skipped["a link in a circle"] += 1
                continue
            found = self.entries(path)
            found.reverse()
            levels.append((found, above | {identity}))

    def entries(self, folder: bytes = b"") -> list[bytes]:
        """Paths of the files and folders in a folder, the latter with a slash at the end, sorted.

        SourceError when it cannot be listed.
        """
        try:
            return sorted(self._entries(folder))
        except OSError as error:
            raise self._unlistable(folder, error) from error

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
            f"{counted(self.read_twice, 'file')} read more than once, through links to other "
            f"folders of {self.root}; the first is {path_to_text(self._first_twice)}"
        ]

    def _unlistable(self, folder: bytes, error: OSError) -> SourceError:
        return SourceError(
            f"cannot list {self.root.where(folder)}: {error.strerror or error}; make it readable, "
            f"or move it away"
        )

    def _entries(self, folder: bytes) -> Iterator[bytes]:
        for name, kind, is_link in self.root.scan(folder):
            if name.startswith(b"."):
                self.skipped["hidden"] += 1
                continue
            if kind is None:
                self.skipped["a broken link or no plain file"] += 1
                continue
            path = folder + name + (b"/" if kind == "folder" else b"")
            if is_link:
                self._note_link(path)
            yield path

    def _note_link(self, path: bytes) -> None:
        """Remember a link that leads to the root or below it, where files are not hidden."""
        target = self.root.link_target(path.rstrip(b"/"))
        if target is None:
            return
        if target == b"." or not any(part.startswith(b".") for part in target.split(b"/")):
            self._inner_links.add(path)
