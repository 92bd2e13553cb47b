"""Follows a dataset over its versions: how far each is from a reference, and where it has moved.

    >>> found = drift(Catalogue("dnas"), "photos")                       # doctest: +SKIP
    >>> [row.name for row in found.rows if row.alarms]                   # doctest: +SKIP
    ['photos@7']

Distances are those of `compare`, which keeps them in the catalogue. They have intervals and tests
that know which images two versions share. `pipeline.comparing.drift_alarm` has the rule of alarms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import nan
from typing import Unpack

import numpy as np

from pipeline.building import Movement
from pipeline.catalogue import Catalogue
from pipeline.comparing import Effort, alarms, compare, folds_with_images, movement_between
from pipeline.events import Started, StepDone, ignore, stage
from pipeline.explaining.drift_path import REFERENCE, STEP, Drift, DriftRow
from pipeline.explaining.explain_options import DriftKeywords, DriftOptions, ExplainKeywords
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.path_stops import Stop, Stops, find_stops
from pipeline.explaining.sensitivity import explain
from pipeline.explaining.version_difference import VersionDifference, difference
from pipeline.explaining.version_table import image_changes, tags_of


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
        UsageError: If fewer than two versions are kept, or there are fewer than two windows, or
            the reference is none of them.
    """
    asked, effort = DriftOptions(**options), effort or Effort()
    found = find_stops(catalogue, name, asked)
    if found.reference is None:
        raise found.too_few
    path = _path(catalogue, found, found.reference, asked.limit, effort)
    changed, why = _explained(catalogue, path.moved, found, asked.top, effort)
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
    found = (find_stops(catalogue, name, asked) for name in names)
    return [_path(catalogue, of, of.reference, asked.limit, effort) for of in found if of.reference]


def _path(catalogue: Catalogue, found: Stops, origin: Stop, limit: int, effort: Effort) -> Drift:
    """Compares what a path goes over with its reference; what moved is not explained yet."""
    kept = found.stops
    first = max(len(kept) - limit, 0)
    listed, quiet = kept[first:], replace(effort, progress=ignore)
    befores = [None, *kept][first:]
    path = []
    unit = "windows" if found.window else "versions"
    with stage(effort.progress, Started(len(listed), len(listed), unit=unit, step=unit)):
        for before, of in zip(befores, listed, strict=False):
            path.append(_row(catalogue, found, origin, before, of, quiet))
            effort.progress(StepDone(1, name=of.name))
    if not found.window:
        tags = tags_of(catalogue, found.dataset, [of.past for of in listed if of.past])
        path = [replace(row, tags=of) for row, of in zip(path, tags, strict=True)]
    rows = _with_alarms(path)
    return Drift(
        found.dataset,
        found.spec,
        origin.name,
        rows,
        found.left_out,
        _moved(rows, origin.name, [of.name for of in kept]),
        None,
        None,
        {of.name: of.version for of in (origin, *listed)},
        found.window,
    )


def _row(
    catalogue: Catalogue,
    found: Stops,
    origin: Stop,
    before: Stop | None,
    of: Stop,
    effort: Effort,
) -> DriftRow:
    """Compares a version or window with the reference and with the one before it."""
    others = [each.name for each in (origin, before) if each]
    names = list(dict.fromkeys((*others, of.name)))
    matrix = None
    if names[1:]:
        matrix = compare(catalogue, names, at=found.at, spec=found.spec, effort=effort)

    def moved(other: Stop | None) -> Movement | None:
        if matrix is None or other is None or other.name == of.name:
            return None
        return movement_between(matrix, other.name, of.name)

    changes = None
    if of.past is not None and before is not None:
        changes = image_changes(catalogue, found.dataset, before.past, of.past)
    version = of.version
    return DriftRow(
        of.name,
        of.commit,
        of.time,
        version.dna,
        version.images,
        version.failed,
        folds_with_images(catalogue, of.name, version),
        (),
        changes,
        moved(origin),
        moved(before),
    )


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
    catalogue: Catalogue, moved: tuple[str, str], found: Stops, top: int, effort: Effort
) -> tuple[VersionDifference | None, Explanation | None]:
    """Finds in what two versions differ; an imported one has no list of images."""
    a, b = (catalogue.find(name, found.at, found.spec) for name in moved)
    options: ExplainKeywords = {"at": found.at, "spec": found.spec, "top": top}
    if a.imported or b.imported:
        same = a.dna == b.dna
        why = None if same else explain(catalogue, *moved, progress=effort.progress, **options)
        return None, why
    changed = difference(catalogue, *moved, progress=effort.progress, **options)
    return changed, changed.explanation
