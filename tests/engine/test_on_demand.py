"""Tests that an engine is opened at its first work, by the main thread, and closed with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pipeline.engine import InProcess, OnDemand
from pipeline.mapper import NotOpened, SerialMapper
from pipeline.spec import Resources


class Opened:
    """Notes when an engine is opened and closed."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def __call__(self) -> Iterator[InProcess]:
        self.log.append("opened")
        with InProcess() as engine:
            yield engine
        self.log.append("closed")


def test_it_is_opened_once_and_closed() -> None:
    opened = Opened()
    with OnDemand(opened, Resources(workers=3)) as engine:
        assert not engine.in_process
        assert engine.resources.workers == 3
        assert isinstance(engine.beside_shards(), SerialMapper)
        assert opened.log == []
        assert list(engine.map(abs, [-1, 2])) == [1, 2]
        assert engine.workers == 1
        assert engine.beside_shards() is not None
        assert opened.log == ["opened"]
    assert opened.log == ["opened", "closed"]


def test_without_work_it_is_never_opened() -> None:
    opened = Opened()
    with OnDemand(opened, Resources()):
        pass
    assert opened.log == []


def test_another_thread_does_not_open_it_and_may_use_it_later() -> None:
    opened = Opened()
    with OnDemand(opened, Resources()) as engine, ThreadPoolExecutor(1) as pool:
        with pytest.raises(NotOpened):
            pool.submit(lambda: list(engine.map(abs, [-1]))).result()
        assert opened.log == []
        assert list(engine.map(abs, [-1])) == [1]
        assert pool.submit(lambda: list(engine.map(abs, [-2]))).result() == [2]
