"""Tests that a webhook is told what a refresh found: signed, until it is heard, and no secret."""

from __future__ import annotations

import hmac
import json
import logging
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalogue import Catalogue, tag_version
from pipeline.errors import DeliveryError, GateError, VdnaError
from pipeline.refreshing import refresh as refresh_datasets
from pipeline.refreshing.webhook import (
    SECRET_PREFIX,
    Webhook,
    message_id,
    send_outcome,
    signed_headers,
)
from pipeline.spec import Resources
from tests.jobs.test_cli import Outcome
from tests.refreshing.test_config import one, refusal
from tests.refreshing.test_gate import parted, refresh
from tests.refreshing.test_outputs import listening

KEY = bytes(range(32))
SECRET = SECRET_PREFIX + b64encode(KEY).decode()
HOLDS, BREAKS = "{dataset: day, min_images: 24}", "{dataset: day, min_images: 25}"

Request = tuple[str, str, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.001")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "3")


def hooked(folder: Path, url: str, *bounds: str, secret_env: str = "HOOK_SECRET") -> Path:
    file = parted(folder, {"day": 100}, *(bounds or [HOLDS]))
    text = json.dumps({"url": url, "secret_env": secret_env})
    file.write_text(f"{file.read_text()}\nwebhook: {text}\n")
    return file


def opened(request: Request) -> dict[str, Any]:
    """Checks a request as a receiver does, and returns its content."""
    method, path, headers, body = request
    known = {name.lower(): value for name, value in headers.items()}
    signed = f"{known['webhook-id']}.{known['webhook-timestamp']}.".encode() + body
    expected = b64encode(hmac.digest(KEY, signed, "sha256")).decode()
    assert known["webhook-signature"] == f"v1,{expected}"
    assert (method, path, known["content-type"]) == ("POST", "/hook", "application/json")
    told: dict[str, Any] = json.loads(body)
    return told


def test_the_signature_is_that_of_the_standard() -> None:
    """The example that the libraries of Standard Webhooks test themselves with."""
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        b'{"test": 2432232314}',
        b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        1614265330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_server_that_fails_twice_is_told_the_same_again(tmp_path: Path) -> None:
    with listening(500, 503) as (url, requests):
        done = refresh(hooked(tmp_path, f"{url}/hook", BREAKS), "--json", exits=3)
    first, second, third = requests
    assert opened(first) == opened(second) == opened(third)
    assert len({headers["webhook-id"] for _, _, headers, _ in requests}) == 1
    told, printed = opened(third), json.loads(done.stdout)
    assert (told["type"], printed["undelivered"]) == ("vdna.refresh", [])
    data = told["data"]
    assert data["gate"] == printed["gate"]
    assert data["gate"][0]["outcome"] == "broken"
    assert (data["error"], data["failed"]) == (printed["error"], [])
    assert data["datasets"][0] | {"dataset": "day", "images": 24} == data["datasets"][0]
    assert data["catalogue"] == Catalogue(str(tmp_path / "c")).root
    assert data["config"] == str(tmp_path / "datasets.yaml")


def test_a_refresh_that_finds_the_same_again_sends_the_same_id_in_that_hour(tmp_path: Path) -> None:
    with listening() as (url, requests):
        file = hooked(tmp_path, f"{url}/hook", BREAKS)
        for _ in range(2):
            refresh(file, exits=3)
        refresh(hooked(tmp_path, f"{url}/hook", HOLDS))
        tag_version(Catalogue(str(tmp_path / "c")), "day", "release")  # a commit
        refresh(file)
        (tmp_path / "day").rename(tmp_path / "away")
        refresh(file, exits=1)
    told = [opened(request) for request in requests]
    assert [each["data"]["commit"] for each in told] == [1, 1, 1, 2, 2]
    assert [headers["webhook-id"] for _, _, headers, _ in requests] == [
        message_id(each["data"], datetime.fromisoformat(each["timestamp"])) for each in told
    ]
    hour, next_hour = (datetime(2026, 12, 2, hour, tzinfo=UTC) for hour in (3, 4))
    first, again, *others = (message_id(each["data"], hour) for each in told)
    assert first == again
    # A file of the same name on another machine, for other datasets of the catalogue.
    of_another = told[0]["data"] | {"datasets": [{"dataset": "night"}]}
    others += [message_id(told[0]["data"], next_hour), message_id(of_another, hour)]
    assert len({first, *others}) == 6


def hook(url: str) -> Webhook:
    return Webhook(url=f"{url}/hook", secret_env="HOOK_SECRET")


def test_each_try_is_signed_with_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1000, 2000))
    monkeypatch.setattr("pipeline.refreshing.webhook.now", lambda: next(times))
    with listening(503) as (url, requests):
        send_outcome(hook(url), {"error": None})
    assert [headers["webhook-timestamp"] for _, _, headers, _ in requests] == ["1000", "2000"]
    assert [opened(request)["data"] for request in requests] == [{"error": None}] * 2


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "/hook does not exist"),
        (403, "/hook: access denied"),
        (307, r"the server answers with a redirect \(307\)"),
    ],
)
def test_a_refusal_is_not_tried_again_and_a_redirect_not_followed(status: int, said: str) -> None:
    with listening(status) as (url, requests):
        with pytest.raises(VdnaError, match=said):
            send_outcome(hook(url), {})
        assert [path for _, path, _, _ in requests] == ["/hook"]


def test_a_failed_build_is_told(tmp_path: Path) -> None:
    with listening() as (url, requests):
        file = hooked(tmp_path, f"{url}/hook")
        (tmp_path / "day").rename(tmp_path / "away")
        refresh(file, exits=1)
    (data,) = (opened(request)["data"] for request in requests)
    assert (data["failed"][0]["name"], data["datasets"]) == ("day", [])
    assert "does not exist" in data["error"]


@pytest.mark.parametrize("is_told", [True, False])
def test_what_nobody_foresaw_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    broken = (
        "engine.in_process.InProcess.run_shards" if is_told else "refreshing.steps.send_outcome"
    )
    monkeypatch.setattr(f"pipeline.{broken}", breaks)
    with listening() as (url, requests):
        file = hooked(tmp_path, f"{url}/hook")
        done = refresh(file, "--junit", tmp_path / "x.xml", exits=1 if is_told else 4)
    data = [opened(request)["data"] for request in requests]
    said = "unexpected RuntimeError: nobody foresaw this"
    assert [one["error"].startswith(said) for one in data] == [True] * is_told
    assert said in done.stderr
    assert (" has the details, for a report)" in done.stderr) == is_told
    assert (said in (tmp_path / "x.xml").read_text()) == is_told


def test_a_webhook_that_fails_for_good_undoes_nothing_and_exits_4(tmp_path: Path) -> None:
    with listening(500, 500, 500) as (url, requests):
        done = refresh(hooked(tmp_path, f"{url}/hook", HOLDS), exits=4)
    assert len(requests) == 3
    assert "gate: day, images: 24, at least 24: holds" in done.stdout
    assert "error: the refresh is done, but was not told: " in done.stderr
    assert "/hook: no answer after 3 tries: the server answers 500 Internal" in done.stderr
    assert "webhook-signature" not in done.stderr
    assert Catalogue(str(tmp_path / "c")).names() == ["day", "day/rain", "day/sun"]


def test_what_went_wrong_before_has_its_own_exit_code_and_python_raises_it(tmp_path: Path) -> None:
    with listening(404, 404, 404) as (url, _):
        told = json.loads(
            refresh(hooked(tmp_path, f"{url}/hook", BREAKS), "--json", exits=3).stdout
        )
        assert ("says no" in told["error"], len(told["undelivered"])) == (True, 1)
        quick = Resources(workers=0, threads=2)
        broken = refresh_datasets(str(tmp_path / "datasets.yaml"), resources=quick)
        with pytest.raises(GateError, match="says no"):
            broken.require_ok()
        held = refresh_datasets(str(hooked(tmp_path, f"{url}/hook", HOLDS)), resources=quick)
    assert held.error is None
    assert "; DeliveryError: the refresh is done, but was not told: " in repr(held)
    with pytest.raises(DeliveryError, match="was not told") as raised:
        held.require_ok()
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    "value", [None, "", "short", b64encode(bytes(23)).decode(), "not base64 " * 4, "ä" * 40]
)
def test_without_a_sound_secret_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("HOOK_SECRET")
    if value is not None:
        monkeypatch.setenv("HOOK_SECRET", value)
    with listening() as (url, requests):
        done = refresh(hooked(tmp_path, f"{url}/hook"), exits=2)
    said = f"{tmp_path}/datasets.yaml: the environment variable that webhook.secret_env names"
    assert said in done.stderr
    assert not value or value not in done.stderr
    assert not requests
    assert not (tmp_path / "c" / "_log").exists()


def everything(folder: Path, done: Outcome) -> bytes:
    files = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return b"".join((done.stdout.encode(), done.stderr.encode(), *files))


def test_the_secret_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    outputs = ("--junit", tmp_path / "x.xml", "--metrics", tmp_path / "x.prom")
    with listening(500, 500, 500) as (url, requests):
        file = hooked(tmp_path, f"{url}/hook", BREAKS)
        done = refresh(file, *outputs, "--log-format", "json", exits=3)
    sent = b"".join(request[3] + str(request[2]).encode() for request in requests)
    seen = everything(tmp_path, done) + sent + caplog.text.encode()
    assert b"was not told" in seen
    for form in (b64encode(KEY), KEY, KEY.hex().encode()):
        assert form not in seen
    assert SECRET not in repr(Webhook(url="http://h", secret_env="HOOK_SECRET"))


def test_a_secret_in_place_of_the_name_is_not_quoted(tmp_path: Path) -> None:
    done = refresh(hooked(tmp_path, "http://127.0.0.1:9/hook", secret_env=SECRET), exits=2)
    assert "never the secret" in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{url: 'http://h'}", "webhook.secret_env is missing"),
        ("{secret_env: X}", "webhook.url is missing"),
        ("{url: 'http://h', secret_env: X, retries: 3}", "webhook.retries"),
        (
            "{url: 's3://b/k', secret_env: X}",
            "webhook.url is 's3://b/k': s3://b/k is no url of http",
        ),
        ("{url: hook, secret_env: X}", "webhook.url is 'hook'"),
        ("{url: 'http://u:pass-word@h', secret_env: X}", "webhook.url is 'http://…@h'"),
        ("{url: 'http://h/x?key=pass-word', secret_env: X}", "webhook.url is 'http://h/x?key=…'"),
        ("http://h", "webhook is 'http://h'"),
    ],
)
def test_a_wrong_webhook_is_refused_by_its_field(tmp_path: Path, entry: str, field: str) -> None:
    message = refusal(tmp_path, f"{one()}webhook: {entry}\n")
    assert field in message
    assert "pass-word" not in message
