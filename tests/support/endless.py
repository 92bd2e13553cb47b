"""A web server whose answers have no end, and says how much of them was taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = bytes(64 * 2**10)


class EndlessServer(ThreadingHTTPServer):
    """Serves one endless object under every name.

    Attributes:
        how: What it tells: `chunked` (no size), `sized` (3 GB, of which not one byte follows), or
            `range` (a part of unknown whole, which goes on beyond what was asked for).
        pause: The seconds between two pieces.
        block: A piece.
        sent: How many bytes were handed to the network.
        requests: The methods of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Endless)
        self.how = "chunked"
        self.pause = 0.0
        self.block = BLOCK
        self.sent = 0
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/endless.jpg"

    def handle_error(self, *_: Any) -> None:
        """Ignores a client that goes away."""


class _Endless(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: EndlessServer

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(self.command)
        self.send_response(206 if server.how == "range" else 200)
        self.send_header("ETag", '"endless"')
        if server.how == "sized":
            self.send_header("Content-Length", str(3 * 10**9))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        if server.how == "range":
            start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0]
            self.send_header("Content-Range", f"bytes {start}-{int(start) + 9}/*")
        self.end_headers()
        if self.command == "HEAD":
            self.close_connection = True
            return
        while server.how != "sized":
            self.wfile.write(b"%x\r\n%s\r\n" % (len(server.block), server.block))
            server.sent += len(server.block)
            time.sleep(server.pause)

    do_HEAD = do_GET  # noqa: N815 - the name that the library calls

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def endless_server() -> Iterator[EndlessServer]:
    """Starts the server, and ends it."""
    with EndlessServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
