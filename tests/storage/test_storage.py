"""Tests reading, exclusive creation and errors, on every kind of store."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn

import boto3
import fsspec
import pytest

from pipeline import storage
from pipeline.errors import SourceError, StorageError, TransientError, UsageError
from pipeline.storage import local, objects, s3, store_checks
from pipeline.storage.local import LocalStore
from pipeline.storage.other import MAX_SINGLE_PUT, FsspecStore, _looks_then_writes
from pipeline.storage.retry import RetrySettings
from pipeline.storage.store import Answer, Store


@pytest.fixture(params=["file", "memory", "s3", "abfs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return tmp_path.as_uri()
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    place = request.getfixturevalue("bucket" if request.param == "s3" else "container")
    return f"{place}/{uuid.uuid4().hex}"


def test_create_is_exclusive_and_leaves_the_first_alone(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert storage.create(uri, b"first")
    for other in (b"second", b"first and more", b"fir", b""):
        assert not storage.create(uri, other)
    assert storage.read(uri) == b"first"


def test_one_of_many_writers_wins(root: str) -> None:
    for round_ in range(5):
        uri = storage.join(root, f"race-{round_}")
        barrier = threading.Barrier(8)

        def write(i: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return storage.create(uri, str(i).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert won.count(True) == 1
        assert storage.read(uri) == str(won.index(True)).encode()


def test_walk_info_read_replace_delete(root: str) -> None:
    for name in ("x/2.bin", "x/1.bin", "x/y/3.bin", "z.bin"):
        storage.create(storage.join(root, *name.split("/")), name.encode())
    below = sorted(item.uri for item in storage.walk(storage.join(root, "x")))
    assert below == [storage.join(root, "x", n) for n in ("1.bin", "2.bin", "y/3.bin")]
    item = storage.info(below[0])
    assert (item.uri, item.size) == (below[0], 7)
    assert item.modified is not None
    assert storage.read(item.uri, item.identity) == b"x/1.bin"
    assert [i.uri for i in storage.walk(item.uri)] == [item.uri]
    storage.replace(item.uri, b"other")
    assert storage.read(item.uri) == b"other"
    with storage.open_random(item.uri) as file:
        file.seek(2)
        assert file.read() == b"her"
    storage.delete(item.uri)
    storage.delete(item.uri)
    assert not storage.exists(item.uri)
    found = [i.uri for i in storage.glob(storage.join(root, "x", "*.bin"))]
    assert found == [storage.join(root, "x", "2.bin")]


def test_a_missing_object_is_a_source_error(root: str) -> None:
    missing = storage.join(root, "missing")
    for action in (storage.read, storage.info, lambda u: list(storage.walk(u))):
        with pytest.raises(SourceError, match="missing"):
            action(missing)
    with pytest.raises(SourceError), storage.open_random(missing):
        pass


def test_a_changed_object_is_not_read_as_the_listed_one(root: str) -> None:
    uri = storage.join(root, "a")
    storage.create(uri, b"one")
    before = storage.info(uri)
    storage.replace(uri, b"other")
    with pytest.raises(SourceError, match="changed between listing and reading") as caught:
        storage.read(uri, before.identity)
    assert "If a table states its identity, correct it there" in str(caught.value)


@pytest.mark.parametrize("scheme", ["hdfs", "webhdfs", "webHDFS", "ftp", "dbfs"])
def test_nothing_is_created_where_a_client_looks_and_then_writes(scheme: str) -> None:
    """It is refused before anything is sent, so no server and no package is needed."""
    with pytest.raises(StorageError, match=r"two jobs could corrupt a catalogue there; keep it"):
        storage.create(f"{scheme}://192.0.2.1/dnas/HEAD", b"x")
    with pytest.raises(StorageError, match=r"looks whether a file is there before it writes it"):
        storage.require_exclusive(f"{scheme}://192.0.2.1/dnas")


@pytest.mark.parametrize("fs", ["huggingface_hub.HfFileSystem", "fsspec.AbstractFileSystem"])
def test_nothing_is_created_by_a_client_that_leaves_it_to_fsspec(
    fs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own function looks, too, and then writes."""
    module, name = fs.rsplit(".", 1)
    client = getattr(import_module(module), name)(skip_instance_cache=True)
    monkeypatch.setattr(FsspecStore, "open", lambda self, uri: (client, "b/dnas"))
    with pytest.raises(StorageError, match=r"looks whether a file is there before it writes it"):
        storage.create("other://b/dnas/HEAD", b"x")
    for own in ("s3", "memory"):  # one of these makes its functions of others as it is made
        assert not _looks_then_writes(fsspec.filesystem(own, skip_instance_cache=True))


def test_exclusiveness_is_probed_and_the_probe_leaves_nothing(root: str) -> None:
    storage.create(storage.join(root, "keep"), b"x")
    storage.require_exclusive(root)
    assert [item.uri for item in storage.walk(root)] == [storage.join(root, "keep")]


def test_a_store_that_overwrites_is_refused(monkeypatch, tmp_path: Path) -> None:
    def overwrite(uri: str, data: bytes) -> bool:
        storage.replace(uri, data)
        return True

    monkeypatch.setattr(store_checks, "create", overwrite)
    with pytest.raises(StorageError, match="overwrites"):
        storage.require_exclusive(tmp_path.as_uri())


def test_a_write_that_fails_half_way_leaves_nothing(monkeypatch, tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        storage.create((tmp_path / "a").as_uri(), b"x")
    assert list(tmp_path.iterdir()) == []


def test_temporaries_of_a_killed_writer_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".a.parquet.0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / "a").write_bytes(b"x")
    assert [item.uri for item in storage.walk(tmp_path.as_uri())] == [(tmp_path / "a").as_uri()]


def test_transient_errors_are_tried_again_and_then_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    path = tmp_path / "a"
    path.write_bytes(b"x")
    calls = []

    real = LocalStore.get

    def flaky(store: LocalStore, uri: str, *part: Any) -> Answer:
        calls.append(uri)
        if len(calls) < fail_first:
            raise ConnectionResetError("reset")
        return real(store, uri, *part)

    monkeypatch.setattr(LocalStore, "get", flaky)
    fail_first = 3
    assert storage.read(path.as_uri()) == b"x"
    assert len(calls) == 3
    calls.clear()
    fail_first = 99
    with pytest.raises(TransientError, match=r"a: no answer after 8 tries.*reset"):
        storage.read(path.as_uri())
    assert len(calls) == RetrySettings().attempts


def test_a_put_whose_answer_is_lost_is_known_as_our_own(
    s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats the PUT, and is told that the object exists."""
    host, _, port = s3_server.removeprefix("http://").partition(":")
    with LosingProxy((host, int(port))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        fsspec.filesystem("s3").clear_instance_cache()
        try:
            uri = f"{bucket}/{uuid.uuid4().hex}"
            assert storage.create(uri, b"ours")
            assert proxy.lost == 1
            assert not storage.create(uri, b"another's")
            assert storage.read(uri) == b"ours"
            proxy.lost = 0
            storage.require_exclusive(f"{bucket}/{uuid.uuid4().hex}")
            assert proxy.lost == 1
        finally:
            fsspec.filesystem("s3").clear_instance_cache()


class LosingProxy:
    """Passes connections on, but cuts one instead of passing on the answer to its PUT."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.lost = 0

    def __enter__(self) -> LosingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        upstream = socket.create_connection(self._upstream)
        putting = threading.Event()

        def requests() -> None:
            with contextlib.suppress(OSError):
                while data := client.recv(65536):
                    if data.startswith(b"PUT "):
                        putting.set()
                    upstream.sendall(data)

        threading.Thread(target=requests, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := upstream.recv(65536):
                if putting.is_set() and not self.lost and b"100 Continue" not in data[:40]:
                    self.lost += 1
                    break
                client.sendall(data)
        for each in (client, upstream):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_a_denied_request_is_not_tried_again(monkeypatch, tmp_path: Path) -> None:
    calls = []

    def denied(_: LocalStore, uri: str, *part: int | None) -> NoReturn:
        calls.append(uri)
        raise PermissionError("no")

    monkeypatch.setattr(LocalStore, "get", denied)
    with pytest.raises(StorageError, match="access denied"):
        storage.read((tmp_path / "a").as_uri())
    assert len(calls) == 1


class Failing(fsspec.AbstractFileSystem):
    """A file system that lets the errors of its client through, as the hub's does."""

    protocol = "failing"
    error: Exception
    asked = 0

    def fail(self, *_: object, **__: object) -> NoReturn:
        Failing.asked += 1
        raise Failing.error

    info = cat_file = open = ls = glob = rm_file = rm = pipe_file = fail


def client_error(library: str, names: str, **fields: object) -> Exception:
    """Makes an error as a library would raise it: `names` are its class and those it inherits."""
    kinds: tuple[type, ...] = (Exception,)
    for name in reversed(names.split()):
        own = type(name, kinds, {"__module__": f"{library}.errors"})
        kinds = (getattr(builtins, name, own),)
    error: Exception = kinds[0]("no way there")
    vars(error).update(fields)
    return error


def answer(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status)


HUB = "HfHubHTTPError OSError"
AZURE = "HttpResponseError AzureError"
NO_AZURE_CREDENTIALS = "CredentialUnavailableError ClientAuthenticationError HttpResponseError"


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (client_error("httpx", "ConnectError HTTPError"), TransientError, "ConnectError"),
        (client_error("httpx2", "ReadTimeout HTTPError"), TransientError, "ReadTimeout"),
        (client_error("httpx", "InvalidURL"), StorageError, "InvalidURL"),
        (client_error("httpx", "HTTPStatusError", response=answer(502)), TransientError, "HTTPSt"),
        (client_error("requests", "ConnectTimeout OSError"), TransientError, "no way there"),
        (client_error("requests", "MissingSchema ValueError"), StorageError, "MissingSchema"),
        (client_error("requests", "HTTPError OSError", response=answer(404)), SourceError, "exist"),
        (client_error("aiohttp", "ServerDisconnectedError"), TransientError, "ServerDisconnected"),
        (client_error("aiohttp", "ClientResponseError", status=503), TransientError, "answers 503"),
        (client_error("aiohttp", "ClientResponseError", status=403), StorageError, "access denied"),
        (client_error("huggingface_hub", HUB, response=answer(429)), TransientError, "HfHub"),
        (client_error("huggingface_hub", HUB, response=answer(401)), StorageError, "access denied"),
        (client_error("huggingface_hub", HUB, response=answer(400)), StorageError, "HfHub"),
        (client_error("huggingface_hub", HUB, response=answer(404)), SourceError, "does not exist"),
        (client_error("huggingface_hub", "EntryNotFoundError"), SourceError, "does not exist"),
        (
            client_error("huggingface_hub", "LocalEntryNotFoundError FileNotFoundError"),
            *(TransientError, "LocalEntryNotFoundError"),
        ),
        (client_error("azure", "ServiceRequestError AzureError"), TransientError, "ServiceRequest"),
        (client_error("azure", AZURE, response=answer(503)), TransientError, "HttpResponseError"),
        (client_error("azure", AZURE, response=answer(403)), StorageError, "access denied"),
        (client_error("azure", AZURE, response=answer(404)), SourceError, "does not exist"),
        (client_error("azure", AZURE, response=answer(400)), StorageError, "HttpResponseError"),
        (client_error("azure", NO_AZURE_CREDENTIALS), StorageError, "CredentialUnavailableError"),
        (client_error("gcsfs", "HttpError", code=503), TransientError, "HttpError"),
        (client_error("gcsfs", "HttpError", code=401), StorageError, "access denied"),
        (client_error("gcsfs", "HttpError", code=400), StorageError, "HttpError"),
        (client_error("gcsfs", "ChecksumError"), TransientError, "ChecksumError"),
        (OSError("Forbidden: b/o\nno storage.objects.get"), StorageError, "access denied"),
        (client_error("google", "TransportError GoogleAuthError"), TransientError, "Transport"),
        (client_error("google", "DefaultCredentialsError"), StorageError, "DefaultCredentials"),
        (ValueError("no such place"), StorageError, "no such place"),
        (NotImplementedError("lists of buckets"), StorageError, "lists of buckets"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_http_clients_become_vdna_errors(
    error: Exception, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.error = error
    uri = "failing://a/b.npz"
    for action in (storage.read, storage.info, lambda u: list(storage.walk(u))):
        Failing.asked = 0
        with pytest.raises(StorageError if kind is not SourceError else kind) as caught:
            action(uri)
        assert type(caught.value) is kind
        assert uri in str(caught.value)
        assert message in str(caught.value)
        assert Failing.asked == (RetrySettings().attempts if kind is TransientError else 1)
    if kind is SourceError:
        assert not storage.exists(uri)
        storage.delete(uri)
    else:
        with pytest.raises(kind):
            storage.exists(uri)
    if not isinstance(error, ValueError | NotImplementedError):  # errors of readers themselves
        with pytest.raises(kind, match=uri), storage.open_random(uri):
            pass


def test_errors_of_a_real_web_server_become_vdna_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors above imitate what a real client raises here."""
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = int(self.path.strip("/"))
            self.send_response(status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"data")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            assert storage.read(f"{site}/200") == b"data"
            assert storage.info(f"{site}/200").uri == f"{site}/200"
            with pytest.raises(SourceError, match="does not exist"):
                storage.read(f"{site}/404")
            with pytest.raises(StorageError, match="access denied"):
                storage.read(f"{site}/403")
            with pytest.raises(TransientError, match="no answer after 8 tries"):
                storage.read(f"{site}/503")
        finally:
            server.shutdown()
            fsspec.filesystem("http").clear_instance_cache()


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad-\xff.jpg")
    (tmp_path / name).write_bytes(b"x")
    (item,) = storage.walk(tmp_path.as_uri())
    item.uri.encode("ascii")
    assert storage.read(item.uri, item.identity) == b"x"
    storage.readable(item.uri).encode()


@pytest.mark.parametrize(
    ("url", "facts"),
    [
        ("photos", ("is_local", "is_shared", "answers_ranges")),
        ("local:///photos", ("is_local", "is_shared", "answers_ranges")),
        ("S3://bucket", ("is_shared", "lists_in_key_order", "answers_ranges", "loses_answers")),
        ("https://host/a.jpg", ("is_shared", "loses_answers")),
        ("gs://bucket/a.jpg", ("is_shared", "loses_answers")),
        ("memory://a", ()),
    ],
)
def test_the_scheme_of_a_url_decides_what_its_store_can_do(url: str, facts: tuple[str]) -> None:
    store = storage.store_of(url)
    assert {name for name in Store.__annotations__ if getattr(store, name)} == {*facts}


def test_an_unknown_protocol_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="nosuch"):
        storage.read("nosuch://x/y")


def test_symbolic_link_loops_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert len(list(storage.walk(tmp_path.as_uri()))) == 1


def test_a_file_of_a_year_without_dates_is_listed_without_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some archives unpack with such times, and not every disk keeps them."""
    (tmp_path / "a").touch()
    look = os.stat

    def far(path: Any, **how: Any) -> os.stat_result:
        found = list(look(path, **how))
        return os.stat_result([*found[:8], 10**14, *found[9:]])

    monkeypatch.setattr(os, "stat", far)
    assert [item.modified for item in storage.walk(tmp_path.as_uri())] == [None]


def test_a_name_with_a_nul_is_of_no_file(tmp_path: Path) -> None:
    """A damaged table may have such names."""
    uri = f"{tmp_path.as_uri()}/a%00.jpg"
    assert not storage.exists(uri)
    for action in (storage.info, storage.read, read_at_random, storage.read_on_disk):
        with pytest.raises(SourceError, match=r"a%00.jpg.* does not exist, or is not a file"):
            action(uri)


# Parts of objects, and the identity of their object.


def test_a_range_ends_with_the_object_and_has_its_identity(root: str) -> None:
    uri = storage.join(root, "a")
    storage.create(uri, b"0123456789")
    listed = storage.info(uri).identity
    for start in (0, 3, 9, 10, 11, 500):
        for length in (0, 1, 4, 10, 100):
            for identity in (None, listed):
                data = storage.read_range(uri, start, length, identity)
                assert data == b"0123456789"[start : start + length]
    storage.replace(uri, b"01234")
    for start, length in ((0, 2), (3, 4), (7, 2), (100, 1), (0, 0)):
        with pytest.raises(SourceError, match="changed between listing and reading"):
            storage.read_range(uri, start, length, listed)
        with (
            pytest.raises(SourceError, match="changed between listing and reading"),
            storage.open_random(uri, listed) as file,
        ):
            file.read()
    storage.delete(uri)
    for start in (0, 100):
        with pytest.raises(SourceError, match="does not exist"):
            storage.read_range(uri, start, 5)


def test_spans_that_touch_are_read_together_and_long_ones_in_blocks(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(root, "a")
    data = bytes(range(100))
    storage.create(uri, data)
    asked = []
    real = storage.read_range

    def spy(uri: str, start: int, length: int) -> bytes:
        asked.append((start, length))
        return real(uri, start, length)

    monkeypatch.setattr(objects, "read_range", spy)
    monkeypatch.setattr(objects, "LONGEST_BLOCK", 16)
    spans = [(50, 55), (10, 15), (15, 20), (52, 70), (90, 120), (200, 210), (7, 7)]
    pieces = list(storage.read_spans(uri, spans))
    assert asked == [(10, 10), (50, 16), (66, 4), (90, 16), (106, 14), (200, 10)]
    assert pieces == [(start, data[start : start + length]) for start, length in asked]
    storage.delete(uri)
    with pytest.raises(SourceError, match="does not exist"):
        list(storage.read_spans(uri, spans))


def test_a_sparse_file_takes_the_room_of_its_pieces() -> None:
    with storage.sparse(2**36, [(2**35, b"middle"), (0, b"begin"), (2**36 - 3, b"end")]) as found:
        assert (len(found), found[:6]) == (2**36, b"begin\0")
        assert found[2**35 : 2**35 + 7] == b"middle\0"
        assert found[-4:] == b"\0end"
    assert storage.sparse(0, []) == b""


def test_an_empty_object_is_read_whole_and_in_part(root: str) -> None:
    uri = storage.join(root, "empty")
    storage.create(uri, b"")
    identity = storage.info(uri).identity
    assert storage.read(uri, identity) == storage.read_range(uri, 0, 10, identity) == b""
    with storage.open_random(uri, identity) as file:
        assert (file.read(), file.seek(0, 2)) == (b"", 0)


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "not-listed"])
def test_a_file_that_changes_while_it_is_read_in_part_is_noticed(root: str, listed: bool) -> None:
    """The next bytes that come from the store show it, so two contents are never mixed."""
    uri = storage.join(root, "a")
    storage.create(uri, b"a" * 5_000_000)
    identity = storage.info(uri).identity if listed else None
    with storage.open_random(uri, identity) as file:
        assert file.read(10) == b"a" * 10
        storage.delete(uri)
        storage.create(uri, b"b" * 5_000_000)
        local = uri.startswith("file:")  # there, the old file stays open and unchanged
        if local:
            os.utime(file.fileno())
        file.seek(3_000_000)
        with pytest.raises(SourceError, match="changed between listing and reading"):
            file.read(10)


def test_a_file_that_is_written_again_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy may set the time back at its end, so that the file looks as it was listed."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1000)
    listed, times = storage.info(path.as_uri()), os.stat(path)
    path.write_bytes(b"x" * 10)
    real = os.fstat

    def fstat(handle: int) -> os.stat_result:
        status = real(handle)
        path.write_bytes(b"x" * 1000)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(SourceError, match="being written read"):
        storage.read(listed.uri, listed.identity)


def test_a_folder_cannot_be_read_as_an_object(root: str) -> None:
    storage.create(storage.join(root, "folder", "a"), b"x")
    folder = storage.join(root, "folder")
    assert storage.is_folder(folder)
    assert not storage.exists(folder)
    assert storage.exists(f"{folder}/a")
    assert not storage.is_folder(f"{folder}/a")
    assert not storage.exists(f"{folder}/b")
    assert not storage.is_folder(f"{folder}/b")
    local = storage.store_of(root).is_local  # other stores cannot distinguish a folder from nothing
    said = "folder is a folder" if local else "folder does not exist, or is not a file"
    for action in (storage.info, storage.read, lambda uri: storage.read_range(uri, 0, 3)):
        with pytest.raises(SourceError, match=said):
            action(folder)


def read_at_random(uri: str) -> None:
    with storage.open_random(uri) as file:
        file.read(1)


@pytest.mark.timeout(20)  # reading a pipe would wait for ever
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "by-a-link"])
def test_what_is_no_regular_file_is_refused_by_its_kind_at_once(
    kind: str, linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jpg"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    else:
        monkeypatch.chdir(tmp_path)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    if linked:
        (tmp_path / "link.jpg").symlink_to(path)
        path = tmp_path / "link.jpg"
    for action in (
        storage.info,
        storage.read,
        lambda uri: storage.read_range(uri, 0, 3),
        read_at_random,
        storage.read_on_disk,
        lambda uri: list(storage.walk(uri)),
    ):
        with pytest.raises(SourceError, match=rf"{path.name} is {kind}; only regular files"):
            action(path.as_uri())
    assert list(storage.glob(f"{path}*")) == []


def mapped(path: Path, size: int) -> mmap:
    with path.open("wb+") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"in the middle")
        file.flush()
        return mmap(file.fileno(), 0, access=ACCESS_READ)


def test_a_mapped_file_is_written_and_recognised(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "big")
    data = mapped(tmp_path / "source", 3_000_001)
    other = mapped(tmp_path / "other", 3_000_001)
    assert storage.create(uri, data)
    assert storage.read(uri) == data[:]
    remote_store = root.startswith(("s3:", "abfs:"))
    with memoryview(data) as view:
        assert storage.create(uri, view) == remote_store
    (tmp_path / "other").write_bytes(data[:-1] + b"!")
    assert not storage.create(uri, other)
    assert not storage.create(uri, data[:-1])
    with memoryview(other) as view, view[1:] as part:
        storage.replace(uri, part)
    assert storage.read(uri) == other[1:]
    data.close()
    other.close()


def test_a_mapped_file_is_not_copied_into_memory(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test looks at what the client is given; the client itself may copy it."""

    def client(fs: object, method: str, size: int, **arguments: Any) -> dict[str, Any]:
        assert (method, size) == ("put_object", 64 * 2**20)
        taken = 0
        while block := arguments["Body"].read(65536):
            taken += len(block)
        assert taken == size
        return {}

    monkeypatch.setattr(s3, "_call", client)
    data = mapped(tmp_path / "source", 64 * 2**20)
    peaks = []
    for name in ("first", "second"):  # the client's own modules are loaded with the first
        tracemalloc.start()
        for uri in ((tmp_path / name).as_uri(), f"{bucket}/{name}-never-written"):
            assert storage.create(uri, data)
            storage.replace(uri, data)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    data.close()
    assert peaks[1] < 8 * 2**20


def test_asking_the_clock_of_a_store_leaves_nothing(root: str) -> None:
    """Some stores count in whole seconds."""
    before = datetime.now(UTC)
    told = storage.clock(root)
    assert before - timedelta(seconds=1) <= told <= datetime.now(UTC) + timedelta(seconds=1)
    with contextlib.suppress(SourceError):
        assert list(storage.walk(root)) == []


# Listing.


@pytest.mark.parametrize("when", ["before it is listed", "after that"])
def test_a_folder_that_is_removed_during_a_walk_has_no_files(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds remove folders of theirs while a collection of garbage lists all of them."""
    number_of = local._number_of

    def removed(folder: str) -> tuple[int, int]:
        if folder.endswith("b") and when == "after that":
            shutil.rmtree(folder)
        return number_of(folder)

    monkeypatch.setattr(local, "_number_of", removed)
    for name in ("a", "b", "c"):
        storage.create((tmp_path / name / "1").as_uri(), b"1")
    storage.create((tmp_path / "0").as_uri(), b"0")
    names = []
    for item in storage.walk(tmp_path.as_uri()):
        names.append(item.uri.removeprefix(f"{tmp_path.as_uri()}/"))
        if names[-1] == "0" and when == "before it is listed":
            shutil.rmtree(tmp_path / "b")
    assert names == ["0", "a/1", "c/1"]


@pytest.mark.parametrize("again", [False, True])
def test_a_walk_fails_if_its_own_folder_goes_or_is_another_now(again: bool, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("0", "a/1"):
        storage.create((root / name).as_uri(), b"1")
    walk = storage.walk(root.as_uri())
    next(walk)
    root.rename(tmp_path / "kept")
    if again:  # as the folder below a disk that is unmounted
        root.mkdir()
    with pytest.raises(StorageError, match="cannot be listed"):
        next(walk)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.EACCES, StorageError, "access denied: this user may not read or write it"),
        (errno.ESTALE, TransientError, "no answer after 2 tries: .*Stale file handle"),
        (errno.EMFILE, TransientError, "no answer after 2 tries: .*; allow more open files, as by"),
    ],
)
def test_what_cannot_be_looked_at_is_not_taken_for_missing(
    number: int,
    kind: type[StorageError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else an unreachable disk would look as if a version's files had been removed."""
    uri = (tmp_path / "a").as_uri()
    storage.create(uri, b"a")
    look = os.stat

    def refused(path: Any, **how: Any) -> os.stat_result:
        if str(path) == str(tmp_path / "a"):
            raise OSError(number, os.strerror(number), path)
        return look(path, **how)

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "2")
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.01")
    actions = (storage.exists, storage.is_folder, lambda uri: list(storage.walk(uri)))
    for action in (*actions, lambda uri: list(storage.glob(f"{uri}/*.jpg"))):
        with pytest.raises(kind, match=f"{uri}: {message}"):
            action(uri)
    assert not storage.exists(f"{tmp_path.as_uri()}/b")
    assert not storage.exists(f"{tmp_path.as_uri()}/%00")


def globbed(folder: Path, pattern: str) -> list[str]:
    found = storage.glob(f"{folder}/{pattern}")
    return [item.uri.removeprefix(f"{folder.as_uri()}/") for item in found]


def test_a_glob_follows_symbolic_links_to_folders(tmp_path: Path) -> None:
    for name in ("day-1/a.jpg", "other/b.jpg", "other/c/d.jpg", "day-3/e.txt"):
        storage.create((tmp_path / name).as_uri(), b"1")
    (tmp_path / "day-2").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "day-1" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "day-3" / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    assert globbed(tmp_path, "day-*/*.jpg") == ["day-1/a.jpg", "day-2/b.jpg"]
    assert globbed(tmp_path, "day-1/**/a.jpg") == ["day-1/a.jpg"]
    assert globbed(tmp_path, "*/*/d.jpg") == ["day-2/c/d.jpg"]
    assert globbed(tmp_path, "nowhere/*/d.jpg") == []


def test_a_folder_is_looked_into_for_each_part_of_a_pattern_that_leads_there(
    tmp_path: Path,
) -> None:
    storage.create((tmp_path / "r/s/x.jpg").as_uri(), b"1")
    storage.create((tmp_path / "p/y.jpg").as_uri(), b"1")
    (tmp_path / "p" / "q").symlink_to(tmp_path / "r", target_is_directory=True)
    assert globbed(tmp_path, "*/*/x.jpg") == ["r/s/x.jpg"]
    assert globbed(tmp_path, "*/s/**") == ["r/s/x.jpg"]


def test_a_glob_fails_if_a_folder_that_may_have_matches_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves out would be missing in the counts, and nobody would know."""
    for name in ("a/day-1/x.jpg", "a/day-2/x.jpg", "lost/day-1/x.jpg"):
        storage.create((tmp_path / name).as_uri(), b"1")
    scandir = os.scandir

    def denied(path: str) -> Any:
        if str(path).endswith(("day-2", "lost")):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert globbed(tmp_path, "a/day-[13]/*.jpg") == ["a/day-1/x.jpg"]
    assert globbed(tmp_path, "a*/*1/*.jpg") == ["a/day-1/x.jpg"]
    for pattern, folder in (("a/*/*.jpg", "a/day-2"), ("*/day-1/x.jpg", "lost"), ("**", "day-2")):
        with pytest.raises(StorageError, match=f"{folder}' cannot be listed: Permission denied"):
            globbed(tmp_path, pattern)


def test_a_pattern_with_two_stars_in_a_name_is_refused(tmp_path: Path, bucket: str) -> None:
    for place in (f"{tmp_path}", bucket):
        with pytest.raises(UsageError, match=r"set\*\*/x.jpg: \*\* stands for whole folders"):
            list(storage.glob(f"{place}/set**/x.jpg"))


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("abfs", {}), ("gs", {"chunksize": MAX_SINGLE_PUT}), ("gcs", {"chunksize": MAX_SINGLE_PUT})],
)
def test_a_client_gets_only_the_options_that_it_takes(
    scheme: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    fs = SimpleNamespace(
        pipe_file=lambda path, data, **more: given.append(more), _strip_protocol=str
    )
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **_: fs)
    FsspecStore().put(f"{scheme}://b/a", b"", exclusive=False)
    FsspecStore().put(f"{scheme}://b/a", b"", exclusive=True)
    assert given == [options, options | {"mode": "create"}]


def test_only_a_client_that_refuses_to_create_is_said_to_lack_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pipe_file(path: str, data: bytes) -> None:
        raise TypeError("a defect")

    fs = SimpleNamespace(pipe_file=pipe_file, _strip_protocol=str)
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **_: fs)
    with pytest.raises(TypeError, match="a defect"):
        FsspecStore().put("abfs://b/a", b"", exclusive=False)
    with pytest.raises(StorageError, match="cannot create a file only if it is new"):
        FsspecStore().put("abfs://b/a", b"", exclusive=True)


class Flat(fsspec.AbstractFileSystem):
    """A store of keys, in which an object and a folder may have one name."""

    protocol = "flat"
    keys = ("b/a", "b/a/1.jpg", "b/a/c/2.jpg", "b/z/3.jpg", "b/4.jpg")

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        below = [key.removeprefix(f"{path}/") for key in self.keys if key.startswith(f"{path}/")]
        files = [f"{path}/{name}" for name in below if "/" not in name]
        folders = {f"{path}/{name.split('/')[0]}" for name in below if "/" in name}
        return [{"name": name, "size": 1, "type": "file", "ETag": "e"} for name in files] + [
            {"name": f"{name}/", "size": 0, "type": "directory"} for name in sorted(folders)
        ]


def test_a_folder_with_the_name_of_an_object_is_walked_too() -> None:
    fsspec.register_implementation("flat", Flat, clobber=True)
    assert sorted(item.uri for item in storage.walk("flat://b")) == sorted(
        f"flat://{key}" for key in Flat.keys
    )


class Faltering(fsspec.AbstractFileSystem):
    """A store that cannot list a folder at the first try, and has errors of its own."""

    protocol = "faltering"
    keys: ClassVar[dict[str, int]] = {"b/day1/a.jpg": 1, "b/day2/b.jpg": 1, "b/day2/c.jpg": 0}
    failures = 0

    class Refused(Exception):
        """The range begins at the end of the object."""

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        if path.rstrip("/").endswith("day2") and not self.failures:
            Faltering.failures += 1
            raise ConnectionResetError("reset by peer")
        if path.rstrip("/") == "b":
            return [{"name": f"b/day{n}", "size": 0, "type": "directory"} for n in (1, 2)]
        found = {key: size for key, size in self.keys.items() if key.startswith(f"{path}/")}
        if not found:
            raise FileNotFoundError(path)
        return [{"name": n, "size": s, "type": "file", "ETag": "e"} for n, s in found.items()]

    def info(self, path: str, **_: object) -> dict[str, Any]:
        if path in self.keys:
            return {"name": path, "size": self.keys[path], "type": "file", "ETag": "e"}
        if path == "b":
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: object) -> bytes:
        if start is not None and start >= self.keys[path]:
            raise self.Refused
        return b"1"[start:end]


@pytest.mark.parametrize("pattern", ["b/**/*.jpg", "b/*/*.jpg"])
def test_a_glob_leaves_out_no_folder_that_cannot_be_listed(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own glob takes it for empty, and its images would be missing from the dataset."""
    fsspec.register_implementation("faltering", Faltering, clobber=True)
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.01")
    Faltering.failures = 0
    found = [item.uri for item in storage.glob(f"faltering://{pattern}")]
    assert found == [f"faltering://{key}" for key in sorted(Faltering.keys)]
    assert Faltering.failures == 1
    assert list(storage.glob("faltering://nowhere/*.jpg")) == []


def test_an_empty_object_can_be_read_where_a_range_of_it_is_refused() -> None:
    fsspec.register_implementation("faltering", Faltering, clobber=True)
    assert storage.read("faltering://b/day2/c.jpg", "e", 100) == b""
    assert storage.read("faltering://b/day2/b.jpg", "e", 100) == b"1"


class Remembering(fsspec.AbstractFileSystem):
    """A store whose client keeps listings for ever, as those of `gs://` and `abfs://` do."""

    protocol = "remembering"
    objects: ClassVar[dict[str, tuple[str, bytes]]] = {}
    root_marker = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("remembering://").strip("/")

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        if path not in self.dircache:
            self.dircache[path] = [
                {"name": name, "size": len(data), "type": "file", "ETag": etag}
                for name, (etag, data) in self.objects.items()
                if name.startswith(f"{path}/")
            ]
        rows: list[dict[str, Any]] = self.dircache[path]
        return rows

    def info(self, path: str, **_: object) -> dict[str, Any]:
        folder = path.rpartition("/")[0]
        for row in self.ls(folder):
            if row["name"] == path:
                return row
        raise FileNotFoundError(path)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: object) -> bytes:
        size = self.info(path)["size"]
        return self.objects[path][1][:size][start:end]

    def rm_file(self, path: str) -> None:
        del self.objects[path]

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for row in self.ls(path):
            self.rm_file(row["name"])

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


BEFORE_AND_AFTER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hugging face": (
        {"blob_id": "a1", "lfs": None, "xet_hash": None, "last_commit": None},
        {"blob_id": "b2", "lfs": None, "xet_hash": None, "last_commit": None},
    ),
    "a bucket of hugging face": ({"xet_hash": "a1"}, {"xet_hash": "b2"}),
    "github": ({"sha": "a1", "mode": "100644"}, {"sha": "b2", "mode": "100644"}),
    "git": ({"hex": "a1", "mode": "100644"}, {"hex": "b2", "mode": "100644"}),
    "hdfs over http": ({"modificationTime": 1793270400001}, {"modificationTime": 1793270400002}),
    "ftp": ({"modify": "20261203101112.001"}, {"modify": "20261203101112.002"}),
    "an old server of ftp": ({"modify": "Dec 3 10:11"}, {"modify": "Dec 3 10:12"}),
    "azure": ({"etag": "0x1"}, {"etag": "0x2"}),
    "google": ({"generation": "1", "etag": "x"}, {"generation": "2", "etag": "x"}),
    "sftp": ({"mtime": datetime(2026, 12, 3, 10)}, {"mtime": datetime(2026, 12, 3, 11)}),
}
"""What clients tell about a file, and about one of the same size that replaces it."""


class Told(fsspec.AbstractFileSystem):
    """A store with one file, and a client that tells of it what a test says."""

    protocol = "told"
    details: ClassVar[dict[str, Any]] = {}

    def info(self, path: str, **_: object) -> dict[str, Any]:
        return {"name": "b/a.jpg", "size": 3, "type": "file", **self.details}

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, Any]]:
        return [self.info(path)]


@pytest.mark.parametrize("client", BEFORE_AND_AFTER)
def test_a_file_that_another_of_its_size_replaces_has_another_identity(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("told", Told, clobber=True)
    seen = []
    for details in BEFORE_AND_AFTER[client]:
        monkeypatch.setattr(Told, "details", details)
        seen.append(storage.info("told://b/a.jpg").identity)
        assert next(iter(storage.walk("told://b"))).identity == seen[-1]
    assert len(set(seen)) == 2


def test_the_times_of_ftp_and_of_hdfs_over_http_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("told", Told, clobber=True)
    for details in ({"modify": "20261203101112.5"}, {"modificationTime": 1796292672000}):
        monkeypatch.setattr(Told, "details", details)
        modified = datetime(2026, 12, 3, 10, 11, 12, tzinfo=UTC)
        assert storage.info("told://b/a.jpg").modified == modified


def test_a_time_of_no_zone_of_the_earth_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("told", Told, clobber=True)
    absurd = f"Mon, 01 Jan 2024 00:00:00 +{'9' * 30}"
    monkeypatch.setattr(Told, "details", {"ETag": "a", "Last-Modified": absurd})
    found = storage.info("told://b/a.jpg")
    assert (found.identity, found.modified) == ("a", None)


@pytest.mark.parametrize("look", [storage.walk, storage.glob, lambda uri: [storage.info(uri)]])
def test_a_store_that_tells_neither_a_tag_nor_a_time_is_refused(
    look: Callable[[str], Iterator[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("told", Told, clobber=True)
    monkeypatch.setattr(Told, "details", {"blob_id": "", "modify": None})
    with pytest.raises(
        StorageError, match=r"told://b/a\.jpg: told:// tells neither a tag nor a time"
    ):
        list(look("told://b/*.jpg" if look is storage.glob else "told://b"))


def test_what_another_process_has_written_is_seen_though_the_client_keeps_listings() -> None:
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    objects = Remembering.objects
    objects["b/1"] = ("old", b"1")
    assert [item.uri for item in storage.walk("remembering://b")] == ["remembering://b/1"]
    objects["b/1"] = ("new", b"1234")
    assert storage.info("remembering://b/1").identity == "new"
    objects["b/1"] = ("newer", b"123456")
    assert storage.read("remembering://b/1", "newer") == b"123456"
    objects["b/1"] = ("newest", b"12345678")
    with pytest.raises(SourceError, match="newest"):
        storage.read("remembering://b/1", "newer")
    objects["b/2"] = ("second", b"2")
    assert storage.exists("remembering://b/2")
    objects["b/3"] = ("third", b"3")
    assert len(list(storage.walk("remembering://b"))) == 3
    objects["b/4"] = ("fourth", b"4")
    assert len(list(storage.glob("remembering://b/*"))) == 4
    objects["b/5"] = ("fifth", b"5")
    storage.delete_tree("remembering://b")
    assert objects == {}


def test_pages_are_followed_and_each_is_tried_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault costs one page and not the whole listing, which may have ten thousand pages."""
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    root = f"{bucket}/{uuid.uuid4().hex}"
    names = sorted([f"{i:02d}.jpg" for i in range(12)] + ["ä.jpg", "b c.jpg", "sub/x.jpg"])
    for name in names:
        storage.create(f"{root}/{name}", b"x")
    real, pages = s3._call, []

    def small_pages(fs: object, method: str, size: int, **asked: Any) -> dict[str, Any]:
        assert method == "list_objects_v2"
        pages.append(asked.get("ContinuationToken", asked.get("StartAfter")))
        if pages.count(pages[-1]) <= 2:
            raise ConnectionResetError("reset")
        return real(fs, method, size, MaxKeys=4, **asked)

    monkeypatch.setattr(s3, "_call", small_pages)
    assert [item.uri for item in storage.walk(root)] == [f"{root}/{name}" for name in names]
    assert len(pages) == 3 * 4
    pages.clear()
    found = [item.uri.removeprefix(f"{root}/") for item in storage.glob(f"{root}/*[15].jpg")]
    assert found == ["01.jpg", "05.jpg", "11.jpg"]
    assert [i.uri for i in storage.glob(f"{root}/**/x.jpg")] == [f"{root}/sub/x.jpg"]
    assert [i.uri for i in storage.glob(f"{root}/s*/*")] == [f"{root}/sub/x.jpg"]


def test_a_listing_that_goes_round_in_circles_ends(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(3))

    def same_page(*_: object, **__: object) -> dict[str, Any]:
        next(asked)
        contents = [{"Key": "a", "Size": 1, "ETag": "x"}, {"Key": "b", "Size": 1, "ETag": "x"}]
        return {"Contents": contents, "IsTruncated": True, "NextContinuationToken": "again"}

    monkeypatch.setattr(s3, "_call", same_page)
    with pytest.raises(StorageError, match="lists 'a' after 'b'"):
        list(storage.walk(bucket))


def test_an_object_with_two_keys_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore makes a list of them."""
    contents = [{"Key": ["a", "b"], "Size": 1, "ETag": "x"}]
    monkeypatch.setattr(s3, "_call", lambda *_, **__: {"Contents": contents})
    with pytest.raises(StorageError, match=r"the store lists \['a', 'b'\] after ''"):
        list(storage.walk(bucket))


def test_markers_of_folders_are_not_listed(bucket: str) -> None:
    """Consoles make them. A marker that has bytes is an object with an odd name."""
    root = f"{bucket}/{uuid.uuid4().hex}"
    client = boto3.client("s3")
    for key, body in (("", b""), ("sub/", b""), ("odd/", b"x"), ("sub/a.jpg", b"x")):
        path = f"{root}/{key}".removeprefix(f"{bucket}/")
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=path, Body=body)
    assert [item.uri for item in storage.walk(root)] == [f"{root}/odd/", f"{root}/sub/a.jpg"]
    storage.delete_tree(root)
    assert (
        client.list_objects_v2(
            Bucket=bucket.removeprefix("s3://"), Prefix=root.removeprefix(f"{bucket}/")
        ).get("KeyCount")
        == 0
    )


def test_many_objects_are_removed_with_one_request(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = f"{bucket}/{uuid.uuid4().hex}"
    uris = [f"{root}/{name}" for name in ("a", "b c", "d%20?e", "\u00e9")]
    for uri in uris:
        storage.create(uri, b"x")
    calls: list[str] = []
    real = s3._call
    monkeypatch.setattr(
        s3, "_call", lambda fs, name, *a, **k: (calls.append(name), real(fs, name, *a, **k))[1]
    )
    storage.delete_all([*uris[:3], f"{root}/never"])
    assert calls == ["delete_objects"]
    assert [item.uri for item in storage.walk(root)] == [uris[3]]
    monkeypatch.setattr(s3, "DELETED_AT_ONCE", 2)
    storage.delete_all(uris)
    assert calls.count("delete_objects") == 3
    storage.delete_all([])
    with pytest.raises(SourceError):
        list(storage.walk(root))


def test_a_bulk_delete_that_is_not_allowed_says_so(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        s3, "_call", lambda *_, **__: {"Errors": [{"Key": "a", "Code": "AccessDenied"}]}
    )
    with pytest.raises(StorageError, match=r"access denied.*a is not deleted: AccessDenied"):
        storage.delete_all([f"{bucket}/a"])


def test_what_a_bulk_delete_leaves_is_an_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    root = f"{bucket}/{uuid.uuid4().hex}"
    storage.create(f"{root}/a", b"x")
    real = s3._call

    def lazy(fs: object, method: str, size: int, **asked: Any) -> dict[str, Any]:
        if method == "delete_objects":
            return {"Errors": [{"Key": "a", "Code": "InternalError"}]}
        return real(fs, method, size, **asked)

    monkeypatch.setattr(s3, "_call", lazy)
    with pytest.raises(TransientError, match="a is not deleted: InternalError"):
        storage.delete_tree(root)


# Disks that are full, and writers that die.


def no_room(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "link", "replace"])
def test_a_full_disk_is_named_and_nothing_is_half_written(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, call, no_room)
    write = storage.replace if call == "replace" else storage.create
    path = tmp_path / "sub" / "a"
    with pytest.raises(StorageError, match=r"sub/a: cannot be written: No space left") as caught:
        write(path.as_uri(), b"x")
    assert not isinstance(caught.value, TransientError)
    assert list(tmp_path.rglob("*")) == [tmp_path / "sub"]
    monkeypatch.undo()
    assert storage.create(path.as_uri(), b"x")


def test_a_write_that_the_kernel_refuses_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "a"
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match="a: cannot be written: File too large"):
            storage.create(path.as_uri(), b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_hard_links_is_not_reported_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(StorageError, match="cannot create a file exclusively"):
        storage.create((tmp_path / "a").as_uri(), b"x")


def test_a_link_whose_answer_is_lost_is_known_as_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system asks twice, and the second answer says that the name is taken."""
    real = os.link

    def twice(source: str, target: str) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "link", twice)
    uri = (tmp_path / "a").as_uri()
    assert storage.create(uri, b"ours")
    assert not storage.create(uri, b"another's")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_another_process_removes_before_it_has_a_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `delete_tree` does with the folder above, where other builds put theirs."""
    make, gone = os.mkdir, []

    def made_and_gone(path: Any, *how: Any) -> None:
        make(path, *how)
        if len(gone) < 3:
            gone.append(path)
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", made_and_gone)
    uri = (tmp_path / "a" / "b" / "c").as_uri()
    assert storage.create(uri, b"c")
    assert (storage.read(uri), len(gone)) == (b"c", 3)


def test_a_file_may_be_larger_than_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "MAX_SINGLE_PUT", 2)
    for write in (storage.create, storage.replace):
        write((tmp_path / "a").as_uri(), b"123")
        with pytest.raises(StorageError, match="3 bytes are too many for one PUT request"):
            write("s3://bucket/a", b"123")
    assert (tmp_path / "a").read_bytes() == b"123"


DIES = """
import os, sys
from pipeline import storage
os.link = os.replace = lambda *_: os._exit(9)
getattr(storage, sys.argv[1])(sys.argv[2], b"x" * 1000)
"""


@pytest.mark.parametrize("write", ["create", "replace"])
def test_a_writer_that_dies_before_the_end_leaves_no_visible_object(
    write: str, tmp_path: Path
) -> None:
    uri = (tmp_path / "a").as_uri()
    done = subprocess.run([sys.executable, "-c", DIES, write, uri], timeout=60)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert [item.uri for item in storage.leftovers(tmp_path.as_uri())] == [left.as_uri()]
    assert list(storage.walk(tmp_path.as_uri())) == []
    assert not storage.exists(uri)
    assert storage.create(uri, b"y")
    assert storage.read(uri) == b"y"


@pytest.mark.parametrize("others", [1, 1000])
def test_a_tree_is_removed_beside_another_process_that_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """Python's own function ends where a file is gone, and leaves the rest."""
    for number in range(20):
        (tmp_path / "top" / "tree" / str(number)).mkdir(parents=True)
        (tmp_path / "top" / "tree" / str(number) / "file").write_bytes(b"x")
    rmtree, calls = shutil.rmtree, []

    def beside_another(path: str) -> None:
        calls.append(path)
        if len(calls) <= others:
            raise FileNotFoundError(errno.ENOENT, "gone meanwhile", f"{path}/3/file")
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", beside_another)
    fails = pytest.raises(StorageError, match="cannot be removed: other processes write to it")
    with fails if others > 1 else contextlib.nullcontext():
        storage.delete_tree((tmp_path / "top" / "tree").as_uri())
    assert (tmp_path / "top").exists() == (others > 1)


@pytest.mark.parametrize("action", [storage.delete, storage.delete_tree])
def test_an_object_that_cannot_be_removed_is_named(
    action: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "unlink", read_only)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x")
    uri = (tmp_path / "a" / "b" if action is storage.delete else tmp_path / "a").as_uri()
    with pytest.raises(StorageError, match="cannot be removed: Read-only file system"):
        action(uri)


def test_all_of_a_file_is_read_after_a_try_that_read_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of a network may fail in the middle of a file."""
    path = tmp_path / "a.zip"
    path.write_bytes(b"0123456789")
    tries: list[bytes] = []

    def twice(uri: str, action: Callable[[], bytes]) -> bytes:
        tries.extend((action(), action()))
        return tries[-1]

    with storage.open_random(path.as_uri()) as file:
        file.seek(4)
        monkeypatch.setattr(local, "attempt", twice)
        assert file.read() == b"456789"
    assert tries == [b"456789"] * 2


# The web.


class Site(BaseHTTPRequestHandler):
    """Serves one object in the way that `how` says, and records the requests."""

    protocol_version = "HTTP/1.1"
    data = bytes(range(256)) * 1000
    how: frozenset[str] = frozenset()
    etag = '"one"'
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        cls = type(self)
        how = cls.how
        part = self.headers.get("Range")
        cls.asked.append(f"{self.command} {part or 'whole'}")
        if "no-head" in how and self.command == "HEAD":
            return self.answer(405, b"")
        if "away" in how:
            return self.answer(503, b"")
        if "redirects" in how and "signed" not in self.path:
            return self.answer(302, b"", Location=f"{self.path}?X-Amz-Signature=planted&signed=1")
        if "redirects" in how:
            return self.answer(403, b"")
        if not part or "no-ranges" in how:
            return self.answer(200, cls.data)
        start, end = (int(n) for n in part.removeprefix("bytes=").split("-"))
        if start >= len(cls.data) or "none-there" in how:
            return self.answer(416, b"no", **{"Content-Range": f"bytes */{len(cls.data)}"})
        shift = 1 if "other-range" in how else 0
        end = (start + end) // 2 if "half-range" in how else end
        body = cls.data[start + shift : end + 1 + shift]
        size = "*" if "no-size" in how else len(cls.data)
        told = f"bytes {start + shift}-{start + shift + len(body) - 1}/{size}"
        return self.answer(206, body, **({} if "untold" in how else {"Content-Range": told}))

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        how = type(self).how
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "no-etag" not in how:
            self.send_header("ETag", self.etag)
        if "modified" in how:
            self.send_header("Last-Modified", "Wed, 21 Oct 2026 07:28:00 GMT")
        if "chunked" in how and self.command == "GET":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif "no-length" in how and self.command == "GET":
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(len(body)))
        if "compressed" in how:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command == "GET":
            if "cut" in how:
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Ignores a client that goes away."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Gives a function that sets how the object is served, and returns its url."""
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "3")
    with QuietServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(*how: str, etag: str = '"one"') -> str:
            Site.how, Site.etag = frozenset(how), etag
            Site.asked.clear()
            return f"http://127.0.0.1:{server.server_address[1]}/object"

        yield serve
        server.shutdown()
        fsspec.filesystem("http").clear_instance_cache()


def test_a_part_is_refused_if_the_server_does_not_say_which(site: Callable[..., str]) -> None:
    """It could be taken for the whole object."""
    uri = site("untold")
    with pytest.raises(StorageError, match=r"/object: .* \(status 206\), and no Content-Range"):
        storage.read_range(uri, 0, 10)
    assert len(Site.asked) == 1


def test_a_part_of_s3_is_refused_if_the_server_does_not_say_which(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{bucket}/{uuid.uuid4().hex}"
    storage.create(uri, b"0123456789")
    fs = fsspec.filesystem("s3", **s3.S3Store().options())
    real = type(fs)._call_s3

    async def stripped(self: object, *args: object, **asked: object) -> dict[str, Any]:
        answer: dict[str, Any] = await real(self, *args, **asked)
        answer.pop("ContentRange", None)
        return answer

    monkeypatch.setattr(type(fs), "_call_s3", stripped)
    with pytest.raises(StorageError, match="no Content-Range"):
        storage.read_range(uri, 0, 4)


def test_s3_keeps_settings_of_fsspec_beside_our_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"s3": {"addressing_style": "path"}, "max_pool_connections": 1}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": given})
    used = s3.S3Store().options()["config_kwargs"]
    assert used["s3"] == {"addressing_style": "path"}
    assert used["max_pool_connections"] == s3.CONNECTIONS


def test_a_web_page_takes_one_request_that_also_gives_its_identity(
    site: Callable[..., str],
) -> None:
    uri = site()
    listed = storage.info(uri)
    assert (listed.size, listed.identity) == (len(Site.data), "one")
    site()
    assert storage.read(uri, "one") == Site.data
    assert storage.read_range(uri, 10, 20, "one") == Site.data[10:30]
    assert Site.asked == ["GET whole", "GET bytes=10-29"]
    site(etag='"two"')
    for action in (storage.read, lambda u, i: storage.read_range(u, 10, 20, i)):
        with pytest.raises(SourceError, match=r"\(one listed, two read\)"):
            action(uri, "one")
    assert len(Site.asked) == 2


SERVERS = [(), ("no-ranges",), ("no-ranges", "chunked"), ("no-head",), ("no-etag", "modified")]


@pytest.mark.parametrize("how", SERVERS, ids="+".join)
def test_byte_ranges_work_with_all_kinds_of_servers(
    how: tuple[str, ...], site: Callable[..., str]
) -> None:
    uri = site(*how)
    size = len(Site.data)
    identity = storage.info(uri).identity
    assert storage.read(uri, identity) == Site.data
    for start, length in ((0, 10), (5, 7), (size - 3, 10), (size, 1), (size + 99, 5), (3, 0)):
        if "chunked" in how and start >= size:
            continue  # the length is not stated
        assert storage.read_range(uri, start, length, identity) == Site.data[start:][:length]


@pytest.mark.parametrize("how", SERVERS, ids="+".join)
def test_files_of_the_web_are_read_in_part(how: tuple[str, ...], site: Callable[..., str]) -> None:
    uri = site(*how)
    if "chunked" in how:
        with (
            pytest.raises(StorageError, match="does not tell its size"),
            storage.open_random(uri),
        ):
            pass
        return
    with storage.open_random(uri) as file:
        assert file.seek(-10, 2) == len(Site.data) - 10
        assert file.read() == Site.data[-10:]
        file.seek(100_000)
        assert file.read(50) == Site.data[100_000:100_050]
        file.seek(0)
        assert file.read() == Site.data


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (("cut",), TransientError, "no answer after 3 tries"),
        (("cut", "chunked"), TransientError, "no answer after 3 tries"),
        (("no-length",), StorageError, "no Content-Length"),
        (("other-range",), TransientError, "bytes from 4 on were asked for, but 'bytes 5-"),
        (("half-range",), TransientError, "500 of 1000 bytes arrived"),
        (("none-there",), TransientError, "no bytes from 4 on of 256000"),
        (("away",), TransientError, "no answer after 3 tries"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_an_answer_that_may_be_incomplete_is_refused(
    how: tuple[str, ...], kind: type[Exception], message: str, site: Callable[..., str]
) -> None:
    uri = site(*how)
    actions: list[Callable[[], object]] = [lambda: storage.read_range(uri, 4, 1000)]
    if how not in (("other-range",), ("half-range",), ("none-there",)):
        actions.append(lambda: storage.read(uri))
    if how == ("away",):
        actions += [lambda: storage.info(uri), lambda: storage.exists(uri)]
    for action in actions:
        with pytest.raises(StorageError, match=message) as caught:
            action()
        assert type(caught.value) is kind


def test_compressed_answers_are_not_read_in_ranges(site: Callable[..., str]) -> None:
    uri = site("compressed")
    with pytest.raises(StorageError, match="the server sends it compressed"):
        storage.read_range(uri, 0, 10)


def test_errors_do_not_show_the_signature_of_a_redirect(site: Callable[..., str]) -> None:
    uri = site("redirects")
    for action in (storage.read, storage.info):
        with pytest.raises(StorageError, match="access denied") as caught:
            action(uri)
        assert "planted" not in str(caught.value)
