"""Builds datasets: plan, count, reduce, commit.

    >>> build_datasets(Catalogue("dnas"), [Request("a", "photos/")], InProcess())  # doctest: +SKIP

All requests are planned first, several at a time; shards of a very large source are counted while
it is still listed. Then the missing shards of all datasets are counted together, and each dataset
is reduced and committed as soon as its last shard is counted, several at a time, too. After a
crash, the same call does only what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic

from pipeline import storage
from pipeline.building.committer import finish_dataset, require_enough_readable
from pipeline.building.counting_ahead import CountingAhead
from pipeline.building.finishers import Finishers
from pipeline.building.plan_counting import CountedDataset, count_shards
from pipeline.building.planner import DatasetPlan, Planner, unchanged_result
from pipeline.building.reading_estimate import estimate_reading
from pipeline.building.request import Request, Result, require_apart, require_shared
from pipeline.building.runner import require_counted
from pipeline.building.shard_time import note_speed
from pipeline.building.shared_lookups import SharedLookups
from pipeline.catalogue import Catalogue
from pipeline.counting import device_kind, require_backend
from pipeline.engine import Engine
from pipeline.errors import UsageError, VdnaError, joined_errors, known_error, reworded
from pipeline.events import DatasetEnded, DatasetOutcome, Listener, Said, about, ignore
from pipeline.mapper import Mapper
from pipeline.sources import ImageChanges, Listing, ManifestDifference
from pipeline.spec import Resources

RELISTS = 3
"""How many times a source that changes while it is read is listed again, if `relist` is asked."""


def build_datasets(
    catalogue: Catalogue,
    requests: Sequence[Request],
    engine: Engine,
    resources: Resources | None = None,
    progress: Listener | None = None,
    done: Callable[[Result], None] = lambda result: None,
    failed: Callable[[str, VdnaError], None] = lambda name, error: None,
    listings: Mapping[str, Listing] | None = None,
    *,
    relist: bool = False,
) -> list[Result]:
    """Builds every requested dataset and commits it.

    Each dataset is committed as soon as its last shard is counted. An error of one dataset is
    raised only after the others are finished.

    Args:
        catalogue: Where the datasets are committed.
        requests: What to build; each name once.
        engine: Where the work runs.
        resources: How fast it runs.
        progress: Is told what happens.
        done: Is called with each result, as soon as it is committed or found unchanged.
        failed: Is called with the name of each dataset that cannot be built, and why.
        listings: Listings that the caller has, by the request's name. Those sources are not listed.
        relist: Whether to list sources from the beginning, even if an interrupted listing could be
            continued, and up to `RELISTS` times again if they change while they are read.

    Returns:
        What became of the requests, in their order.

    Raises:
        UsageError: A request cannot be built as it is.
        TransientError: Some shards could not be read for now. A rerun goes on from there.
        GateError: Too many images could not be read. What was counted is kept: a rerun with a
            higher limit commits at once.
        ConservationError: The counts of a shard do not add up; nothing of its dataset is committed.
        UnexpectedError: Something that nobody foresaw; see its `details`.
        VdnaError: Something else went wrong. With several errors, their messages are joined.
    """
    began, sent = monotonic(), storage.requests_sent()
    resources = resources or Resources()
    progress = progress or ignore
    names = [request.name for request in requests]
    if len(set(names)) != len(names):
        raise UsageError(f"a dataset is asked for twice among {', '.join(names)}")
    resources.require_engine(engine.in_process)
    if not engine.in_process:
        require_shared(catalogue.root, *(request.source for request in requests))
    for request in requests:
        require_backend(resources.backend, request.precision, device_kind(resources))
        require_apart(catalogue.root, request.source, request.rules)
    catalogue.require_no_file()
    shared = SharedLookups(catalogue, len(requests))
    if (
        shared.head().number
    ):  # else each plan does it, so that a refused build leaves nothing behind
        shared.require_exclusive()
    planner = Planner(catalogue, engine, resources, progress, listings or {}, relist, shared)
    results: dict[str, Result] = {}
    problems: dict[str, VdnaError] = {}
    telling = threading.Lock()

    def fail(name: str, error: Exception) -> None:
        known = _named(name, error)
        planner.progress(DatasetEnded(name, "failed", 0, 0, type(known).__name__, str(known)))
        with telling:
            problems[name] = known
            failed(name, known)

    def finish(counted: CountedDataset, mapper: Mapper) -> None:
        name = counted.plan.request.name
        try:
            finished = _finish(planner, counted, mapper)
        except Exception as error:
            fail(name, error)
            return
        requests, seconds = storage.requests_sent() - sent, monotonic() - began
        outcome: DatasetOutcome = "committed" if finished.changed else "unchanged"
        version = finished.version
        planner.progress(DatasetEnded(name, outcome, version.images, version.failed))
        with telling:
            results[name] = replace(finished, requests=requests, seconds=seconds)
            done(results[name])

    def told() -> list[VdnaError]:
        return [problems[name] for name in names if name in problems]

    try:
        with Finishers(engine, finish) as finishers:
            counted = _plan_and_count(planner, requests, finishers.begin, fail)
            left = [counted[name] for name in names if name in counted.keys() - finishers.begun]
            finishers.finish([of for of in left if of.plan.request.name not in problems], progress)
    except Exception as error:  # of the engine, above all; it does not hide those of datasets
        first = known_error(error)
        joined = joined_errors([first, *told()]) if problems else None
        if joined is None:
            raise
        raise joined from first
    failure = joined_errors(told())
    if failure is not None:
        raise failure
    return [results[name] for name in names]


def _plan_and_count(
    planner: Planner,
    requests: Sequence[Request],
    landed: Callable[[CountedDataset], None],
    failed: Callable[[str, Exception], None],
) -> dict[str, CountedDataset]:
    """Plans and counts the requests, and again those whose source changed, if it may be relisted.

    Args:
        planner: Plans, and knows whether to relist.
        requests: What to count.
        landed: Is called with each dataset whose shards are all stored while others still run.
        failed: Is called with the name of each request that cannot be planned, and why.

    Returns:
        What was counted, by the request's name.
    """

    def begins(plan: DatasetPlan, missing: Sequence[int]) -> None:
        if not (read := plan.read_from_images(missing)):
            return
        try:
            found = estimate_reading(planner.catalogue, plan.manifest, read, plan.job)
            at_most = found.at_most and len(read) == len(missing)
            what = str(replace(found, at_most=at_most))
        except Exception as error:  # the build may do without
            what = f"how much there is to read is not known: {known_error(error)}"
        with about(dataset=plan.request.name):
            planner.progress(Said(f"{plan.request.name}: {what}"))

    counted: dict[str, CountedDataset] = {}
    pending = list(requests)
    for attempt in range(1 + (RELISTS if planner.relist else 0)):
        if attempt:
            names = ", ".join(request.name for request in pending)
            planner.progress(Said(f"the source changed while it was read: {names}"))
        with CountingAhead(planner.engine, planner.progress) as ahead:
            plans = planner.plans(pending, ahead, failed)
            counted_ahead = ahead.finish()
        for request in pending:
            counted.pop(request.name, None)  # it was planned from an outdated listing
        found = count_shards(
            plans, planner.engine, planner.progress, landed, counted_ahead, begins, failed
        )
        for each in found.values():
            recipe, ran = each.plan.job.recipe, each.ran
            spec = recipe.spec.digest
            measured = ran.images, ran.seconds, ran.image_bytes, ran.spent
            try:
                note_speed(planner.catalogue, spec, recipe.device, *measured)
            except Exception as error:  # what was counted is worth more than this hint
                planner.progress(Said(f"{each.plan.request.name}: {known_error(error)}"))
        counted |= found
        pending = [each.plan.request for each in counted.values() if each.changed]
        if not pending:
            break
    return counted


def _finish(planner: Planner, counted: CountedDataset, mapper: Mapper) -> Result:
    """Commits a dataset whose shards are all counted."""
    catalogue, plan = planner.catalogue, counted.plan
    if plan.up_to_date:
        found = unchanged_result(catalogue, plan)
    else:
        shards, ran = len(plan.manifest.heads), counted.ran
        require_counted(plan.request.name, shards, ran.errors, ran.untried)
        require_enough_readable(plan, ran.read, ran.failed)
        found = finish_dataset(catalogue, plan, counted.ran.shards, mapper, planner.progress)
        found = replace(found, image_changes=_image_changes(catalogue, plan, planner.progress))
    reused = max(0, plan.manifest.candidates - counted.ran.read)
    return replace(
        found,
        changes=plan.changes,
        read=counted.ran.read,
        read_bytes=counted.ran.read_bytes,
        worker_seconds=counted.ran.worker_seconds,
        reused=reused,
    )


def _image_changes(
    catalogue: Catalogue, plan: DatasetPlan, progress: Listener
) -> ImageChanges | None:
    """Counts how the images of a plan differ from those of the version before, if it has a list.

    The dataset is committed by now, so what cannot be counted is said and not raised.

    Returns:
        The numbers; None if they are not known.
    """
    name, base = plan.request.name, plan.base
    if base is None or base.imported:
        return None
    if plan.image_changes is not None:
        return plan.image_changes
    try:
        with ManifestDifference(catalogue.manifest(name, base), plan.manifest) as found:
            return found.counts
    except Exception as error:
        progress(Said(f"{name}: what changed is not known: {known_error(error)}"))
        return None


def _named(name: str, error: Exception) -> VdnaError:
    """Returns an error of this package whose message begins with the dataset's name."""
    known = known_error(error)
    if str(known).startswith(f"{name}: "):
        return known
    return reworded(known, f"{name}: {known}")
