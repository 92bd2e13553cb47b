"""sources.listing_pages: TODO-DOC"""

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

PAGES_AHEAD = 64
"""Pages that wait to be looked at: listing does not run away from what takes it in."""


# Spans of keys.


@dataclass(frozen=True)
class Span:
    """Keys above `after`, up to `until` (to the end of the prefix for None)."""

    after: str
    until: str | None = None
    done: bool = False


def pages(uri: str, spans: dict[int, Span] | None = None) -> Iterator[list[Stored]]:
    """Every object below a prefix of S3, in no order, listed from many places at a time.

    `spans`: what was read so far. It is brought up to date before a page is yielded, so that
    whoever has taken in a page can go on from a copy of it. Raises `SourceError` where there is
    nothing of that name.
    """
    state = spans if spans is not None else {}
    if not state:
        state[0] = Span("")
    found = any(span.after for span in state.values())
    for page in _Crew(uri, state).pages():
        for cut in page.cuts:
            state[cut.origin] = replace(state[cut.origin], until=cut.span.after)
            state[cut.number] = cut.span
        state[page.number] = page.span
        found = found or bool(page.items)
        yield page.items
    if not found:
        yield storage.alone(uri)


@dataclass(frozen=True)
class _Cut:
    """The end of the span `origin`, made a span of its own."""

    origin: int
    number: int
    span: Span


@dataclass(frozen=True)
class _Page:
    """What was read of a span, the span after it, and what was cut since the page before."""

    number: int
    items: list[Stored]
    span: Span
    cuts: list[_Cut]


class _Crew:
    """Threads that list spans, and cut each other's in two when they have nothing to do."""

    def __init__(self, uri: str, spans: Mapping[int, Span]) -> None:
        self._uri = uri
        self._change = Condition()
        self._turn = Lock()
        self._spans = dict(spans)
        self._todo = deque(sorted(number for number, span in spans.items() if not span.done))
        self._active: list[int] = []
        self._read: set[int] = set()
        self._cuts: list[_Cut] = []
        self._next = max(spans) + 1
        self._out: Queue[_Page | BaseException | None] = Queue(PAGES_AHEAD)
        self._stopped = False

    def pages(self) -> Iterator[_Page]:
        with ThreadPoolExecutor(LISTERS, "list") as pool:
            try:
                at_work = [pool.submit(self._work) for _ in range(LISTERS)]
                ended = 0
                while ended < len(at_work):
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
        with self._change:
            self._stopped = True
            self._change.notify_all()
        with contextlib.suppress(Empty):
            while True:  # whoever waits to hand over a page is let go
                self._out.get_nowait()

    def _work(self) -> None:
        try:
            while (number := self._take()) is not None:
                self._list(number)
        except BaseException as error:
            self._out.put(error)
        finally:
            self._out.put(None)

    def _take(self) -> int | None:
        """A span to list; one cut off another's where none waits. None when all is listed."""
        with self._change:
            while not self._stopped and (self._todo or self._active):
                number = self._todo.popleft() if self._todo else self._split()
                if number is not None:
                    self._active.append(number)
                    return number
                self._change.wait()
            return None

    def _split(self) -> int | None:
        for number in self._active:
            span = self._spans[number]
            middle = midpoint(span.after, span.until) if number in self._read else None
            if middle is None:
                continue
            mine, self._next = self._next, self._next + 1
            self._spans[mine] = Span(middle, span.until)
            self._spans[number] = replace(span, until=middle)
            self._cuts.append(_Cut(number, mine, self._spans[mine]))
            # Who was cut last is cut next after all others.
            self._active.remove(number)
            self._active.append(number)
            return mine
        return None

    def _list(self, number: int) -> None:
        more = True
        while more and not self._stopped:
            items, last, more = storage.list_page(self._uri, self._spans[number].after)
            with self._turn:  # pages are handed over in the order in which spans changed
                with self._change:
                    span = self._spans[number]
                    if span.until is not None and last > span.until:
                        end = storage.join(self._uri, span.until)
                        items = [item for item in items if item.uri <= end]
                        more = False
                    span = Span(last, span.until, done=not more)
                    self._spans[number] = span
                    cuts, self._cuts = self._cuts, []
                    self._read.add(number)
                    if not more:
                        self._active.remove(number)
                    self._change.notify_all()
                self._out.put(_Page(number, items, span, cuts))


FIRST, LAST = 0x20, 0x7E
"""The characters that spans are cut at."""

DIGITS = 8


def midpoint(after: str, until: str | None) -> str | None:
    """A text between two, about half-way; None where there is no telling one."""
    common = 0
    if until is not None:
        while common < min(len(after), len(until)) and after[common] == until[common]:
            common += 1
    base = LAST - FIRST + 1

    def number(text: str, pad: int) -> int:
        value = 0
        for i in range(DIGITS):
            digit = ord(text[i]) - FIRST if i < len(text) else pad
            value = value * base + min(max(digit, 0), base - 1)
        return value

    low = number(after[common:], 0)
    high = base**DIGITS - 1 if until is None else number(until[common:], 0)
    value = (low + high) // 2
    digits = []
    for _ in range(DIGITS):
        value, digit = divmod(value, base)
        digits.append(chr(FIRST + digit))
    middle = after[:common] + "".join(reversed(digits)).rstrip(chr(FIRST))
    return middle if after < middle and (until is None or middle < until) else None
