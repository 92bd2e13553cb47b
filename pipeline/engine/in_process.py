"""The engine of notebooks, small datasets and tests: this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

from pipeline.counting import OVERLAP, ShardJob, ShardReceipt, Worker
from pipeline.mapper import SerialMapper
from pipeline.spec import Resources

AGAIN_SECONDS = 0.2
"""How long shards that are stopped have to end before they are stopped again."""


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
            A receipt for each shard, as they end. If it is closed before the last one, or
            interrupted, the shards under way end without being stored.
        """
        pool = ThreadPoolExecutor(OVERLAP, "shard")
        shards = [pool.submit(self._worker.run, *each) for each in work]
        try:
            for shard in as_completed(shards):
                yield shard.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            # One that had not begun to count when the others were stopped is stopped by another go.
            while running := [shard for shard in shards if not shard.done()]:
                self._worker.stop()
                wait(running, timeout=AGAIN_SECONDS)

    def beside_shards(self) -> SerialMapper:
        """Returns itself: functions run in the thread that asks for their results."""
        return self

    def close(self) -> None:
        """Ends the threads and processes of the loaded networks."""
        self._worker.close()
