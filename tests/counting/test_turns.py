"""Tests that shards run beside each other, or one of them alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Thread
from time import sleep

import pytest

from pipeline.counting.turns import Turns


def test_shards_run_beside_each_other() -> None:
    turns, both = Turns(), Barrier(2, timeout=10)

    def run(_: int) -> None:
        with turns.beside():
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))


@pytest.mark.parametrize("seed", range(3))
def test_one_that_is_alone_has_none_beside_it(seed: int) -> None:
    """Whatever the others do; and each gets its turn."""
    turns, chance = Turns(), random.Random(seed)
    under_way: list[str] = []
    seen: list[tuple[str, ...]] = []

    def run(kind: str) -> None:
        with turns.alone() if kind == "alone" else turns.beside():
            under_way.append(kind)
            sleep(chance.random() / 300)
            seen.append(tuple(under_way))
            under_way.remove(kind)

    kinds = chance.choices(["alone", "beside"], [1, 3], k=60)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, kinds))
    assert len(seen) == len(kinds)
    assert all(len(some) == 1 for some in seen if "alone" in some)
    assert max(map(len, seen)) > 1


def test_a_turn_ends_with_an_error_too() -> None:
    turns = Turns()
    for turn in (turns.beside, turns.alone):
        with pytest.raises(ValueError, match="wrong"), turn():
            raise ValueError("wrong")
    with turns.alone():
        pass


def test_none_begins_while_one_waits_to_be_alone() -> None:
    """Else it might wait for ever."""
    turns = Turns()
    order: list[str] = []

    def run(kind: str) -> None:
        with turns.alone() if kind == "alone" else turns.beside():
            order.append(kind)

    with turns.beside():
        threads = [Thread(target=run, args=("alone",))]
        threads[0].start()
        while not turns._want_alone:
            sleep(0.001)
        threads.append(Thread(target=run, args=("beside",)))
        threads[1].start()
        sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == ["alone", "beside"]
