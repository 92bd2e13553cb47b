"""Makes sure that the answer of a server is whole, and comes in time."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from pipeline.buffers import SHORTEST_BLOCK
from pipeline.errors import StorageError
from pipeline.storage.retry import RetrySettings

RANGE_NOT_SATISFIABLE = 416

NO_LENGTH = "the answer has no Content-Length; whether it all arrived cannot be known"

MOST_UNTOLD = 2**30
"""The most bytes that are read of an object whose size the server does not tell, if no limit is
given. It might have no end."""

PARTIAL = 206

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def range_of(uri: str, status: int, content_range: str | None) -> str | None:
    """Gives the header that says which part of an object an answer holds.

    Args:
        uri: The object, for the error.
        status: The answer's HTTP status.
        content_range: The header `Content-Range`, if there is one.

    Returns:
        The header, also beside another status; None if the answer holds the whole object.

    Raises:
        StorageError: The answer holds a part, and does not say which.
    """
    if content_range is None and status == PARTIAL:
        raise StorageError(
            f"{uri}: the server sends a part of the object (status 206), and no Content-Range that "
            "says which; check the server, and the proxies on the way to it"
        )
    return content_range


async def read_body(
    take: Callable[[int], Awaitable[bytes]],
    content_length: int | None,
    content_range: str | None,
    start: int,
    length: int | None,
    most: int | None,
) -> tuple[bytes | None, int]:
    """Reads the bytes that were asked for from the body of an answer, and hardly more.

    Args:
        take: Called with a number, gives up to so many bytes of the body, none at its end.
        content_length: The header, if there is one.
        content_range: The header. Without it the body is the whole object: a server that does not
            know ranges sends that even if a part was asked for.
        start: Where the bytes begin in the object.
        length: How many were asked for. None means all that follow.
        most: The longest object that is wanted whole, or None. Nothing is read of one that is said
            to be longer, and one byte more of one that turns out to be.

    Returns:
        The bytes, or None if the object is longer than `most`, or than `MOST_UNTOLD` without a
            limit and a known size; and the size of the whole object (-1 if the answer does not
            tell).

    Raises:
        ConnectionError: The body ends early, comes too slowly, or is another part.
    """
    if content_range is None:
        size = -1 if content_length is None else content_length
    else:
        found = _CONTENT_RANGE.fullmatch(content_range.strip())
        if not found or int(found[1]) != start:
            raise ConnectionError(
                f"bytes from {start} on were asked for, but {content_range!r} was sent"
            )
        size = -1 if found[2] == "*" else int(found[2])
    if most is not None and size > most:
        return None, size
    bounds = [length] if length is not None else []
    if size >= 0:
        bounds.append(max(0, size - start))
    wanted = min(bounds, default=MOST_UNTOLD if most is None else most)
    if content_range is None and length is not None:
        pieces = await _taken(take, start, wanted)
    else:  # one byte more shows that the body goes on; its end has a client check what came
        pieces = await _taken(take, 0 if content_range else start, wanted + 1)
    arrived = sum(map(len, pieces))
    if not bounds and arrived > wanted:
        return None, size
    if size >= 0 and arrived != wanted:
        raise ConnectionError(f"{arrived} of {wanted} bytes arrived")
    return b"".join(pieces), size


async def _taken(take: Callable[[int], Awaitable[bytes]], start: int, length: int) -> list[bytes]:
    """Reads bytes [start, start + length) of a body, and gives up one that trickles in."""
    settings = RetrySettings.from_environment()
    loop = asyncio.get_running_loop()
    began = loop.time()
    pieces: list[bytes] = []
    position, end = 0, start + length
    try:
        async with asyncio.timeout(settings.seconds_for(0)) as limit:
            while position < end and (piece := await take(min(SHORTEST_BLOCK, end - position))):
                pieces.append(piece[max(0, start - position) :])
                position += len(piece)
                limit.reschedule(began + settings.seconds_for(position))
    except TimeoutError as error:
        seconds = loop.time() - began
        raise ConnectionError(f"{position} bytes in {seconds:.1f} s, and no more") from error
    return pieces


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raises `ConnectionError` if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {seconds:g} s") from error
