"""manifest -> shards -> reduction -> commit, for one dataset or many, by whatever engine.

    >>> build_datasets(Catalogue("dnas"), [Request("a", "photos/")], InProcess())  # doctest: +SKIP

Everything is planned first, then the missing shards of all datasets are counted in one go, then
each dataset is reduced and committed. Whatever dies, the same call again does what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline import storage
from pipeline.building.committer import finish_dataset
from pipeline.building.planner import Planner, unchanged_result
from pipeline.building.request import Request, Result, require_apart, require_shared
from pipeline.building.runner import CountedDataset, count_shards, not_counted
from pipeline.catalogue import Catalogue
from pipeline.engine import Engine
from pipeline.errors import GateError, UsageError, VdnaError
from pipeline.events import Listener, Said, ignore
from pipeline.sources import Listing
from pipeline.spec import Resources

RELISTS = 3
"""Times that a source which changes while it is read is listed again, where that is asked for."""


def build_datasets(
    catalogue: Catalogue,
    requests: Sequence[Request],
    engine: Engine,
    resources: Resources | None = None,
    progress: Listener | None = None,
    done: Callable[[Result], None] = lambda result: None,
    listings: Mapping[str, Listing] | None = None,
    *,
    relist: bool = False,
) -> list[Result]:
    """Build and commit every request's dataset; results in the order of the requests.

    `done` is told of each as it is committed, or found unchanged. `listings`: by a request's name,
    its candidates, where the caller has listed them; its source is then not looked at. `relist`:
    list sources anew, whatever an interrupted listing has left, and again, `RELISTS` times, where
    they change while they are read.

    Raises `TransientError` where shards could not be read (a rerun resumes), and `GateError` where
    too many images failed (their partials are kept: a rerun with a higher limit commits at once).
    The other datasets of the call are finished first.
    """
    resources = resources or Resources()
    progress = progress or ignore
    names = [request.name for request in requests]
    if len(set(names)) != len(names):
        raise UsageError(f"a dataset is asked for twice among {', '.join(names)}")
    if not engine.in_process:
        require_shared(catalogue.root, *(request.source for request in requests))
    for request in requests:
        require_apart(catalogue.root, request.source)
    storage.require_exclusive(catalogue.root)
    planner = Planner(catalogue, engine, resources, progress, listings or {}, relist)
    counted: dict[str, CountedDataset] = {}
    unplanned: list[VdnaError] = []
    again = list(requests)
    for round_ in range(1 + (RELISTS if relist else 0)):
        if round_:
            progress(Said(f"changed while it was read: {', '.join(r.name for r in again)}"))
        found = planner.plans(again, unplanned)
        for request in again:
            counted.pop(request.name, None)  # of a source as it no longer is
        counted |= count_shards(found, engine, progress)
        again = [c.plan.request for c in counted.values() if c.changed]
        if not again:
            break
    problems = list(unplanned)
    results: list[Result] = []
    for request in requests:
        if (one := counted.get(request.name)) is None:
            continue
        try:
            if one.plan.up_to_date:
                results.append(unchanged_result(catalogue, one.plan, catalogue.head()))
            elif one.errors:
                raise not_counted(request.name, len(one.plan.manifest.heads), one.errors)
            else:
                results.append(finish_dataset(catalogue, one.plan, one.shards, engine, progress))
            done(results[-1])
        except VdnaError as error:
            problems.append(error)
    if problems:
        if len(problems) == 1:
            raise problems[0]
        worst = next((e for e in problems if not isinstance(e, GateError)), problems[0])
        raise type(worst)("\n".join(str(error) for error in problems)) from worst
    return results
