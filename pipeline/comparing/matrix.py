"""comparing.matrix: TODO-DOC"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.catalogue import MATRIX_FORMAT, MATRIX_READS
from pipeline.comparing.distance import Measure
from pipeline.dna import UNIFORM, Floats, encode_tables
from pipeline.errors import CorruptFile, UsageError
from pipeline.spec import digest_of

ALL = "all"

Estimate = Literal["emd_corrected", "se", "low", "high", "floor", "p", "q"]

ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)

SCHEMA = pa.schema(
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
    ]
)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Distances of every ordered pair and the diagonal, per layer and over `all` neurons.

    `emd`, `nfd`, `fd`: (planes, D, D) float64 in the order of `layers` and `names`; the last plane
    is `all`, unless the layers are a choice of the network's. NaN where a DNA lacks what a distance
    needs, or it was not asked for. `members`: dataset -> dna digest. `lens`: the name of what it
    was seen through, with its digest where it is one; `method`: that of the estimates.
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

    @property
    def planes(self) -> tuple[str, ...]:
        """What the distances hold, in order: the layers, and `all` where they are all there."""
        return self.layers if len(self.emd) == len(self.layers) else (*self.layers, ALL)

    def of(self, layer: str = ALL, column: Measure | Estimate = "emd") -> Floats:
        """(D, D) distances or estimates of a layer. Raises `UsageError` for an unknown one."""
        if layer not in self.planes:
            raise UsageError(f"no layer {layer!r} in this matrix; it has {', '.join(self.layers)}")
        return cast(Floats, self.stacked(column)[self.planes.index(layer)])

    def stacked(self, column: Measure | Estimate) -> Floats:
        """(planes, D, D) of a column; NaN where it is not known."""
        values = self._known(column)
        return np.full_like(self.emd, np.nan) if values is None else values

    def _known(self, column: Measure | Estimate) -> Floats | None:
        if column in ESTIMATES:
            return self.estimates.get(column)
        return cast(Floats, getattr(self, column))

    @property
    def table(self) -> pa.Table:
        """The named columns; what is not known is null."""
        return pa.concat_tables([self._table_of(plane) for plane in range(len(self.planes))])

    def _table_of(self, plane: int) -> pa.Table:
        size = len(self.names)
        names, index = pa.array(self.names, pa.string()), np.arange(size)
        emd = self.emd[plane].reshape(-1)
        columns: dict[str, Any] = {
            "a": names.take(pa.array(np.repeat(index, size))),
            "b": names.take(pa.array(np.tile(index, size))),
            "layer": pa.repeat(self.planes[plane], size * size),
            "emd_range": pa.array(emd / self.bins, from_pandas=True),
            "lens": pa.repeat(self.lens, size * size),
        }
        for column in (*get_args(Measure), *ESTIMATES):
            values = self._known(column)
            if values is None:
                columns[column] = pa.nulls(size * size, pa.float64())
            else:
                columns[column] = pa.array(values[plane].reshape(-1), from_pandas=True)
        return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)

    def _checksum(self, metadata: Mapping[str, Any]) -> str:
        """Of all that the file states, and of the numbers."""
        numbers = hashlib.sha256()
        kept = [self.estimates[column] for column in ESTIMATES if column in self.estimates]
        for values in (self.emd, self.nfd, self.fd, *kept):
            same = np.where(np.isnan(values), np.nan, values)  # a NaN has a sign
            numbers.update(np.ascontiguousarray(same, "<f8").data)
        return digest_of("matrix", dict(metadata), numbers.hexdigest())

    def encode(self) -> bytes:
        """A row group per plane."""
        metadata: dict[str, Any] = {
            "format": MATRIX_FORMAT,
            "kind": "matrix",
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
        metadata["checksum"] = self._checksum(metadata)
        planes = range(len(self.planes))
        return encode_tables(metadata, SCHEMA, (self._table_of(plane) for plane in planes))

    @classmethod
    def decode(cls, data: bytes, name: str) -> Matrix:
        """Raises `CorruptFile` where it is no whole matrix."""
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            metadata = json.loads(file.metadata.metadata[b"vdna"])
            if metadata["kind"] != "matrix" or metadata["format"] not in MATRIX_READS:
                raise CorruptFile(
                    f"{name}: not a matrix of formats {', '.join(map(str, MATRIX_READS))}"
                )
            table = file.read()
            seal = metadata.pop("checksum", None)  # the first release wrote none
            names, layers = tuple(metadata["names"]), tuple(metadata["layers"])
            shape = (-1, len(names), len(names))

            def stacked(column: str) -> Floats:
                return cast(Floats, table[column].to_numpy().reshape(shape))

            emd, nfd = stacked("emd"), stacked("nfd")
            matrix = cls(
                names,
                layers,
                emd,
                nfd,
                stacked("fd") if "fd" in table.column_names else np.full_like(emd, np.nan),
                metadata["bins"],
                metadata["members"],
                metadata["spec_digest"],
                metadata["lens"],
                {column: stacked(column) for column in metadata.get("estimates", ())},
                metadata.get("lens_digest", ""),
                metadata.get("method", ""),
            )
            rows = ["a", "b", "layer", "lens"]
            for plane in range(len(matrix.planes)):
                mine = matrix._table_of(plane).select(rows)
                stored = table.select(rows).slice(plane * len(names) ** 2, len(names) ** 2)
                if not stored.equals(mine):
                    raise CorruptFile(f"{name}: its rows are not those of the datasets it states")
            if seal not in (None, matrix._checksum(metadata)):
                raise CorruptFile(f"{name}: its numbers are not what was written")
            return matrix
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not a matrix: {error}") from error
