"""A store on loopback that keeps files, and misbehaves where a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = tuple[str, object]


@dataclass
class StoreServer:
    """What it has, what it was asked, and what goes wrong next (each fault once, in order)."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By path: ("cut", bytes sent), ("status", code), ("redirect", URL), ("ignore-range", None),
    ("wrong-range", None)."""
    needed: dict[str, str] = field(default_factory=dict)
    """Headers without which the answer is 401."""
    challenge: str = ""
    posts: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    forms: list[bytes] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ranges(self, path: str) -> list[str]:
        return [headers.get("range", "") for asked, headers in self.asked if asked == path]


class _Requests(BaseHTTPRequestHandler):
    """Answers from a `store`, which `serving` sets on a class of its own."""

    protocol_version = "HTTP/1.1"
    store: StoreServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        store, path = self.store, self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        store.asked.append((self.path, headers))
        queue = store.faults.get(path, [])
        fault, value = queue.pop(0) if queue else ("", None)
        if any(headers.get(name) != text for name, text in store.needed.items()):
            self._answer(401, b"", {"www-authenticate": store.challenge})
        elif fault == "status":
            self._answer(int(str(value)), b"no")
        elif fault == "redirect":
            self._answer(307, b"", {"location": str(value)})
        elif path not in store.files:
            self._answer(404, b"")
        else:
            self._send(store.files[path], headers.get("range", ""), fault, value)

    def do_POST(self) -> None:
        self.store.forms.append(self.rfile.read(int(self.headers["content-length"])))
        self._answer(200, self.store.posts[self.path])

    def _send(self, content: bytes, range_: str, fault: str, value: object) -> None:
        begin = int(range_.removeprefix("bytes=").rstrip("-")) if range_ else 0
        if fault == "ignore-range":
            begin = 0
        if begin and begin >= len(content):
            self._answer(416, b"")
            return
        said = {"content-range": f"bytes {begin + (fault == 'wrong-range')}-/*"}
        status, rest = (206, content[begin:]) if begin else (200, content)
        if fault == "cut":
            self._answer(status, rest[: int(str(value))], said, length=len(rest))
            self.close_connection = True
        else:
            self._answer(status, rest, said if begin else {})

    def _answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(store: StoreServer) -> Iterator[StoreServer]:
    """Serve the store on a free port of loopback."""
    requests = type("Requests", (_Requests,), {"store": store})
    server = ThreadingHTTPServer(("127.0.0.1", 0), requests)
    server.daemon_threads = True
    store.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
