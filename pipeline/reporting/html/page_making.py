"""Makes pages on a few threads: those that are asked for meanwhile wait in order.

>>> page = PageMaker(ignore).begin(lambda progress: b"<html>")       # doctest: +SKIP
>>> page.made.result()                                               # doctest: +SKIP
b'<html>'
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from pipeline.events import Event, Listener, Said, Started
from pipeline.reporting.progress import Tally

MADE_AT_ONCE = 2
"""How many pages are made at once. An explanation holds a network and gigabytes of histograms."""


class PageInMaking:
    """A page that is made, or waits until others are.

    Args:
        state: The state of what it is made of besides the commit, as a text.

    Attributes:
        made: Its bytes, as soon as it is made.
        state: As it was given.
    """

    made: Future[bytes]

    def __init__(self, state: str) -> None:
        self.state = state
        self._tally, self._is_told = Tally(), False

    @property
    def progress(self) -> str:
        """How far the work is, in one line."""
        if not self.made.running() and not self.made.done():
            return "It waits until other pages are made."
        return self._tally.line if self._tally.stage.total else "It has just begun."

    def hear(self, event: Event, *, is_first: bool) -> bool:
        """Adds up what is done of the page, and decides whether others are told.

        Args:
            event: What happened.
            is_first: Whether the page is the first of those that are made.

        Returns:
            Whether the listener of all pages is told. It hears the stages of one page at a time.
        """
        self._tally(event)
        if isinstance(event, Started):
            self._is_told = is_first
        return self._is_told or isinstance(event, Said)


class PageMaker:
    """Makes at most `MADE_AT_ONCE` pages at a time.

    Args:
        listener: Is told how far the work is.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._pool = ThreadPoolExecutor(MADE_AT_ONCE, "page")
        self._lock = Lock()
        self._pages: list[PageInMaking] = []

    @property
    def is_busy(self) -> bool:
        """Whether a page is being made, or waits."""
        return bool(self._pages)

    def begin(self, make: Callable[[Listener], bytes], state: str = "") -> PageInMaking:
        """Makes a page after those that were begun before.

        Args:
            make: Makes the bytes of the page, and tells the listener that it is given how far it
                is. What it raises is raised by the page's `made`.
            state: As `PageInMaking` takes it.

        Returns:
            The page.
        """
        page = PageInMaking(state)

        def hear(event: Event) -> None:
            if page.hear(event, is_first=self._pages[0] is page):
                self._listener(event)

        def work() -> bytes:
            try:
                return make(hear)
            finally:
                with self._lock:
                    self._pages.remove(page)

        with self._lock:
            self._pages.append(page)
            page.made = self._pool.submit(work)
        return page
