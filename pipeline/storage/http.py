"""Reads files of the web: one request each, with the answer's own ETag and length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import fsspec
from fsspec.asyn import sync

from pipeline.errors import StorageError, UsageError
from pipeline.storage.answers import (
    MOST_UNTOLD,
    NO_LENGTH,
    RANGE_NOT_SATISFIABLE,
    range_of,
    read_body,
    within,
)
from pipeline.storage.other import Details, FsspecStore, identity_of, nothing
from pipeline.storage.retry import RetrySettings
from pipeline.storage.store import Answer, Stored
from pipeline.storage.uris import with_query


class HttpStore(FsspecStore):
    """Servers of the web. Nothing can be written there.

    Those that make their answers as they are asked often tell no tag and no time.
    """

    needs_tags = False

    def open(self, uri: str) -> tuple[Any, str]:
        """Gives the file system, and the whole url, which is what it takes for a path."""
        fs, _ = super().open(uri)
        return fs, uri

    def options(self) -> dict[str, Any]:
        """Adds our time limits to fsspec's own settings for http, such as headers."""
        from aiohttp import ClientTimeout

        settings = RetrySettings.from_environment()
        timeout = ClientTimeout(
            total=None, sock_connect=settings.connect_seconds, sock_read=settings.read_seconds
        )
        given = fsspec.config.conf.get("http", {}).get("client_kwargs", {})
        return {"client_kwargs": given | {"timeout": timeout}}

    def details(self, uri: str) -> Details:
        """Asks for the headers of a file."""
        fs, _ = self.open(uri)
        return cast(Details, sync(fs.loop, _head, fs, uri))

    def get(self, uri: str, start: int, length: int | None, most: int | None = None) -> Answer:
        """Reads with one GET."""
        fs, _ = self.open(uri)
        settings = RetrySettings.from_environment()

        async def get() -> Answer:
            if length == 0:
                return nothing(uri, start, length, await _head(fs, uri))
            asked = {"Accept-Encoding": "identity"}
            if length is not None:
                asked["Range"] = f"bytes={start}-{start + length - 1}"
            session = await fs.set_session()
            async with within(settings.seconds_for(0)):
                answer = await session.get(fs.encode_url(with_query(uri)), headers=asked)
            async with answer:
                if answer.status == RANGE_NOT_SATISFIABLE:
                    return nothing(uri, start, length, await _head(fs, uri))
                answer.raise_for_status()
                told = _plain_length(answer)
                part = range_of(uri, answer.status, answer.headers.get("Content-Range"))
                if told is None and length is not None and _is_encoded(answer):
                    raise StorageError(
                        f"{uri}: the server sends it compressed, so a part of it cannot be read"
                    )
                if told is None and not _marks_its_end(answer):
                    raise StorageError(f"{uri}: {NO_LENGTH}")
                data, size = await read_body(answer.content.read, told, part, start, length, most)
                if data is None and most is None:
                    raise StorageError(
                        f"{uri}: over {MOST_UNTOLD} bytes, and the server does not tell how many "
                        "follow; copy it to one that does"
                    )
                details = {**_told(answer), "size": None if size < 0 else size}
                identity = identity_of(details)
                if data is None:
                    return Answer(b"", identity, size, is_too_long=True)
                return Answer(data, identity, len(data) if length is None else size)

        return cast(Answer, sync(fs.loop, get))

    def pages(self, uri: str) -> Iterator[list[Stored]]:
        """Yields nothing: servers of the web have no listings, and a page may have no end."""
        yield from ()

    def glob(self, pattern: str) -> Iterator[Stored]:
        """Refuses, as there is no listing that names could be sought in.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"{pattern}: a server of the web lists no files; name each of them in a list or a table"
        )


async def _head(fs: Any, uri: str) -> Details:
    """Asks by HEAD, and by GET if a server has no HEAD, or one that does not tell the length."""
    session = await fs.set_session()
    for ask in (session.head, session.get):
        async with within(RetrySettings.from_environment().seconds_for(0)):
            answer = await ask(
                fs.encode_url(with_query(uri)),
                headers={"Accept-Encoding": "identity"},
                allow_redirects=True,
            )
        async with answer:
            size = _plain_length(answer)
            if answer.ok and size is not None:
                break
            if ask == session.get:
                answer.raise_for_status()
    return {"name": uri, "size": size, **_told(answer)}


def _told(answer: Any) -> Details:
    return {name: answer.headers.get(name) for name in ("ETag", "Last-Modified")}


def _is_encoded(answer: Any) -> bool:
    return answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity")


def _plain_length(answer: Any) -> int | None:
    """Gives the length of the object itself, if the answer tells it."""
    return None if _is_encoded(answer) else answer.content_length


def _marks_its_end(answer: Any) -> bool:
    """Tells whether the client notices a body that is cut off, although its length is unknown."""
    chunked = "chunked" in answer.headers.get("Transfer-Encoding", "").lower()
    return chunked or answer.content_length is not None
