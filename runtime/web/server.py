"""A server on loopback for one page: the page, ONNX Runtime Web, one model and the tensors that cross.

Nothing else is served, and only below a path that cannot be guessed, for every user of the machine can reach loopback.
"""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
"""Without these a page gets neither threads nor the fine clock (https://web.dev/articles/coop-coep)."""
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; connect-src 'self'; img-src data:"
)
"""The page loads nothing from anywhere else."""
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


class PageServer(ThreadingHTTPServer):
    """What is served, by path, and what the page has sent back."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, Path], headers: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.prefix = f"/{secrets.token_urlsafe(16)}/"
        self.files = dict(files)
        self.headers = dict(headers)
        self.published: dict[str, bytes] = {}
        self.received: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        """Return the address below which everything lies."""
        return f"http://127.0.0.1:{self.server_address[1]}{self.prefix}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a browser that is stopped leaves its connections half-way."""


@contextmanager
def serving(files: Mapping[str, Path], *, isolated: bool = True) -> Iterator[PageServer]:
    """Serve ``files``, by path, on a free port until the block ends; ``isolated`` sends COOP and COEP."""
    server = PageServer(files, ISOLATION if isolated else {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self._name()
        if name in self.server.published:
            content = self.server.published[name]
            self._start(HTTPStatus.OK, "application/octet-stream", len(content))
            self.wfile.write(content)
        elif name in self.server.files:
            path = self.server.files[name]
            with path.open("rb") as file:
                self._start(HTTPStatus.OK, _TYPES.get(Path(name).suffix, "application/octet-stream"), path.stat().st_size)
                shutil.copyfileobj(file, self.wfile, 1 << 20)
        else:
            self._start(HTTPStatus.NOT_FOUND, "text/plain", 0)

    def do_POST(self) -> None:
        name = self._name()
        if not name:
            self.close_connection = True
            self._start(HTTPStatus.NOT_FOUND, "text/plain", 0)
            return
        self.server.received[name] = self.rfile.read(int(self.headers["Content-Length"]))
        self._start(HTTPStatus.NO_CONTENT, "text/plain", 0)

    def _name(self) -> str:
        """Return the path below the secret one; the empty text, which nothing is called, for all others."""
        return self.path.removeprefix(self.server.prefix) if self.path.startswith(self.server.prefix) else ""

    def _start(self, status: HTTPStatus, content_type: str, size_bytes: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(size_bytes))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        for key, value in self.server.headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the name is the base class's
        """Stay silent."""
