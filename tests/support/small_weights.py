"""Small files of weights, served by this machine in place of their authors."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sfmprep.weights import WEIGHTS, Weights

CONTENT = b"the authors' file"
CONVERTED = b"the converted file"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT, and remembers what was asked for.

    `/gone` is not there, `/short` breaks off, `/flaky` breaks off once, and `/slow`
    waits for `may_answer`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        page = self.path.rpartition("/")[2]
        self.server.asked.append(page)
        self.server.is_asked.set()
        if page == "gone":
            self.send_error(404)
            return
        if page == "slow":
            self.server.may_answer.wait()
        is_first = self.server.asked.count(page) == 1
        breaks_off = page == "short" or (page == "flaky" and is_first)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) + 5 * breaks_off))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        """Stays silent."""


@contextmanager
def serve() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.may_answer.set()
        server.shutdown()


def tiny(url: str | None, **changes: object) -> Weights:
    """An entry of the registry for CONTENT."""
    fields = {
        "name": "tiny",
        "url": url,
        "sha256": sha256(CONTENT),
        "converted_sha256": sha256(CONVERTED),
        "licence": "MIT",
        "origin": "nobody/tiny",
    }
    return Weights(**{**fields, **changes})


def know(
    monkeypatch: pytest.MonkeyPatch, url: str | None, **changes: object
) -> Weights:
    """Puts such an entry into the registry."""
    entry = tiny(url, **changes)
    monkeypatch.setitem(WEIGHTS, entry.name, entry)
    return entry
