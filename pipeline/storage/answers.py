"""Makes sure that the answer of a server is whole, and comes in time."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from pipeline.buffers import SHORTEST_BLOCK
from pipeline.storage.retry import RetrySettings

RANGE_NOT_SATISFIABLE = 416

NO_LENGTH = "the answer has no Content-Length; whether it all arrived cannot be known"

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


async def read_body(
    take: Callable[[int], Awaitable[bytes]],
    content_length: int | None,
    content_range: str | None,
    start: int,
    length: int | None,
) -> tuple[bytes, int]:
    """Reads the bytes that were asked for from the body of an answer.

    Args:
        take: Called with a number, gives up to so many bytes of the body, none at its end.
        content_length: The header, if there is one.
        content_range: The header. Without it the body is the whole object: a server that does not
            know ranges sends that even if a part was asked for.
        start: Where the bytes begin in the object.
        length: How many were asked for. None means all that follow.

    Returns:
        The bytes, and the size of the whole object (-1 if the answer does not tell).

    Raises:
        ConnectionError: The body ends early, comes too slowly, or is another part.
    """
    if content_range is None:
        data = await _taken(take, start, length)
        size = -1 if content_length is None else content_length
    else:
        found = _CONTENT_RANGE.fullmatch(content_range.strip())
        if not found or int(found[1]) != start:
            raise ConnectionError(f"bytes {start}- were asked for, {content_range} answered")
        data = await _taken(take, 0, None)
        size = -1 if found[2] == "*" else int(found[2])
    rest = max(0, size - start)
    expected = rest if length is None else min(length, rest)
    if size >= 0 and len(data) != expected:
        raise ConnectionError(f"{len(data)} of {expected} bytes arrived")
    return data, size


async def _taken(take: Callable[[int], Awaitable[bytes]], start: int, length: int | None) -> bytes:
    """Reads bytes [start, start + length) of a body, and gives up one that trickles in."""
    settings = RetrySettings.from_environment()
    loop = asyncio.get_running_loop()
    began = loop.time()
    pieces: list[bytes] = []
    position, end = 0, None if length is None else start + length
    try:
        async with asyncio.timeout(settings.seconds_for(0)) as limit:
            while (end is None or position < end) and (piece := await take(SHORTEST_BLOCK)):
                last = None if end is None else end - position
                pieces.append(piece[max(0, start - position) : last])
                position += len(piece)
                limit.reschedule(began + settings.seconds_for(position))
    except TimeoutError as error:
        seconds = loop.time() - began
        raise ConnectionError(f"{position} bytes in {seconds:.1f} s, and no more") from error
    return b"".join(pieces)


@contextlib.asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raises `ConnectionError` if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ConnectionError(f"no answer within {seconds:g} s") from error
