"""What is asked of an engine by rooms that map a function over items: archives, sums, tiles.

`map_in_order` does the same in threads, for functions that mostly wait.

>>> list(SerialMapper().map(abs, [-1, 2]))
[1, 2]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LOOKING_THREADS = 32


class NotOpened(Exception):
    """A thread asks for work of a mapper that is not opened yet, and only the main thread may."""


class Mapper(Protocol):
    """Calls a function on many items: in this process, or on the workers of a cluster."""

    @property
    def in_process(self) -> bool:
        """Whether the work is done in this process, which alone sees `memory://` files."""

    @property
    def workers(self) -> int:
        """How many calls run at a time."""

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls the function on each item.

        Args:
            function: What is called. It and its results must pickle.
            items: Its arguments, which must pickle, too.
            memory: Bytes that a call takes; no more calls run on a node than it has memory for. 0
                for little.

        Returns:
            The results, as they come; their order may be another than that of the items.
        """


class SerialMapper:
    """Calls the function in this process, on one item after the other."""

    in_process = True
    workers = 1

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls the function on each item, when its result is asked for.

        Args:
            function: What is called.
            items: Its arguments.
            memory: Does not matter, as one call runs at a time.

        Returns:
            The results, in the order of the items.
        """
        return map(function, items)


def in_order(numbered: Iterable[tuple[int, R]]) -> Iterator[R]:
    """Puts results of `Mapper.map` into the order of the items.

    Args:
        numbered: Each result with its number, from 0 up, in any order.

    Yields:
        The results. One that came too early is kept until those before it have come.

    >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
    ['a', 'b', 'c']
    """
    early: dict[int, R] = {}
    following = 0
    for number, result in numbered:
        early[number] = result
        while following in early:
            yield early.pop(following)
            following += 1


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int = LOOKING_THREADS
) -> Iterator[R]:
    """Applies a function to items in threads.

    Args:
        function: Mostly waits, as for a store.
        items: Taken as results are: never more than four for each thread ahead.
        threads: How many calls run at a time.

    Yields:
        The results, in the order of the items.
    """
    pool = ThreadPoolExecutor(threads, "look")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Nothing is waited for here: a generator that nobody reads to its end is closed by the
        # collector of garbage, which may run while threading's own lock is held.
        pool.shutdown(wait=False, cancel_futures=True)
