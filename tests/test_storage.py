"""Reading, creating exclusively, and what becomes of errors; on every kind of place."""

from __future__ import annotations

import builtins
import contextlib
import os
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import fsspec
import pytest

from pipeline import storage
from pipeline.errors import SourceError, StorageError, TransientError, UsageError
from pipeline.retry import Settings


@pytest.fixture(params=["file", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return tmp_path.as_uri()
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


def test_create_is_exclusive_and_leaves_the_first_alone(root: str) -> None:
    uri = storage.join(root, "a", "b.bin")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
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
    below = [item.uri for item in storage.walk(storage.join(root, "x"))]
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


def test_what_is_not_there_is_a_source_error(root: str) -> None:
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
    with pytest.raises(SourceError, match="changed between listing and reading"):
        storage.read(uri, before.identity)


def test_exclusiveness_is_probed_and_the_probe_leaves_nothing(root: str) -> None:
    storage.create(storage.join(root, "keep"), b"x")
    storage.require_exclusive(root)
    assert [item.uri for item in storage.walk(root)] == [storage.join(root, "keep")]


def test_a_store_that_overwrites_is_refused(monkeypatch, tmp_path: Path) -> None:
    def overwrite(uri: str, data: bytes) -> bool:
        storage.replace(uri, data)
        return True

    monkeypatch.setattr(storage, "create", overwrite)
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

    real = storage._read_local

    def flaky(p: str, *part: int | None) -> storage._Answer:
        calls.append(p)
        if len(calls) < fail_first:
            raise ConnectionResetError("reset")
        return real(p, *part)

    monkeypatch.setattr(storage, "_read_local", flaky)
    fail_first = 3
    assert storage.read(path.as_uri()) == b"x"
    assert len(calls) == 3
    calls.clear()
    fail_first = 99
    with pytest.raises(TransientError, match=r"a: no answer after 8 tries.*reset"):
        storage.read(path.as_uri())
    assert len(calls) == Settings().attempts


def test_a_put_whose_answer_is_lost_is_known_as_our_own(
    s3_server: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own layers repeat the PUT, and are told that the object is there."""
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


def test_denied_is_not_tried_again(monkeypatch, tmp_path: Path) -> None:
    calls = []

    def denied(path: str, *_: int | None) -> NoReturn:
        calls.append(path)
        raise PermissionError("no")

    monkeypatch.setattr(storage, "_read_local", denied)
    with pytest.raises(StorageError, match="access denied"):
        storage.read((tmp_path / "a").as_uri())
    assert len(calls) == 1


class Failing(fsspec.AbstractFileSystem):
    """Lets the errors of the client under it through, as the hub's does."""

    protocol = "failing"
    error: Exception
    asked = 0

    def fail(self, *_: object, **__: object) -> NoReturn:
        Failing.asked += 1
        raise Failing.error

    info = cat_file = open = find = glob = rm_file = rm = pipe_file = fail


def client_error(library: str, names: str, **fields: object) -> Exception:
    """An error of a library that need not be installed, of several names, the last its root's."""
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
        (client_error("aiohttp", "ClientResponseError", status=503), TransientError, "ClientRes"),
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
        (ValueError("no such place"), StorageError, "no such place"),
        (NotImplementedError("lists of buckets"), StorageError, "lists of buckets"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_http_clients_get_our_names(
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
        assert Failing.asked == (Settings().attempts if kind is TransientError else 1)
    if kind is SourceError:
        assert not storage.exists(uri)
        storage.delete(uri)
    else:
        with pytest.raises(kind):
            storage.exists(uri)
    if not isinstance(error, ValueError | NotImplementedError):  # a reader's own, maybe
        with pytest.raises(kind, match=uri), storage.open_random(uri):
            pass


def test_files_of_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real client: its answers are what the errors above imitate."""
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


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/a/b/../c.jpg", "file:///a/c.jpg"),
        ("file:///a//b/", "file:///a/b"),
        ("/a/ä b#c?.jpg", "file:///a/%C3%A4%20b%23c%3F.jpg"),
        ("s3://bucket/a::b.jpg", "s3://bucket/a::b.jpg"),
        ("S3://bucket/x/", "s3://bucket/x"),
        ("memory:///x", "memory://x"),
    ],
)
def test_one_spelling_a_place(url: str, expected: str) -> None:
    assert storage.canonical(url) == expected
    assert storage.canonical(expected) == expected


def test_relative_and_home_paths(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.canonical("x/./y") == (tmp_path / "x" / "y").as_uri()
    assert storage.canonical("~/x").startswith("file:///")
    assert storage.local_path(storage.canonical("ä b")) == str(tmp_path / "ä b")


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad-\xff.jpg")
    (tmp_path / name).write_bytes(b"x")
    (item,) = storage.walk(tmp_path.as_uri())
    item.uri.encode("ascii")
    assert storage.read(item.uri, item.identity) == b"x"
    storage.readable(item.uri).encode()


def test_presigned_urls_are_refused_without_their_secret() -> None:
    with pytest.raises(UsageError, match="carries a signature") as caught:
        storage.canonical("https://b.s3.amazonaws.com/k.jpg?X-Amz-Signature=topsecret")
    assert "topsecret" not in str(caught.value)


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
