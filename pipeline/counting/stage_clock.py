"""Adds up how long the threads of a process spend in each stage of counting.

    >>> meter = StageMeter()
    >>> add_spent({"decode": 2.5})
    >>> with Spending("network"):
    ...     pass
    >>> found = meter.read()
    >>> found["decode"], list(found), meter.read()
    (2.5, ['decode', 'network'], {})

`fetch` is the time in which images are read, `decode` makes the network's input of them, and
`network` runs the network and counts, or gives both to a GPU. Times are those of a wall clock, and
of all threads together: they tell the shares of the stages, not how long a shard takes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from time import perf_counter
from typing import Literal

Stage = Literal["fetch", "decode", "network"]

_LOCK = threading.Lock()

_spent: dict[str, float] = {}


def add_spent(seconds: Mapping[str, float]) -> None:
    """Adds seconds.

    Args:
        seconds: How many, by the name of the stage; also what another process has spent for this.
    """
    with _LOCK:
        for name, more in seconds.items():
            _spent[name] = _spent.get(name, 0.0) + more


def spent_together(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of each stage of two pieces of work."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


class Spending:
    """Adds the time that a `with` block takes. It is a class, as each image has two such blocks.

    Args:
        name: The stage.
    """

    __slots__ = ("_began", "_name")

    def __init__(self, name: Stage) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = perf_counter() - self._began
        with _LOCK:
            _spent[self._name] = _spent.get(self._name, 0.0) + seconds


def spent_so_far() -> float:
    """Returns the seconds of all stages together: while it grows, this process gets on."""
    with _LOCK:
        return sum(_spent.values())


class StageMeter:
    """Tells what was spent since it was made or read last; for several threads."""

    def __init__(self) -> None:
        with _LOCK:
            self._read = dict(_spent)

    def read(self) -> dict[str, float]:
        """Returns the seconds of each stage in which there were any."""
        with _LOCK:
            before, self._read = self._read, dict(_spent)
            found = {name: sum_ - before.get(name, 0.0) for name, sum_ in self._read.items()}
        return {name: seconds for name, seconds in found.items() if seconds > 0}
