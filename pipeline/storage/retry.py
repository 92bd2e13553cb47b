"""What is tried again, for how long, and by what name it ends. The one layer that tries again.

    >>> attempt("s3://bucket/key", lambda: 1)
    1

The clients below are told to try once. Errors of theirs end as `SourceError` (not there),
`StorageError` (refused) or `TransientError` (no proper answer), and what is quoted of them holds
no credentials.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random_exponential,
)

from pipeline.errors import NoBucket, SourceError, StorageError, TransientError, UsageError, redact

T = TypeVar("T")

LONGEST_WAIT_SECONDS = 20

SKEW_SECONDS = 300
"""A clock that is off by more is mentioned where the store refuses."""

LONGEST_QUOTE = 500


@dataclass(frozen=True)
class Settings:
    """How long storage is waited for; each by the environment variable `VDNA_STORAGE_<NAME>`.

    `attempts`: tries of one request. `wait_seconds`: the pause after the first, doubled after each
    and shortened at random by up to half. `connect_seconds`, `read_seconds`: for a connection, and
    for the next byte. `bytes_per_second`: a body that comes slower than this is given up.
    `total_seconds`: after so long no further try of a request begins.
    """

    attempts: int = 8
    wait_seconds: float = 0.2
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    bytes_per_second: float = 16_384.0
    total_seconds: float = 300.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not (0 < value < math.inf):
                raise UsageError(
                    f"{variable(setting.name)} is {value}; it must be a number above 0"
                )

    @classmethod
    def from_environment(cls) -> Settings:
        """Raises `UsageError` naming the variable that is no such number."""
        given: dict[str, Any] = {}
        for setting in fields(cls):
            text = os.environ.get(variable(setting.name))
            if text is None:
                continue
            whole = isinstance(setting.default, int)
            try:
                given[setting.name] = int(text) if whole else float(text)
            except ValueError as error:
                what = "a whole number" if whole else "a number"
                raise UsageError(
                    f"{variable(setting.name)} is {text!r}; it must be {what} above 0"
                ) from error
        return cls(**given)

    def seconds_for(self, size: int) -> float:
        """Within which an answer of so many bytes must have come whole."""
        return self.connect_seconds + self.read_seconds + size / self.bytes_per_second


def variable(name: str) -> str:
    return f"VDNA_STORAGE_{name.upper()}"


VARIABLES = tuple(variable(setting.name) for setting in fields(Settings))


def attempt(uri: str, action: Callable[[], T]) -> T:
    """Run it until it answers; what an answer cannot mend is raised at once, by its own name."""
    settings = Settings.from_environment()
    half = settings.wait_seconds / 2
    retrying = Retrying(
        stop=stop_after_attempt(settings.attempts) | stop_after_delay(settings.total_seconds),
        wait=wait_exponential(half, max=LONGEST_WAIT_SECONDS / 2)
        + wait_random_exponential(half, max=LONGEST_WAIT_SECONDS / 2),
        retry=retry_if_exception(is_transient),
        reraise=True,
    )
    try:
        return retrying(action)
    except Exception as error:
        if is_transient(error):
            tries = retrying.statistics["attempt_number"]
            raise TransientError(
                f"{uri}: no answer after {tries} tries: {quoted(error)}"
            ) from error
        of_client = isinstance(error, OSError) or type(error).__module__.startswith("botocore")
        # Clients refuse a url that they cannot take by a plain error of Python's.
        of_url = isinstance(error, ValueError | NotImplementedError) and _is_remote(uri)
        if of_client or of_url or _is_of_http(error):
            raise refusal(uri, error) from error
        raise


def refusal(uri: str, error: Exception) -> SourceError | StorageError:
    """By its own name, an error that the same call would meet again."""
    status = status_of(error)
    code = (_s3_answer(error) or {}).get("Error", {}).get("Code", "")
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if code == "NoSuchBucket":
        bucket = uri.split("://", 1)[1].partition("/")[0]
        return NoBucket(
            f"{uri}: there is no bucket {bucket}; check its name and AWS_ENDPOINT_URL, or create it"
        )
    if missing or status in (404, 410) or "EntryNotFoundError" in _kinds(error):
        return SourceError(f"{uri} does not exist, or is not a file")
    if code in _DENIALS:
        return StorageError(f"{uri}: access denied ({code}): {_DENIALS[code]}")
    if isinstance(error, PermissionError) or status in (401, 403):
        skew = _skew(error)
        if skew:
            return StorageError(f"{uri}: access denied; {skew}: {quoted(error)}")
        return StorageError(f"{uri}: access denied; check the credentials: {quoted(error)}")
    if "NoCredentialsError" in _kinds(error):
        return StorageError(
            f"{uri}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a "
            "profile or a role"
        )
    return StorageError(f"{uri}: {quoted(error)}")


_DENIALS = {
    "SignatureDoesNotMatch": (
        "the secret key is not the one of this access key; check AWS_SECRET_ACCESS_KEY, or the "
        "profile"
    ),
    "InvalidAccessKeyId": (
        "the store does not know this access key; check AWS_ACCESS_KEY_ID or the profile, and "
        "AWS_ENDPOINT_URL"
    ),
    "AccessDenied": (
        "these credentials may not do this there; images need s3:ListBucket and s3:GetObject, a "
        "catalogue s3:PutObject and s3:DeleteObject as well"
    ),
    "ExpiredToken": "the session of these credentials is over; log in again",
}
"""S3's words for a refusal, and ours."""


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.lower().startswith("file://")


def _skew(error: Exception) -> str:
    """What is wrong with this machine's clock, where an answer to a signed request tells."""
    answer = _s3_answer(error)
    if answer is None:
        return ""
    named = answer.get("Error", {}).get("Code") == "RequestTimeTooSkewed"
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        ahead = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        ahead = 0.0
    if not named and abs(ahead) < SKEW_SECONDS:
        return ""
    off = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}" if ahead else "far from"
    return f"this machine's clock is {off} the store's, set it"


_SECRETS = (
    (re.compile(r"(\w://[^\s'\"<>?]*)\?[^\s'\"<>)\]]*"), r"\1?…"),
    (re.compile(r"<(\w*(?:Sign|Token|Canonical|AccessKey|Secret)\w*)>[^<]*", re.I), r"<\1>…"),
)
"""Beyond what every error leaves out: queries of urls (presigned ones, where a redirect led), and
elements of S3's refusals that repeat what was signed."""

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def quoted(error: BaseException) -> str:
    """The error in its own words, without what may be a secret in them."""
    cause = error.__cause__
    # s3fs keeps the words of an answer, and drops its code; Ceph's answers have no words.
    text = str(cause) if cause is not None and _s3_answer(cause) else repr(error)
    for name in _SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, "…")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    text = redact(text)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


_HTTP_CLIENTS = {"aiohttp", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
"""Libraries under fsspec's file systems that let their own errors through. By name: which of them
is installed, and imported, is the file system's affair."""

_BAD_URL = {"InvalidURL", "UnsupportedProtocol", "TooManyRedirects"}

_TRANSIENT_STATUS = {408, 425, 429}

_NOT_IMPLEMENTED = 501

_CONFLICT = 409

_TRANSIENT_S3_CODES = {
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
}
"""Answered with a status (400, most of them) that says nothing of the kind."""


def _is_of_http(error: BaseException) -> bool:
    return any(kind.__module__.split(".")[0] in _HTTP_CLIENTS for kind in type(error).__mro__)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _s3_answer(error: BaseException) -> dict[str, Any] | None:
    """The store's answer as botocore parsed it; s3fs hangs it below an error of its own."""
    for each in (error, error.__cause__):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            return answer
    return None


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an answer that became an error: on its response, or on itself."""
    answer = _s3_answer(error)
    if answer is not None:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif _is_of_http(error):
        status = getattr(getattr(error, "response", None), "status_code", None)
        status = getattr(error, "status", None) if status is None else status
    else:
        return None
    return status if isinstance(status, int) and 400 <= status < 600 else None


_PERMANENT = (
    *(FileNotFoundError, PermissionError, FileExistsError),
    *(NotADirectoryError, IsADirectoryError),
)

_PERMANENT_ERRNO = {
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG),
    *(errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}

_TRANSIENT_BOTO = {
    *("ConnectionError", "ReadTimeoutError", "HTTPClientError"),
    *("IncompleteReadError", "FlexibleChecksumError", "ResponseParserError"),
}


def is_transient(error: BaseException) -> bool:
    """Of the network or the server, so that the same call may well succeed."""
    kinds = _kinds(error)
    if "LocalEntryNotFoundError" in kinds:  # the hub's: not in its cache, and no way there
        return True
    status = status_of(error)
    answer = _s3_answer(error)
    if answer is not None and (
        status == _CONFLICT or answer.get("Error", {}).get("Code") in _TRANSIENT_S3_CODES
    ):
        return True
    if status is not None:
        return (status >= 500 and status != _NOT_IMPLEMENTED) or status in _TRANSIENT_STATUS
    if isinstance(error, _PERMANENT) or "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    if _is_of_http(error):
        return not (isinstance(error, ValueError) or kinds & (_BAD_URL | {"EntryNotFoundError"}))
    if isinstance(error, OSError | asyncio.TimeoutError | TimeoutError):
        return error.errno not in _PERMANENT_ERRNO if isinstance(error, OSError) else True
    origin = type(error).__module__.split(".")[0]
    return origin in ("botocore", "aiobotocore") and bool(kinds & _TRANSIENT_BOTO)
