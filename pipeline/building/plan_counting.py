"""Counts the shards of plans: those that are not stored yet, of all datasets together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.building.counting_ahead import CountedAhead
from pipeline.building.planner import DatasetPlan
from pipeline.building.runner import Ran, run_missing
from pipeline.engine import Engine
from pipeline.events import Listener


@dataclass(frozen=True)
class CountedDataset:
    """What became of a plan's shards.

    Attributes:
        plan: The plan.
        ran: What became of its shards, those that were counted ahead among them.
    """

    plan: DatasetPlan
    ran: Ran = field(default_factory=Ran)

    @property
    def changed(self) -> bool:
        """Whether shards failed, all of them because the source changed since it was listed."""
        return bool(self.ran.errors) and all(receipt.changed for receipt in self.ran.errors)


def count_shards(
    plans: Sequence[DatasetPlan],
    engine: Engine,
    progress: Listener,
    landed: Callable[[CountedDataset], None],
    ahead: Mapping[str, CountedAhead],
    begins: Callable[[DatasetPlan, Sequence[int]], None],
    failed: Callable[[str, Exception], None],
) -> dict[str, CountedDataset]:
    """Runs the missing shards of all plans.

    Args:
        plans: The plans, of different datasets.
        engine: Where the shards run.
        progress: Is told of each shard.
        landed: Is called with each dataset whose shards are all stored while others still run.
        ahead: What was counted while the plans were made, by the name of the dataset.
        begins: Is called with each plan that has shards to run, and their numbers.
        failed: Is called with the name of each dataset of which it cannot be found out which shards
            are stored, and why.

    Returns:
        What became of each other plan's shards, by the name of its dataset.
    """
    unlisted: set[str] = set()

    def before(plan: DatasetPlan) -> CountedAhead:
        return ahead.get(plan.request.name, CountedAhead())

    def counted_of(plan: DatasetPlan, ran: Ran) -> CountedDataset:
        return CountedDataset(plan, before(plan).ran.with_more(ran))

    pending = [p for p in plans if not p.up_to_date]
    counted = {p.request.name: CountedDataset(p) for p in plans}
    for p in plans:
        if p.up_to_date and pending:
            landed(counted[p.request.name])

    def all_stored(at: int, ran: Ran) -> None:
        landed(counted_of(pending[at], ran))

    def begin(at: int, missing: Sequence[int]) -> None:
        begins(pending[at], missing)

    def not_listed(at: int, error: Exception) -> None:
        unlisted.add(pending[at].request.name)
        failed(pending[at].request.name, error)

    work = [(p.job, p.manifest) for p in pending]
    earlier = [before(p).failed for p in pending]
    ran = run_missing(work, engine, progress, all_stored, begin, earlier, not_listed)
    for p, its in zip(pending, ran, strict=True):
        counted[p.request.name] = counted_of(p, its)
    return {name: of for name, of in counted.items() if name not in unlisted}
