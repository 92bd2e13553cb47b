"""Tests the pages that are computed when a browser of this machine asks for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from threading import Thread

import pytest

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.errors import SourceError
from pipeline.reporting import LiveSite, listen
from pipeline.reporting.html import live_site
from pipeline.spec import Resources
from tests.support import browser
from tests.support import tiny_network as tiny
from tests.support.browser import Reader
from tests.support.builders import write_photos


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds two datasets."""
    folder = tmp_path_factory.mktemp("built")
    network = tiny.install(folder)
    catalogue = Catalogue(str(folder / "catalogue"))
    requests = []
    for number, name in enumerate(("group/a", "b")):
        write_photos(folder / str(number), 12, 100 * number)
        requests.append(
            Request(name, str(folder / str(number)), exemplars=3, **network.options)  # type: ignore[arg-type]
        )
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


@pytest.fixture
def port(built: Catalogue) -> Iterator[int]:
    """Serves the catalogue, and gives the port."""
    with listen(LiveSite(built, samples=1)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_report_and_every_pair_are_computed_when_they_are_asked_for(port: int) -> None:
    answer, page = ask(port, "/")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b'"pair_pages":"pairs/2/"' in page
    answer, why = ask(port, "/pairs/2/0-1.html")
    assert answer.status == 200
    assert b"Why b and group/a differ" in why
    answer, nothing = ask(port, "/", "HEAD")
    assert (answer.status, int(answer.headers["Content-Length"]), nothing) == (200, len(page), b"")


@pytest.mark.parametrize(
    "path",
    [
        *("/index.html", "/pairs/2/1-0.html", "/pairs/2/0-0.html", "/pairs/2/0-2.html"),
        *("/pairs/3/0-1.html", "/pairs/0/0-1.html", "/../../etc/passwd", "/pairs/2/0-1.html/x"),
    ],
)
def test_there_are_no_other_pages(port: int, path: str) -> None:
    answer, text = ask(port, path)
    assert (answer.status, text) == (404, b"There is no such page.\n")


def test_only_this_machine_is_answered_and_nothing_is_taken(port: int) -> None:
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        answer, text = ask(port, "/", Host=host)
        assert answer.status == 403, host
        assert b"<html" not in text
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(port, "/", method)[0].status == 501, method


def test_a_page_is_made_once_until_there_is_a_newer_commit(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(live_site, "render_matrix_page", lambda page: made.append(page) or b"page")
    site = LiveSite(built, samples=0)
    assert [site.page("/") for _ in range(3)] == [b"page"] * 3
    assert len(made) == 1
    monkeypatch.setattr(live_site, "HELD_PAGES", 1)
    assert site.page("/pairs/2/0-1.html")
    site.page("/")
    assert len(made) == 2


def test_an_error_is_answered_in_words_without_secrets(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise SourceError("https://user:hunter2@host/x is gone")

    monkeypatch.setattr(live_site, "explain", gone)
    answer, text = ask(port, "/pairs/1/0-1.html")
    assert answer.status in (404, 500)
    answer, text = ask(port, "/pairs/2/0-1.html")
    assert answer.status == 500
    assert b"is gone" in text
    assert b"hunter2" not in text


def test_the_command_serves_until_it_is_interrupted(built: Catalogue) -> None:
    command = [sys.executable, "-m", "jobs.app", "serve", "-c", built.root, "--port", "0"]
    process = subprocess.Popen([*command, "--samples", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{built.root} is at http://127.0.0.1:")
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        assert ask(port, "/")[0].status == 200
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@browser.needed
@pytest.mark.parametrize("width", [400, 1600])
def test_a_reader_goes_from_the_report_to_an_explanation_and_back(
    reader: Reader, port: int, width: int
) -> None:
    reader.set_window(width)
    reader.driver.get(f"http://127.0.0.1:{port}/")
    title = "b and group/a, all neurons"
    reader.wait(lambda: reader.text("pair-title") == title)
    link = reader.driver.find_element("css selector", "#pair-body a")
    reader.run("arguments[0].focus()", link)
    link.send_keys("\n")
    reader.wait(lambda: reader.text("title") == "Why b and group/a differ")
    reader.driver.find_element("css selector", "#back a").click()
    reader.wait(lambda: reader.text("pair-title") == title)
    assert reader.driver.current_url == f"http://127.0.0.1:{port}/#pair=b+group%252Fa"
    assert reader.console_messages() == []
