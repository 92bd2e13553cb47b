"""Results of threads and of tasks are put in order, and what nobody reads to its end stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.mapper import in_order, map_in_order


@given(st.permutations(range(9)))
def test_results_are_put_in_order(order: list[int]) -> None:
    assert list(in_order((number, -number) for number in order)) == [-n for n in range(9)]


def test_a_result_is_given_out_as_soon_as_those_before_it_have_come() -> None:
    came: list[int] = []

    def numbered() -> Iterator[tuple[int, int]]:
        for number in (0, 2, 1, 3):
            came.append(number)
            yield number, number

    assert [(n, list(came)) for n in in_order(numbered())] == [
        (0, [0]), (1, [0, 2, 1]), (2, [0, 2, 1]), (3, [0, 2, 1, 3]),
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_results_in_the_order_of_the_items(threads: int) -> None:
    def late(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(map_in_order(late, range(40), threads)) == list(range(40))


def test_a_generator_that_is_closed_waits_for_no_thread() -> None:
    """The collector of garbage may close it while a lock of threading is held."""
    go_on, begun = threading.Event(), list[int]()

    def slow(number: int) -> int:
        begun.append(number)
        if number:
            go_on.wait(10)
        return number

    results = map_in_order(slow, range(100), threads=2)
    assert next(results) == 0
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]  # a generator
    assert time.monotonic() - started < 5
    go_on.set()
    assert len(begun) < 9
