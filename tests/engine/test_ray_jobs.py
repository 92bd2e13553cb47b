"""Tests commands as jobs of a real Ray cluster, and a job server that answers badly."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click.testing
import pytest
from ray._private.authentication.authentication_token_setup import (
    enable_token_auth_by_default,
    ensure_token_if_auth_enabled,
)
from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster
from typer.testing import CliRunner

from jobs.app import app
from pipeline.catalogue import Catalogue
from pipeline.dna import DNA
from pipeline.engine import ray_jobs as ray_job_module
from pipeline.engine.job_server import Submission
from pipeline.engine.ray_jobs import RayJobServer
from pipeline.engine.ray_start import start_with_retries
from pipeline.errors import NotFound, TransientError, UsageError, VdnaError
from tests.support import tiny_network as tiny
from tests.support.ray_commands import (
    REPOSITORY,
    SHARDS,
    SLOW,
    Small,
    committed,
    ended,
    folder,
    holds,
    small,
    truth,
    wait_for,
)

__all__ = ["folder", "small", "truth"]  # fixtures


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("network")
    return Small(tiny.install(folder), folder)


@pytest.fixture(scope="module")
def address(network: Small) -> Iterator[str]:
    """Starts a cluster with a job server, whose machine has `vdna` and a slow decoder.

    Clusters of other tests run beside it. Ray tells a job its cluster by a file in the cluster's
    folder, and the folder that clusters share by default names whichever of them began last. So
    this one has a folder of its own, and a free port for the agent that starts jobs.
    """
    program = network.folder / "bin" / "vdna"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jobs.app "$@"\n')
    program.chmod(0o755)
    cluster = Cluster()
    with (
        pytest.MonkeyPatch.context() as patch,
        # A short path: Ray's sockets lie in it, and theirs may have 107 bytes.
        TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as own,
    ):
        patch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
        for name, value in network.environment(SLOW).items():
            patch.setenv(name, value)
        enable_token_auth_by_default()  # as `ray.init` does for a cluster that it starts
        ensure_token_if_auth_enabled()
        try:
            head = start_with_retries(
                lambda: cluster.add_node(
                    num_cpus=2,
                    include_dashboard=True,
                    dashboard_agent_listen_port=0,
                    object_store_memory=200 * 2**20,
                    temp_dir=own,
                )
            )
            write_ray_address(head.gcs_address, own)
            yield f"http://{head.webui_url}"
        finally:
            cluster.shutdown()


def vdna(*words: object, exits: int = 0) -> click.testing.Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == exits, done.output
    return done


@pytest.mark.soak
def test_a_job_is_left_cancelled_and_submitted_again_and_each_image_counts_once(
    address: str, network: Small, folder: Path, truth: DNA, tmp_path: Path
) -> None:
    at = ("--ray-address", address)
    catalogue = tmp_path / "c"
    build = ("build", "photos", folder, "-c", catalogue, "--workers", 0, "--threads", 1, "--json")
    build += ("--shard-images", 2, "--max-failures", 2, *network.options)
    submit = [str(word) for word in (sys.executable, "-m", "jobs.app", "submit", *at, *build)]
    process = subprocess.Popen(
        submit,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        # A shell that starts the tests in the background has SIGINT ignored, and so its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with ended(process):
        wait_for(catalogue, 2, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    (first,) = re.findall(r"^(\S+): submitted to ", err, re.MULTILINE)
    assert f"the job goes on; `vdna logs {first} --follow --ray-address {address}`" in err
    assert "vdna build --ray-address auto photos" in out

    refusal = vdna("submit", *at, *build, exits=1).stderr
    assert f"error: {first} is running and does just this" in refusal
    assert f"{first} is cancelled. What it counted is kept" in vdna("cancel", first, *at).stdout
    kept = committed(catalogue)
    assert 0 < kept < SHARDS

    done = vdna("submit", *at, *build)
    printed = done.stdout
    result = json.loads(printed[printed.index("\n{") :])
    assert result["counted_shards"] == SHARDS - committed_before(result, kept)
    assert committed(catalogue) == SHARDS
    holds(catalogue, truth)

    second = f"{first[:-1]}2"
    assert f"{second}: succeeded after" in done.stderr
    states = {job["id"]: job for job in json.loads(vdna("jobs", *at, "--json").stdout)}
    assert [states[id]["state"] for id in (first, second)] == ["cancelled", "succeeded"]
    assert vdna("logs", second, *at).stdout == printed
    assert vdna("logs", first, *at, "--follow", exits=143).stderr.startswith(f"{first}: cancelled")


def committed_before(result: dict[str, Any], kept: int) -> int:
    """Returns how many shards the second job found: a worker of the first may have ended one."""
    found = SHARDS - int(result["counted_shards"])
    assert kept <= found <= kept + 2
    return found


@pytest.mark.soak
def test_a_job_has_its_folder_its_variables_its_words_and_its_exit_code(
    address: str, network: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, catalogue = ("--ray-address", address), tmp_path / "a 'quoted' $HOME"
    monkeypatch.setenv("TORCH_HOME", "/somewhere else")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # the one that is given wins
    night = tmp_path / "night"
    night.mkdir()
    photos = {"source": str(folder), **network.place.options}
    few = {"name": "few", "include": "photo-000[0-3].jpg"} | photos
    bad = {"name": "bad", "include": "photo-000[67].jpg"} | photos
    (night / "night.yaml").write_text(json.dumps({"datasets": [few, bad]}))
    words = ("refresh", "--config", "night.yaml", "-c", catalogue, "--workers", 1)
    done = vdna("submit", *at, "--working-dir", night, "--env", "TORCH_HOME", *words, exits=3)
    assert "few: 4 images" in done.stdout
    assert "photo-0007.jpg: truncated" in done.stdout
    assert "connecting to Ray at auto" in done.stdout
    assert len(done.stderr.splitlines()) == 2, done.stderr
    listing = (sys.executable, "-m", "jobs.app", "jobs", *at)
    without_token = os.environ | {"RAY_AUTH_MODE": "disabled"}  # Ray has made one for the cluster
    listed = subprocess.run(listing, capture_output=True, text=True, env=without_token)
    assert (listed.returncode, listed.stdout) == (2, "")
    assert "asks for a token; set RAY_AUTH_MODE=token" in listed.stderr
    assert "failed with exit code 3 after" in done.stderr
    assert Catalogue(str(catalogue)).find("few").images == 4
    [job] = [j for j in ray_jobs(address) if j.runtime_env and "working_dir" in j.runtime_env]
    assert job.runtime_env["env_vars"] == {"TORCH_HOME": "/somewhere else"}

    assert (
        "has no job 'vdna-gc-00000000-1'" in vdna("logs", "vdna-gc-00000000-1", *at, exits=1).stderr
    )
    assert (
        "has no job 'vdna-gc-00000000-1'"
        in vdna("logs", "vdna-gc-00000000-1", *at, "--follow", exits=1).stderr
    )
    assert (
        "has no job 'vdna-gc-00000000-1'"
        in vdna("cancel", "vdna-gc-00000000-1", *at, exits=1).stderr
    )
    server = RayJobServer(address)
    [id] = [job.id for job in server.jobs() if job.code == 3]
    assert not server.submit(id, Submission(("gc",)))  # a second one of this id


def ray_jobs(address: str) -> list[Any]:
    from ray.job_submission import JobSubmissionClient

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        return JobSubmissionClient(address).list_jobs()


# A job server that answers badly

Answer = tuple[int, str]
ID = "vdna-build-00000000-1"
VERSION = json.dumps({"version": "4", "ray_version": "2.60.0"})


@pytest.fixture
def answering() -> Iterator[Callable[[dict[str, Answer]], str]]:
    """Starts a server of scripted answers by path; everything else is not found."""
    answers: dict[str, Answer] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answers.get(self.path, (404, "not found"))
            self.send_response(code)
            if code == 101:  # a websocket that says nothing
                key = f"{self.headers['Sec-WebSocket-Key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                accepted = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
                self.send_header("Upgrade", "websocket")
                self.send_header("Connection", "Upgrade")
                self.send_header("Sec-WebSocket-Accept", accepted)
            self.end_headers()
            self.wfile.write(text.encode())
            if code == 101:
                self.connection.settimeout(5.0)
                with suppress(OSError):
                    self.rfile.read()  # until the client goes
                self.close_connection = True

        do_POST = do_GET  # noqa: N815 (http.server looks it up by this name)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def answer(scripted: dict[str, Answer]) -> str:
        answers.clear()
        answers.update(scripted)
        return f"http://127.0.0.1:{server.server_port}"

    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("version", "kind", "told"),
    [
        ((401, "no token"), UsageError, "asks for a token; set RAY_AUTH_MODE=token"),
        ((403, "wrong token"), UsageError, "asks for a token; set RAY_AUTH_MODE=token"),
        ((404, "nothing"), TransientError, "did not answer: Version check returned 404"),
        ((500, "broken"), TransientError, "did not answer: 500"),
        ((200, "<html>"), TransientError, "did not answer"),
    ],
)
def test_an_address_that_is_no_open_job_server_is_named(
    answering: Callable[..., str], version: Answer, kind: type[VdnaError], told: str
) -> None:
    with pytest.raises(kind, match=told):
        RayJobServer(answering({"/api/version": version}))


def test_a_cluster_must_be_named_and_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="no cluster is named; give --ray-address"):
        RayJobServer()
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(UsageError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1"):
        RayJobServer()


@pytest.mark.parametrize(
    "address", ["head:8265", "auto", "ray://h:10001", "os.path://h:1", "http://"]
)
def test_an_address_that_is_no_url_of_http_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_job_module, "require_answer", lambda address: pytest.fail("asked"))
    monkeypatch.setenv("RAY_ADDRESS", address)
    for given in (address, None):
        with pytest.raises(UsageError, match=f"is '{address}'; give its url, such as http://HEAD"):
            RayJobServer(given)


def test_the_address_that_is_given_wins_over_the_environment(
    answering: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client would take the environment's."""
    address = answering({"/api/version": (200, VERSION), "/api/jobs/": (200, "[]")})
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert RayJobServer(address).jobs() == []
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    assert (RayJobServer().address, RayJobServer().flags) == (address, "")


def test_answers_about_a_job_that_fail_are_told(answering: Callable[..., str]) -> None:
    answers = {"/api/version": (200, VERSION)}
    server = RayJobServer(answering(answers))
    for ask in (server.job, server.log, server.stop, lambda id: next(server.tail(id)[1])):
        with pytest.raises(NotFound, match=f"has no job '{ID}' .*; `vdna jobs --ray-address http"):
            ask(ID)
    traceback = "Traceback (most recent call last):\n  a line\nKeyError: 'x'\n."
    place = f"/api/jobs/{ID}"
    answering(answers | {place: (500, traceback), f"{place}/logs/tail": (401, "")})
    with pytest.raises(TransientError, match=r"[0-9] answered 500: KeyError: 'x'$"):
        server.job(ID)
    with pytest.raises(UsageError, match="asks for a token"):
        next(server.tail(ID)[1])


@pytest.mark.parametrize("id", ["", "raysubmit_a", "vdna-build", "../version"])
def test_jobs_of_others_are_neither_shown_nor_ended(answering: Callable[..., str], id: str) -> None:
    """The server knows them, and would do it."""
    known = {f"/api/jobs/{id}{end}": (200, "{}") for end in ("", "/stop", "/logs", "/logs/tail")}
    address = answering(known | {"/api/version": (200, VERSION)})
    server = RayJobServer(address)
    for ask in (server.job, server.log, server.stop, lambda id: next(server.tail(id)[1])):
        with pytest.raises(NotFound, match=f"has no job {id!r} of `vdna submit`"):
            ask(id)
    assert f"has no job {id!r}" in vdna("cancel", id, "--ray-address", address, exits=1).stderr


@contextmanager
def silent() -> Iterator[str]:
    """Takes connections and says nothing; breaks them after 5 s, so that no test waits for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = threading.Timer(5.0, listener.close)
        end.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        end.cancel()


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_job_module, "TIMEOUT", (5.0, 0.1))
    told = r"did not answer: .*[Tt]imed out"
    with silent() as address, pytest.raises(TransientError, match=told):
        RayJobServer(address)


@pytest.mark.filterwarnings("ignore:Unclosed connection:ResourceWarning")
def test_a_log_that_says_nothing_is_given_up(
    answering: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = {"/api/version": (200, VERSION), f"/api/jobs/{ID}/logs/tail": (101, "")}
    server = RayJobServer(answering(answers))
    monkeypatch.setattr(ray_job_module, "TIMEOUT", (5.0, 0.5))
    _, texts = server.tail(ID)
    with pytest.raises(TransientError, match=r"[0-9] did not answer: TimeoutError$"):
        next(texts)
    gc.collect()
    assert caplog.records == []


def test_only_the_copy_of_a_folder_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket counts the sending of all its bytes as one step."""
    asked: list[Any] = []
    monkeypatch.setattr(
        ray_job_module.JobSubmissionClient,
        "_do_request",
        lambda *_, **request: asked.append(request),
    )
    client = object.__new__(ray_job_module._Client)
    client._do_request("POST", "/api/jobs/", json_data={})
    client._do_request("PUT", "/api/packages/a", data=b"")
    assert [request["timeout"] for request in asked] == [(10.0, 60.0), 3600.0]


def test_a_working_folder_that_is_none_is_named(answering: Callable[..., str]) -> None:
    server = RayJobServer(answering({"/api/version": (200, VERSION)}))
    with pytest.raises(UsageError, match="working_dir is '/none': "):
        server.submit("x", Submission(("gc",), working_dir="/none"))


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the address http://…@h:1 holds a secret") as refused:
        RayJobServer("http://me:planted@h:1")
    assert "planted" not in str(refused.value)
