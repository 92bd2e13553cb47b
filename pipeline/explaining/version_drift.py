"""Follows a dataset over its versions: how far each is from a reference, and where it has moved.

    >>> found = drift(Catalogue("dnas"), "photos")                       # doctest: +SKIP
    >>> [row.name for row in found.rows if row.alarms]                   # doctest: +SKIP
    ['photos@7']

Distances are those of `compare`, which keeps them in the catalogue. They have intervals and tests
that know which images two versions share. `pipeline.comparing.drift_alarm` has the rule of alarms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import groupby
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import pyarrow as pa

from pipeline.catalogue import Catalogue, Commit, PastVersion, Version, dataset_of, past_versions
from pipeline.comparing import ALL, LEAST_ALARMED, Effort, Matrix, alarms, compare
from pipeline.errors import UsageError
from pipeline.explaining.explain_options import DriftKeywords, DriftOptions
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.sensitivity import explain
from pipeline.explaining.version_difference import VersionDifference, difference
from pipeline.explaining.version_table import image_changes, is_kept, tags_of
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table, new_axes
from pipeline.sources import ImageChanges
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

STEP, REFERENCE = "step", "reference"
"""The kinds of alarms: a version differs from the version before, or from the reference."""

_LOOKERS = 8


@dataclass(frozen=True)
class Movement:
    """How far a version is from another one, over all neurons; in bins. None is not known.

    Attributes:
        emd: The distance of the two samples.
        emd_corrected: The distance that samples without end would show.
        low: Lower end of its 95% interval.
        high: Upper end of that interval.
        se: Standard error of `emd`.
        floor: The `emd` that two samples of one distribution would show at these sizes.
        p: Result of the test that both are samples of one distribution.
        paired: The share of the smaller version's images that are in pairs with the other's.
    """

    emd: float | None
    emd_corrected: float | None
    low: float | None
    high: float | None
    se: float | None
    floor: float | None
    p: float | None
    paired: float | None

    @classmethod
    def of(cls, matrix: Matrix, a: str, b: str) -> Movement:
        """Takes the distance of two versions from a matrix."""
        at = matrix.names.index(a), matrix.names.index(b)
        values = {of.name: float(matrix.of(ALL, cast(Any, of.name))[at]) for of in fields(cls)}
        return cls(**{name: x if isfinite(x) else None for name, x in values.items()})


@dataclass(frozen=True)
class DriftRow:
    """A version on a dataset's path.

    Attributes:
        name: Its name, as `photos@7`.
        commit: Number of the commit that made it.
        time: When that was, as an ISO time in UTC.
        dna: Digest of its DNA.
        images: Number of images that were counted.
        failed: Number of images that could not be read.
        folds: Number of groups of images that the tests compare; 0 if it was imported.
        tags: Its tags.
        changes: How its images differ from those of the kept version before; None if that is not
            known.
        reference: How far it is from the reference; None for the reference.
        step: How far it is from the kept version before; None if there is none.
        alarms: `step` if it differs from the version before, and `reference` if it differs from
            the reference.
    """

    name: str
    commit: int
    time: str
    dna: str
    images: int
    failed: int
    folds: int
    tags: tuple[str, ...]
    changes: ImageChanges | None
    reference: Movement | None
    step: Movement | None
    alarms: tuple[str, ...] = ()

    @property
    def can_alarm(self) -> bool:
        """Whether it has folds enough for an alarm of either kind."""
        return self.folds >= LEAST_ALARMED


@dataclass(frozen=True)
class LeftOut:
    """A version that is not on the path.

    Attributes:
        name: Its name, as `photos@7`.
        why: Why it is left out.
    """

    name: str
    why: str


@dataclass(frozen=True, eq=False)
class Drift:
    """The path of a dataset over its versions.

    Attributes:
        dataset: The dataset.
        spec: Digest of the spec of its versions.
        reference: The name of the version that all others are compared with.
        rows: The versions, the oldest first.
        left_out: The versions that are not on the path, the newest first.
        moved: The names of the two versions that `explanation` is of: those of the last alarm. If
            there is none, these are the reference and the newest version.
        explanation: The layers, neurons and images in which these differ; None if both are the same
            DNA.
        difference: Which images differ between the two; None if one was imported.
        versions: The versions of the path and the reference, by name.
    """

    dataset: str
    spec: str
    reference: str
    rows: tuple[DriftRow, ...]
    left_out: tuple[LeftOut, ...]
    moved: tuple[str, str]
    explanation: Explanation | None
    difference: VersionDifference | None
    versions: Mapping[str, Version]

    @property
    def alarmed(self) -> tuple[DriftRow, ...]:
        """The versions that raise an alarm, the oldest first."""
        return tuple(row for row in self.rows if row.alarms)

    def paired(self) -> dict[tuple[str, str], float]:
        """Finds whose images are in pairs.

        Returns:
            The share of images in pairs, of each two versions that have some.
        """
        shares = {}
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if row.reference and row.reference.paired:
                shares[self.reference, row.name] = row.reference.paired
            if before and row.step and row.step.paired:
                shares[before.name, row.name] = row.step.paired
        return shares

    @property
    def table(self) -> pa.Table:
        """A row for each version, the oldest first; unknown values are null.

        Columns of the distance from the reference begin with `reference_`, and those of the
        distance from the version before with `step_`.
        """
        plain = ("name", "commit", "time", "dna", "images", "failed", "folds")
        counts, measures = fields(ImageChanges), fields(Movement)
        columns: dict[str, Any] = {
            name: [getattr(row, name) for row in self.rows] for name in plain
        }
        columns |= {
            of.name: pa.array([getattr(row.changes, of.name, None) for row in self.rows], "int64")
            for of in counts
        }
        for kind in (REFERENCE, STEP):
            columns |= {
                f"{kind}_{of.name}": pa.array(
                    [getattr(getattr(row, kind), of.name, None) for row in self.rows], "float64"
                )
                for of in measures
            }
        columns |= {
            f"{kind}_alarm": [kind in row.alarms for row in self.rows] for kind in (REFERENCE, STEP)
        }
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """Copies `table` to pandas."""
        return arrow_data_frame(self.table)

    def to_polars(self) -> pl.DataFrame:
        """Copies `table` to Polars."""
        return arrow_polars(self.table)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws both distances of each version with their intervals, and marks alarms.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        if ax is None:
            ax = new_axes(2 + 0.4 * len(self.rows), 3.5)
        for kind, label in ((REFERENCE, f"from {self.reference}"), (STEP, "from the one before")):
            moves = [getattr(row, kind) for row in self.rows]
            at, low, high = (
                np.array([nan if (x := getattr(of, name, None)) is None else x for of in moves])
                for name in ("emd_corrected", "low", "high")
            )
            ends = [np.maximum(at - low, 0), np.maximum(high - at, 0)]
            ax.errorbar(range(len(at)), at, ends, fmt="o-", capsize=2, label=label)
            marked = [place for place, row in enumerate(self.rows) if kind in row.alarms]
            ax.plot(marked, at[marked], "D", color="crimson", markersize=9, fillstyle="none")
        ax.set_xticks(range(len(self.rows)), [row.name for row in self.rows], rotation=90)
        ax.set_ylabel("distance (bins)")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        raised = ", ".join(row.name for row in self.alarmed) or "none"
        versions = count_of(len(self.rows), "version")
        return f"<Drift of {self.dataset} over {versions} from {self.reference}: alarms {raised}>"

    def _repr_html_(self) -> str:
        columns = ("version", "time", "images", "from the reference", "step", "alarm")
        rows = [
            (
                row.name,
                row.time[:19],
                f"{row.images:,}",
                _shown_move(row.reference),
                _shown_move(row.step),
                ", ".join(row.alarms),
            )
            for row in self.rows
        ]
        return html_table(f"{self.dataset} from {self.reference}", columns, rows)


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
    named = catalogue.resolve(name, spec=asked.spec)
    dataset, spec = dataset_of(name), named.version.spec
    newest = catalogue.commit(named.commit)
    others: dict[str, int] = {}
    past = list(_distinct(_watched(catalogue.log(newest), dataset, spec, others), dataset, spec))
    with ThreadPoolExecutor(_LOOKERS, "look") as pool:
        there = list(pool.map(lambda of: is_kept(catalogue, dataset, of), past))
    kept = [of for of, is_there in zip(past, there, strict=True) if is_there][::-1]
    gone = [of for of, is_there in zip(past, there, strict=True) if not is_there]
    left_out = [
        *(LeftOut(f"{dataset}@{of.commit}", "its files were removed by vdna gc") for of in gone),
        *(
            LeftOut(f"{dataset}@{commit}", f"its spec is another one ({option('spec', of[:12])})")
            for of, commit in others.items()
        ),
    ]
    if len(kept) < 2:
        raise UsageError(
            f"a path takes two versions, and {count_of(len(kept), 'version')} of {dataset} of spec "
            f"{spec[:12]} {'is' if len(kept) == 1 else 'are'} kept"
        )
    origin = _reference(catalogue, dataset, asked.reference, named.commit, spec, kept)
    first = max(len(kept) - asked.limit, 0)
    path = [
        _row(catalogue, dataset, origin, kept[at - 1] if at else None, kept[at], effort)
        for at in range(first, len(kept))
    ]
    tags = tags_of(catalogue, dataset, kept[first:])
    path = [replace(row, tags=of) for row, of in zip(path, tags, strict=True)]
    rows = _with_alarms(path)
    reference = f"{dataset}@{origin.commit}"
    versions = {f"{dataset}@{of.commit}": of.version for of in (origin, *kept[first:])}
    moved = _moved(rows, reference, [f"{dataset}@{of.commit}" for of in kept])
    found, why = _explained(catalogue, moved, spec, asked.top, effort)
    return Drift(dataset, spec, reference, rows, tuple(left_out), moved, why, found, versions)


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
        return Movement.of(matrix, other, name)

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


def _shown_move(move: Movement | None) -> str:
    if move is None or move.emd is None:
        return ""
    if move.emd_corrected is None:
        return f"{move.emd:.3g}"
    return f"{move.emd_corrected:.3g} [{move.low:.3g}, {move.high:.3g}]"
