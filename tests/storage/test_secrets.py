"""Tests that no command prints or stores a secret, whether it ends well or badly."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, quote_plus

import boto3
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.errors import SourceError, TransientError, UsageError, VdnaError, redact
from tests.support import s3
from tests.support import tiny_network as tiny
from tests.support.builders import photo, write_photos

KEY = "planted/secret+key=of-tests"
SESSION = "planted/session+token==of-tests"
PASSWORD = "planted-pass/word+x"
SIGNATURE = "0123456789abcdefplantedsignature"
HUB = "hf_plantedTokenOfTheHubAAAABBBB"
BASIC = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
SECRETS = (KEY, SESSION, PASSWORD, SIGNATURE, HUB, BASIC)


def spellings(secret: str) -> set[bytes]:
    """Gives a secret as it is, percent-encoded, and in base64 at each offset in a longer text."""
    found = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    plain = secret.encode()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + plain).decode()
        found.add(coded[4 if shift else 0 : len(coded) - 4])
    return {text.encode() for text in found}


def clean(data: bytes | str, where: object) -> None:
    data = data.encode() if isinstance(data, str) else data
    for secret in SECRETS:
        for text in spellings(secret):
            assert text not in data, (where, text)


def contents(data: bytes) -> Iterator[bytes]:
    """Gives the bytes of a file; for Parquet also its columns and metadata, unpacked."""
    yield data
    if data[:4] == b"PAR1":
        file = pq.ParquetFile(pa.BufferReader(data))
        yield repr(file.metadata.metadata).encode()
        yield repr(file.schema_arrow.metadata).encode()
        table = file.read()
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield "\n".join(filter(None, column.to_pylist())).encode()


def all_clean(root: str) -> int:
    """Checks the name and content of every object below, and counts them."""
    count = 0
    for item in storage.walk(root):
        clean(item.uri, item.uri)
        for part in contents(storage.read(item.uri)):
            clean(part, item.uri)
        count += 1
    return count


def forget_clients() -> None:
    for protocol in ("s3", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sets credentials in the environment, where every client finds them."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
    monkeypatch.setenv("HF_TOKEN", HUB)
    headers = {"Authorization": f"Basic {BASIC}"}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"headers": headers}})
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "2")
    forget_clients()
    yield
    forget_clients()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Makes a bucket on a server that takes any secret, even the planted ones."""
    with s3.moto() as settings:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="vdna-secrets")
        yield "s3://vdna-secrets"
    forget_clients()


REFUSALS = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError"}


class Answers(BaseHTTPRequestHandler):
    """An S3 or web server that refuses everything, and quotes secrets in its answers."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Answers.seen.append(str(self.headers.get("Authorization")))
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", f"/signed.jpg?X-Amz-Signature={SIGNATURE}&x=1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = next((s for s in REFUSALS if f"{s}" in self.path), 403)
        body = (
            f"<?xml version='1.0'?><Error><Code>{REFUSALS[status]}</Code><Message>no: "
            f"https://user:{PASSWORD}@host/x?token={quote(SESSION)} Authorization: Basic {BASIC}"
            "</Message></Error>"
        ).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def vdna(*words: object, exits: tuple[int, ...] = (0,)) -> str:
    """Gives all that the command prints, with --json and without."""
    said = ""
    for options in ([], ["--json"]):
        done = CliRunner().invoke(app, [*map(str, words), *options])
        assert done.exit_code in exits, (words, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        said += done.stdout + done.stderr
    clean(said, words)
    return said


# Successful commands.


@pytest.mark.soak
def test_successful_commands_reveal_no_secret(opened: str, planted: None, tmp_path: Path) -> None:
    """Runs all of them, in a bucket that the secrets open."""
    bucket = opened
    root = f"{bucket}/{uuid.uuid4().hex}"
    for seed in range(3):
        data = io.BytesIO()
        photo(seed).save(data, "JPEG")
        storage.create(f"{root}/images/{seed}.jpg", data.getvalue())
    storage.create(f"{root}/images/bad.jpg", data.getvalue()[:-100])
    config = {
        "datasets": [
            {"name": name, "source": f"{root}/images", "bins": 8, "max_failures": 1, "limit": limit}
            for name, limit in (("a", 4), ("b", 3))
        ]
    }
    (tmp_path / "datasets.yaml").write_text(json.dumps(config))
    place = ("-c", f"{root}/catalogue")
    vdna("refresh", "--config", tmp_path / "datasets.yaml", *place, "--workers", 0)
    options = ("--max-failures", 1, "--spec", "new", "--workers", 0)
    vdna("build", "a", f"{root}/images", *options, *place)
    for words in (
        ("ls",),
        ("show", "b"),
        ("log",),
        ("verify", "b"),
        ("gc",),
        ("compare", "a", "b"),
    ):
        spec = ("--spec", storage_spec(root)) if words[0] in ("show", "compare") else ()
        vdna(*words, *place, *spec)
    for name in ("page.html", "figure.svg"):
        option = "--html" if name.endswith("html") else "--figure"
        vdna("compare", "a", "b", *place, "--spec", storage_spec(root), option, tmp_path / name)
        clean((tmp_path / name).read_bytes(), name)
    near = (f"{root}/images", "--to", "b", *place, "--spec", storage_spec(root), "--workers", 0)
    near = (*near, "--max-failures", 1, "--out", f"{root}/out/near.parquet")
    vdna("rank", *near, "--html", tmp_path / "near.html")
    clean((tmp_path / "near.html").read_bytes(), "near.html")
    vdna("export", "b", f"{root}/out/b.npz", *place)
    vdna("import", f"{root}/out/b.npz", "c", *place, exits=(0, 1))
    vdna(
        *("calibrate", f"{root}/images", "--out", f"{root}/out/ranges.parquet", "--workers", 0),
        *("--max-failures", 1),
    )
    vdna("compare", "a", "b", *place, "--spec", storage_spec(root), "--out", tmp_path / "m.parquet")
    clean((tmp_path / "m.parquet").read_bytes(), "m")
    assert all_clean(root) > 25


def storage_spec(root: str) -> str:
    """Gives the spec that both datasets share."""
    from pipeline.catalogue import Catalogue

    (digest,) = Catalogue(f"{root}/catalogue").head().datasets["b"]
    return digest


# Failing commands.

SECRET_URLS = {
    "presigned": f"https://host/x.jpg?X-Amz-Signature={SIGNATURE}",
    "presigned, with a password": f"https://u:{quote(PASSWORD, '')}@h/x?sig={SIGNATURE}",
    "an encoded name": f"https://host/x.jpg?X-Amz%2DSignature={SIGNATURE}",
    "google": f"https://host/x.jpg?a=b&X-Goog-Signature={SIGNATURE}",
    "azure": f"https://host/x.jpg?sv=2020&sig={quote(SIGNATURE)}",
    "session token": f"https://host/x.jpg?X-Amz-Security-Token={quote(SESSION)}",
    "another token": f"https://host/x.jpg?access_token={SIGNATURE}",
    "an api key": f"https://host/x.jpg?api_key={SIGNATURE}",
    "a name that says nothing": f"https://host/x.jpg?q={SIGNATURE}",
    "after a semicolon": f"https://host/x.jpg?n=1;q={SIGNATURE}",
    "a fragment": f"https://host/x.jpg#{SIGNATURE}",
    "a password": f"https://user:{quote(PASSWORD, '')}@host/x.jpg",
    "a password with a slash": f"s3://AKIA0:{PASSWORD}@bucket/x",
    "a token as the name": f"https://{HUB}@host/x.jpg",
}
RUN = ("build", "calibrate", "rank", "refresh")
WORST = ("presigned, with a password", "a password with a slash")
ARGUMENTS: dict[str, Callable[[str, Path], tuple[object, ...]]] = {
    "source": lambda url, out: ("build", "a", url, "-c", out / "c"),
    "catalogue": lambda url, out: ("build", "a", out / "images", "-c", url),
    "weights": lambda url, out: ("build", "a", out / "images", "-c", out / "c", "--weights", url),
    "ranges": lambda url, out: ("build", "a", out / "images", "-c", out / "c", "--ranges", url),
    "ls": lambda url, out: ("ls", "-c", url),
    "log": lambda url, out: ("log", "-c", url),
    "show": lambda url, out: ("show", "a", "-c", url),
    "verify": lambda url, out: ("verify", "-c", url),
    "gc": lambda url, out: ("gc", "-c", url),
    "compare": lambda url, out: ("compare", "-c", url),
    "rank": lambda url, out: ("rank", url, "--to", "a", "-c", out / "c"),
    "rank to": lambda url, out: ("rank", out / "images", "--to", "a", "-c", url),
    "ranking": lambda url, out: (
        *("rank", out / "images", "--to", "a", "-c", out / "c", "--out", f"{url}/x.parquet"),
    ),
    "gallery": lambda url, out: (
        *("rank", out / "images", "--to", "a", "-c", out / "c", "--html", f"{url}/x.html"),
    ),
    "calibrate": lambda url, out: ("calibrate", url, "--out", out / "r.parquet"),
    "out": lambda url, out: ("calibrate", out / "images", "--out", url),
    "import": lambda url, out: ("import", f"{url}/x.npz", "a", "-c", out / "c"),
    "export": lambda url, out: ("export", "a", f"{url}/x.npz", "-c", out / "c"),
    "config": lambda url, out: ("refresh", "--config", url),
    "refresh": lambda url, out: ("refresh", "--config", out / "datasets.yaml", "-c", url),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_photos(folder, 1)
    return folder


@pytest.fixture
def out(tmp_path: Path, images: Path) -> Path:
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "datasets.yaml").write_text("datasets: [{name: a, source: images}]")
    return tmp_path


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_a_url_that_holds_a_secret_is_refused_without_it(out: Path, argument: str) -> None:
    words = ARGUMENTS[argument]
    for url in (SECRET_URLS[what] for what in WORST):
        more = ("--workers", 0) if words(url, out)[0] in RUN else ()
        vdna(*words(url, out), *more, exits=(1, 2))
    if (out / "c").exists():
        all_clean((out / "c").as_uri())


@pytest.mark.parametrize("what", SECRET_URLS)
def test_a_url_with_a_secret_in_a_list_or_a_config_is_refused_by_its_line(
    out: Path, what: str
) -> None:
    url = SECRET_URLS[what]
    (out / "list.txt").write_text(f"# images\nimages/photo-0000.jpg\n{url}\n")
    said = vdna("build", "a", out / "list.txt", "-c", out / "c", "--workers", 0, exits=(2,))
    assert "list.txt, line 3: " in said
    for text in (
        f"datasets: [{{name: a, source: '{url}'}}]",
        f"datasets: [{{name: a, sauce: '{url}'}}]",
        f"catalogue: '{url}'\ndatasets: [{{name: a, source: images}}]",
        f"datasets: [{{name: a, source: '{url}'}}",
        f"password: '{PASSWORD}'",
        f"aws_secret_access_key: {KEY}\nx: [",
    ):
        (out / "datasets.yaml").write_text(text)
        words = ("refresh", "--config", out / "datasets.yaml", "--workers", 0)
        vdna(*words, *(() if "catalogue" in text else ("-c", out / "c")), exits=(1, 2))


@pytest.mark.parametrize(
    "path", ["redirect.jpg", "403.jpg", "404.jpg", "500.jpg", "redirect/list.txt"]
)
def test_a_refusal_of_a_web_server_reveals_no_secret(
    out: Path, planted: None, server: str, path: str
) -> None:
    Answers.seen.clear()
    vdna("build", "a", f"{server}/{path}", "-c", out / "c", "--workers", 0, exits=(1, 2))
    with pytest.raises((VdnaError, UsageError)) as caught:
        storage.read(f"{server}/{path}")
    clean(str(caught.value), path)
    clean(repr(caught.value), path)
    assert f"Basic {BASIC}" in Answers.seen, "the header is sent"


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_of_an_object_store_reveals_no_secret(
    out: Path, planted: None, server: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-for-tests")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_clients()
    url = f"s3://bucket{status}/{status}"
    for argument in ("source", "catalogue", "weights", "ls", "verify", "gc", "import", "calibrate"):
        words = ARGUMENTS[argument](url, out)
        more = ("--workers", 0) if words[0] in ("build", "calibrate") else ()
        # For `ls`, a catalogue that does not exist is empty.
        vdna(*words, *more, exits=(0, 1, 2) if status == 404 else (1, 2))


def test_an_unreachable_store_reveals_no_secret(
    out: Path, planted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_clients()
    for argument in ("source", "ls", "verify", "gc"):
        words = ARGUMENTS[argument]("s3://bucket/x", out)
        vdna(*words, *(("--workers", 0) if words[0] == "build" else ()), exits=(1,))


# What a foreign file states about itself.


def test_the_source_that_a_file_of_the_reference_states_is_stored_without_secrets(
    tmp_path: Path,
) -> None:
    about = {
        "type": "gaussian",
        "vdna_version": "0.1.1",
        "num_images": 3,
        "neurons_list": {"block_0": 2},
        "feature_extractor_name": "inception",
        "data_settings": {"source": f"https://u:{PASSWORD}@h/x?sig={SIGNATURE}"},
        "extraction_settings": {},
        "distribution": {},
    }
    (tmp_path / "x.json").write_text(json.dumps(about))
    arrays = {"mu-block_0": np.zeros(2, np.float32), "var-block_0": np.ones(2, np.float32)}
    np.savez(tmp_path / "x.npz", **arrays)
    vdna("import", tmp_path / "x.npz", "x", "-c", tmp_path / "c")
    said = vdna("show", "x", "-c", tmp_path / "c")
    assert "https://…@h/x?sig=…" in said
    assert all_clean((tmp_path / "c").as_uri()) > 2


# The one function that removes secrets.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a@2x.png of 3", "s3://bucket/a@2x.png of 3"),
        ("http://host:8080/a@2x.png", "http://host:8080/a@2x.png"),
        ("file:///home/user@host/x", "file:///home/user@host/x"),
        ("timm:vit_base_patch14_dinov2.lvd142m@224", "timm:vit_base_patch14_dinov2.lvd142m@224"),
        ("check the credentials: Forbidden", "check the credentials: Forbidden"),
        ("weights hold a token_embedding.weight", "weights hold a token_embedding.weight"),
        ("s3://b/token=1/x.jpg does not exist", "s3://b/token=1/x.jpg does not exist"),
        ("a https://u:p@h/x b", "a https://…@h/x b"),
        ("s3://AKIA:ab/c+d@bucket/x", "s3://…@bucket/x"),
        ("url='https://h/x?X-Amz-Signature=ab&n=1'", "url='https://h/x?X-Amz-Signature=…&n=1'"),
        ("headers={'Authorization': 'Basic dXNlcg==', 'a': 'b'}",
         "headers={'Authorization': …, 'a': 'b'}"),
        ("cannot read https://h/x?key=ab&n=12;code=cd.", "cannot read https://h/x?key=…&n=12;code=…"),
        ("https://h/x#ab", "https://h/x#…"),
        ("https://h/x?ab", "https://h/x?…"),
        ("s3://b/x?versionId=ab", "s3://b/x?versionId=…"),
        ("s3://b/a?.jpg and s3://b/a#1.jpg", "s3://b/a?.jpg and s3://b/a#1.jpg"),
        ("https://h/x?key=${VDNA_QUERY_KEY}&n=1", "https://h/x?key=${VDNA_QUERY_KEY}&n=1"),
        *((f"a{mark}secret=ab", f"a{mark}secret=…") for mark in "?&;,{ '\""),
        *((f"secret=ab{mark}b=cd", f"secret=…{mark}b=cd") for mark in "&;,<>)}'\""),
        *((f"{{{q}secret{q}: {q}ab{q}}}", f"{{{q}secret{q}: {q}…{q}}}") for q in "'\""),
        ('password is "ab"', 'password is "…"'),
        ("a https://ab@h/x b", "a https://…@h/x b"),
        ("'s3://b','x:y@z' and s3://b:p','x@z", "'s3://b','x:y@z' and s3://b:p','x@z"),
        ("http://h:80?x=a/b@c and http://h:80#a/b@c", "http://h:80?x=… and http://h:80#…"),
        ("('Authorization', 'Basic dXNlcg==')", "('Authorization', …)"),
        ("x-api-key: ab'cd", "x-api-key: …'cd"),
        ("a?x-amz-credential=ab&x-goog-credential=cd", "a?x-amz-credential=…&x-goog-credential=…"),
        ("'https://h/a','?b=cd' and 's3://h/a','?b=cd'", "'https://h/a','?b=cd' and 's3://h/a','?b=cd'"),
        *((f"{url}?b=xy?c=zz", f"{url}?b=…") for url in ("https://h/a", "s3://h/a")),
        *((f"{url}#b=xy#c=zz", f"{url}#b=…#c=…") for url in ("https://h/a", "s3://h/a")),
        ("s3://h/a?x'y=z", "s3://h/a?x'y=z"),
        *((f"s3://h/a{mark}x{mark}y=z", f"s3://h/a{mark}x{mark}y=…") for mark in "?#"),
        *((f"https://h/x?a{mark}b=cd", f"https://h/x?…{mark}b=…") for mark in "&;#"),
        *((f"a{mark}secret is 'ab'", f"a{mark}secret is '…'") for mark in "?&;,{ '\""),
        ("Authorization: AWS4-HMAC-SHA256 Credential=A, Signature=b\nx", "Authorization: …\nx"),
        ("Bearer abcdefgh12", "Bearer …"),
        ("datasets.0.password is 'x y': Extra", "datasets.0.password is '… y': Extra"),
        ("aws_secret_access_key: abc", "aws_secret_access_key: …"),
        (f"the token {HUB}", "the token hf_…"),
    ],
)  # fmt: skip
def test_secrets_in_texts_are_redacted(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected
    assert str(SourceError(text)) == expected


def test_values_that_are_sent_in_queries_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_QUERY_KEY", "pl/anted")
    monkeypatch.setenv("VDNA_QUERY_EMPTY", "")
    assert redact("at pl/anted, or pl%2Fanted") == "at …, or …"


class NeedsKey(BaseHTTPRequestHandler):
    """A web server with one image, for whoever sends the right key."""

    image = b""

    def do_GET(self) -> None:
        allowed = self.path in (f"/x.jpg?id={number}&key={SIGNATURE}" for number in (1, 2))
        self.send_response(200 if allowed else 403)
        body = NeedsKey.image if allowed else b"no"
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_a_secret_of_a_query_is_sent_and_never_kept(
    out: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny.install(out)
    options = [word for k, v in network.options.items() for word in (f"--{k}", v)]
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "1")
    NeedsKey.image = next(images.iterdir()).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), NeedsKey) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{httpd.server_address[1]}/x.jpg"
        lines = (f"{place}?id={number}&key=${{VDNA_QUERY_KEY}}\n" for number in (1, 2))
        (out / "list.txt").write_text("".join(lines))
        build = ("build", "a", out / "list.txt", "-c", out / "c", "--workers", 0, *options)
        said = vdna(*build, exits=(2,))
        assert "line 1: " in said
        assert "--allow-query" in said
        build = (*build, "--allow-query", "id,key")
        said = vdna(*build, exits=(1,))
        assert "VDNA_QUERY_KEY, which is not set" in said
        monkeypatch.setenv("VDNA_QUERY_KEY", SIGNATURE)
        assert "2 images" in vdna(*build)
        one = ("build", "one", f"{place}?id=1&key=${{VDNA_QUERY_KEY}}", *build[3:])
        assert "1 image" in vdna(*one)
        deep = ("verify", "-c", out / "c", "--deep", "--weights", network.weights)
        vdna(*deep)
        monkeypatch.setenv("VDNA_QUERY_KEY", SIGNATURE[::-1])
        monkeypatch.setenv("VDNA_QUERY_OTHER", SIGNATURE)
        vdna(*deep, exits=(1,))
        httpd.shutdown()
    assert all_clean((out / "c").as_uri()) > 3


def test_errors_travel_between_processes_as_they_are() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(TransientError(f"https://u:{PASSWORD}@h/x")))
    assert (type(error), str(error)) == (TransientError, "https://…@h/x")


# On Ray.


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray's own warning
def test_ray_receives_no_secret(
    opened: str, planted: None, server: str, tmp_path: Path, images: Path
) -> None:
    """Neither the files of its session nor its state hold one, after good and bad builds."""
    bucket = opened
    import ray
    from ray._private.worker import global_worker

    from pipeline.building import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.engine import RayEngine
    from pipeline.spec import Resources

    root = f"{bucket}/{uuid.uuid4().hex}"
    for path in images.iterdir():
        storage.create(f"{root}/images/{path.name}", path.read_bytes())
    resources = Resources(workers=1, threads=1)
    place = Catalogue(f"{root}/catalogue")
    with RayEngine(resources) as engine:
        build_datasets(place, [Request("a", f"{root}/images", bins=8)], engine, resources)
        (tmp_path / "list.txt").write_text(f"{server}/redirect.jpg\n")
        for source in (SECRET_URLS["presigned"], str(tmp_path / "list.txt")):
            with pytest.raises(VdnaError) as caught:
                build_datasets(place, [Request("b", source)], engine, resources)
            clean(str(caught.value), source)
        gone = f"{root}/images/gone.jpg"
        storage.create(gone, b"x")
        missing = pytest.MonkeyPatch()
        missing.setattr(
            "pipeline.building.runner._missing", lambda p: (storage.delete(gone) or {0, 1}, False)
        )
        with pytest.raises(TransientError) as caught, missing.context():
            build_datasets(place, [Request("c", f"{root}/images", bins=8)], engine, resources)
        missing.undo()
        clean(str(caught.value), "c")
        known = repr([ray._private.state.actors(), ray._private.state.jobs(), ray.nodes()])
        assert "ShardActor" in known
        clean(known, "state")
        folder = Path(global_worker.node.get_session_dir_path())
        # Read before the engine closes, which removes the folder.
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        files = {path: path.read_bytes() for path in paths}
    assert any(b"ShardActor" in data for data in files.values())  # Ray has told of the job
    for path, data in files.items():
        clean(data, path)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == KEY
    assert all_clean(f"{root}/catalogue") > 8
