"""Runs the shards that are not counted yet, and tells what could not be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.building.planner import DatasetPlan
from pipeline.counting import ShardJob, ShardReceipt
from pipeline.engine import Engine
from pipeline.errors import (
    ConservationError,
    SourceError,
    TransientError,
    UnexpectedError,
    VdnaError,
)
from pipeline.events import Listener, Retried, Said, Started, StepDone, StepFailed, stage
from pipeline.sources import Manifest
from pipeline.wording import count_of

TRIES = 2
"""How many times a shard is tried in one run."""

UNEXPECTED_TRIES = 4
"""How many times it is tried if an error was not foreseen, such as that of a broken device: each
time it may come to a worker with another device."""


def require_counted(name: str, shards: int, failed: Sequence[ShardReceipt]) -> None:
    """Refuses to go on if some shards could not be counted.

    Args:
        name: The dataset or source that the message names.
        shards: How many shards there are.
        failed: The receipts of those that could not be counted.

    Raises:
        ConservationError: The counts of one do not add up.
        TransientError: Some could not be counted, but a rerun may succeed.
        UnexpectedError: The same, and the reason was not foreseen.
        VdnaError: Some could not be counted, and a rerun would not help.
    """
    if not failed:
        return
    some = f"{name}: {len(failed)} of {count_of(shards, 'shard')} could not be counted"
    lasting = [receipt for receipt in failed if not receipt.transient]
    if lasting:
        first = next((receipt for receipt in lasting if receipt.unsound), lasting[0])
        kind = ConservationError if first.unsound else VdnaError
        raise kind(f"{some}; nothing was committed. First: {first.error}")
    again = f"{some}; nothing was skipped: rerun the same command to go on. First: "
    for receipt in failed:
        if receipt.unexpected:
            raise UnexpectedError(again + receipt.error, receipt.details)
    raise TransientError(again + failed[0].error)


@dataclass(frozen=True)
class Ran:
    """What became of a job's shards.

    Attributes:
        shards: How many shards were missing before.
        errors: The receipts of those that could not be counted.
    """

    shards: int
    errors: tuple[ShardReceipt, ...]


def run_missing(
    work: Sequence[tuple[ShardJob, Manifest]],
    engine: Engine,
    progress: Listener,
    landed: Callable[[int, int], None] = lambda at, shards: None,
) -> list[Ran]:
    """Runs the shards of all jobs that are not stored yet; those that fail are tried again.

    A shard whose counts do not add up is not tried again in the same run, so that nobody overlooks
    what may be a broken machine.

    Args:
        work: The jobs, each with its manifest.
        engine: Where the shards run.
        progress: Is told of each shard.
        landed: Is called with the number of a job, and how many of its shards ran, as soon as all
            are stored and other jobs still have shards to run.

    Returns:
        What became of each job's shards, in the order of the jobs.
    """
    sizes = {(job.manifest_uri, h.index): h.candidates for job, plan in work for h in plan.heads}
    todo = [_missing(one) for one in work]
    left = [(job, i) for (job, _), missing in zip(work, todo, strict=True) for i in missing]
    numbers = {job.manifest_uri: at for at, (job, _) in enumerate(work)}
    missing = Counter({at: len(indices) for at, indices in enumerate(todo)})
    total = sum(sizes[job.manifest_uri, index] for job, index in left)
    errors: dict[tuple[int, int], ShardReceipt] = {}
    ahead, told = 0, False
    with stage(progress, Started(total, len(left), len(sizes) - len(left))):
        for at in missing:
            if not missing[at] and left:
                landed(at, len(todo[at]))
        attempt = 1
        while left:
            for receipt in engine.run_shards(left):
                at, name = numbers[receipt.manifest_uri], f"shard {receipt.index}"
                if receipt.error:
                    errors[at, receipt.index] = receipt
                    progress(StepFailed(name, receipt.error, receipt.transient))
                    continue
                errors.pop((at, receipt.index), None)
                size = sizes[receipt.manifest_uri, receipt.index]
                progress(StepDone(size, receipt.failures, receipt.seconds, name, receipt.ahead))
                ahead += receipt.ahead
                if receipt.missed and not told:
                    progress(Said(f"{name}: its worker decoded for a task: {receipt.missed}"))
                    told = True
                missing[at] -= 1
                if not missing[at] and any(missing.values()):
                    landed(at, len(todo[at]))
            left = [
                (work[at][0], index)
                for (at, index), receipt in errors.items()
                if attempt < _tries(receipt)
            ]
            attempt += 1
            if left:
                progress(Retried(len(left), attempt))
        if ahead:
            progress(Said(f"tasks decoded {count_of(ahead, 'image')} of {total:,} for the workers"))
    return [
        Ran(len(indices), tuple(receipt for (of, _), receipt in errors.items() if of == at))
        for at, indices in enumerate(todo)
    ]


def _tries(receipt: ShardReceipt) -> int:
    """Returns how often a shard that failed like this is tried."""
    if receipt.unsound:
        return 1
    return UNEXPECTED_TRIES if receipt.unexpected else TRIES


def _missing(one: tuple[ShardJob, Manifest]) -> list[int]:
    """Returns the indices of the shards that are not stored yet, found by one listing."""
    job, manifest = one
    prefix = storage.join(job.work_uri, "partials")
    try:
        present = {item.uri.rpartition("/")[2] for item in storage.walk(prefix)}
    except SourceError:
        present = set()
    keys = manifest.keys(job.recipe.spec.digest, job.recipe.products)
    return [index for index, key in enumerate(keys) if f"{key}.parquet" not in present]


@dataclass(frozen=True)
class CountedDataset:
    """What became of a plan's shards.

    Attributes:
        plan: The plan.
        shards: How many shards were counted now.
        errors: The receipts of those that could not be counted.
    """

    plan: DatasetPlan
    shards: int = 0
    errors: tuple[ShardReceipt, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether shards failed, all of them because the source changed since it was listed."""
        return bool(self.errors) and all(receipt.changed for receipt in self.errors)


def count_shards(
    plans: Sequence[DatasetPlan],
    engine: Engine,
    progress: Listener,
    landed: Callable[[CountedDataset], None],
) -> dict[str, CountedDataset]:
    """Runs the missing shards of all plans.

    Args:
        plans: The plans, of different datasets.
        engine: Where the shards run.
        progress: Is told of each shard.
        landed: Is called with each dataset whose shards are all stored while others still run.

    Returns:
        What became of each plan's shards, by the name of its dataset.
    """
    pending = [p for p in plans if not p.up_to_date]
    counted = {p.request.name: CountedDataset(p) for p in plans}
    for p in plans:
        if p.up_to_date and pending:
            landed(counted[p.request.name])

    def all_stored(at: int, shards: int) -> None:
        landed(CountedDataset(pending[at], shards))

    ran = run_missing([(p.job, p.manifest) for p in pending], engine, progress, all_stored)
    for p, its in zip(pending, ran, strict=True):
        counted[p.request.name] = CountedDataset(p, its.shards, its.errors)
    return counted
