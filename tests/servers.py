"""Servers on this machine: S3 behind a proxy that fails on request, and files by HTTP."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest


@dataclass
class Trouble:
    """What the proxy does to the next requests of a method whose path holds a text.

    kind: `refuse` answers 500, `cut` closes the connection in the middle of the answer, `flip`
    changes one bit of the answer.
    """

    kind: str
    method: str
    path: str
    times: int = 1


@dataclass
class Proxy:
    """A proxy before a server. requests: method and path of all requests; bytes sent back."""

    url: str
    troubles: list[Trouble] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0

    def trouble(self, method: str, path: str) -> str | None:
        for trouble in self.troubles:
            if trouble.times and trouble.method == method and trouble.path in path:
                trouble.times -= 1
                return trouble.kind
        return None


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a server that runs in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """A real S3 server, behind a proxy."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    proxy = Proxy("")
    try:
        with serving(partial(_ProxyHandler, proxy=proxy, host=host, port=port)) as proxy.url:
            yield proxy
    finally:
        moto.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[Proxy]:
    """The proxy before the server, with a bucket and the environment to find it."""
    with pytest.MonkeyPatch.context() as patched, s3_server() as proxy:
        patched.setenv("AWS_ENDPOINT_URL", proxy.url)
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "anybody"),
            ("AWS_SECRET_ACCESS_KEY", "anything"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patched.setenv(name, value)
        system = fsspec.filesystem("s3")
        system.makedirs("bucket", exist_ok=True)  # the server's state outlives it
        yield proxy
        type(system).clear_instance_cache()


@pytest.fixture
def proxy(s3: Proxy) -> Iterator[Proxy]:
    """The same, without the faults that another test has set."""
    yield s3
    s3.troubles.clear()


@contextmanager
def files_by_http(folder: Path, *, ranges: bool) -> Iterator[str]:
    """The URL of a web server for a folder, one that gives parts of files or one that does not."""
    with serving(partial(_RangeHandler if ranges else _QuietHandler, directory=folder)) as url:
        yield url


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class _RangeHandler(_QuietHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, _, stop = wanted.removeprefix("bytes=").partition("-")
        part = data[int(start) : int(stop) + 1 if stop else len(data)]
        self.send_response(206)
        last = int(start) + len(part) - 1
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, proxy: Proxy, host: str, port: int) -> None:
        self._proxy, self._to = proxy, (host, port)
        super().__init__(*arguments)

    def log_message(self, *arguments: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self._body()
        self._proxy.requests.append((self.command, self.path))
        kind = self._proxy.trouble(self.command, self.path)
        if kind == "refuse":
            self._answer(500, [], b"<Error><Code>InternalError</Code></Error>")
            return
        connection = http.client.HTTPConnection(*self._to)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data, given = response.read(), response.getheaders()
        if kind == "flip":  # unseen by the client's own checksums
            data = data[:-1] + bytes([data[-1] ^ 1])
            given = [(k, v) for k, v in given if "checksum" not in k.lower()]
        self._answer(response.status, given, data, cut=kind == "cut")
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD response, which has no body
            elif name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self._proxy.sent += len(data)  # before the client goes on
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True
