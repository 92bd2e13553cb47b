"""Lets shards of a process run beside each other, or one of them alone.

>>> turns = Turns()
>>> with turns.beside(), turns.beside():
...     pass
>>> with turns.alone():
...     pass
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Shares a process between threads, each of which has a shard."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._want_alone = 0

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Waits until no shard runs alone, or waits for that; others may run beside the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._want_alone)
            self._under_way += 1
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no shard is under way; none begins before the block has ended."""
        with self._changed:
            self._want_alone += 1
            self._changed.wait_for(lambda: not self._under_way)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._want_alone -= 1
            self._end()

    def _end(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
