"""Datasets on the Hugging Face Hub: read at one commit, written in commits."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from threading import RLock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from quadpipe import faults
from quadpipe.errors import ConfigError, OutputError, UnreadableError
from quadpipe.files.folder import StagedFile, checked_name
from quadpipe.files.remote import RemoteFolder
from quadpipe.files.storage import reason_of, retry
from quadpipe.text import counted

if TYPE_CHECKING:
    from typing_extensions import Buffer

SCHEME = "hf://datasets/"

_URL = re.compile(
    SCHEME + r"(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?"
    r"(?P<inside>(?:/[^/]+)*)"
)

# The Hub advises at most 100 files in a commit. Small files have room for a few more, so that the
# cards and the manifest, which come last, are in one commit.
_FILES_IN_COMMIT = 90
_MORE_SMALL_FILES = 9
# Larger files are uploaded from a temporary file; the Hub keeps all of them outside of git.
_LARGEST_IN_MEMORY = 2**20


class HubFolder(RemoteFolder):
    """A folder in a dataset's repository: `hf://datasets/ORG/NAME[@REVISION][/FOLDER]`.

    It is read as it was at the newest commit when it was opened, also by the processes that get it.
    Changes are collected while the folder is locked, and become visible in commits of fewer than
    100 files, in their order. Each commit names the one before it: the Hub refuses it when another
    process has committed meanwhile. The token is found by huggingface_hub.
    """

    # Without it, each read of a part would fetch some megabytes more.
    _part_options = {"cache_type": "none"}  # noqa: RUF012

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url.rstrip("/"))
        if found is None or {".", ".."} & set(found["inside"].split("/")):
            raise ConfigError(
                f"{url} is not a dataset on the Hub; give {SCHEME}ORG/NAME, or "
                f"{SCHEME}ORG/NAME@REVISION"
            )
        self.url = url.rstrip("/")
        self._repo = {"repo_id": found["repo"], "repo_type": "dataset"}
        self._revision = unquote(found["revision"] or "main")
        self._inside = found["inside"].removeprefix("/")
        self._commit: str | None = None
        self._opened: tuple[int, Any, str] | None = None
        self._may_be_new = self._public = False
        self._changes: dict[str, Any] = {}  # operations of the next commit, by name
        self._changing = RLock()
        try:
            _library().utils.validate_repo_id(found["repo"])
        except ValueError as error:
            raise ConfigError(f"{url} is not a dataset on the Hub: {error}") from error

    @property
    def place(self) -> str:
        """Repository, revision and folder, the same for all URLs of one place."""
        return f"{SCHEME}{self._repo['repo_id']}@{self._revision}/{self._inside}".rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        self._open()  # the other process reads the same commit
        return {**super().__getstate__(), "_changes": {}, "_changing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _changing=RLock())

    def prepare(self, *, public: bool) -> None:
        """Let this be written, also to a repository or branch that does not exist.

        public: a new repository is visible to all. ConfigError when there is a private one.
        """
        self._may_be_new, self._public = True, public
        info = self._info()
        if public and info is not None and info.private:
            raise ConfigError(
                f"{self.url} exists and is private; omit --public, or change it in the settings of "
                f"the repository"
            )

    def _open(self) -> tuple[Any, str]:
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            if self._commit is None:
                info = self._info()
                self._commit = info and info.sha
            place = f"{SCHEME.removeprefix('hf://')}{self._repo['repo_id']}@{self._commit}"
            root = f"{place}/{self._inside}".rstrip("/")
            opened = self._opened = os.getpid(), _library().HfFileSystem(), root
        return opened[1:]

    def _info(self) -> Any:
        """Id and visibility of the newest commit; None of what may be, and is, new."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        def ask() -> Any:
            try:
                return self._api.dataset_info(
                    self._repo["repo_id"], revision=self._revision, expand=["sha", "private"]
                )
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                return error  # an answer, which is not asked for again

        info = self._reading("", ask)
        if not isinstance(info, Exception):
            return info
        if self._may_be_new:
            return None
        raise UnreadableError(
            f"cannot read {self.url}: there is no such repository or revision, or it is private; "
            f"check the name, and log in with `hf auth login`"
        ) from info

    @property
    def _api(self) -> Any:
        return _library().HfApi()

    @property
    def _is_new(self) -> bool:
        self._open()
        return self._commit is None

    def size(self, name: str) -> int | None:
        change = self._changes.get(name)
        if change is not None:
            added = getattr(change, "upload_info", None)
            return added and int(added.size)
        return None if self._is_new else super().size(name)

    def get(self, name: str) -> bytes | None:
        content = getattr(self._changes.get(name), "path_or_fileobj", None)
        if isinstance(content, bytes) and content:  # of an uploaded one it is not kept
            return content
        return None if self.size(name) is None else super().get(name)

    def stored_sha256(self, name: str) -> str | None:
        path = self._path(name)
        lfs = self._reading(name, lambda: self._system.info(path)["lfs"])
        return lfs and str(lfs.sha256)

    def names(self) -> list[str] | None:
        return [] if self._is_new else super().names()

    def sizes(self) -> Callable[[str], int | None]:
        return (lambda name: None) if self._is_new else super().sizes()

    def write(self, name: str, data: bytes) -> None:
        self._change(name, self._addition(name, data), _FILES_IN_COMMIT + _MORE_SMALL_FILES)

    @contextmanager
    def staged(self, name: str) -> Iterator[StagedFile]:
        """Upload a file; it is visible after the next commit."""
        with self._writing(name):
            file = NamedTemporaryFile(prefix="quadpipe-")  # noqa: SIM115
        with file:

            def keep(data: "Buffer") -> None:
                with self._writing(name):
                    file.write(data)

            staged = StagedFile(name, keep)
            yield staged
            with self._writing(name):
                file.flush()
                addition = self._upload(name, file, staged.bytes)
        self._change(name, addition)

    def _upload(self, name: str, file: Any, size: int) -> Any:
        """Store the content of a file for a later commit."""
        file.seek(0)
        content = file.name if size > _LARGEST_IN_MEMORY else file.read()
        addition = self._addition(name, content)
        faults.point("before upload", name)
        retry(
            lambda: self._api.preupload_lfs_files(
                **self._repo, revision=self._revision, additions=[addition]
            )
        )
        faults.point("after upload", name)
        if addition._upload_mode != "lfs":  # sent with the commit, when the file is gone
            file.seek(0)
            return self._addition(name, file.read())
        return addition

    def remove(self, name: str) -> None:
        from huggingface_hub import CommitOperationDelete

        with self._changing:
            self._changes.pop(name, None)
            if self.size(name) is not None:
                self._change(name, CommitOperationDelete(self._place(name), is_folder=False))

    def remove_folder(self, name: str) -> None:
        if self._is_new:
            return
        system, root = self._open()
        for path in self._reading(name, lambda: system.find(f"{root}/{name}")):
            self.remove(path.removeprefix(f"{root}/"))

    def clear_staging(self) -> None:
        """There is none."""

    def overwrite(self, name: str, data: bytes) -> None:
        self.write(name, data)

    def check_writable(self) -> None:
        """Commits are atomic."""

    def check_shared(self) -> None:
        raise OutputError(
            f"{self.url}: shards are not made on the Hub; make the dataset in a local folder, then "
            f"`quadpipe copy` that folder to the Hub"
        )

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Create repository and branch if they do not exist, and commit when the block ends.

        Nothing is locked: a commit is refused when another process has committed meanwhile.
        """
        with self._writing(""):
            self._create()
        self._move(None)
        try:
            with _without_progress_bars():
                yield
                self._commit_changes()
        finally:
            self._changes.clear()

    def _create(self) -> None:
        if self._info() is not None:
            return
        who = "everybody" if self._public else "only you and your organization; --public shows it"
        self.notes = (f"{self.url} is new and can be seen by {who}",)
        api = self._api
        retry(lambda: api.create_repo(**self._repo, private=not self._public, exist_ok=True))
        if self._revision != "main":
            retry(lambda: api.create_branch(**self._repo, branch=self._revision, exist_ok=True))

    def _change(self, name: str, operation: Any, most: int | None = None) -> None:
        """most: commit first when there are so many changes already."""
        with self._changing:
            if len(self._changes) >= (most or _FILES_IN_COMMIT):
                self._commit_changes()
            self._changes[name] = operation

    def _commit_changes(self) -> None:
        if not self._changes:
            return
        message = f"quadpipe copy: {counted(len(self._changes), 'file')}"
        with self._writing(""):
            faults.point("before commit", self.url)
            made = retry(
                lambda: self._api.create_commit(
                    **self._repo,
                    revision=self._revision,
                    parent_commit=self._commit,
                    operations=self._changes.values(),
                    commit_message=message,
                )
            )
            faults.point("after commit", self.url)
        self._changes.clear()
        self._move(made.oid)

    def _move(self, commit: str | None) -> None:
        """Read from this commit on; None: from the newest one."""
        self._commit = commit
        self._opened = None

    def _addition(self, name: str, content: bytes | str) -> Any:
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(self._place(name), content)

    def _place(self, name: str) -> str:
        """The path in the repository."""
        return f"{self._inside}/{checked_name(self.url, name)}".removeprefix("/")

    def _unwritable(self, name: str, error: Exception) -> OutputError:
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status in (409, 412):
            return OutputError(
                f"{self.url} got a commit from another process meanwhile; rerun the same command"
            )
        if status in (401, 403):
            return OutputError(
                f"cannot write {self.url}: {reason_of(error)}; log in with `hf auth login` as "
                f"somebody who may write there"
            )
        return super()._unwritable(name, error)


def _library() -> Any:
    """huggingface_hub; ConfigError if it is not installed."""
    try:
        import huggingface_hub.utils
    except ImportError as error:
        raise ConfigError(
            f"{SCHEME}.. needs huggingface_hub: pip install 'quadpipe[hf]'"
        ) from error
    return huggingface_hub


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Without those of huggingface_hub: a copy has its own. A choice in the environment holds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
