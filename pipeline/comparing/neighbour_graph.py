"""The nearest of each dataset, with error bars: a table, and a matrix around each of them.

>>> found = nearest(Catalogue("dnas"), near="photos", top=20)               # doctest: +SKIP
>>> found.to_pandas(), found.around("photos")                               # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.comparing.distance import Measure
from pipeline.comparing.matrix import ALL, ESTIMATES, MATRIX_SCHEMA, Estimate, Matrix
from pipeline.dna import UNIFORM, FileKind, Floats, encode_sealed
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

NEIGHBOUR_SCHEMA = MATRIX_SCHEMA.append(pa.field("rank", pa.int32()))
"""A row says how far `b` is from `a`, and which neighbour of a it is: 1 is the nearest."""

DUPLICATE_RANGE = 0.001
"""Two datasets are near duplicates if they are at most so far apart, as a share of the range: one
bin of a thousand."""

GRAPH = FileKind("neighbours")

SHOWN = 20
"""The most rows that a notebook or `print` shows."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest of some datasets among D, by the EMD of one plane.

    What is known of a pair is known for all `planes`. Its order is that of the last plane, by the
    plain `emd`.

    Attributes:
        names: The D datasets.
        of: Those whose neighbours were looked for.
        edges: (a, b): the numbers of a dataset and of a neighbour, for each of `of` the nearest
            first.
        columns: (planes, edges) distances and estimates, by the names of a matrix's columns.
        layers: The layers that were compared.
        bins: Bins of a neuron's range.
        members: Digest of each dataset's DNA.
        spec_digest: Digest of the spec.
        pairs: Number of pairs in which the nearest were looked for.
        computed: Number of them whose distance was computed exactly. Those that are neither
            computed nor undefined are farther, as their bounds show.
        undefined: Number of them that have no distance: a dataset has no finite activation of a
            neuron, or the lens gives the layer no weight in sum.
        lens: Name of the lens; `uniform` without one.
        lens_digest: Digest of the lens, or empty.
        method: Version of the estimates; empty without error bars.
    """

    names: tuple[str, ...]
    of: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    columns: Mapping[str, Floats]
    layers: tuple[str, ...]
    bins: int
    members: Mapping[str, str]
    spec_digest: str
    pairs: int
    computed: int
    undefined: int
    lens: str = UNIFORM
    lens_digest: str = ""
    method: str = ""

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the planes: the layers, and `all` as the last if they are all layers."""
        return self.layers if len(self.columns["emd"]) == len(self.layers) else (*self.layers, ALL)

    @property
    def layer(self) -> str:
        """The layer that decides who is near, or `all`."""
        return self.planes[-1]

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the datasets whose neighbours were looked for, and of the neighbours."""
        neighbours = (self.names[b] for _, b in self.edges)
        return tuple(dict.fromkeys((*self.of, *neighbours)))

    def around(self, name: str) -> Matrix:
        """Makes a matrix of a dataset and its neighbours.

        Args:
            name: One of `of`.

        Returns:
            The matrix of the dataset, which is the first, and its neighbours, the nearest first.
            Distances between the neighbours are NaN.
        """
        mine = [at for at, (a, _) in enumerate(self.edges) if self.names[a] == name]
        shown = (name, *(self.names[self.edges[at][1]] for at in mine))
        size = len(shown)

        def placed(column: str) -> Floats:
            values = self.columns.get(column)
            known = np.full((len(self.planes), size, size), np.nan)
            if values is not None:
                known[:, 0, 1:] = known[:, 1:, 0] = values[:, mine]
            if column in get_args(Measure):
                known[:, range(size), range(size)] = 0.0
            return known

        return Matrix(
            shown,
            self.layers,
            placed("emd"),
            placed("nfd"),
            placed("fd"),
            self.bins,
            {each: self.members[each] for each in shown},
            self.spec_digest,
            self.lens,
            {column: placed(column) for column in ESTIMATES if column in self.columns},
            self.lens_digest,
            self.method,
        )

    def near_duplicates(self) -> dict[tuple[str, str], float]:
        """Finds pairs of datasets that are nearly the same, among those of `edges`.

        With a small `top`, a dataset may have more near duplicates than neighbours that are found.

        A pair is one if the upper end of its interval is at most `DUPLICATE_RANGE` of the range.
        Where error bars are not known, its `emd` must be, which is never smaller than the distance
        by more than chance.

        Returns:
            How far apart they are at most, in bins, for each such pair; the nearest pair first.
        """
        emd = self.columns["emd"][-1]
        high = self.columns.get("high", np.full_like(self.columns["emd"], np.nan))[-1]
        most = np.where(np.isfinite(high), high, emd)
        found: dict[tuple[str, str], float] = {}
        for at in np.argsort(most, kind="stable"):
            i, j = sorted(self.edges[at])
            if most[at] <= DUPLICATE_RANGE * self.bins:
                found.setdefault((self.names[i], self.names[j]), float(most[at]))
        return found

    def paired(self) -> dict[tuple[str, str], float]:
        """Finds neighbours whose images are in pairs.

        Returns:
            The share of images in pairs, of each two neighbours that have some.
        """
        shares = self.columns.get("paired", np.full_like(self.columns["emd"], np.nan))[-1]
        return {
            (self.names[min(edge)], self.names[max(edge)]): float(share)
            for edge, share in zip(self.edges, shares, strict=True)
            if share > 0
        }

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Which neighbour of a each edge leads to: 1 for the nearest, 2 for the next."""
        seen: dict[int, int] = {}
        found = []
        for a, _ in self.edges:
            seen[a] = seen.get(a, 0) + 1
            found.append(seen[a])
        return tuple(found)

    @property
    def table(self) -> pa.Table:
        """All numbers as an Arrow table with the columns `NEIGHBOUR_SCHEMA`."""
        return pa.concat_tables([self.table_of(plane) for plane in self.planes])

    def table_of(self, plane: str) -> pa.Table:
        """Makes the table of one plane.

        Args:
            plane: A layer, or `all`.

        Returns:
            One row for each neighbour of each of `of`, the nearest first.
        """
        at, size = self.planes.index(plane), len(self.edges)
        emd = self.columns["emd"][at]
        columns: dict[str, Any] = {
            "a": pa.array([self.names[a] for a, _ in self.edges], pa.string()),
            "b": pa.array([self.names[b] for _, b in self.edges], pa.string()),
            "layer": pa.repeat(plane, size),
            "emd_range": pa.array(emd / self.bins, from_pandas=True),
            "lens": pa.repeat(self.lens, size),
            "rank": pa.array(self.ranks, pa.int32()),
        }
        for column in cast(tuple[Measure | Estimate, ...], (*get_args(Measure), *ESTIMATES)):
            values = self.columns.get(column)
            columns[column] = (
                pa.nulls(size, pa.float64())
                if values is None
                else pa.array(values[at], from_pandas=True)
            )
        names = NEIGHBOUR_SCHEMA.names
        return pa.table({name: columns[name] for name in names}, schema=NEIGHBOUR_SCHEMA)

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each neighbour and plane, with the columns `NEIGHBOUR_SCHEMA`."""
        return arrow_data_frame(self.table)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return arrow_polars(self.table)

    def save(self, out: str) -> None:
        """Writes the table as Parquet, which every reader of tables opens.

        Args:
            out: The path or url to write (.parquet).

        Raises:
            UsageError: The name does not end in .parquet.
        """
        stated = {
            "names": self.names,
            "spec_digest": self.spec_digest,
            "lens_digest": self.lens_digest,
            "pairs": self.pairs,
            "computed": self.computed,
            "undefined": self.undefined,
            "method": self.method,
        }
        tables = (self.table_of(plane) for plane in self.planes)
        data = encode_sealed(GRAPH, stated, tables, NEIGHBOUR_SCHEMA)
        storage.replace(storage.parquet_uri(out, "the table of neighbours is"), data)

    def __repr__(self) -> str:
        rows = [f"{a}  {rank}. {b}  {emd}" for a, rank, b, emd in self._rows()]
        return "\n".join([f"<Neighbours: {self._summary}>", *rows])

    def _repr_html_(self) -> str:
        return html_table(self._summary, ("of", "rank", "neighbour", "emd"), self._rows())

    @property
    def _summary(self) -> str:
        through = "" if self.lens == UNIFORM else f" through {self.lens}"
        what = "all neurons" if self.layer == ALL else self.layer
        more = max(0, len(self.edges) - SHOWN)
        return (
            f"the nearest of {count_of(len(self.of), 'dataset')} among {len(self.names):,}"
            f"{through}, by the EMD of {what}, in bins; {self.computed:,} of "
            f"{count_of(self.pairs, 'pair')} computed{f'; {more:,} more not shown' if more else ''}"
        )

    def _rows(self) -> list[tuple[str, int, str, str]]:
        emd = self.columns["emd"][-1]
        edges = zip(self.edges, self.ranks, emd, strict=True)
        return [
            (self.names[a], rank, self.names[b], f"{value:.3g}")
            for (a, b), rank, value in list(edges)[:SHOWN]
        ]
