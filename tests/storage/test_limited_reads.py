"""Reads stop at their limit, whatever the size was said to be and however long the answer is."""

from __future__ import annotations

import re
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

from pipeline import storage
from pipeline.errors import SourceError, StorageError, TooManyBytes, TransientError, UsageError
from pipeline.storage import answers, http
from pipeline.storage.retry import RetrySettings
from tests.support.endless import EndlessServer, endless_server

MOST = 2**20


@pytest.fixture
def server() -> Iterator[EndlessServer]:
    with endless_server() as server:
        yield server
    fsspec.filesystem("http").clear_instance_cache()


def peak_of(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["file", "memory", "s3"])
def test_an_object_of_the_limit_is_read_and_one_byte_more_is_not(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    roots = {"file": tmp_path.as_uri(), "memory": f"memory://{uuid.uuid4().hex}"}
    root = roots.get(place) or f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    for data in (b"", b"x", b"0123456789"):
        uri = storage.join(root, f"{len(data)}.bin")
        storage.create(uri, data)
        identity = storage.info(uri).identity
        for most in (len(data), len(data) + 1, 1000):
            assert storage.read(uri, identity, most) == data
        if data:
            with pytest.raises(TooManyBytes, match=rf"{uri} has {len(data)} bytes; the limit is"):
                storage.read(uri, identity, len(data) - 1)
            with pytest.raises(SourceError, match="changed between listing and reading"):
                storage.read(uri, "another", len(data) - 1)


def test_a_file_that_is_too_long_is_not_read_at_all(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 * 10**9)

    def read() -> None:
        with pytest.raises(TooManyBytes, match="sparse has 3000000000 bytes; the limit is 1048576"):
            storage.read((tmp_path / "sparse").as_uri(), None, MOST)

    read()  # what the first one loads is not of the file
    assert peak_of(read) < 100_000


def test_an_answer_without_end_is_read_to_one_byte_over_the_limit(server: EndlessServer) -> None:
    def read() -> None:
        with pytest.raises(TooManyBytes, match="has over 1048576 bytes; the limit"):
            storage.read(server.url, "endless", MOST)

    read()  # the client's own modules are loaded with the first
    before = server.sent
    assert peak_of(read) < 2 * MOST
    time.sleep(0.1)
    assert server.sent - before < 16 * MOST  # what lay in the buffers of the network
    assert server.requests == ["GET", "GET"]  # a limit that is passed is not tried again


def test_an_answer_that_states_too_long_a_length_is_not_read(server: EndlessServer) -> None:
    server.how = "sized"  # not one byte comes: whoever waits for one waits for long
    with pytest.raises(TooManyBytes, match="has 3000000000 bytes; the limit is 1048576"):
        storage.read(server.url, "endless", MOST)


def test_a_part_that_goes_on_for_ever_is_read_as_far_as_it_was_asked_for(
    server: EndlessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.how = "range"

    def read() -> None:
        assert len(storage.read_range(server.url, 5, 1000)) == 1001

    read()
    assert peak_of(read) < 2 * MOST


def test_an_answer_without_end_is_given_up_where_no_limit_is_set(
    server: EndlessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (answers, http):
        monkeypatch.setattr(module, "MOST_UNTOLD", MOST)
    with pytest.raises(StorageError, match="over 1048576 bytes, and the server does not tell"):
        storage.read(server.url)


def test_an_answer_that_trickles_without_end_ends_by_time(
    server: EndlessServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"ATTEMPTS": 2, "WAIT_SECONDS": 0.001, "BYTES_PER_SECOND": 10**6}
    for name, value in {**settings, "CONNECT_SECONDS": 0.3, "READ_SECONDS": 0.3}.items():
        monkeypatch.setenv(f"VDNA_STORAGE_{name}", str(value))
    server.pause, server.block = 0.02, b"x"
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"no answer after 2 tries: .* bytes in 0\.[6-9] s"):
        storage.read(server.url, None, MOST)
    assert time.monotonic() - began < 10


@pytest.mark.timeout(60)  # a page without end would be read for ever
def test_a_web_page_is_not_searched_for_links(server: EndlessServer) -> None:
    found = list(storage.walk(server.url))
    assert [(item.uri, item.size, item.identity) for item in found] == [(server.url, 0, "endless")]
    with pytest.raises(UsageError, match="a server of the web lists no files; name each of them"):
        list(storage.glob(f"{server.url}*.jpg"))


class Growing(fsspec.AbstractFileSystem):
    """A store of one object that is longer than it says, and notes what was asked for."""

    protocol = "growing"
    asked: ClassVar[list[tuple[Any, Any, Any]]] = []

    def info(self, path: str, **_: object) -> dict[str, Any]:
        return {"name": path, "size": 1, "type": "file", "ETag": "e"}

    def cat_file(self, path: str, start: Any = None, end: Any = None, **limit: Any) -> bytes:
        Growing.asked.append((start, end, limit.get("timeout")))
        return bytes(10**9 if end is None else end - start)


@pytest.mark.parametrize("client", ["can be told a time", "cannot"])
def test_a_store_of_another_kind_is_asked_for_no_more_than_the_limit(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = client == "can be told a time"
    monkeypatch.setattr(Growing, "async_impl", timed)
    fsspec.register_implementation("growing", Growing, clobber=True)
    Growing.asked.clear()
    with pytest.raises(TooManyBytes, match=re.escape("growing://a/b.jpg has over 1048576 bytes")):
        storage.read("growing://a/b.jpg", "e", MOST)
    seconds = RetrySettings().seconds_for(MOST + 1) if timed else None
    assert Growing.asked == [(0, MOST + 1, seconds)]
