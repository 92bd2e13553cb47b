"""Tests that pages are made a few at a time, in the order in which they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import Any

import pytest

from pipeline.events import Finished, Listener, Said, Started, StepDone, ignore
from pipeline.reporting.html.page_making import MADE_AT_ONCE, PageMaker


class Slow:
    """Makes pages that end when a test says so."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.most = self._now = 0
        self._lock = Lock()
        self.go = [Event() for _ in range(8)]
        self.starts = [Event() for _ in range(8)]

    def page(self, number: int) -> Any:
        def make(_: Listener) -> bytes:
            with self._lock:
                self.begun.append(number)
                self._now += 1
                self.most = max(self.most, self._now)
            self.starts[number].set()
            assert self.go[number].wait(60)
            with self._lock:
                self._now -= 1
            return b"page %d" % number

        return make


def test_two_pages_are_made_at_a_time_and_others_wait_in_order() -> None:
    slow, maker = Slow(), PageMaker(ignore)
    pages = [maker.begin(slow.page(number)) for number in range(6)]
    try:
        for number in range(2, 6):
            assert slow.starts[number - 1].wait(60)
            assert sorted(slow.begun) == list(range(number))
            assert pages[number].progress == "It waits until other pages are made."
            assert pages[number - 1].progress == "It has just begun."
            slow.go[number - 2].set()
            assert slow.starts[number].wait(60)
    finally:
        for go in slow.go:
            go.set()
    assert [page.made.result() for page in pages] == [b"page %d" % n for n in range(6)]
    assert slow.begun[2:] == [2, 3, 4, 5]
    assert slow.most == MADE_AT_ONCE == 2


def test_a_maker_is_busy_until_the_last_page_is_made() -> None:
    slow, maker = Slow(), PageMaker(ignore)
    assert not maker.is_busy
    pages = [maker.begin(slow.page(number)) for number in range(3)]
    for number, page in enumerate(pages):
        assert maker.is_busy
        slow.go[number].set()
        page.made.result()
    assert not maker.is_busy


def test_a_page_that_fails_makes_room_for_the_next() -> None:
    maker = PageMaker(ignore)

    def broken(_: Listener) -> bytes:
        raise ValueError("no page")

    failed = [maker.begin(broken) for _ in range(2 * MADE_AT_ONCE)]
    assert maker.begin(lambda _: b"page").made.result() == b"page"
    for page in failed:
        with pytest.raises(ValueError, match="no page"):
            page.made.result()
    assert not maker.is_busy


def test_who_listens_hears_whole_stages_of_one_page_at_a_time() -> None:
    told: list[object] = []
    maker = PageMaker(told.append)
    begun, go, done = Event(), Event(), Event()

    def first(progress: Listener) -> bytes:
        progress(Started(4, 4, unit="pairs", step="tiles"))
        progress(StepDone(1))
        begun.set()
        assert go.wait(60)
        progress(Finished())
        return b"first"

    def second(progress: Listener) -> bytes:
        assert begun.wait(60)
        progress(Started(9, 9, unit="images", step="images"))
        progress(StepDone(2))
        progress(Said("by the way"))
        done.set()
        assert go.wait(60)
        wait([pages[0].made])
        progress(StepDone(3))  # of a stage that nobody heard of
        progress(Started(5, 5, unit="layers", step="layers"))
        progress(Finished())
        return b"second"

    pages = [maker.begin(first), maker.begin(second)]
    try:
        assert done.wait(60)
        assert pages[0].progress.startswith("1/4 pairs")
        assert pages[1].progress.startswith("2/9 images")
    finally:
        go.set()
    wait([page.made for page in pages])
    assert told == [
        Started(4, 4, unit="pairs", step="tiles"),
        StepDone(1),
        Said("by the way"),
        Finished(),
        Started(5, 5, unit="layers", step="layers"),
        Finished(),
    ]


def test_pages_may_be_begun_from_many_threads() -> None:
    maker = PageMaker(ignore)
    with ThreadPoolExecutor(8) as pool:
        pages = list(pool.map(lambda n: maker.begin(lambda _: b"%d" % n), range(100)))
    assert [page.made.result() for page in pages] == [b"%d" % n for n in range(100)]
    assert not maker.is_busy
