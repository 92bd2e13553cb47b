"""The path of a dataset over its versions, as values: distances, alarms and what moved.

>>> drift(Catalogue("dnas"), "photos").to_pandas()                       # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.building import Movement
from pipeline.catalogue import Version
from pipeline.comparing import LEAST_ALARMED, notes_of
from pipeline.explaining.explanation import Explanation
from pipeline.explaining.version_difference import VersionDifference
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table, new_axes
from pipeline.sources import ImageChanges
from pipeline.wording import count_of, some_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

STEP, REFERENCE = "step", "reference"
"""The kinds of alarms: a version differs from the version before, or from the reference."""


@dataclass(frozen=True)
class DriftRow:
    """A version or a window of days on a dataset's path.

    Attributes:
        name: Its name, as `photos@7` or `photos@2026-11-18..2026-11-24`.
        commit: Number of the commit that made it; of a window, of the one that has its days.
        time: When that was, as an ISO time in UTC; of a window, its last day.
        dna: Digest of its DNA.
        images: Number of images that were counted.
        failed: Number of images that could not be read.
        folds: Number of groups of images that the tests compare; 0 if it was imported.
        tags: Its tags.
        changes: How its images differ from those of the kept version before; None if that is not
            known, and of a window, which has no image of the one before.
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
        window: How many days each window has, as `7d`; empty if the path goes over versions.
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
    window: str = ""

    @property
    def stop_kind(self) -> str:
        """What the path goes over, in one word: `version` or `window`."""
        return "window" if self.window else "version"

    @property
    def alarmed(self) -> tuple[DriftRow, ...]:
        """The versions that raise an alarm, the oldest first."""
        return tuple(row for row in self.rows if row.alarms)

    def notes(self) -> list[str]:
        """Lists what a reader of the distances should know, one sentence each."""
        pairs = list(self._pairs())
        shares = {pair: move.paired for pair, move in pairs if move.paired}
        # That they are of one source is no news of versions. Which images are in pairs is known.
        plain = {name: replace(version, source="") for name, version in self.versions.items()}
        notes = notes_of(plain, paired=shares)
        unknown = [" and ".join(of) for of, move in pairs if move.p and move.paired is None]
        if unknown:
            notes.append(
                "it is not known which images are in pairs, and error bars do not hold if some "
                f"are: {some_of(unknown)}"
            )
        return notes + [
            f"{name}: {of}" for name, each in self.versions.items() for of in each.notes
        ]

    def _pairs(self) -> Iterator[tuple[tuple[str, str], Movement]]:
        """Yields the names of each two versions that are compared, and their distance."""
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if row.reference:
                yield (self.reference, row.name), row.reference
            if before and row.step:
                yield (before.name, row.name), row.step

    @property
    def table(self) -> pa.Table:
        """A row for each version, the oldest first; unknown values are null.

        Columns of the distance from the reference begin with `reference_`, and those of the
        distance from the version before with `step_`.
        """
        return _table_of(self.rows)

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
        stops = count_of(len(self.rows), self.stop_kind)
        return f"<Drift of {self.dataset} over {stops} from {self.reference}: alarms {raised}>"

    def _repr_html_(self) -> str:
        columns = (self.stop_kind, "time", "images", "from the reference", "step", "alarm")
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


def drift_table(paths: Sequence[Drift]) -> pa.Table:
    """Joins the tables of several paths.

    Args:
        paths: The paths.

    Returns:
        The rows of each `Drift.table`, after the columns `dataset` and `reference`: the dataset,
        and the name of the version that all others are compared with.
    """
    rows = [(path, row) for path in paths for row in path.rows]
    table = _table_of([row for _, row in rows])
    table = table.add_column(0, "reference", pa.array([of.reference for of, _ in rows], "string"))
    return table.add_column(0, "dataset", pa.array([of.dataset for of, _ in rows], "string"))


def _table_of(rows: Sequence[DriftRow]) -> pa.Table:
    plain = {"name": "string", "commit": "int64", "time": "string", "dna": "string"}
    plain |= dict.fromkeys(("images", "failed", "folds"), "int64")
    columns: dict[str, Any] = {
        name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in plain.items()
    }
    columns |= {
        of.name: pa.array([getattr(row.changes, of.name, None) for row in rows], "int64")
        for of in fields(ImageChanges)
    }
    for kind in (REFERENCE, STEP):
        columns |= {
            f"{kind}_{of.name}": pa.array(
                [getattr(getattr(row, kind), of.name, None) for row in rows], "float64"
            )
            for of in fields(Movement)
        }
    columns |= {
        f"{kind}_alarm": pa.array([kind in row.alarms for row in rows], "bool")
        for kind in (REFERENCE, STEP)
    }
    return pa.table(columns)


def _shown_move(move: Movement | None) -> str:
    if move is None or move.emd is None:
        return ""
    if move.emd_corrected is None:
        return f"{move.emd:.3g}"
    return f"{move.emd_corrected:.3g} [{move.low:.3g}, {move.high:.3g}]"
