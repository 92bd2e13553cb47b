"""sources.map_ahead: TODO-DOC"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

R = TypeVar("R")

AT_ONCE = 32
"""Objects of a list that are looked at together."""


def map_in_threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    with ThreadPoolExecutor(AT_ONCE, "archive") as pool:
        yield from pool.map(function, items)


def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """In order, so many at a time, and never far ahead of whoever takes them."""
    with ThreadPoolExecutor(AT_ONCE, "look") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
