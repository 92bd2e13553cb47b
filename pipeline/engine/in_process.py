"""The engine of notebooks, small datasets and tests: this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.counting import OVERLAP, ShardJob, ShardReceipt, Worker
from pipeline.mapper import SerialMapper
from pipeline.spec import Resources


class InProcess(SerialMapper):
    """Runs shards and functions in this process.

    Networks and their threads stay loaded until the engine is closed; it is also a context manager
    that closes itself.
    """

    resources = Resources()
    shard_workers = 1

    def __init__(self) -> None:
        self._worker = Worker()

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        """Runs shards, `OVERLAP` at a time.

        Args:
            work: For each shard its job, and its index in the job's manifest.

        Yields:
            A receipt for each shard, in the order of `work`.
        """
        with ThreadPoolExecutor(OVERLAP, "shard") as pool:
            yield from pool.map(lambda shard: self._worker.run(*shard), work)

    def beside_shards(self) -> SerialMapper:
        """Returns itself: functions run in the thread that asks for their results."""
        return self

    def close(self) -> None:
        """Ends the threads and processes of the loaded networks."""
        self._worker.close()
