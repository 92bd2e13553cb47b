"""The protocol of engines, which spread work and compute nothing themselves."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from pipeline.counting import ShardJob, ShardReceipt
from pipeline.mapper import Mapper
from pipeline.spec import Resources


class Engine(Mapper, Protocol):
    """Spreads work over workers: shards to count or rank, and functions to map over items.

    Work that ends early, by an exception or because its results are no longer asked for, leaves
    what is committed; the same call later does the rest.
    """

    @property
    def resources(self) -> Resources:
        """What workers were asked for when the engine was opened."""

    @property
    def shard_workers(self) -> int:
        """How many workers can have shards at a time now."""

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        """Runs shards on workers that keep their networks loaded from one shard to the next.

        Args:
            work: For each shard its job, and its index in the job's manifest.

        Returns:
            A receipt for each shard, as they end. A shard that could not be done this time is a
            receipt with an error, whatever the error, so that the others go on. So is one that
            another job counts, whose receipt says so.

        Raises:
            TransientError: If no shard ended for too long.
        """

    def beside_shards(self) -> Mapper:
        """Returns what can map functions while shards run: this engine, if it has CPUs to spare."""


@contextmanager
def shards_run(
    engine: Engine, work: Sequence[tuple[ShardJob, int]]
) -> Iterator[Iterator[ShardReceipt]]:
    """Runs shards until the block ends, however it ends.

    After an error, the traceback would keep the receipts open, and the engine would go on with all
    shards while it is closed.

    Args:
        engine: Where they run.
        work: For each shard its job, and its index in the job's manifest. If there are none, the
            engine is left alone.

    Yields:
        The receipts (see `Engine.run_shards`). No more shards begin once the block has ended.
    """
    receipts = engine.run_shards(work) if work else iter(())
    try:
        yield receipts
    finally:
        if isinstance(receipts, Generator):
            receipts.close()
