"""Tests the pages that are computed when a browser of this machine asks for them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import pytest

from pipeline import storage
from pipeline.building import Request, build_datasets, rename_dataset
from pipeline.catalogue import (
    Catalogue,
    FarImage,
    Outliers,
    keep_outliers,
    outliers_identity,
    tag_version,
)
from pipeline.catalogue.receipts import Receipt
from pipeline.comparing import Effort, all_pairs, compare
from pipeline.engine import InProcess
from pipeline.errors import NotFound, SourceError
from pipeline.events import Listener, Said, Started, StepDone
from pipeline.explaining import Ranking, RankRequest, rank, read_ranking
from pipeline.mapper import SerialMapper
from pipeline.reporting import LiveSite, listen
from pipeline.reporting.html import live_site, loopback_server
from pipeline.reporting.html.dataset_page import DatasetPage, gather_dataset
from pipeline.reporting.html.live_site import Waiting
from pipeline.reporting.html.page_data import Page
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


@pytest.fixture(scope="module")
def ranking(built: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Ranking:
    """Ranks the images of one dataset by their distance to the other."""
    folder = Path(storage.local_path(built.root)).parent
    weights = tiny.install(folder).weights
    out = str(tmp_path_factory.mktemp("ranked") / "near.parquet")
    request = RankRequest(str(folder / "1"), "group/a", weights=weights, top=3, out=out)
    resources = Resources(workers=0, threads=2)
    rank(built, request, InProcess(), resources=resources)
    return read_ranking(built, out)


@contextmanager
def serving(site: LiveSite) -> Iterator[int]:
    """Serves some pages, and gives the port."""
    with listen(site) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def port(built: Catalogue, ranking: Ranking) -> Iterator[int]:
    with serving(LiveSite(built, samples=1, rankings=[ranking])) as number:
        yield number


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    """Asks until the page is made."""
    until = monotonic() + 60
    while True:
        answer, body = ask_once(port, path, method, **headers)
        if answer.status != 202:
            return answer, body
        assert monotonic() < until


def ask_once(
    port: int, path: str, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, bytes]:
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
    assert b"b and group/a compared" in why
    answer, nothing = ask(port, "/", "HEAD")
    assert (answer.status, int(answer.headers["Content-Length"]), nothing) == (200, len(page), b"")


def test_the_page_of_a_dataset_is_made_when_it_is_asked_for_from_distances_that_are_held(
    built: Catalogue, ranking: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def counted(*given: Any, **named: Any) -> Any:
        compared.append(named["at"])
        return compare(*given, **named)

    monkeypatch.setattr(live_site, "compare", counted)
    site = LiveSite(built, samples=1, rankings=[ranking])
    report = site.page("/")
    assert report
    assert b'"dataset_pages":["datasets/2/0.html","datasets/2/1.html"]' in report
    pages = [site.page(f"/datasets/2/{i}.html") for i in range(2)]
    assert compared == [2]
    assert [page.count(b"<img") for page in pages if page] == [12, 12]
    links = [re.findall(r'<a href="([^"#]*)', (page or b"").decode()) for page in pages]
    pair, ranked = "../../pairs/2/0-1.html", "../../rankings/2/0.html"
    assert links == [["../../", "1.html", pair], ["../../", ranked, "0.html", pair]]
    why = site.page("/pairs/2/0-1.html")
    assert why
    assert b'"dataset_pages":["../../datasets/2/0.html","../../datasets/2/1.html"]' in why
    bare = LiveSite(built, samples=0).page("/datasets/2/0.html")
    assert bare
    assert b"<img" not in bare
    assert compared == [2, 2]


@pytest.mark.parametrize("memory", [1, 2**30])
def test_pages_leave_the_catalogue_as_it_was(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    def there() -> list[tuple[str, str]]:
        return sorted((item.uri, item.identity) for item in storage.walk(built.root))

    monkeypatch.setattr(all_pairs, "TILE_WORK", 0)
    workers = SerialMapper() if memory == 1 else _Elsewhere()
    effort = Effort(lambda _: nullcontext(workers), memory=memory)
    before = there()
    site = LiveSite(built, samples=1, effort=effort)
    assert site.page("/")
    assert site.page("/pairs/2/0-1.html")
    assert site.page("/datasets/2/0.html")
    assert there() == before
    compare(built, effort=effort)  # what the pages need not do
    assert there() != before
    kept = [item for item in there() if item not in before]
    for uri, _ in kept:
        storage.replace(uri, b"damaged")
    damaged = there()
    assert LiveSite(built, samples=0, effort=effort).page("/")
    assert there() == damaged
    for uri, _ in kept:
        storage.delete(uri)


class _Elsewhere(SerialMapper):
    """Stands for workers of another process."""

    in_process = False


@pytest.mark.parametrize(
    "path",
    [
        *("/index.html", "/pairs/2/1-0.html", "/pairs/2/0-0.html", "/pairs/2/0-2.html"),
        *("/rankings/2/1.html", "/rankings/0/0.html", "/rankings/3/0.html", "/rankings/2/0"),
        *("/datasets/2/2.html", "/datasets/0/0.html", "/datasets/3/0.html", "/datasets/2/0-1.html"),
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
    for site, mode, what, status in (
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "cors", "empty", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("cross-site", "navigate", "document", 404),  # somebody follows a link
        ("same-origin", "cors", "empty", 404),  # a page that waits
        ("none", "navigate", "document", 404),
    ):
        said = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": what}
        assert ask(port, "/none", **said)[0].status == status, said
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(port, "/", method)[0].status == 501, method


def test_a_page_is_made_once_until_there_is_a_newer_commit(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(live_site, "render_matrix_page", lambda page: made.append(page) or b"page")
    monkeypatch.setattr(live_site, "render_explanation", lambda *_, **__: b"why")
    folder, catalogue = (
        Path(storage.local_path(built.root)),
        Catalogue(str(tmp_path / "catalogue")),
    )
    shutil.copytree(folder, tmp_path / "catalogue")
    site = LiveSite(catalogue, samples=0)
    assert [site.page("/") for _ in range(3)] == [b"page"] * 3
    assert site.page("/pairs/2/0-1.html") == b"why"
    assert len(made) == 1
    assert set(site._pages) == {"/2", "/pairs/2/0-1.html"}
    build_datasets(
        catalogue,
        [Request("c", str(folder.parent / "0"), **tiny.install(tmp_path).options)],  # type: ignore[arg-type]
        InProcess(),
        Resources(workers=0, threads=2),
    )
    assert site.page("/") == b"page"
    assert [page.pair_pages for page in made] == ["pairs/2/", "pairs/3/"]
    assert set(site._pages) == {"/3"}


def copy_of(built: Catalogue, folder: Path, *, tags: int = 0) -> Catalogue:
    """Copies the catalogue, for a test that changes it, and adds so many commits."""
    shutil.copytree(storage.local_path(built.root), folder / "catalogue")
    catalogue = Catalogue(str(folder / "catalogue"))
    for number in range(tags):
        tag_version(catalogue, "b", f"{folder.name}-{number}")
    return catalogue


def erase_nothing(catalogue: Catalogue) -> None:
    """Makes a commit as an erasure does."""
    receipt = Receipt(1, "asked for", "ada")
    catalogue.append("erase images", lambda head: replace(head, receipt=receipt))


def put_in_its_place(catalogue: Catalogue, other: Catalogue) -> None:
    place = storage.local_path(catalogue.root)
    shutil.rmtree(place)
    shutil.copytree(storage.local_path(other.root), place)


@pytest.mark.parametrize("tags", [None, 1, 2])
@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/", "render_matrix_page"),
        ("/datasets/3/0.html", "render_dataset"),
        ("/pairs/3/0-1.html", "render_explanation"),
    ],
)
def test_a_page_that_was_begun_before_an_erasure_or_in_another_catalogue_is_not_answered(
    built: Catalogue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    step: str,
    tags: int | None,
) -> None:
    """It may have read the images already. The other catalogue may have more commits."""
    made, begun, go = [], Event(), Event()

    def render(*_: object, **__: object) -> bytes:
        made.append(1)
        if len(made) > 1:
            return b"without the image"
        begun.set()
        assert go.wait(60)
        return b"with the image"

    monkeypatch.setattr(live_site, step, render)
    site = LiveSite(catalogue := copy_of(built, tmp_path / "one", tags=1), samples=0)
    with ThreadPoolExecutor(1) as pool:
        try:
            asked_before = pool.submit(site.page, path)
            assert begun.wait(60)
            if tags is None:
                erase_nothing(catalogue)
            else:
                put_in_its_place(catalogue, copy_of(built, tmp_path / "other", tags=tags))
            assert site.page(path) == b"without the image"
        finally:
            go.set()
        assert asked_before.result() == b"without the image"
    assert site.page(path) == b"without the image"
    assert len(made) == 2


@pytest.mark.parametrize("tags", [0, 1])
def test_no_page_of_a_catalogue_is_answered_when_another_one_is_in_its_place(
    built: Catalogue, tmp_path: Path, tags: int
) -> None:
    """Their newest commits may have the same number, or it may be smaller, as a copy's is."""
    first, other = copy_of(built, tmp_path / "first"), copy_of(built, tmp_path / "other")
    rename_dataset(first, "b", "c")
    rename_dataset(other, "b", "d")
    for number in range(tags):
        tag_version(first, "c", f"kept-{number}")
    site, paths = LiveSite(first, samples=0), ("/datasets/3/0.html", "/pairs/3/0-1.html")
    before = [site.page(path) for path in paths]
    put_in_its_place(first, other)
    now = [site.page(path) for path in paths]
    assert now == [LiveSite(first, samples=0).page(path) for path in paths]
    assert set(now).isdisjoint(before)


def test_distances_that_were_begun_before_an_erasure_are_not_held(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begun, go = [], Event(), Event()

    def slow(*given: Any, **named: Any) -> Any:
        made.append(compare(*given, **named))
        begun.set()
        assert go.wait(60)
        return made[-1]

    monkeypatch.setattr(live_site, "compare", slow)
    site = LiveSite(catalogue := copy_of(built, tmp_path), samples=0)
    try:
        site.begin()
        assert begun.wait(60)
        erase_nothing(catalogue)
        assert isinstance(site.page_within("/datasets/2/0.html", 0), Waiting)
    finally:
        go.set()
    assert site.page("/datasets/2/0.html")
    assert len(made) == 2


def test_the_page_of_a_dataset_is_made_again_when_its_images_were_ranked(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No commit tells of it. Whether it is so is asked once a view, and of that page alone."""
    shutil.copytree(storage.local_path(built.root), tmp_path / "catalogue")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    version, go, asked, made = catalogue.find("b"), Event(), [], []

    def identity(*given: Any) -> str:
        asked.append(given)
        return outliers_identity(*given)

    def gather(*given: Any, **how: Any) -> DatasetPage:
        made.append(given)
        assert go.wait(60)
        return gather_dataset(*given, **how)

    monkeypatch.setattr(live_site, "outliers_identity", identity)
    monkeypatch.setattr(live_site, "gather_dataset", gather)
    site, path = LiveSite(catalogue, samples=0), "/datasets/2/0.html"

    def rank_with_farthest(name: str) -> None:
        image = FarImage(f"file:///{name}", "", 9, 1.0, 2.0)
        keep_outliers(catalogue, Outliers(version.spec, version.dna, 9, 0, 0, 1, {}, (image,)), 0)

    try:
        assert all(isinstance(site.page_within(path, 0.01), Waiting) for _ in range(3))
        assert len(asked) == 1
    finally:
        go.set()
    before = site.page(path)
    assert before is not None
    assert len(made) == 1
    for name in ("odd.jpg", "other.jpg"):
        rank_with_farthest(name)
        pages = [site.page(path) for _ in range(2)]
        assert [name.encode() in (page or b"") for page in (before, *pages)] == [False, True, True]
    assert len(made) == 3
    asked.clear()
    assert site.page("/")
    assert site.page("/pairs/2/0-1.html")
    assert asked == []


def test_the_pages_that_were_asked_for_longest_ago_make_room(
    built: Catalogue, ranking: Ranking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_site, "HELD_PAGES", 1)
    site = LiveSite(built, samples=0, rankings=[ranking])
    site.page("/")
    assert site.page("/pairs/2/0-1.html")
    assert site.page("/rankings/2/0.html")
    # The report always stays: its distances may take long.
    assert set(site._pages) == {"/2", "/rankings/2/0.html"}


def test_the_distances_of_few_former_commits_are_held(built: Catalogue, tmp_path: Path) -> None:
    """Somebody may go through the pages of all commits, and each may have gigabytes of them."""
    shutil.copytree(storage.local_path(built.root), tmp_path / "catalogue")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    for number in range(4):
        tag_version(catalogue, "b", f"t{number}")
    site, newest = LiveSite(catalogue, samples=0), catalogue.head().number
    for number in range(newest, 1, -1):
        assert site.page(f"/datasets/{number}/0.html")
    assert set(site._distances) == {newest, 3, 2}


def test_a_page_that_is_kept_is_answered_while_another_is_made(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, begun, go = LiveSite(built, samples=0), Event(), Event()
    report = site.page("/")

    def slow(*_: object, **__: object) -> bytes:
        begun.set()
        assert go.wait(60)
        return b"why"

    monkeypatch.setattr(live_site, "render_explanation", slow)
    with ThreadPoolExecutor(2) as pool:
        why = pool.submit(site.page, "/pairs/2/0-1.html")
        assert begun.wait(60)
        try:
            assert pool.submit(site.page, "/").result(timeout=30) == report
        finally:
            go.set()
        assert why.result() == b"why"


def test_a_page_that_takes_long_says_how_far_it_is_and_is_made_once(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, begun, go = [], Event(), Event()
    site = LiveSite(built, samples=0)

    def slow(*_: object, progress: Listener, **__: object) -> Page:
        made.append(1)
        progress(Started(10, 10, unit="pairs", step="tiles"))
        progress(StepDone(4))
        begun.set()
        assert go.wait(60)
        return Page([], [])

    monkeypatch.setattr(live_site, "gather_matrix_page", slow)
    monkeypatch.setattr(live_site, "render_matrix_page", lambda _: b"the page")
    monkeypatch.setattr(loopback_server, "PATIENCE", 0.01)
    with serving(site) as port:
        try:
            answer, page = ask_once(port, "/")
            assert begun.wait(60)
            assert answer.status == 202
            assert b"This page is being computed" in page
            answer, nothing = ask_once(port, "/", "HEAD")
            assert (answer.status, nothing) == (202, b"")
            assert answer.headers["X-Progress"].startswith("4/10 pairs")
        finally:
            go.set()
        assert ask(port, "/")[1] == b"the page"
    assert len(made) == 1


def test_a_page_that_is_asked_for_again_is_begun_once_though_there_is_a_newer_commit(
    built: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, go = [], Event()

    def slow(*_: object, **__: object) -> bytes:
        made.append(1)
        assert go.wait(60)
        return b"why"

    monkeypatch.setattr(live_site, "render_explanation", slow)
    monkeypatch.setattr(loopback_server, "PATIENCE", 0.01)
    shutil.copytree(storage.local_path(built.root), tmp_path / "catalogue")
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    with serving(LiveSite(catalogue, samples=0)) as port:
        try:
            for _ in range(5):
                assert ask_once(port, "/pairs/2/0-1.html")[0].status == 202
            catalogue.append("change", lambda head: replace(head, default_spec=head.default_spec))
            assert ask_once(port, "/pairs/2/0-1.html")[0].status == 202
        finally:
            go.set()
        assert ask(port, "/pairs/2/0-1.html")[1] == b"why"
    assert len(made) == 1


def test_pages_that_are_made_at_once_are_those_that_are_made_one_by_one(
    built: Catalogue, ranking: Ranking
) -> None:
    paths = ["/pairs/2/0-1.html", "/datasets/2/0.html", "/", "/datasets/2/1.html"]
    alone = LiveSite(built, samples=1, rankings=[ranking])
    one_by_one = [alone.page(path) for path in paths]
    beside = LiveSite(built, samples=1, rankings=[ranking])
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(beside.page, paths)) == one_by_one


def test_a_page_that_fails_is_made_again_only_when_it_is_opened_again(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a page asks by HEAD, which must not begin the work anew."""
    made = []

    def fails(*_: object, **__: object) -> bytes:
        made.append(1)
        raise SourceError("the file is gone")

    monkeypatch.setattr(live_site, "render_matrix_page", fails)
    with serving(LiveSite(built, samples=0)) as port:
        for _ in range(3):
            assert ask(port, "/", "HEAD")[0].status == 500
        assert len(made) == 1
        assert b"is gone" in ask(port, "/")[1]
        assert len(made) == 1
        assert b"is gone" in ask(port, "/")[1]
        assert len(made) == 2


def test_there_must_be_something_to_show_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no catalogue"):
        LiveSite(Catalogue(str(tmp_path))).begin()


@browser.needed
def test_a_browser_that_waits_opens_the_page_when_it_is_there(
    reader: Reader, built: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = Event()
    real = live_site.render_matrix_page

    def slow(page: Any) -> bytes:
        assert go.wait(60)
        return real(page)

    monkeypatch.setattr(live_site, "render_matrix_page", slow)
    monkeypatch.setattr(loopback_server, "PATIENCE", 0.01)
    with serving(LiveSite(built, samples=0)) as port:
        try:
            reader.driver.get(f"http://127.0.0.1:{port}/#pair=b+group%252Fa&layer=b")
            assert "being computed" in reader.text("state")
            assert reader.barriers() == []
            assert reader.find("progress").get_attribute("aria-live") == "polite"
        finally:
            go.set()
        reader.wait(lambda: reader.run("return document.body.dataset.drawn"))
        assert reader.text("pair-title") == "b and group/a, b"  # as the address says
    assert reader.console_messages() == []


def test_a_browser_that_leaves_early_is_no_error(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[object] = []
    site, asked, left, answered = LiveSite(built, progress=told.append), Event(), Event(), Event()

    def slow(path: str, seconds: float, *, forget: bool) -> bytes:
        asked.set()
        assert left.wait(60)
        return bytes(50_000_000)  # more than a socket holds

    monkeypatch.setattr(site, "page_within", slow)
    with listen(site) as server:
        monkeypatch.setattr(server, "shutdown_request", _then(server.shutdown_request, answered))
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            with socket.create_connection(("127.0.0.1", server.server_port)) as browser_of_one:
                host = f"127.0.0.1:{server.server_port}"
                browser_of_one.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert asked.wait(60)
                reset = struct.pack("ii", 1, 0)  # closing sends a reset
                browser_of_one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            left.set()
            assert answered.wait(60)
        finally:
            server.shutdown()
            thread.join()
    assert told == []
    assert capfd.readouterr() == ("", "")


def _then(function: Callable[[Any], object], event: Event) -> Callable[[Any], None]:
    """Returns a function that also sets an event when it is done."""

    def both(argument: Any) -> None:
        function(argument)
        event.set()

    return both


def test_an_error_that_nobody_foresaw_is_a_plain_page_and_one_line(
    built: Catalogue, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[object] = []
    site = LiveSite(built, progress=told.append)

    def broken(path: str, seconds: float, *, forget: bool) -> bytes:
        raise KeyError(f"https://user:hunter2@host{path}\nand more")

    monkeypatch.setattr(site, "page_within", broken)
    with listen(site) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            answer, text = ask(server.server_port, "/")
        finally:
            server.shutdown()
            thread.join()
        try:
            raise ValueError("outside of any page")
        except ValueError:
            server.handle_error(None, None)  # type: ignore[arg-type]  # neither is looked at
    assert (answer.status, answer.headers["Content-Type"]) == (500, "text/plain; charset=utf-8")
    assert text.startswith(b"unexpected KeyError: ")
    assert b"hunter2" not in text
    said = [event.message for event in told if isinstance(event, Said)]
    assert [line.partition(" (in ")[0].partition(": ")[2][:21] for line in said] == [
        "unexpected KeyError: ",
        "unexpected ValueError",
    ]
    assert len(told) == 2
    assert not any("hunter2" in line or "\n" in line for line in said)
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("is_made", [True, False])
def test_the_command_serves_until_it_is_interrupted(
    built: Catalogue, is_made: bool, stop: signal.Signals, code: int
) -> None:
    """Nobody who stops it waits for the report, which it begins to make at once."""
    command = [sys.executable, "-m", "jobs.app", "serve", "-c", built.root, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--samples", "0"],
        stdout=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and so its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{built.root} is at http://127.0.0.1:")
        port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
        if is_made:
            assert ask(port, "/")[0].status == 200
        os.kill(process.pid, stop)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(30) == code
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@browser.needed
@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "dark"), pytest.param(1600, "light", marks=pytest.mark.soak)]
)
def test_a_reader_goes_from_the_report_to_an_explanation_and_a_ranking_and_back(
    reader: Reader,
    port: int,
    ranking: Ranking,
    width: int,
    scheme: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The links are used by keyboard, and no page on the way keeps people out."""
    monkeypatch.setattr(loopback_server, "PATIENCE", 60.0)  # no page that waits comes between
    reader.set_window(width, scheme=scheme)
    shown = "return document.getElementById(arguments[0])?.textContent"
    heading = "return document.querySelector('h1')?.textContent"
    title = "b and group/a, all neurons"
    ranked = f"Images of {ranking.source} by distance to group/a"

    def press(place: str, text: str) -> None:
        links = reader.driver.find_elements("css selector", f"{place} a")
        link = next(link for link in links if link.text == text)
        reader.run("arguments[0].focus()", link)
        link.send_keys("\n")

    reader.driver.get(f"http://127.0.0.1:{port}/")
    reader.wait(lambda: reader.run(shown, "pair-title") == title)
    assert reader.barriers() == []
    press("#pair-body", "The neurons that differ, and the images that they react to")
    reader.wait(lambda: reader.run(heading) == "b and group/a compared")
    assert reader.barriers() == []
    press("#title", "group/a")
    reader.wait(lambda: reader.run(heading) == "group/a")
    press(".distances", "look closer")
    reader.wait(lambda: reader.run(heading) == "b and group/a compared")
    press("#back", ranked)
    reader.wait(lambda: reader.run(heading) == ranked)
    assert reader.barriers() == []
    press("#back", "How b and group/a differ")
    reader.wait(lambda: reader.run(shown, "pair-title") == title)
    assert reader.driver.current_url == f"http://127.0.0.1:{port}/#pair=b+group%252Fa"
    for place in ("#pair-body", "#rankings", "#strips"):
        press(place, ranked)
        reader.wait(lambda: reader.run(heading) == ranked)
        press("#back", "group/a among them")
        reader.wait(lambda: reader.run(shown, "pair-title"))
        reader.wait(lambda: reader.text("chosen").startswith("group/a is chosen."))
        reader.wait(lambda: reader.run("return document.activeElement.textContent") == "group/a")
    assert reader.console_messages() == []
