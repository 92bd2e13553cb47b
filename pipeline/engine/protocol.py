"""engine.protocol: TODO-DOC"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from pipeline.counting import Receipt, ShardJob

T = TypeVar("T")

R = TypeVar("R")


class Engine(Protocol):
    """Spreads work. Both methods yield results in any order, as they come.

    `in_process`: whether what only this process sees (`memory://`) is seen where the work is done.
    """

    @property
    def in_process(self) -> bool: ...

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[Receipt]: ...

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]: ...
