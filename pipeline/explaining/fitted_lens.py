"""A fitted lens, with its scores on images that it was not fitted on.

>>> fitted.lens, fitted.suppression, fitted.change                    # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.dna import Lens
from pipeline.notebook import Cells, bar_chart, data_frame, html_table, polars_frame
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

Role = Literal["focus", "ignored", "kept"]
"""What a lens should do with an attribute."""


@dataclass(frozen=True)
class Score:
    """How a lens does on an attribute: fitted on half of the folds, scored on the others.

    Numbers are means over all such halves.

    Attributes:
        attribute: The attribute as text.
        role: What the lens should do with it.
        plain: Distance over all neurons alike, in bins.
        through: Distance through the lens, as a share of `plain`.
        seen: Whether the attribute is told from noise at all.
    """

    attribute: str
    role: Role
    plain: float
    through: float
    seen: bool


@dataclass(frozen=True, eq=False)
class FittedLens:
    """A lens, and how it does on images that it was not fitted on.

    Attributes:
        lens: The lens.
        scores: One score for each attribute.
        ridge: The ridge that did best; 0 for a focus.
    """

    lens: Lens
    scores: tuple[Score, ...]
    ridge: float = 0.0

    def __repr__(self) -> str:
        neurons = np.count_nonzero(self.lens.weights)
        scores = ", ".join(
            f"{score.role} {score.attribute}: {score.plain:.4g} bins without it, "
            f"{score.plain * score.through:.4g} through it"
            for score in self.scores
        )
        of = count_of(int(neurons), "neuron")
        return f"<FittedLens {self.lens.name} of {of}, {scores}>"

    def _repr_html_(self) -> str:
        rows = [
            (
                s.attribute,
                s.role,
                *(f"{bins:.4g}" for bins in (s.plain, s.plain * s.through)),
                "yes" if s.seen else "no",
            )
            for s in self.scores
        ]
        columns = ("attribute", "role", "bins without the lens", "bins through it", "seen")
        return html_table(f"lens {self.lens.name}, on images held out", columns, rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each attribute, with the fields of `Score` as columns."""
        return data_frame(*self._cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self._cells)

    @property
    def _cells(self) -> Cells:
        return [column.name for column in fields(Score)], map(astuple, self.scores)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws what the lens leaves of each attribute's distance, beside the line of no change.

        Args:
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        labels = [f"{score.attribute} ({score.role})" for score in self.scores]
        unit = f"share of the distance left through {self.lens.name}"
        ax = bar_chart(labels, [score.through for score in self.scores], unit, ax)
        ax.axvline(1, color="grey", linewidth=1)
        return ax

    @property
    def suppression(self) -> float:
        """Mean share that is gone of the ignored attributes that are seen; 1 if nothing is left."""
        return mean_of([1 - abs(s.through) for s in self.scores if s.role == "ignored" and s.seen])

    @property
    def change(self) -> float:
        """Mean change of the kept attributes that are seen; 0 if they are as before."""
        return mean_of([abs(s.through - 1) for s in self.scores if s.role == "kept" and s.seen])


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean of some values; NaN if there are none."""
    return float(np.mean(values)) if values else float("nan")
