"""The matrix: distances of all pairs of datasets, by layer, with error bars.

>>> matrix = compare(Catalogue("dnas"))                             # doctest: +SKIP
>>> matrix.of("blocks.3")[0, 1], matrix.to_pandas().query("q < 0.05")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.catalogue import MATRIX
from pipeline.comparing.distance import Measure
from pipeline.dna import UNIFORM, Floats, Ints, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, UsageError
from pipeline.notebook import arrow_data_frame, arrow_polars, html_table, new_axes
from pipeline.wording import count_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    from matplotlib.axes import Axes

    from pipeline.comparing.overlaps import Overlaps

ALL = "all"
"""Name of the plane that holds the means over all neurons."""

Estimate = Literal["emd_corrected", "se", "low", "high", "floor", "p", "q", "paired"]

ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)

TABLE_DATASETS = 20
"""The most datasets that a notebook shows as a table, or a plot shows with numbers."""

PRINTED = 10
"""The most datasets that `print` shows."""

MATRIX_SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("layer", pa.string()),
        ("emd", pa.float64()),
        ("emd_range", pa.float64()),
        ("nfd", pa.float64()),
        ("fd", pa.float64()),
        ("emd_corrected", pa.float64()),
        ("se", pa.float64()),
        ("floor", pa.float64()),
        ("p", pa.float64()),
        ("q", pa.float64()),
        ("lens", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("paired", pa.float64()),
    ]
)


_WORDS = tuple(column.name for column in MATRIX_SCHEMA if pa.types.is_string(column.type))
"""The columns that are not numbers."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Distances of every ordered pair of D datasets and the diagonal, by layer and in all.

    Distances are (planes, D, D) float64 in the order of `planes` and `names`. They are NaN if a DNA
    lacks what a distance needs, or if it was not asked for.

    Attributes:
        names: The datasets.
        layers: The layers.
        emd: Earth Mover's Distance, in bins.
        nfd: Neuron-wise Fréchet distance, in squared activation.
        fd: Fréchet distance of layers, in squared activation.
        bins: Bins of a neuron's range.
        members: Digest of each dataset's DNA.
        spec_digest: Digest of the spec.
        lens: Name of the lens; `uniform` without one.
        estimates: What error bars and tests say, of the same shape as the distances.
        lens_digest: Digest of the lens, or empty.
        method: Version of the estimates.
        overlaps: What the datasets have in common, as `find_overlaps` returns it, for the table and
            the page. None unless it was asked for; it is not read back from a file.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    emd: Floats
    nfd: Floats
    fd: Floats
    bins: int
    members: dict[str, str]
    spec_digest: str
    lens: str = UNIFORM
    estimates: Mapping[Estimate, Floats] = field(default_factory=dict)
    lens_digest: str = ""
    method: str = ""
    overlaps: Overlaps | None = None

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the planes: the layers, and `all` as the last if they are all layers."""
        return self.layers if len(self.emd) == len(self.layers) else (*self.layers, ALL)

    def of(self, layer: str = ALL, column: Measure | Estimate = "emd") -> Floats:
        """Takes the distances or estimates of one plane.

        Args:
            layer: A layer, or `all`.
            column: Which distance or estimate.

        Returns:
            (D, D) values in the order of `names`.

        Raises:
            UsageError: If the matrix does not have the layer.
        """
        if layer not in self.planes:
            raise UsageError(f"no layer {layer!r} in this matrix; it has {', '.join(self.layers)}")
        return cast(Floats, self.stacked(column)[self.planes.index(layer)])

    def stacked(self, column: Measure | Estimate) -> Floats:
        """Takes a column for all planes.

        Args:
            column: Which distance or estimate.

        Returns:
            (planes, D, D) values; NaN if it is not known.
        """
        values = self._known(column)
        return np.full_like(self.emd, np.nan) if values is None else values

    def is_corrected(self, layer: str = ALL) -> NDArray[np.bool_]:
        """Tells which distances of one plane are known to be corrected for the samples' sizes.

        Args:
            layer: A layer, or `all`.

        Returns:
            (D, D) booleans; the diagonal is False.
        """
        known = np.isfinite(self.of(layer, "emd_corrected"))
        return known & ~np.eye(len(known), dtype=bool)

    def corrected(self, layer: str = ALL) -> Floats:
        """Takes the distances of one plane that people should see.

        A distance is corrected for the sizes of the samples where the correction is known
        (`is_corrected`). Elsewhere it is the plain one, which is large for small samples.

        Args:
            layer: A layer, or `all`.

        Returns:
            (D, D) Earth Mover's Distances, in bins.
        """
        corrected = self.of(layer, "emd_corrected")
        return np.where(self.is_corrected(layer), corrected, self.of(layer))

    def paired(self) -> dict[tuple[str, str], float]:
        """Finds whose images are in pairs.

        Returns:
            The share of images in pairs, of each two datasets that have some.
        """
        shares = np.triu(self.stacked("paired")[-1], 1)
        rows, columns = np.nonzero(shares > 0)
        return {
            (self.names[i], self.names[j]): float(shares[i, j])
            for i, j in zip(rows, columns, strict=True)
        }

    def mapped(self, take: Callable[[Floats], Floats], **changes: Any) -> Matrix:
        """Applies a function to the (planes, D, D) values of each column.

        Args:
            take: The function, such as one that takes some planes.
            **changes: Other fields of the new matrix.

        Returns:
            The new matrix.
        """
        return replace(
            self,
            emd=take(self.emd),
            nfd=take(self.nfd),
            fd=take(self.fd),
            estimates={column: take(values) for column, values in self.estimates.items()},
            **changes,
        )

    def __repr__(self) -> str:
        rows = [(f"{at} {row[0]}", *row[1:]) for at, row in enumerate(self._rows(PRINTED), 1)]
        head = ("", *map(str, range(1, len(rows) + 1)))
        widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
        lines = [
            "  ".join([f"{name:{widths[0]}}", *map(str.rjust, numbers, widths[1:])]).rstrip()
            for name, *numbers in (head, *rows)
        ]
        return "\n".join([f"<Matrix of {self._summary(PRINTED)}>", *lines])

    def _repr_html_(self) -> str:
        head = ("", *self.names[:TABLE_DATASETS])
        return html_table(self._summary(TABLE_DATASETS), head, self._rows(TABLE_DATASETS))

    def _summary(self, most: int) -> str:
        """Says what the first `most` rows and columns show."""
        through = "" if self.lens == UNIFORM else f" through {self.lens}"
        plane, left = self.planes[-1], len(self.names) - most
        what = "all neurons" if plane == ALL else plane
        known = self.is_corrected(plane)
        how = "corrected for sample size" if known.any() else "not corrected for sample size"
        if known.any() and known.sum() < known.size - len(known):
            how += " where error bars are known"
        return (
            f"{count_of(len(self.names), 'dataset')} in {count_of(len(self.layers), 'layer')}"
            f"{through}: distances of {what}, in bins, {how}"
            f"{f'; {left:,} more not shown' if left > 0 else ''}"
        )

    def _rows(self, most: int) -> list[tuple[str, ...]]:
        """Returns the first rows of the table of `corrected` distances: a name, then numbers."""
        values = self.corrected(self.planes[-1])[:most, :most]
        return [
            (name, *("0" if value == 0 else f"{value:.3g}" for value in row))
            for name, row in zip(self.names, values.tolist(), strict=False)
        ]

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each ordered pair and plane, with the columns `MATRIX_SCHEMA`.

        If `overlaps` is known, there are also `a_in_b` and `b_in_a`: how many images of the one
        have a file that the other has, too.
        """
        return arrow_data_frame(self.table)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return arrow_polars(self.table)

    def plot(
        self, layer: str = ALL, column: Measure | Estimate = "emd", ax: Axes | None = None
    ) -> Axes:
        """Draws one plane as a heat map, with the number in each cell.

        Args:
            layer: A layer, or `all`.
            column: Which distance or estimate.
            ax: Axes to draw on. None makes a new figure.

        Returns:
            The axes that were drawn on.
        """
        values, size = self.of(layer, column), len(self.names)
        if ax is None:
            ax = new_axes(2 + 0.6 * size, 1.5 + 0.6 * size)
        ax.imshow(values, cmap="viridis")
        ax.set_xticks(range(size), self.names, rotation=90)
        ax.set_yticks(range(size), self.names)
        if size <= TABLE_DATASETS:
            middle = np.nanmean(values)
            for (row, at), value in np.ndenumerate(values):
                color = "white" if value < middle else "black"
                ax.text(at, row, f"{value:.3g}", ha="center", va="center", color=color)
        ax.set_title(f"{column}, {layer}")
        return ax

    def _known(self, column: Measure | Estimate) -> Floats | None:
        if column in ESTIMATES:
            return self.estimates.get(column)
        return cast(Floats, getattr(self, column))

    @property
    def table(self) -> pa.Table:
        """All numbers as an Arrow table, with the columns of `to_pandas`; unknown ones are null."""
        return pa.concat_tables([self._written(plane) for plane in range(len(self.planes))])

    def _written(self, plane: int) -> pa.Table:
        """Returns the rows of a plane with the numbers of `overlaps`, if these are known."""
        table = self._table_of(plane)
        if self.overlaps is not None:
            common = self.overlaps.in_matrix(self.names)
            for name in common.column_names:
                table = table.append_column(name, common[name])
        return table

    def _table_of(self, plane: int) -> pa.Table:
        keys, emd = self._keys_of(plane), self.emd[plane].reshape(-1)
        columns: dict[str, Any] = {
            "emd_range": pa.array(emd / self.bins, from_pandas=True),
            **dict(zip(keys.column_names, keys.columns, strict=True)),
        }
        for column in (*get_args(Measure), *ESTIMATES):
            values = self._known(column)
            if values is None:
                columns[column] = pa.nulls(keys.num_rows, pa.float64())
            else:
                columns[column] = pa.array(values[plane].reshape(-1), from_pandas=True)
        return pa.table({name: columns[name] for name in MATRIX_SCHEMA.names}, schema=MATRIX_SCHEMA)

    def _keys_of(self, plane: int) -> pa.Table:
        """Returns what the rows of a plane are about: the columns without numbers."""
        size = len(self.names)
        names, index = pa.array(self.names, pa.string()), np.arange(size)
        return pa.table(
            {
                "a": names.take(pa.array(np.repeat(index, size))),
                "b": names.take(pa.array(np.tile(index, size))),
                "layer": pa.repeat(self.planes[plane], size * size),
                "lens": pa.repeat(self.lens, size * size),
            }
        )

    def _has_rows(self, stored: pa.Table, plane: int) -> bool:
        """Returns whether the rows of a stored plane are about what they should be."""
        size = len(self.names)
        return (
            np.array_equal(_places(stored["a"], self.names), np.repeat(np.arange(size), size))
            and np.array_equal(_places(stored["b"], self.names), np.tile(np.arange(size), size))
            and not _places(stored["layer"], [self.planes[plane]]).any()
            and not _places(stored["lens"], [self.lens]).any()
        )

    def encode(self) -> bytes:
        """Makes the file of the matrix in memory, with a row group per plane.

        Returns:
            The bytes of the file.
        """
        metadata: dict[str, Any] = {
            "names": self.names,
            "layers": self.layers,
            "bins": self.bins,
            "members": self.members,
            "spec_digest": self.spec_digest,
            "lens": self.lens,
            "lens_digest": self.lens_digest,
            "estimates": [column for column in ESTIMATES if column in self.estimates],
            "method": self.method,
        }
        planes = range(len(self.planes))
        schema = self._written(0).schema
        numbers = {name: "BYTE_STREAM_SPLIT" for name in schema.names if name not in _WORDS}
        layout = {"use_dictionary": list(_WORDS), "column_encoding": numbers}
        return encode_sealed(MATRIX, metadata, map(self._written, planes), schema, **layout)

    def save(self, out: str) -> None:
        """Writes the matrix as Parquet, which every reader of tables opens.

        Args:
            out: The path or url to write (.parquet).

        Raises:
            UsageError: The name does not end in .parquet.
        """
        storage.replace(storage.parquet_uri(out, "the matrix is"), self.encode())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Matrix:
        """Reads the file of a matrix.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors.

        Returns:
            The matrix.

        Raises:
            CorruptFile: The file is torn, or not what was written.
        """
        file = SealedFile(data, MATRIX, name, words=_WORDS)
        file.check()
        metadata = file.metadata
        with corrupt_if_unreadable(f"{name}: torn, or not a matrix"):
            names = tuple(metadata["names"])
            if any(group.rows != len(names) ** 2 for group in file.row_groups):
                raise CorruptFile(f"{name}: its rows are not those of the datasets it states")
            shape = len(file.row_groups), len(names), len(names)
            columns = {
                column: np.empty(shape) for column in (*get_args(Measure), *metadata["estimates"])
            }
            emd, nfd, fd = (columns[column] for column in get_args(Measure))
            matrix = cls(
                names,
                tuple(metadata["layers"]),
                emd,
                nfd,
                fd,
                metadata["bins"],
                metadata["members"],
                metadata["spec_digest"],
                metadata["lens"],
                {column: columns[column] for column in metadata["estimates"]},
                metadata["lens_digest"],
                metadata["method"],
            )
            if len(matrix.planes) != len(file.row_groups):
                layers = ", ".join(matrix.layers)
                raise CorruptFile(
                    f"{name}: has {count_of(shape[0], 'plane')}; its layers are {layers}"
                )
            stated = file.parquet.schema_arrow
            types = dict(zip(stated.names, stated.types, strict=True))
            for column in MATRIX_SCHEMA:
                found = types.get(column.name, "missing")
                if found != column.type and (column.name not in _WORDS or found == "missing"):
                    raise CorruptFile(
                        f"{name}: column {column.name} is {found}; it should be {column.type}"
                    )
            for plane in range(shape[0]):  # one at a time: all names take gigabytes
                stored = file.parquet.read_row_group(plane, MATRIX_SCHEMA.names)
                for column, values in columns.items():
                    values[plane] = stored[column].to_numpy().reshape(shape[1:])
                if not matrix._has_rows(stored, plane):
                    raise CorruptFile(f"{name}: its rows are not those of the datasets it states")
            return matrix


def _places(words: pa.ChunkedArray, among: Sequence[str]) -> Ints:
    """Returns where each word is among some; -1 for others."""
    known = pa.array(among, pa.string())
    found = []
    for chunk in words.chunks:
        places = pc.fill_null(pc.index_in(chunk.dictionary, known), -1)
        found.append(np.asarray(pc.fill_null(places.take(chunk.indices), -1)))
    return np.concatenate(found) if found else np.empty(0, np.int32)
