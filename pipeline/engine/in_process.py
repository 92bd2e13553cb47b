"""engine.in_process: TODO-DOC"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.counting import OVERLAP, Receipt, ShardJob, Worker
from pipeline.engine.protocol import R, T


class InProcess:
    """The engine of notebooks, small sets and tests: this process, no Ray.

    Extractors and their threads stay until it is closed.
    """

    in_process = True

    def __init__(self) -> None:
        self._worker = Worker()

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[Receipt]:
        with ThreadPoolExecutor(OVERLAP, "shard") as pool:
            yield from pool.map(lambda shard: self._worker.run(*shard), work)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        return map(function, items)

    def close(self) -> None:
        self._worker.close()
