"""Tries a request again when that may help, and gives the errors of clients our own names.

    >>> attempt("s3://bucket/key", lambda: 1)
    1

This is the only layer that tries again: the clients below are told to try once. An error of theirs
ends as `SourceError` (not there), `StorageError` (refused) or `TransientError` (no proper answer).
What is quoted of it holds no credentials. Each further try is logged as a warning by the logger of
this module.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential,
    wait_random_exponential,
)

from pipeline.errors import (
    NoBucket,
    SourceError,
    StorageError,
    TransientError,
    UsageError,
    printable,
    redact,
)
from pipeline.storage.open_files import MORE_OPEN_FILES, is_of_open_files
from pipeline.storage.request_count import count_requests
from pipeline.wording import count_of

T = TypeVar("T")

logger = logging.getLogger(__name__)
logger.addHandler(logging.NullHandler())  # nothing is printed unless an application asks for it

LONGEST_WAIT_SECONDS = 20

SKEW_SECONDS = 300
"""If the clock is off by more, the error says so when the store refuses a request."""

LONGEST_QUOTE = 500

_COUNTED_ELSEWHERE = ("s3://", "file://")
"""How urls begin whose requests are not counted here: a client of S3 tells of each, as a try may
take several, and local files take none."""


@dataclass(frozen=True)
class RetrySettings:
    """How long to wait for storage. The variable `VDNA_STORAGE_<NAME>` sets each of these.

    Attributes:
        attempts: How often one request is tried.
        wait_seconds: The pause after the first try. Each pause is twice the last, and shortened at
            random by up to half.
        connect_seconds: How long to wait for a connection.
        read_seconds: How long to wait for the next byte.
        bytes_per_second: A body that comes slower than this is given up.
        total_seconds: After so long no further try of a request begins.
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
    def from_environment(cls) -> RetrySettings:
        """Reads the variables that are set, and takes the defaults for the others.

        Returns:
            The settings.

        Raises:
            UsageError: A variable is not a number above 0.
        """
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
        """Gives the time within which an answer of `size` bytes must have come whole."""
        return self.connect_seconds + self.read_seconds + size / self.bytes_per_second


def variable(name: str) -> str:
    """Gives the environment variable of a setting."""
    return f"VDNA_STORAGE_{name.upper()}"


VARIABLES = tuple(variable(setting.name) for setting in fields(RetrySettings))


def attempt(uri: str, action: Callable[[], T]) -> T:
    """Runs an action, again and again while its errors are transient.

    The variables `VDNA_STORAGE_*` say how often and for how long (see `RetrySettings`).

    Args:
        uri: What the action is about, for the errors.
        action: One request.

    Returns:
        What the action returns.

    Raises:
        TransientError: The last try failed too.
        SourceError: There is no such object.
        StorageError: The store refuses.
    """
    settings = RetrySettings.from_environment()
    half = settings.wait_seconds / 2
    retrying = Retrying(
        stop=stop_after_attempt(settings.attempts) | stop_after_delay(settings.total_seconds),
        wait=wait_exponential(half, max=LONGEST_WAIT_SECONDS / 2)
        + wait_random_exponential(half, max=LONGEST_WAIT_SECONDS / 2),
        retry=retry_if_exception(is_transient),
        before_sleep=lambda state: _log_retry(uri, settings, state),
        reraise=True,
    )

    def sent() -> T:
        if not uri.startswith(_COUNTED_ELSEWHERE):
            count_requests()
        return action()

    try:
        return retrying(sent)
    except Exception as error:
        if is_transient(error):
            tries = retrying.statistics["attempt_number"]
            logger.debug("%s: %s", printable(redact(uri)), printable(quoted(error)))
            raise TransientError(
                f"{uri}: no answer after {count_of(tries, 'try', 'tries')}: {_in_words(error)}"
            ) from error
        of_client = isinstance(error, OSError) or type(error).__module__.startswith("botocore")
        # A client refuses a url that it cannot use with a plain error of Python's.
        of_url = isinstance(error, ValueError | NotImplementedError) and _is_remote(uri)
        if of_client or of_url or _is_of_http(error):
            named = refusal(uri, error)
            raise named from error
        raise


def _log_retry(uri: str, settings: RetrySettings, state: RetryCallState) -> None:
    """Logs that a try failed, and when the next one begins."""
    error = state.outcome.exception() if state.outcome else None
    logger.warning(
        "%s: try %d of %d failed, the next one begins in %.1f s: %s",
        printable(redact(uri)),
        state.attempt_number,
        settings.attempts,
        state.next_action.sleep if state.next_action else 0.0,
        printable(_in_words(error)) if error else "no answer",
    )


def refusal(uri: str, error: Exception) -> SourceError | StorageError:
    """Gives an error its own name, if the same request would meet it again.

    Args:
        uri: What was asked for.
        error: An error of a client.

    Returns:
        An error that says what was refused, why, and what to do.
    """
    status = status_of(error)
    code = (_s3_answer(error) or {}).get("Error", {}).get("Code", "")
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if code == "NoSuchBucket":
        bucket = uri.split("://", 1)[1].partition("/")[0]
        return NoBucket(
            f"{uri}: there is no bucket {bucket}; check its name and AWS_ENDPOINT_URL, or create it"
        )
    if code in ("PermanentRedirect", "301"):  # botocore's for an answer to HEAD, without a body
        return StorageError(
            f"{uri}: the bucket is in another region, or has another endpoint; set AWS_REGION to "
            f"its region, or AWS_ENDPOINT_URL to its endpoint: {quoted(error)}"
        )
    if missing or status in (404, 410) or "EntryNotFoundError" in _kinds(error):
        return SourceError(f"{uri} does not exist, or is not a file")
    if code in _DENIALS:
        return StorageError(f"{uri}: access denied ({code}): {_DENIALS[code]}")
    if isinstance(error, PermissionError) or status in (401, 403):
        if not _is_remote(uri):
            return StorageError(f"{uri}: access denied: this user may not read or write it")
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
"""What S3's codes for a refusal mean, and what to do."""


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.lower().startswith("file://")


def _skew(error: Exception) -> str:
    """Says how far this machine's clock is off, if the answer to a signed request shows it."""
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
"""Patterns of secrets in errors of storage, and what replaces them.

They are queries of urls, since a redirect may lead to a presigned url, and the elements of S3's
refusals that repeat what was signed. `redact` removes what every error may contain.
"""

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def quoted(error: BaseException) -> str:
    """Gives the error in its own words, without what may be a secret."""
    cause = error.__cause__
    # s3fs keeps the message of an answer and drops its code; Ceph's answers have only the code.
    text = str(cause) if cause is not None and _s3_answer(cause) else repr(error)
    status = status_of(error)
    if status and "ClientResponseError" in _kinds(error):  # aiohttp repeats what was sent
        text = f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    for name in _SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, "…")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    text = redact(text)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


def _in_words(error: BaseException) -> str:
    """Says which host was not reached, or what this machine lacks; else quotes the error."""
    chain = _chain(error)
    if any(map(is_of_open_files, chain)):
        return f"{quoted(error)}; {MORE_OPEN_FILES}"
    hosts = (_host_of(each) for each in chain)
    host = next((host for host in hosts if host), None)
    if host is None:
        return quoted(error)
    if any(isinstance(each, socket.gaierror) for each in chain):
        return (
            f"the host {host} is not known; check its name in the url or AWS_ENDPOINT_URL, and "
            "this machine's network"
        )
    if any(isinstance(each, ConnectionRefusedError) for each in chain):
        return f"{host} refuses connections; check the url or AWS_ENDPOINT_URL, and that it runs"
    return f"{host} cannot be reached: {quoted(chain[-1])}"


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error of a client with those that caused it, the first cause last."""
    chain: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in chain:
        chain.append(here)
        cause = _botocore_field(here, "error")
        here = cause if isinstance(cause, BaseException) else here.__cause__
    return chain


def _botocore_field(error: BaseException, name: str) -> object:
    """Returns what botocore put into the message of its error by this name."""
    given = getattr(error, "kwargs", None)
    return given.get(name) if isinstance(given, dict) else None


def _host_of(error: BaseException) -> str | None:
    """Returns the host that a client did not reach, with its port; None if it did, or unknown."""
    if _kinds(error) & {"ConnectTimeoutError", "EndpointConnectionError"}:  # of botocore
        url = _botocore_field(error, "endpoint_url")
        return urlsplit(url).netloc.rpartition("@")[2] if isinstance(url, str) else None
    if "ClientConnectorError" in _kinds(error):  # of aiohttp
        host, port = getattr(error, "host", None), getattr(error, "port", None)
        return f"{host}:{port}" if host else None
    return None


_HTTP_CLIENTS = {
    *("aiohttp", "httpx", "httpx2", "requests", "urllib3"),
    *("azure", "gcsfs", "google", "huggingface_hub"),
}
"""HTTP libraries whose errors fsspec's file systems let through. They are known by their names,
because they need not be installed."""

_HOPELESS = {
    *("InvalidURL", "UnsupportedProtocol", "TooManyRedirects"),
    *("EntryNotFoundError", "DefaultCredentialsError", "ClientAuthenticationError"),
}
"""Errors of these libraries that another try would meet again, and that have no status."""

_TRANSIENT_STATUS = {307, 408, 425, 429}

_NOT_IMPLEMENTED = 501

_CONFLICT = 409

_FORBIDDEN = 403

_FORBIDDEN_BY_GCSFS = "Forbidden: "
"""How an error of gcsfs begins that is nothing but an `OSError`, for an answer of 403."""

_TRANSIENT_S3_CODES = {
    *("RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"),
}
"""Codes that may succeed later, although their status (mostly 400) does not say so."""


def _is_of_http(error: BaseException) -> bool:
    return any(kind.__module__.split(".")[0] in _HTTP_CLIENTS for kind in type(error).__mro__)


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _s3_answer(error: BaseException) -> dict[str, Any] | None:
    """Gives the store's answer as botocore parsed it. It may be the cause of an error of s3fs."""
    for each in (error, error.__cause__):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            return answer
    return None


def status_of(error: BaseException) -> int | None:
    """Gives the HTTP status of an answer that became an error, None if there was no answer."""
    answer = _s3_answer(error)
    if answer is not None:
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif _is_of_http(error):
        response = getattr(error, "response", None)
        places = (response, "status_code"), (error, "status"), (error, "code")
        given = (getattr(place, name, None) for place, name in places)
        status = next((each for each in given if each is not None), None)
    elif type(error) is OSError and str(error).startswith(_FORBIDDEN_BY_GCSFS):
        return _FORBIDDEN
    else:
        return None
    return status if isinstance(status, int) and 300 <= status < 600 else None


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
    *("CredentialRetrievalError", "MetadataRetrievalError"),  # a cloud's own service is busy
}


def is_transient(error: BaseException) -> bool:
    """Tells whether the network or the server is to blame, so that another try may succeed."""
    kinds = _kinds(error)
    if "LocalEntryNotFoundError" in kinds:  # the hub's: not in its cache, and not reached
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
        return not (isinstance(error, ValueError) or kinds & _HOPELESS)
    if isinstance(error, OSError | asyncio.TimeoutError | TimeoutError):
        return error.errno not in _PERMANENT_ERRNO if isinstance(error, OSError) else True
    origin = type(error).__module__.split(".")[0]
    return origin in ("botocore", "aiobotocore") and bool(kinds & _TRANSIENT_BOTO)
