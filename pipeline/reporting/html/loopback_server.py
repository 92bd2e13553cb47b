"""Answers browsers of this machine with the pages of a catalogue, computed when they are asked for.

    >>> with listen(LiveSite(Catalogue("dnas")), 8080) as server:            # doctest: +SKIP
    ...     server.serve_forever()

It listens on the loopback address, and refuses requests that name another host, so that no page of
another site can reach it through a name that it points here.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from pipeline.reporting.html.live_site import LiveSite, Waiting

LOOPBACK = "127.0.0.1"

PATIENCE = 1.0
"""Seconds that a browser waits for a page, before it is shown how far the page is."""


def listen(site: LiveSite, port: int = 0) -> ThreadingHTTPServer:
    """Begins to listen on this machine's loopback address.

    Args:
        site: What is answered.
        port: The port; 0 for any free one.

    Returns:
        The server. It answers while its `serve_forever` runs.
    """

    class Handler(_Handler):
        pages = site

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            error = sys.exception()
            # A browser may leave at any time, which is no error.
            if isinstance(error, Exception) and not isinstance(error, ConnectionError):
                site.tell(error)

    server = Server((LOOPBACK, port), Handler)
    port = server.server_port
    named = "" if port == 80 else f":{port}"  # as browsers write it
    Handler.hosts = frozenset(f"{host}{named}" for host in (LOOPBACK, "localhost"))
    return server


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD. All other methods are refused."""

    pages: ClassVar[LiveSite]
    hosts: ClassVar[frozenset[str]] = frozenset()
    timeout = 60.0
    server_version, sys_version = "vdna", ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        status, kind, progress = 200, "text/html", ""
        if self.headers.get("Host") not in self.hosts or self._is_asked_by_another_site():
            status, kind, body = 403, "text/plain", b"This server answers its own machine only.\n"
        else:
            try:
                path = self.path.partition("?")[0]
                # A page that waits asks by HEAD, and the next GET has the error.
                found = self.pages.page_within(path, PATIENCE * with_body, forget=with_body)
                match found:
                    case None:
                        status, kind, body = 404, "text/plain", b"There is no such page.\n"
                    case Waiting():
                        status, progress, body = 202, found.progress, found.html
                    case bytes():
                        body = found
            except Exception as error:  # whatever it is, the browser and the listener are told
                status, kind = 500, "text/plain"
                body = f"{self.pages.tell(error)}\n".encode()
        try:
            self._send(status, kind, body, progress, with_body=with_body)
        except ConnectionError:  # the browser left before the page was made
            self.close_connection = True

    def _is_asked_by_another_site(self) -> bool:
        """Tells whether another site's page asks, and not somebody who follows a link."""
        site, mode, what = (
            self.headers.get(f"Sec-Fetch-{name}", "") for name in ("Site", "Mode", "Dest")
        )
        follows_a_link = (mode, what) == ("navigate", "document")
        return site not in ("", "none", "same-origin") and not follows_a_link

    def _send(self, status: int, kind: str, body: bytes, progress: str, *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-store",
            **({"X-Progress": progress} if progress else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: what is computed is told to the listener of progress."""
