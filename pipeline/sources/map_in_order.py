"""Applies a function to many items in threads, and yields the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

R = TypeVar("R")

LOOKING_THREADS = 32


def map_in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Applies a function to items in threads.

    Args:
        function: Mostly waits, as for a store.
        items: Taken as results are: never more than a few hundred ahead.

    Yields:
        The results, in the order of the items.
    """
    with ThreadPoolExecutor(LOOKING_THREADS, "look") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * LOOKING_THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
