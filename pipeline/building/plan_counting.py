"""Counts the shards of plans: those that are not stored yet, of all datasets together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.building.planner import DatasetPlan
from pipeline.building.runner import Ran, run_missing
from pipeline.counting import ShardReceipt
from pipeline.engine import Engine
from pipeline.events import Listener


@dataclass(frozen=True)
class CountedDataset:
    """What became of a plan's shards.

    Attributes:
        plan: The plan.
        shards: How many shards were counted now.
        errors: The receipts of those that could not be counted.
        images: How many images were counted now.
        seconds: How long workers had their shards, added up.
    """

    plan: DatasetPlan
    shards: int = 0
    errors: tuple[ShardReceipt, ...] = ()
    images: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether shards failed, all of them because the source changed since it was listed."""
        return bool(self.errors) and all(receipt.changed for receipt in self.errors)


def count_shards(
    plans: Sequence[DatasetPlan],
    engine: Engine,
    progress: Listener,
    landed: Callable[[CountedDataset], None],
    ahead: Mapping[str, Ran],
) -> dict[str, CountedDataset]:
    """Runs the missing shards of all plans.

    Args:
        plans: The plans, of different datasets.
        engine: Where the shards run.
        progress: Is told of each shard.
        landed: Is called with each dataset whose shards are all stored while others still run.
        ahead: What was counted while the plans were made, by the name of the dataset.

    Returns:
        What became of each plan's shards, by the name of its dataset.
    """

    def counted_of(plan: DatasetPlan, ran: Ran) -> CountedDataset:
        all_of_it = ahead.get(plan.request.name, Ran()).with_more(ran)
        return CountedDataset(
            plan, all_of_it.shards, all_of_it.errors, all_of_it.images, all_of_it.seconds
        )

    pending = [p for p in plans if not p.up_to_date]
    counted = {p.request.name: CountedDataset(p) for p in plans}
    for p in plans:
        if p.up_to_date and pending:
            landed(counted[p.request.name])

    def all_stored(at: int, shards: int) -> None:
        landed(counted_of(pending[at], Ran(shards)))

    ran = run_missing([(p.job, p.manifest) for p in pending], engine, progress, all_stored)
    for p, its in zip(pending, ran, strict=True):
        counted[p.request.name] = counted_of(p, its)
    return counted
