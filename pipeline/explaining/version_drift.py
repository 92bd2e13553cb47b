"""Follows a dataset over its versions: how far each is from a reference, and where it has moved.

    >>> found = drift(Catalogue("dnas"), "photos")                       # doctest: +SKIP
    >>> [row.name for row in found.rows if row.alarms]                   # doctest: +SKIP
    ['photos@7']

Distances are those of `compare`, which keeps them in the catalogue. They have intervals and tests
that know which images two versions share. `pipeline.comparing.drift_alarm` has the rule of alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from math import nan
from typing import Any, Unpack

import numpy as np

from pipeline.building import Movement
from pipeline.catalogue import (
    Catalogue,
    Commit,
    PastVersion,
    Version,
    dataset_of,
    past_versions,
    require_no_window,
)
from pipeline.comparing import Effort, alarms, compare, movement_between
from pipeline.errors import UsageError
from pipeline.events import Started, StepDone, ignore, stage
from pipeline.explaining.drift_path import REFERENCE, STEP, Drift, DriftRow, LeftOut
from pipeline.explaining.explain_options import DriftKeywords, DriftOptions
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.sensitivity import explain
from pipeline.explaining.version_difference import VersionDifference, difference
from pipeline.explaining.version_table import image_changes, is_kept, tags_of
from pipeline.wording import count_of, option

_LOOKERS = 8


def drift(
    catalogue: Catalogue,
    name: str,
    *,
    effort: Effort | None = None,
    **options: Unpack[DriftKeywords],
) -> Drift:
    """Follows a dataset over its versions.

    Args:
        catalogue: The catalogue.
        name: The dataset; or the name of a version, to end with that one.
        effort: How to compare; None for this process with all its cores.
        **options: The options of `DriftOptions`.

    Returns:
        The path. A version that came back without another one between is one version.

    Raises:
        NotFound: If there is no such dataset or version.
        SourceError: If files of a version are not there any more.
        CorruptFile: If a file is damaged.
        UsageError: If fewer than two versions are kept, or the reference is none of them.
    """
    asked, effort = DriftOptions(**options), effort or Effort()
    held = _held(catalogue, name, asked.spec)
    if len(held.versions) < 2:
        raise UsageError(
            f"a path takes two versions, and {count_of(len(held.versions), 'version')} of "
            f"{held.dataset} of spec {held.spec[:12]} "
            f"{'is' if len(held.versions) == 1 else 'are'} kept"
        )
    path = _path(catalogue, held, asked, effort)
    changed, why = _explained(catalogue, path.moved, held.spec, asked.top, effort)
    return replace(path, explanation=why, difference=changed)


def drift_paths(
    catalogue: Catalogue, names: Iterable[str], spec: str, effort: Effort | None = None
) -> list[Drift]:
    """Follows several datasets, and explains nothing.

    Args:
        catalogue: The catalogue.
        names: The datasets; or names of versions, to end with those.
        spec: Digest of the spec.
        effort: How to compare; None for this process with all its cores.

    Returns:
        The path of each dataset that has two kept versions or more, in the order of the names.
    """
    asked, effort = DriftOptions(spec=spec), effort or Effort()
    held = (_held(catalogue, name, spec) for name in names)
    return [_path(catalogue, of, asked, effort) for of in held if len(of.versions) > 1]


@dataclass(frozen=True)
class _Held:
    """What the log has of a dataset: its kept versions, the oldest first, and all others."""

    dataset: str
    spec: str
    at: int
    versions: Sequence[PastVersion]
    left_out: tuple[LeftOut, ...]


def _held(catalogue: Catalogue, name: str, spec: str | None) -> _Held:
    named = catalogue.resolve(require_no_window(name), spec=spec)
    dataset, digest = dataset_of(name), named.version.spec
    newest = catalogue.commit(named.commit)
    others: dict[str, int] = {}
    watched = _watched(catalogue.log(newest), dataset, digest, others)
    past = list(_distinct(watched, dataset, digest))
    with ThreadPoolExecutor(_LOOKERS, "look") as pool:
        there = list(pool.map(lambda of: is_kept(catalogue, dataset, of), past))
    kept = [of for of, is_there in zip(past, there, strict=True) if is_there][::-1]
    gone = [of for of, is_there in zip(past, there, strict=True) if not is_there]
    left_out = (
        *(LeftOut(f"{dataset}@{of.commit}", "its files were removed by vdna gc") for of in gone),
        *(
            LeftOut(f"{dataset}@{commit}", f"its spec is another one ({option('spec', of[:12])})")
            for of, commit in others.items()
        ),
    )
    return _Held(dataset, digest, named.commit, kept, left_out)


def _path(catalogue: Catalogue, held: _Held, asked: DriftOptions, effort: Effort) -> Drift:
    """Compares the versions of a dataset; what moved is not explained yet."""
    dataset, spec, kept = held.dataset, held.spec, held.versions
    origin = _reference(catalogue, dataset, asked.reference, held.at, spec, kept)
    first = max(len(kept) - asked.limit, 0)
    listed, quiet = kept[first:], replace(effort, progress=ignore)
    befores = [None, *kept][first:]
    path = []
    started = Started(len(listed), len(listed), unit="versions", step="versions")
    with stage(effort.progress, started):
        for before, of in zip(befores, listed, strict=False):
            path.append(_row(catalogue, dataset, origin, before, of, quiet))
            effort.progress(StepDone(1, name=path[-1].name))
    tags = tags_of(catalogue, dataset, listed)
    path = [replace(row, tags=of) for row, of in zip(path, tags, strict=True)]
    rows = _with_alarms(path)
    reference = f"{dataset}@{origin.commit}"
    versions = {f"{dataset}@{of.commit}": of.version for of in (origin, *listed)}
    moved = _moved(rows, reference, [f"{dataset}@{of.commit}" for of in kept])
    return Drift(dataset, spec, reference, rows, held.left_out, moved, None, None, versions)


def _watched(
    commits: Iterator[Commit], dataset: str, spec: str, others: dict[str, int]
) -> Iterator[Commit]:
    """Passes commits on, and notes the newest of each other spec that the dataset has."""
    for commit in commits:
        for of in commit.datasets.get(dataset, {}):
            if of != spec:
                others.setdefault(of, commit.number)
        yield commit


def _distinct(commits: Iterator[Commit], dataset: str, spec: str) -> Iterator[PastVersion]:
    """Yields the versions, the newest first. One that came back has its oldest commit."""
    past = past_versions(commits, dataset, spec)
    for _, same in groupby(past, key=lambda of: of.identity):
        newest, *older = same
        yield replace(older[-1], last=newest.last) if older else newest


def _reference(
    catalogue: Catalogue,
    dataset: str,
    which: str | None,
    at: int,
    spec: str,
    kept: Sequence[PastVersion],
) -> PastVersion:
    if which is None:
        return kept[0]
    version = catalogue.find(f"{dataset}@{which}", at, spec)
    found = [of for of in kept if of.version.dna == version.dna]
    if not found:
        raise UsageError(
            f"the reference {dataset}@{which} is not among the versions of {dataset} that are kept "
            f"and no newer than commit {at}: {', '.join(str(of.commit) for of in kept)}"
        )
    return found[-1]


def _row(
    catalogue: Catalogue,
    dataset: str,
    reference: PastVersion,
    before: PastVersion | None,
    of: PastVersion,
    effort: Effort,
) -> DriftRow:
    """Compares a version with the reference and with the version before it."""
    name = f"{dataset}@{of.commit}"
    from_reference = f"{dataset}@{reference.commit}"
    from_before = None if before is None else f"{dataset}@{before.commit}"
    names = [each for each in dict.fromkeys((from_reference, from_before, name)) if each]
    version = of.version
    matrix = compare(catalogue, names, spec=version.spec, effort=effort) if names[1:] else None

    def moved(other: str | None) -> Movement | None:
        if matrix is None or other is None or other == name:
            return None
        return movement_between(matrix, other, name)

    return DriftRow(
        name,
        of.commit,
        of.time,
        version.dna,
        version.images,
        version.failed,
        _folds(catalogue, dataset, version),
        (),
        image_changes(catalogue, dataset, before, of),
        moved(from_reference),
        moved(from_before),
    )


def _folds(catalogue: Catalogue, dataset: str, version: Version) -> int:
    """Counts the folds that have images. Only the footer of their file is read."""
    if "folds" not in version.sha256:
        return 0
    file = catalogue.open_file("folds", dataset, version, layers=())
    return sum(int(fold["images"]) > 0 for fold in file.metadata["folds"].values())


def _with_alarms(path: Sequence[DriftRow]) -> tuple[DriftRow, ...]:
    def p(kind: str) -> list[float]:
        of = (getattr(row, kind) for row in path)
        return [nan if move is None or move.p is None else move.p for move in of]

    raised = alarms(np.array(p(STEP)), np.array(p(REFERENCE)))
    return tuple(
        replace(
            row,
            alarms=(STEP,) * bool(raised.step[at]) + (REFERENCE,) * bool(raised.reference[at]),
        )
        for at, row in enumerate(path)
    )


def _moved(rows: Sequence[DriftRow], reference: str, kept: Sequence[str]) -> tuple[str, str]:
    """Chooses the two versions whose difference is explained."""
    raised = [row for row in rows if row.alarms]
    last = raised[-1] if raised else rows[-1]
    if STEP in last.alarms or last.name == reference:
        return kept[kept.index(last.name) - 1], last.name
    return reference, last.name


def _explained(
    catalogue: Catalogue, moved: tuple[str, str], spec: str, top: int, effort: Effort
) -> tuple[VersionDifference | None, Explanation | None]:
    """Finds in what two versions differ; an imported one has no list of images."""
    a, b = (catalogue.find(name, spec=spec) for name in moved)
    if a.imported or b.imported:
        same = a.dna == b.dna
        options: Mapping[str, Any] = {"spec": spec, "top": top, "progress": effort.progress}
        return None, None if same else explain(catalogue, *moved, **options)
    found = difference(catalogue, *moved, spec=spec, top=top, progress=effort.progress)
    return found, found.explanation
