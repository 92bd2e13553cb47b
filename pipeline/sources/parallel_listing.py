"""Lists a prefix of S3 from many places at a time, whatever its layout.

    >>> for page in list_pages("s3://bucket/photos"):            # doctest: +SKIP
    ...     print(len(page))

A range of keys is read page by page. A thread that has nothing to do splits the range of another
thread half-way between the key that it has reached and the end. So flat and deep layouts are listed
in parallel, without knowing them.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Empty, Queue
from threading import Condition, Lock

from pipeline import storage
from pipeline.storage import Stored

LISTERS = 16
"""Threads that list."""

PAGES_AHEAD = 64
"""Pages that may wait for the consumer: listing does not run away from it."""

FIRST, LAST = 0x20, 0x7E
"""The characters that ranges are split at."""

DIGITS = 8


@dataclass(frozen=True)
class KeyRange:
    """A range of keys, and how far it was read.

    Attributes:
        after: The last key that was read; what is left lies above it.
        until: The last key of the range. None for the end of the prefix.
        done: Whether the range was read to its end.
    """

    after: str
    until: str | None = None
    done: bool = False


def list_pages(uri: str, ranges: dict[int, KeyRange] | None = None) -> Iterator[list[Stored]]:
    """Lists every object below a prefix of S3, from many places at a time.

    Args:
        uri: The prefix.
        ranges: How far each range of keys was read, by its number; empty at first. It is updated
            before a page is yielded, so that a listing can go on from a copy of it once that page
            has been processed.

    Yields:
        The objects of each page, in no order.

    Raises:
        SourceError: There is no object of that name.
    """
    state = ranges if ranges is not None else {}
    if not state:
        state[0] = KeyRange("")
    found = any(of_range.after for of_range in state.values())
    for items, changes in _ParallelLister(uri, state).pages():
        state.update(changes)
        found = found or bool(items)
        yield items
    if not found:
        yield storage.alone(uri)


_Page = tuple[list[Stored], dict[int, KeyRange]]
"""The objects of a page, and the ranges that have changed since the page before."""


class _ParallelLister:
    """Threads that list ranges of keys, and split each other's ranges when they are idle."""

    def __init__(self, uri: str, ranges: Mapping[int, KeyRange]) -> None:
        self._uri = uri
        self._condition = Condition()
        self._turn = Lock()
        self._ranges = dict(ranges)
        self._todo = deque(sorted(n for n, of_range in ranges.items() if not of_range.done))
        self._active: list[int] = []
        self._read: set[int] = set()  # ranges of which a page was read
        self._changes: dict[int, KeyRange] = {}
        self._next = max(ranges) + 1
        self._out: Queue[_Page | BaseException | None] = Queue(PAGES_AHEAD)
        self._stopped = False

    def pages(self) -> Iterator[_Page]:
        with ThreadPoolExecutor(LISTERS, "list") as pool:
            try:
                for _ in range(LISTERS):
                    pool.submit(self._work)
                ended = 0
                while ended < LISTERS:
                    answer = self._out.get()
                    if isinstance(answer, BaseException):
                        raise answer
                    if answer is None:
                        ended += 1
                    else:
                        yield answer
            finally:
                self._stop()

    def _stop(self) -> None:
        with self._condition:
            self._stopped = True
            self._condition.notify_all()
        with contextlib.suppress(Empty):
            while True:  # frees threads that wait to hand over a page
                self._out.get_nowait()

    def _work(self) -> None:
        try:
            while (number := self._next_range()) is not None:
                self._list(number)
        except BaseException as error:
            self._out.put(error)
        finally:
            self._out.put(None)

    def _next_range(self) -> int | None:
        """Returns a range to list, or None when everything is listed."""
        with self._condition:
            while not self._stopped and (self._todo or self._active):
                number = self._todo.popleft() if self._todo else self._split()
                if number is not None:
                    self._active.append(number)
                    return number
                self._condition.wait()
            return None

    def _split(self) -> int | None:
        """Returns the number of a new range: the second half of one that is being listed."""
        for number in self._active:
            of_range = self._ranges[number]
            middle = midpoint(of_range.after, of_range.until) if number in self._read else None
            if middle is None:
                continue
            new, self._next = self._next, self._next + 1
            self._set_range(number, replace(of_range, until=middle))
            self._set_range(new, KeyRange(middle, of_range.until))
            # The range that was split last is split again after all others.
            self._active.remove(number)
            self._active.append(number)
            return new
        return None

    def _list(self, number: int) -> None:
        more = True
        while more and not self._stopped:
            items, last, more = storage.list_page(self._uri, self._ranges[number].after)
            with self._turn:  # pages are handed over in the order in which ranges changed
                with self._condition:
                    until = self._ranges[number].until
                    if until is not None and last > until:
                        end = storage.join(self._uri, until)
                        items = [item for item in items if item.uri <= end]
                        more = False
                    self._set_range(number, KeyRange(last, until, done=not more))
                    changes, self._changes = self._changes, {}
                    self._read.add(number)
                    if not more:
                        self._active.remove(number)
                    self._condition.notify_all()
                self._out.put((items, changes))

    def _set_range(self, number: int, of_range: KeyRange) -> None:
        self._ranges[number] = self._changes[number] = of_range


def midpoint(after: str, until: str | None) -> str | None:
    """Returns a key about half-way between two keys.

    Args:
        after: The lower key.
        until: The upper key. None for no limit.

    Returns:
        A key above `after` and below `until`, or None if none was found.
    """
    common = 0
    if until is not None:
        while common < min(len(after), len(until)) and after[common] == until[common]:
            common += 1
    base = LAST - FIRST + 1

    def number(text: str) -> int:
        value = 0
        for i in range(DIGITS):
            digit = ord(text[i]) - FIRST if i < len(text) else 0
            value = value * base + min(max(digit, 0), base - 1)
        return value

    low = number(after[common:])
    high = base**DIGITS - 1 if until is None else number(until[common:])
    value = (low + high) // 2
    digits = []
    for _ in range(DIGITS):
        value, digit = divmod(value, base)
        digits.append(chr(FIRST + digit))
    middle = after[:common] + "".join(reversed(digits)).rstrip(chr(FIRST))
    return middle if after < middle and (until is None or middle < until) else None
