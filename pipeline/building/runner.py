"""Runs the shards that are not counted yet, and tells what could not be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.building.planner import DatasetPlan
from pipeline.counting import ShardJob, ShardReceipt
from pipeline.engine import Engine
from pipeline.errors import SourceError, TransientError, VdnaError
from pipeline.events import Listener, Retried, Started, StepDone, StepFailed, stage
from pipeline.sources import Manifest

TRIES = 2
"""How many times a shard is tried in one run."""


def require_counted(name: str, shards: int, failed: Sequence[ShardReceipt]) -> None:
    """Refuses to go on if some shards could not be counted.

    Args:
        name: The dataset or source that the message names.
        shards: How many shards there are.
        failed: The receipts of those that could not be counted.

    Raises:
        TransientError: Some could not be counted, but a rerun may succeed.
        VdnaError: Some could not be counted, and a rerun would not help.
    """
    if not failed:
        return
    some = f"{name}: {len(failed)} of {shards} shards could not be counted"
    lasting = [receipt for receipt in failed if not receipt.transient]
    if lasting:
        raise VdnaError(f"{some}; nothing was committed. First: {lasting[0].error}")
    raise TransientError(
        f"{some}; nothing was skipped: rerun the same command to go on. First: {failed[0].error}"
    )


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
    work: Sequence[tuple[ShardJob, Manifest]], engine: Engine, progress: Listener
) -> list[Ran]:
    """Runs the shards of all jobs that are not stored yet; those that fail are tried again.

    Args:
        work: The jobs, each with its manifest.
        engine: Where the shards run.
        progress: Is told of each shard.

    Returns:
        What became of each job's shards, in the order of the jobs.
    """
    sizes = {(job.manifest_uri, h.index): h.candidates for job, plan in work for h in plan.heads}
    todo = [_missing(one) for one in work]
    left = [(job, i) for (job, _), missing in zip(work, todo, strict=True) for i in missing]
    jobs = {job.manifest_uri: job for job, _ in work}
    total = sum(sizes[job.manifest_uri, index] for job, index in left)
    errors: dict[str, list[ShardReceipt]] = {}
    with stage(progress, Started(total, len(left), len(sizes) - len(left))):
        for attempt in range(1, TRIES + 1):
            errors = {}
            if left and attempt > 1:
                progress(Retried(len(left), attempt))
            for receipt in engine.run_shards(left) if left else ():
                name = f"shard {receipt.index}"
                if receipt.error:
                    errors.setdefault(receipt.manifest_uri, []).append(receipt)
                    progress(StepFailed(name, receipt.error, receipt.transient))
                else:
                    size = sizes[receipt.manifest_uri, receipt.index]
                    progress(StepDone(size, receipt.failures, receipt.seconds, name))
            left = [(jobs[uri], r.index) for uri, receipts in errors.items() for r in receipts]
            if not left:
                break
    return [
        Ran(len(missing), tuple(errors.get(job.manifest_uri, ())))
        for (job, _), missing in zip(work, todo, strict=True)
    ]


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
    plans: Sequence[DatasetPlan], engine: Engine, progress: Listener
) -> dict[str, CountedDataset]:
    """Runs the missing shards of all plans.

    Args:
        plans: The plans, of different datasets.
        engine: Where the shards run.
        progress: Is told of each shard.

    Returns:
        What became of each plan's shards, by the name of its dataset.
    """
    pending = [p for p in plans if not p.up_to_date]
    ran = run_missing([(p.job, p.manifest) for p in pending], engine, progress)
    counted = {p.request.name: CountedDataset(p) for p in plans}
    for p, its in zip(pending, ran, strict=True):
        counted[p.request.name] = CountedDataset(p, its.shards, its.errors)
    return counted
