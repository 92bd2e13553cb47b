"""Lists a prefix of S3 from many places at a time, whatever its layout.

    >>> for page in list_pages("s3://bucket/photos"):            # doctest: +SKIP
    ...     print(len(page))

A range of keys is read page by page. While fewer pages are on their way than could be, a range is
split half-way between the key that it has reached and its end. So flat and deep layouts are listed
in parallel, without knowing them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from queue import SimpleQueue

from pipeline import storage
from pipeline.storage import Stored

LISTERS = 16
"""Pages that are asked for at a time."""

ALONE_PAGES = 16
"""So many pages take two or three seconds."""

FIRST_CHARACTER, LAST_CHARACTER = 0x20, 0x7E
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
    found = any(of_range.after or of_range.done for of_range in state.values())
    todo = deque(sorted(number for number, of_range in state.items() if not of_range.done))
    begun: list[int] = []  # ranges with a page read and more to come; the last one split is last
    reading: dict[Future[tuple[list[Stored], str, bool]], int] = {}
    come: SimpleQueue[Future[tuple[list[Stored], str, bool]]] = SimpleQueue()
    with ThreadPoolExecutor(LISTERS, "list") as pool:

        def ask_for_pages() -> None:
            while len(reading) < LISTERS:
                number = todo.popleft() if todo else _split(state, begun)
                if number is None:
                    return
                future = pool.submit(storage.list_page, uri, state[number].after)
                reading[future] = number
                future.add_done_callback(come.put)

        ask_for_pages()
        while reading:
            future = come.get()
            number = reading.pop(future)
            items, last, more = future.result()
            until = state[number].until
            if until is not None and last > until:
                end = storage.join(uri, until)
                items = [item for item in items if item.uri <= end]
                more = False
            state[number] = KeyRange(last, until, done=not more)
            if more:
                todo.append(number)
            if more and number not in begun:
                begun.append(number)
            elif not more and number in begun:
                begun.remove(number)
            ask_for_pages()
            found = found or bool(items)
            yield items
    if not found:
        yield storage.alone(uri)


def walk_widely(uri: str) -> Iterator[Stored]:
    """Yields every object below a folder or prefix: many of S3 from many places at a time.

    The first `ALONE_PAGES` are read one after the other: places without keys cost a request each.

    Args:
        uri: A folder, a prefix, a bucket or an object.

    Yields:
        The objects, in no order.

    Raises:
        SourceError: There is nothing of that name.
    """
    if not storage.store_of(uri).lists_in_key_order:
        yield from storage.walk(uri)
        return
    after, more = "", True
    for _ in range(ALONE_PAGES):
        page, after, more = storage.list_page(uri, after)
        yield from page
        if not more:
            break
    if more:
        yield from chain.from_iterable(list_pages(uri, {0: KeyRange(after)}))
    elif not after:
        yield from storage.alone(uri)


def _split(ranges: dict[int, KeyRange], begun: list[int]) -> int | None:
    """Returns the number of a new range: the second half of one that has begun. None if none is."""
    for number in begun:
        of_range = ranges[number]
        middle = midpoint(of_range.after, of_range.until)
        if middle is not None:
            new = max(ranges) + 1
            ranges[number] = replace(of_range, until=middle)
            ranges[new] = KeyRange(middle, of_range.until)
            begun.remove(number)
            begun.append(number)
            return new
    return None


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
    base = LAST_CHARACTER - FIRST_CHARACTER + 1

    def number(text: str) -> int:
        value = 0
        for i in range(DIGITS):
            digit = ord(text[i]) - FIRST_CHARACTER if i < len(text) else 0
            value = value * base + min(max(digit, 0), base - 1)
        return value

    low = number(after[common:])
    high = base**DIGITS - 1 if until is None else number(until[common:])
    value = (low + high) // 2
    digits = []
    for _ in range(DIGITS):
        value, digit = divmod(value, base)
        digits.append(chr(FIRST_CHARACTER + digit))
    middle = after[:common] + "".join(reversed(digits)).rstrip(chr(FIRST_CHARACTER))
    return middle if after < middle and (until is None or middle < until) else None
