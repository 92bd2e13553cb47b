"""Tests what is tried again, for how long, and what the errors and logs say."""

from __future__ import annotations

import errno
import logging
import re
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    MetadataRetrievalError,
    NoCredentialsError,
)

from pipeline import storage
from pipeline.errors import SourceError, StorageError, TransientError, UsageError
from pipeline.storage import retry
from pipeline.storage.retry import VARIABLES, RetrySettings, attempt, is_transient

URI = "s3://bucket/key"


def s3_error(status: int, code: str, message: str | None = "", **headers: str) -> OSError:
    """Makes an answer of S3 as s3fs raises it: as the cause of an error of its own."""
    error = OSError(errno.EIO, message)
    answer: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    error.__cause__ = ClientError(answer, "GetObject")
    return error


def tries(error: Exception) -> int:
    """Counts how often an action is tried that always raises this error."""
    count = 0

    def action() -> None:
        nonlocal count
        count += 1
        raise error

    with pytest.raises((StorageError, SourceError)):
        attempt(URI, action)
    return count


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.0001")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "3")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (301, "PermanentRedirect", 1),
        (307, "TemporaryRedirect", 3),
        (500, "InternalError", 3),
        (501, "NotImplemented", 1),
        (502, "502", 3),
        (503, "SlowDown", 3),
        (503, "ServiceUnavailable", 3),
        (429, "TooManyRequests", 3),
        (409, "ConditionalRequestConflict", 3),
        (409, "OperationAborted", 3),
        (400, "RequestTimeout", 3),
        (400, "IncompleteBody", 3),
        (400, "BadDigest", 3),
        (400, "InvalidArgument", 1),
        (400, "ExpiredToken", 1),
        (403, "AccessDenied", 1),
        (403, "SignatureDoesNotMatch", 1),
        (403, "RequestTimeTooSkewed", 1),
        (404, "NoSuchKey", 1),
        (412, "PreconditionFailed", 1),
        (416, "InvalidRange", 1),
    ],
)
def test_transient_answers_of_s3_are_tried_again(status: int, code: str, expected: int) -> None:
    assert tries(s3_error(status, code)) == expected


@pytest.mark.parametrize("code", ["PermanentRedirect", "301"])
def test_a_bucket_of_another_region_is_told_with_a_remedy(code: str) -> None:
    def refuse() -> None:
        raise s3_error(301, code, "use the specified endpoint")

    with pytest.raises(StorageError, match=r"s3://b/k: the bucket is in another .* AWS_REGION"):
        attempt("s3://b/k", refuse)


def test_pauses_grow_and_are_not_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "1")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "8")
    pauses: list[list[float]] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: pauses[-1].append(seconds))
    for _ in range(20):
        pauses.append([])
        tries(ConnectionResetError())
    for waited in pauses:
        for seconds, whole in zip(waited, (1, 2, 4, 8, 16, 20, 20), strict=True):
            assert whole / 2 <= seconds <= whole
    assert len({waited[0] for waited in pauses}) > 10


def test_no_try_begins_after_the_total_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_TOTAL_SECONDS", "0.5")
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "1000")
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.2")
    began = time.monotonic()
    assert 1 < tries(ConnectionResetError()) < 8
    assert time.monotonic() - began < 5


def test_a_credential_service_that_is_busy_is_asked_again() -> None:
    for error in (
        CredentialRetrievalError(provider="container-role", error_msg="503"),
        MetadataRetrievalError(error_msg="timed out"),
    ):
        assert is_transient(error)
    assert not is_transient(NoCredentialsError())


def test_the_error_tells_the_number_of_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    def action() -> None:
        raise ConnectionResetError("reset")

    with pytest.raises(TransientError, match=r"^s3://bucket/key: no answer after 3 tries.*reset"):
        attempt(URI, action)


def test_a_host_that_is_not_known_is_named_in_words(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's own error is there at the level DEBUG."""
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "2")
    monkeypatch.setenv("VDNA_STORAGE_WAIT_SECONDS", "0.01")

    def action() -> None:
        error = socket.gaierror(-2, "Name or service not known")
        raise EndpointConnectionError(endpoint_url="http://no-such-host.invalid/a", error=error)

    page = "https://no-such-host.invalid/a.jpg"
    for url, port, read in (
        (URI, "", lambda: attempt(URI, action)),
        (page, ":443", lambda: storage.read(page)),
    ):
        caplog.clear()
        with caplog.at_level(logging.DEBUG), pytest.raises(TransientError) as caught:
            read()
        words = f"the host no-such-host.invalid{port} is not known; check its name in the url or "
        assert str(caught.value).startswith(f"{url}: no answer after 2 tries: {words}")
        ours = [r for r in caplog.records if r.name == "pipeline.storage.retry"]
        assert [r.levelname for r in ours] == ["WARNING", "DEBUG"]
        assert words in ours[0].getMessage()
        assert re.search("Client|Endpoint", ours[1].getMessage())


def test_a_host_that_refuses_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(TransientError, match=rf"after 1 try: {place} refuses connections; check"):
        storage.read(f"http://{place}/a.jpg")


def test_every_further_try_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    answers = [ConnectionResetError("reset"), s3_error(503, "SlowDown", "wait\na little"), None]

    def action() -> str:
        error = answers.pop(0)
        if error:
            raise error
        return "read"

    with caplog.at_level(logging.INFO):
        assert attempt(URI, action) == "read"
    assert {(record.name, record.levelname) for record in caplog.records} == {
        ("pipeline.storage.retry", "WARNING")
    }
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{URI}: try 1 of 3 failed, the next one begins in 0.0 s: ")
    assert "reset" in first
    assert second.startswith(f"{URI}: try 2 of 3 failed")
    assert "SlowDown" in second
    assert "\n" not in second


def test_neither_the_first_try_nor_a_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    attempt(URI, lambda: 1)
    assert tries(s3_error(403, "AccessDenied")) == 1
    assert caplog.records == []


QUIET = """
from pipeline.storage.retry import attempt

def action(answers=[ConnectionResetError("reset"), None]):
    if error := answers.pop(0):
        raise error

attempt("s3://bucket/key", action)
"""


def test_a_program_that_asks_for_no_log_gets_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("value", ["", "x", "0", "-1", "nan", "inf"])
@pytest.mark.parametrize("variable", VARIABLES)
def test_an_invalid_setting_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"{variable} is .*must be a (whole )?number above 0"):
        attempt(URI, lambda: 1)


def test_the_number_of_tries_must_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDNA_STORAGE_ATTEMPTS", "2.5")
    with pytest.raises(UsageError, match=r"ATTEMPTS is '2.5'; it must be a whole number"):
        RetrySettings.from_environment()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, variable in enumerate(VARIABLES, 1):
        monkeypatch.setenv(variable, str(number))
    assert RetrySettings.from_environment() == RetrySettings(1, 2, 3, 4, 5, 6)
    assert RetrySettings(1, 2, 3, 4, 5, 6).seconds_for(50) == 3 + 4 + 10


SECRET = "planted/secret+of=this-test"


@pytest.mark.parametrize(
    "text",
    [
        f"403, url='https://cdn.example/x?X-Amz-Signature={SECRET}&X-Amz-Date=1'",
        f"no way to http://user:{SECRET}@host:9000/bucket",
        f"no way to http://{SECRET.replace('/', '')}@host:9000/bucket",
        f"headers: {{'Authorization': 'AWS4-HMAC-SHA256 Credential=AKIA/x, Signature={SECRET}'}}",
        f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}",
        f"x-amz-security-token:{SECRET}\nhost:x",
        f"<SignatureProvided>{SECRET}</SignatureProvided>",
        f"<StringToSign>AWS4\n{SECRET}</StringToSign>",
        f"<CanonicalRequest>GET\n{SECRET}</CanonicalRequest>",
        f"the secret is {SECRET}",
        f'{{"access_token": "{SECRET}"}}',
    ],
)
def test_neither_errors_nor_logs_quote_credentials(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The credentials are in a client's error, or in the message of an answer."""
    if "the secret is" in text:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    for error in (OSError(text), s3_error(403, "AccessDenied", text), s3_error(500, "X", text)):
        with pytest.raises(StorageError) as caught:
            attempt(URI, lambda error=error: _raise(error))
        for part in (SECRET, SECRET.replace("/", ""), SECRET.partition("/")[2]):
            assert part not in str(caught.value)
            assert part not in caplog.text
    assert "try 2 of 3 failed" in caplog.text


def _raise(error: Exception) -> None:
    raise error


def test_a_long_error_without_secrets_is_quoted_in_part() -> None:
    error = OSError("no route to http://host:9000/bucket/token/secret.jpg; " + "x" * 10_000)
    with pytest.raises(TransientError, match=r"host:9000/bucket/token/secret\.jpg; x") as caught:
        attempt(URI, lambda: _raise(error))
    assert len(str(caught.value)) < 700


def test_an_answer_without_a_message_is_quoted_by_its_code() -> None:
    """Ceph's answers have no message."""
    with pytest.raises(StorageError, match=r"access denied.*SignatureDoesNotMatch"):
        attempt(URI, lambda: _raise(s3_error(403, "SignatureDoesNotMatch", None)))


def dated(ahead: float) -> str:
    return format_datetime(datetime.now(UTC) - timedelta(seconds=ahead), usegmt=True)


@pytest.mark.parametrize(
    ("code", "date", "message"),
    [
        ("RequestTimeTooSkewed", "", "this machine's clock is far from the store's, set it"),
        ("RequestTimeTooSkewed", 5000, r"clock is (499|500)\d s ahead of the store's"),
        ("403", -5000, r"clock is (499|500)\d s behind the store's, set it"),
        ("403", 60, "access denied; check the credentials"),
        ("403", "no date", "access denied; check the credentials"),
    ],
)
def test_a_wrong_clock_is_reported(code: str, date: str | int, message: str) -> None:
    """A refused HEAD has no message. A number is how many seconds the clock is ahead."""
    date = dated(date) if isinstance(date, int) else date
    error = s3_error(403, code, "", **({"date": date} if date else {}))
    with pytest.raises(StorageError, match=message):
        attempt(URI, lambda: _raise(error))


def test_an_untrusted_certificate_is_not_waited_for() -> None:
    assert tries(OSError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")) == 1
    assert retry.is_transient(OSError("[SSL] handshake failure"))
