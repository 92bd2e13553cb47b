"""Sends bytes to a server of the web, such as a webhook or a gateway of metrics.

>>> deliver("https://example.org/hook", b"{}", lambda: {"X-Number": "7"})       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from fsspec.asyn import get_loop, sync

from pipeline.errors import StorageError, UsageError
from pipeline.storage.retry import RetrySettings, attempt
from pipeline.storage.uris import WEB_PROTOCOLS, canonical, protocol_of

_REDIRECTS = range(300, 400)


def require_web(url: str) -> str:
    """Checks a url that something will be sent to.

    Args:
        url: The url.

    Returns:
        The url.

    Raises:
        UsageError: It is not of http or https, or it may carry a secret.
    """
    if protocol_of(url) not in WEB_PROTOCOLS:
        raise UsageError(f"{url} is no url of http or https, and nothing can be sent there")
    canonical(url)
    return url


def deliver(
    url: str,
    data: bytes,
    headers: Callable[[], Mapping[str, str]],
    method: Literal["POST", "PUT"] = "POST",
) -> None:
    """Sends bytes, again and again while the server does not answer properly.

    The variables `VDNA_STORAGE_*` say how often and for how long. A server may get the bytes more
    than once: if its answer is lost, they are sent again. A redirect is refused, as it could lead
    them anywhere.

    Args:
        url: Where to.
        data: The body.
        headers: Makes the headers of each try.
        method: The method of the request.

    Raises:
        StorageError: The server refuses, or answers with a redirect.
    """
    from aiohttp import ClientSession, ClientTimeout

    async def once() -> None:
        settings = RetrySettings.from_environment()
        timeout = ClientTimeout(settings.seconds_for(len(data)))
        async with (
            ClientSession(timeout=timeout, trust_env=True) as session,
            session.request(
                method, url, data=data, headers=headers(), allow_redirects=False
            ) as answer,
        ):
            if answer.status in _REDIRECTS:
                raise StorageError(
                    f"{url}: the server answers with a redirect ({answer.status}); give the url "
                    "that it leads to"
                )
            answer.raise_for_status()

    attempt(url, lambda: sync(get_loop(), once))
