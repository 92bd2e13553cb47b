"""Answers browsers of this machine with the pages of a catalogue, computed when they are asked for.

    >>> with listen(LiveSite(Catalogue("dnas")), 8080) as server:            # doctest: +SKIP
    ...     server.serve_forever()

It only reads the catalogue: distances that nobody has kept there are computed again by each
`LiveSite`. It listens on the loopback address, and refuses requests that name another host, so
that no page of another site can reach it through a name that it points here.
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import ClassVar

from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, compare, resolve_versions
from pipeline.errors import known_error, redact
from pipeline.events import Listener, Said, ignore
from pipeline.explaining import explain
from pipeline.reporting.html.dataset_panels import gather_matrix_page
from pipeline.reporting.html.explanation_page import gather_explanation, render_explanation
from pipeline.reporting.html.matrix_page import render_matrix_page
from pipeline.reporting.html.site import way_back
from pipeline.reporting.report_options import SHOWN_IMAGES

HELD_PAGES = 64
"""How many pages are kept. The ones that were asked for longest ago are made again."""

LOOPBACK = "127.0.0.1"

_PAIR = re.compile(r"/pairs/([0-9]{1,18})/([0-9]{1,6})-([0-9]{1,6})\.html")


class LiveSite:
    """The pages of the newest commit of a catalogue: the report, and why each pair differs.

    One page is made at a time, and pages that are kept are answered meanwhile. A page is kept until
    others need its room, or until a request finds a newer commit.

    Args:
        catalogue: The catalogue.
        spec: The spec that is looked at; None to choose it as `compare` does.
        samples: Images of each dataset on a page.
        effort: How distances are computed. None of them are kept in the catalogue.
        progress: Is told how far the work is.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        spec: str | None = None,
        samples: int = SHOWN_IMAGES,
        effort: Effort | None = None,
        progress: Listener | None = None,
    ) -> None:
        self._catalogue, self._spec, self._samples = catalogue, spec, samples
        self._progress = progress or ignore
        self._effort = replace(effort or Effort(progress=self._progress), keep=False)
        self._pages: OrderedDict[str, bytes] = OrderedDict()
        self._newest = 0
        self._one_at_a_time, self._held = Lock(), Lock()

    def page(self, path: str) -> bytes | None:
        """Returns a page.

        Args:
            path: `/` for the report, or the path of one of its links.

        Returns:
            The bytes of the HTML file, or None if there is no such page. Raises as `compare` does.
        """
        newest = self._catalogue.head().number
        self._drop_older(newest)
        if path == "/":
            number = newest
            return self._kept(f"/{number}", lambda: self._report(number))
        asked = _PAIR.fullmatch(path)
        if asked is None:
            return None
        number, i, j = map(int, asked.groups())
        if not 0 < number <= newest:
            return None
        names = list(resolve_versions(self._catalogue, at=number, spec=self._spec)[1])
        if not i < j < len(names):
            return None
        return self._kept(path, lambda: self._explanation(number, names[i], names[j]))

    def _drop_older(self, newest: int) -> None:
        with self._held:
            if newest > self._newest:
                self._newest = newest
                self._pages.clear()

    def _kept(self, name: str, make: Callable[[], bytes]) -> bytes:
        page = self._found(name)
        if page is None:
            with self._one_at_a_time:
                page = self._found(name)  # another thread may have made it
                if page is None:
                    page = make()
                    self._hold(name, page)
        return page

    def _found(self, name: str) -> bytes | None:
        with self._held:
            if name in self._pages:
                self._pages.move_to_end(name)
            return self._pages.get(name)

    def _hold(self, name: str, page: bytes) -> None:
        with self._held:
            self._pages[name] = page
            while len(self._pages) > HELD_PAGES:
                self._pages.popitem(last=False)

    def tell(self, error: Exception) -> str:
        """Tells the listener of progress about an error, in one line.

        Args:
            error: What a request ended with.

        Returns:
            The line, without secrets.
        """
        said = redact(str(known_error(error))) or type(error).__name__
        self._progress(Said(f"a page could not be answered: {' '.join(said.split())}"))
        return said

    def _report(self, number: int) -> bytes:
        catalogue = self._catalogue
        matrix = compare(catalogue, at=number, spec=self._spec, effort=self._effort)
        page = gather_matrix_page(
            catalogue,
            [matrix],
            apart=sorted(catalogue.at(number).datasets.keys() - set(matrix.names)),
            at=number,
            samples=self._samples,
            progress=self._progress,
        )
        return render_matrix_page(replace(page, pair_pages=f"pairs/{number}/"))

    def _explanation(self, number: int, a: str, b: str) -> bytes:
        found = explain(self._catalogue, a, b, at=number, spec=self._spec, progress=self._progress)
        why = gather_explanation(self._catalogue, found, samples=self._samples)
        return render_explanation(why, back=way_back("../../", a, b))


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
        status, kind = 200, "text/html"
        if self.headers.get("Host") not in self.hosts:
            status, kind, body = 403, "text/plain", b"This server answers its own machine only.\n"
        else:
            try:
                found = self.pages.page(self.path.partition("?")[0])
                body = b"There is no such page.\n" if found is None else found
                if found is None:
                    status, kind = 404, "text/plain"
            except Exception as error:  # whatever it is, the browser and the listener are told
                status, kind = 500, "text/plain"
                body = f"{self.pages.tell(error)}\n".encode()
        try:
            self._send(status, kind, body, with_body=with_body)
        except ConnectionError:  # the browser left before the page was made
            self.close_connection = True

    def _send(self, status: int, kind: str, body: bytes, *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing: what is computed is told to the listener of progress."""
