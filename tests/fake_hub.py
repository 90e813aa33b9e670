"""A small Hugging Face Hub on this machine: repositories of datasets, commits, large files.

It speaks the requests that huggingface_hub sends for these, over plain LFS, not Xet.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler
from threading import RLock
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from servers import serving

TOKEN = "hf_of_the_fake_hub"
_PAGE = 30  # entries of a listing in one answer

Tree = dict[str, bytes]


@dataclass
class Repo:
    """branches: commit of each. trees: files of each commit, by name. log: commits, in order."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree) -> str:
        oid = hashlib.sha1(f"{len(self.trees)}".encode()).hexdigest()
        self.branches[branch] = oid
        self.trees[oid] = tree
        self.log.append(oid)
        return oid

    @property
    def files(self) -> Tree:
        return self.trees[self.branches["main"]]


@dataclass
class FakeHub:
    """objects: large files by sha256. requests: method and path of all. fail: whether to refuse a
    request; `lost` is asked for after it was done, when only its answer is lost."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail: Callable[[str, str], bool] = lambda method, path: False
    lost: Callable[[str, str], bool] = lambda method, path: False
    lock: Any = field(default_factory=RLock)

    def sent(self, method: str, part: str) -> int:
        return sum(m == method and part in path for m, path in self.requests)


@contextmanager
def serving_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    with serving(partial(_Handler, hub=hub)) as hub.url:
        yield hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A new Hub, which huggingface_hub takes for the real one, with a token for it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    with serving_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield hub
        close_session()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".tar", ".npy"))


class _Error(Exception):
    def __init__(self, status: int, message: str, code: str = "", **answer: str) -> None:
        self.status, self.message, self.code, self.answer = status, message, code, answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet
    disable_nagle_algorithm = True
    _API = r"/api/datasets/(?P<repo>[^/]+/[^/]+)"
    _AT = r"/(?P<revision>[^/]+)"
    _ROUTES = (
        ("POST", r"/api/repos/create", "_create"),
        ("POST", r"/api/validate-yaml", "_validate"),
        ("GET", rf"{_API}(/revision{_AT})?", "_info"),
        ("POST", rf"{_API}/branch{_AT}", "_branch"),
        ("POST", rf"{_API}/preupload{_AT}", "_modes"),
        ("POST", rf"{_API}/commit{_AT}", "_commit"),
        ("GET", rf"{_API}/tree{_AT}(?P<path>/.*)?", "_tree"),
        ("POST", r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
        ("PUT", r"/objects/(?P<oid>\w+)", "_store"),
        ("GET", rf"/datasets/(?P<repo>[^/]+/[^/]+)/resolve{_AT}/(?P<path>.*)", "_file"),
    )

    def __init__(self, *arguments: Any, hub: FakeHub) -> None:
        self._hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self._query = parse_qs(url.query)
        try:
            with self._hub.lock:
                self._hub.requests.append((self.command, url.path))
                if self._hub.fail(self.command, url.path):
                    raise _Error(403, "refused by the test")
                self._dispatch(url.path)
        except _Error as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            answer = {"error": error.message, **error.answer}
            self._answer(error.status, json.dumps(answer).encode(), headers)

    do_GET = do_PUT = do_POST = _serve  # noqa: N815

    def _dispatch(self, path: str) -> None:
        for method, pattern, name in self._ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                parts = {key: unquote(value) for key, value in found.groupdict().items() if value}
                answer = getattr(self, name)(**parts)
                if self._hub.lost(method, path):
                    raise _Error(403, "the answer is lost")
                if answer is not None:
                    self._answer(200, json.dumps(answer).encode())
                return
        raise _Error(404, f"{self.command} {path} is not known to the fake Hub")

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        repo = self._hub.repos.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (not allowed and (write or repo.private)):
            raise _Error(404 if allowed else 401, "Repository not found", "RepoNotFound")
        return repo

    def _at(self, repo: Repo, revision: str) -> str:
        commit = revision if revision in repo.trees else repo.branches.get(revision)
        if commit is None:
            raise _Error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _create(self) -> Any:
        given = json.loads(self._body)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Error(401, "Invalid credentials in Authorization header")
        name = f"{given['organization']}/{given['name']}"
        url = f"{self._hub.url}/datasets/{name}"
        if name in self._hub.repos:
            raise _Error(409, "You already created this dataset repo", url=url)
        assert given["type"] == "dataset"
        private = given.get("private", given.get("visibility") == "private")  # before 2.0, since
        repo = self._hub.repos[name] = Repo(private=private)
        repo.commit("main", {".gitattributes": b"*.tar filter=lfs\n"})
        return {"url": url}

    def _validate(self) -> Any:
        matter = json.loads(self._body)["content"].split("---\n")[1]
        assert isinstance(yaml.safe_load(matter), dict)
        return {"errors": [], "warnings": []}

    def _info(self, repo: str, revision: str = "main") -> Any:
        found = self._repo(repo)
        return {"id": repo, "sha": self._at(found, revision), "private": found.private}

    def _branch(self, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        found.commit(revision, found.files)
        return {}

    def _modes(self, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        tree = found.trees[self._at(found, revision)]
        files = []
        for given in json.loads(self._body)["files"]:
            name, large = given["path"], is_large(given["path"])
            file = {"path": name, "uploadMode": "lfs" if large else "regular"}
            if (data := tree.get(name)) is not None:
                file["oid"] = hashlib.sha256(data).hexdigest() if large else git_oid(data)
            files.append(file | {"shouldIgnore": False})
        return {"files": files}

    def _batch(self, repo: str) -> Any:
        self._repo(repo, write=True)
        objects = []
        for given in json.loads(self._body)["objects"]:
            if given["oid"] not in self._hub.objects:
                href = f"{self._hub.url}/objects/{given['oid']}"
                given["actions"] = {"upload": {"href": href}}
            objects.append(given)
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str) -> Any:
        if hashlib.sha256(self._body).hexdigest() != oid:
            raise _Error(400, "the content is another one")
        self._hub.objects[oid] = self._body
        return {}

    def _commit(self, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        head, *operations = [json.loads(line) for line in self._body.splitlines()]
        if head["value"].get("parentCommit") not in (None, found.branches.get(revision)):
            raise _Error(412, "A commit has happened since. Please refresh and try again.")
        assert 0 < len(operations) < 100
        tree = dict(found.trees[self._at(found, revision)])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                tree[value["path"]] = self._hub.objects[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del tree[value["path"]]
        oid = found.commit(revision, tree)
        return {"commitUrl": f"{self._hub.url}/datasets/{repo}/commit/{oid}", "commitOid": oid}

    def _tree(self, repo: str, revision: str, path: str = "") -> None:
        found = self._repo(repo)
        tree = found.trees[self._at(found, revision)]
        inside = path.removeprefix("/") + "/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        recursive = self._query.get("recursive") == ["true"]
        for name in sorted(name for name in tree if name.startswith(inside)):
            inner = name.removeprefix(inside)
            folders = [inner[: at.start()] for at in re.finditer("/", inner)]
            for folder in folders if recursive else folders[:1]:
                kind = {"type": "directory", "oid": "0", "size": 0}
                entries[folder] = kind | {"path": inside + folder}
            if recursive or not folders:
                entries[inner] = _entry(name, tree[name])
        if path and not entries:
            raise _Error(404, f"{path} does not exist", "EntryNotFound")
        start = int(self._query.get("cursor", ["0"])[0])
        left = list(entries.values())[start:]
        headers = {}
        if len(left) > _PAGE:
            url = self._hub.url + self.path.partition("&cursor")[0]
            headers["Link"] = f'<{url}&cursor={start + _PAGE}>; rel="next"'
        self._answer(200, json.dumps(left[:_PAGE]).encode(), headers)

    def _file(self, repo: str, revision: str, path: str) -> None:
        found = self._repo(repo)
        data = found.trees[self._at(found, revision)].get(path)
        if data is None:
            raise _Error(404, f"{path} does not exist", "EntryNotFound")
        wanted = self.headers.get("Range")
        if wanted is None:
            self._answer(200, data)
            return
        start, stop = wanted.removeprefix("bytes=").split("-")
        self._answer(206, data[int(start) : int(stop) + 1 if stop else len(data)])

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
    if is_large(name):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return entry
