"""Measures how far a dataset has moved from one version to another.

>>> str(with_movement(catalogue, result).moved)                          # doctest: +SKIP
'1.9 bins [1.2, 2.6]'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from datetime import datetime, timedelta
from itertools import islice
from math import isfinite
from typing import Any, cast

from pipeline.building import Movement, Result
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Rename,
    Version,
    former_names,
    last_versions,
    renames,
)
from pipeline.comparing.all_pairs import Effort, compare
from pipeline.comparing.drift_alarm import LEAST_STEPPED
from pipeline.comparing.matrix import ALL, Matrix
from pipeline.errors import known_error
from pipeline.events import Started, StepDone, Warned, ignore, stage

MOVES_MEASURED = 100
"""How many new versions of a refresh are compared with those before: each may take seconds.

The log is read back as many commits, to find what refreshes before have changed.
"""

TOLD_AGAIN = timedelta(hours=20)
"""For how long a refresh measures again what one before has changed.

A refresh may die after its commit, or its alarm be lost. So those that follow soon tell it, too. It
is less than a day, so that each nightly refresh tells of its own changes.
"""


def movement_between(matrix: Matrix, a: str, b: str) -> Movement:
    """Takes the distance of two versions from a matrix.

    Args:
        matrix: A matrix with error bars that has both.
        a: The name of a version.
        b: The name of another one.

    Returns:
        The distance over all neurons.
    """
    at = matrix.names.index(a), matrix.names.index(b)
    values = {of.name: float(matrix.of(ALL, cast(Any, of.name))[at]) for of in fields(Movement)}
    return Movement(**{name: x if isfinite(x) else None for name, x in values.items()})


def with_movement(catalogue: Catalogue, result: Result, effort: Effort | None = None) -> Result:
    """Adds to the result of a build how far the dataset has moved from the version before.

    Two versions are compared, and nothing is written. The dataset is committed by now, so an error
    does not end the build: it is the reason why the distance is not known.

    Args:
        catalogue: The catalogue.
        result: What became of a build.
        effort: How to compare; None for this process with all its cores.

    Returns:
        The result with `moved`, or with the reason in `unmeasured`; as it was, if it has replaced
        no version.
    """
    return _measured(catalogue, result, effort)[0]


def _measured(
    catalogue: Catalogue, result: Result, effort: Effort | None
) -> tuple[Result, Matrix | None]:
    """Returns the result of `with_movement`, and the matrix of both versions if it is known."""
    if result.replaced is None:
        return result, None
    spec = result.version.spec
    names = [result.former_version, f"{result.name}@{result.commit}"]
    quiet = replace(effort or Effort(), progress=ignore, keep=False)
    try:
        matrix = compare(catalogue, names, spec=spec, effort=quiet)
        moved = movement_between(matrix, names[0], names[1])
        untested = _too_few_folds(catalogue, result) if moved.p is not None else ""
    except Exception as error:
        return replace(result, unmeasured=str(known_error(error))), None
    if moved.emd is None:
        return replace(result, unmeasured="their distance is not defined"), matrix
    unmeasured = _without_interval(moved)
    return replace(result, moved=moved, unmeasured=unmeasured, untested=untested), matrix


def with_movements(
    catalogue: Catalogue,
    results: Sequence[Result],
    effort: Effort | None = None,
    now: datetime | None = None,
) -> tuple[list[Result], dict[str, tuple[Version, Version, Matrix]]]:
    """Adds to each of many results how far its dataset has moved; see `with_movement`.

    Args:
        catalogue: The catalogue.
        results: What became of the datasets of a refresh.
        effort: How to compare; it is told of each version.
        now: The time. A dataset that has not changed now, and has within `TOLD_AGAIN`, gets the
            `moved` of that change. None for none.

    Returns:
        The results, in their order. Only the first `MOVES_MEASURED` versions are compared, new ones
        before others; new ones that are not say so. Then what was compared, by the name of the
        dataset: the version before, the current one, and their matrix of all layers.
    """
    found: list[Result] = []
    moves: dict[str, tuple[Version, Version, Matrix]] = {}
    new = min(MOVES_MEASURED, sum(result.replaced is not None for result in results))
    progress = (effort or Effort()).progress
    last: dict[str, Result] = {}
    try:
        if now is not None:
            last = _last_changes(catalogue, results, now, MOVES_MEASURED - new)
    except Exception as error:  # what this refresh has made is measured anyway
        why = f"what earlier refreshes changed is not measured again: {known_error(error)}"
        progress(Warned(why))
    versions = new + len(last)
    started = Started(versions, versions, unit="versions", step="versions")
    with stage(progress, started) if versions > 1 else nullcontext():
        for result in results:
            change = last.get(result.name, result)
            if change.replaced is None:
                found.append(result)
                continue
            if result.changed and not new:
                why = f"a refresh measures the first {MOVES_MEASURED} new versions; see vdna drift"
                found.append(replace(result, unmeasured=why))
                continue
            new -= result.changed
            measured, matrix = _measured(catalogue, change, effort)
            if matrix is not None:
                moves[result.name] = change.replaced, result.version, matrix
            if not result.changed:
                tested = measured.moved is not None and measured.moved.p is not None
                unmeasured = "" if tested else measured.unmeasured
                unmeasured = unmeasured or measured.untested
                measured = replace(measured, replaced=None, unmeasured=unmeasured)
            found.append(measured)
            if versions > 1:
                progress(StepDone(1, name=result.name))
    return found, moves


def _last_changes(
    catalogue: Catalogue, results: Sequence[Result], now: datetime, most: int
) -> dict[str, Result]:
    """Finds which datasets that have not changed now changed within `TOLD_AGAIN`.

    They are followed through their renames.

    Args:
        catalogue: The catalogue.
        results: What became of the datasets.
        now: The time.
        most: How many to find at most.

    Returns:
        The results by name, as the build that made that change returned them in `replaced`.
    """
    unchanged = {(of.name, of.version.spec): of for of in results if not of.changed}
    found: dict[str, Result] = {}
    if not unchanged or not most:
        return found
    commits = [*_commits_since(catalogue.log(), now - TOLD_AGAIN)]
    found_names = [*renames(commits)]
    passed = {name: former_names(found_names, name) for name, _ in unchanged}
    named = (_as_named_now(commit, passed) for commit in commits)
    past = last_versions(named, dict.fromkeys(unchanged, 1))
    changed = [(key, each.versions) for key, each in past.items() if len(each.versions) > 1]
    for (name, spec), ((current, held), (before, at), *_) in changed[:most]:
        result = unchanged[name, spec]
        if current != result.version:  # another job has made a newer one meanwhile, and tells of it
            continue
        old = _name_at(at, name, passed[name])
        found[name] = replace(
            result,
            replaced=before,
            former_options={"at": at, "spec": spec},
            former_name="" if old == name else old,
            commit=held,
        )
    return found


def _as_named_now(commit: Commit, passed: Mapping[str, Sequence[Rename]]) -> Commit:
    """Gives datasets in a commit the names that they have now, by the renames of each."""
    old = {name: _name_at(commit.number, name, by) for name, by in passed.items()}
    moved = {of: name for name, of in old.items() if of != name}
    datasets = dict(commit.datasets)
    found = {name: datasets.pop(of, {}) for of, name in moved.items()}  # another may be `of` now
    return replace(commit, datasets=datasets | found) if moved else commit


def _name_at(number: int, name: str, passed: Sequence[Rename]) -> str:
    """Returns the name that a dataset had at a commit, by its renames, the newest first."""
    return next((by.old for by in reversed(passed) if number < by.commit), name)


def _commits_since(log: Iterable[Commit], since: datetime) -> Iterator[Commit]:
    """Takes the commits since a time, and the one before them, of the newest `MOVES_MEASURED`."""
    for commit in islice(log, MOVES_MEASURED):
        yield commit
        if datetime.fromisoformat(commit.time) < since:
            return


def folds_with_images(catalogue: Catalogue, name: str, version: Version) -> int:
    """Counts the folds of a version that have images. Only the footer of their file is read."""
    if "folds" not in version.sha256:
        return 0
    file = catalogue.open_file("folds", name, version, layers=())
    return sum(int(fold["images"]) > 0 for fold in file.metadata["folds"].values())


def _too_few_folds(catalogue: Catalogue, result: Result) -> str:
    """Says that no distance between these versions can raise an alarm; empty if one can."""
    sides = [(result.name, result.version)]
    if result.replaced is not None:
        sides.append((result.former_name or result.name, result.replaced))
    folds = min(folds_with_images(catalogue, *side) for side in sides)
    if folds >= LEAST_STEPPED:
        return ""
    return f"a drift alarm takes {LEAST_STEPPED} groups of images, and there are {folds}"


def _without_interval(moved: Movement) -> str:
    """Says why a distance has no interval; empty if it has one."""
    if moved.low is None:
        return "no interval, which takes two groups of images with values of every neuron"
    if moved.paired is None:
        return "no interval, as it is not known which images both versions have"
    return ""
