"""dna.file: TODO-DOC"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from mmap import mmap
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.buffers import footer_start, let_go, sha256
from pipeline.dna.arrays import Floats, Ints
from pipeline.dna.value import ARROW_TYPES, DNA, SCALAR_COLUMNS, digest_of_layer, joined
from pipeline.errors import CorruptFile, VdnaError
from pipeline.spec import Numerics, Spec, digest_of

FORMAT = 1

_FIRST = len("PAR1")
"""Where in a file its first layer begins."""


# The file. One row per neuron, one row group per layer.


def to_table(dna: DNA, fold: int | None = None) -> pa.Table:
    """Rows of the DNA's layers; `fold` adds that column, for files that hold several folds."""
    names = [layer for layer in dna.layers for _ in range(dna.spec.tap(layer).neurons)]
    index = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons)]
    rows, bins = dna.counts.shape
    offsets = np.arange(0, (rows + 1) * bins, bins, dtype=np.int32)
    columns: dict[str, pa.Array] = {}
    if fold is not None:
        columns["fold"] = pa.array(np.full(rows, fold, np.int32))
    columns["layer"] = pa.array(names, pa.string())
    columns["neuron"] = pa.array(index, pa.int32())
    columns["counts"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.counts.ravel()))
    for name, kind in ARROW_TYPES.items():
        columns[name] = pa.array(getattr(dna, name), kind)
    for name in set(dna.unknown) & columns.keys():
        columns[name] = pa.nulls(rows, columns[name].type)
    if dna.scatter is not None:
        columns["scatter"] = _scatter_column(dna)
    return pa.table(columns)


def to_gaussian_table(dna: DNA) -> pa.Table:
    """Rows of the layers' Gaussians: each neuron's mean, and its scatter with those from it on."""
    table = to_table(dna)
    return table.select(["layer", "neuron", "mean", "scatter"])


def _scatter_column(dna: DNA) -> pa.Array:
    lengths = [i for layer in dna.layers for i in range(dna.spec.tap(layer).neurons, 0, -1)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(dna.scatter))


def header(dna: DNA, kind: str, **extra: object) -> dict[str, Any]:
    """The `vdna` metadata of a file of this DNA."""
    return {
        "format": FORMAT,
        "kind": kind,
        "spec": dna.spec.to_json(),
        "spec_digest": dna.spec.digest,
        "images": dna.images,
        "failed": dna.failed,
        "positions": {tap.name: tap.positions for tap in dna.spec.taps},
        "numerics": [
            {"numerics": numerics.to_json(), "images": count} for numerics, count in dna.numerics
        ],
        **({"unknown": list(dna.unknown)} if dna.unknown else {}),
        **extra,
    }


def encode(metadata: Mapping[str, Any], groups: Iterable[pa.Table]) -> bytes:
    """A Parquet file in memory: one row group per table; the same input gives the same bytes.

    Its metadata states the sha256 of each row group, so that one is checked without the others.
    Bytes and not a stream, since a stream that fails half-way publishes a truncated object.
    """
    sink = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    row_groups: list[dict[str, Any]] = []
    stop = _FIRST
    for table in groups:
        if writer is None:
            writer = pq.ParquetWriter(
                sink,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                column_encoding=_encodings(table),
                data_page_size=4 * 2**20,
                write_page_checksum=True,
                store_schema=False,
            )
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        start, stop = stop, sink.tell()
        with sink.getbuffer() as held:
            row_groups.append({"bytes": stop - start, "sha256": sha256(held[start:stop])})
    if writer is None:
        raise ValueError("a file needs at least one layer")
    if metadata.get("kind") != "partial":  # which is read whole, and seals its numbers
        metadata = {**metadata, "row_groups": row_groups}
    sealed = {**metadata, "checksum": digest_of(metadata)}
    writer.add_key_value_metadata({"vdna": json.dumps(sealed, sort_keys=True)})
    writer.close()
    return sink.getvalue()


def encode_tables(
    metadata: Mapping[str, Any], schema: pa.Schema, tables: Iterable[pa.Table]
) -> bytes:
    """A Parquet file in memory of what is no DNA: a row group per table, metadata as given."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink, schema, compression="zstd", store_schema=False, write_page_checksum=True
    ) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        writer.add_key_value_metadata({"vdna": json.dumps(metadata, sort_keys=True)})
    return cast(bytes, sink.getvalue().to_pybytes())


def _encodings(table: pa.Table) -> dict[str, str]:
    """Small steps for counts; for floats the bytes of equal weight together."""
    wanted = {"counts": "DELTA_BINARY_PACKED", "scatter": "BYTE_STREAM_SPLIT"}
    return {f"{c}.list.element": wanted[c] for c in table.column_names if c in wanted}


def encode_dna(dna: DNA, kind: str = "dna", **extra: object) -> bytes:
    return encode(header(dna, kind, **extra), (to_table(dna.select([la])) for la in dna.layers))


@dataclass(frozen=True)
class RowGroup:
    """Where the bytes of a layer stand in a file, and what they are."""

    start: int
    stop: int
    sha256: str


class DnaFile:
    """A file of a DNA, a partial, or folds, open to be read layer by layer.

    `metadata`: as `header` made it. `row_groups`: none of a partial, nor of a file of old. Raises
    `CorruptFile` with `name` and what is wrong; readers also raise `ConservationError` where the
    counts do not add up.

    `start`: where in the file `data` begins; its footer alone is enough for all but reading.
    `layers`: those that `data` has bytes of, which are checked here. With all, for None, they are
    not: whoever has the whole file knows it by its sha256.
    """

    def __init__(
        self,
        data: bytes | mmap,
        kind: str,
        name: str,
        *,
        start: int = 0,
        layers: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self._data = data
        self._layers = layers
        try:
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self.metadata: dict[str, Any] = json.loads(self._file.metadata.metadata[b"vdna"])
            found, version = self.metadata["kind"], self.metadata["format"]
            stated, seal = self.metadata["spec_digest"], self.metadata.pop("checksum")
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not a file of vdna: {error}") from error
        if found != kind:
            raise CorruptFile(f"{name}: a {found!r} file where a {kind!r} file should be")
        if version != FORMAT:
            raise CorruptFile(f"{name}: format {version}; this version of vdna reads {FORMAT}")
        if seal != digest_of(self.metadata):
            raise CorruptFile(f"{name}: its metadata is not what was written; restore the file")
        try:
            self.spec = Spec.from_json(self.metadata["spec"])
            self._totals = {"": _Totals.of(self.metadata)}
            if kind == "folds":
                folds = self.metadata["folds"].items()
                self._totals |= {fold: _Totals.of(own) for fold, own in folds}
            self.row_groups = _row_groups(self.metadata.get("row_groups", ()))
        except (VdnaError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"{name}: its metadata cannot be read: {error!r}") from error
        if self.spec.digest != stated:
            raise CorruptFile(
                f"{name}: states spec digest {stated}, but its spec has {self.spec.digest}"
            )
        if self._file.num_row_groups != len(self.spec.layers):
            raise CorruptFile(
                f"{name}: {self._file.num_row_groups} layers, its spec has {len(self.spec.layers)}"
            )
        if len(self.row_groups) not in (0, len(self.spec.layers)):
            raise CorruptFile(f"{name}: states the digests of {len(self.row_groups)} layers")
        end = start + footer_start(data)
        if self.row_groups and self.row_groups[-1].stop != end:
            raise CorruptFile(
                f"{name}: its layers end at {self.row_groups[-1].stop}, its footer begins at {end}"
            )
        if layers is not None:
            self.check_bytes(layers)

    def span(self, layer: str) -> tuple[int, int]:
        """Where the layer's bytes are."""
        row_group = self.row_groups[self._index(layer)]
        return row_group.start, row_group.stop

    def check_bytes(self, layers: Sequence[str] | None = None) -> None:
        """Raises `CorruptFile` unless layers are what the file states of them, to the last bit.

        For None all of them; none of a file of old, which states nothing.
        """
        for layer in self.spec.layers[: len(self.row_groups)] if layers is None else layers:
            stated = self.row_groups[self._index(layer)]
            with memoryview(self._data) as view, view[stated.start : stated.stop] as bytes_of_it:
                found = sha256(bytes_of_it)
            let_go(self._data)
            if found != stated.sha256:
                raise CorruptFile(
                    f"{self.name}: layer {layer} has sha256 {found}; its footer states "
                    f"{stated.sha256}. Restore the file, or delete it and build the dataset again"
                )

    def column(self, name: str) -> pa.ChunkedArray:
        """Of all layers' rows. Raises `CorruptFile` where there is none."""
        try:
            return self._file.read([name])[name]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise CorruptFile(f"{self.name}: no column {name} that can be read: {error}") from error

    @property
    def folds(self) -> list[int]:
        """Of a file of folds: their numbers, in order."""
        return sorted(int(fold) for fold in self._totals if fold)

    def read(self, layers: Sequence[str] | None = None) -> DNA:
        """The DNA, of `layers` only where given."""
        wanted = self.spec.layers if layers is None else layers
        parts = [self._decode(self._group(layer), layer, self._totals[""]) for layer in wanted]
        dna = parts[0] if len(parts) == 1 else _concatenate(parts)
        dna.check(self.name)
        return dna

    def read_folds(self, layer: str) -> dict[int, DNA]:
        """Of a file of folds: each fold's DNA of one layer."""
        parts = {}
        for fold, rows in zip_longest(self.folds, self._batches(layer)):
            if fold is None or rows is None or pc.any(pc.not_equal(rows["fold"], fold)).as_py():
                raise CorruptFile(f"{self.name}: layer {layer} does not hold its folds in order")
            own = rows.drop_columns("fold")
            parts[fold] = self._decode(own, layer, self._totals[str(fold)])
            parts[fold].check(f"{self.name}, fold {fold}")
        return parts

    def read_gaussians(self, dna: DNA) -> DNA:
        """Of a file of layer Gaussians: that DNA with them. Raises `CorruptFile` on another's."""
        parts = []
        for layer in dna.layers:
            rows = self._group(layer)
            try:
                means, part = _gaussian(rows.combine_chunks(), self.spec, layer, self.name)
            except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
                raise CorruptFile(
                    f"{self.name}: layer {layer} cannot be read: {error!r}"
                ) from error
            if not np.array_equal(means, dna.mean[dna.slice_of(layer)], equal_nan=True):
                raise CorruptFile(f"{self.name}: layer {layer} has other means than the DNA")
            parts.append(part)
        whole = replace(dna, scatter=joined(parts))
        whole.check(self.name)
        return whole

    def _index(self, layer: str) -> int:
        self.spec.tap(layer)
        return self.spec.layers.index(layer)

    def _group(self, layer: str) -> pa.Table:
        batches = list(self._batches(layer))
        if not batches:
            raise CorruptFile(f"{self.name}: layer {layer} has no rows")
        return pa.concat_tables(batches)

    def _batches(self, layer: str) -> Iterator[pa.Table]:
        """As many rows at a time as the layer has neurons.

        All at once take several times their memory while they are read.
        """
        if self._layers is not None and layer not in self._layers:
            raise CorruptFile(
                f"{self.name}: layer {layer} was not read; only {', '.join(self._layers)} were"
            )
        neurons, groups = self.spec.tap(layer).neurons, [self._index(layer)]
        try:
            for batch in self._file.iter_batches(neurons, groups, use_threads=False):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError, IndexError) as error:
            raise CorruptFile(f"{self.name}: layer {layer} cannot be read: {error}") from error

    def _decode(self, table: pa.Table, layer: str, totals: _Totals) -> DNA:
        try:
            dna = _from_rows(table.combine_chunks(), self.spec, layer, totals, self.name)
            content = self.metadata.get("content")  # partials and nodes; the first had none
            sealed = content is None or content[layer] == digest_of_layer(dna)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{self.name}: layer {layer} cannot be read: {error!r}") from error
        if not sealed:
            raise CorruptFile(f"{self.name}: the numbers of layer {layer} are not what was written")
        return dna


def _row_groups(stated: Sequence[Mapping[str, Any]]) -> tuple[RowGroup, ...]:
    found = []
    stop = _FIRST
    for row_group in stated:
        if type(row_group["bytes"]) is not int or row_group["bytes"] < 0:
            raise ValueError(f"a row group of {row_group['bytes']} bytes")
        start, stop = stop, stop + row_group["bytes"]
        found.append(RowGroup(start, stop, row_group["sha256"]))
    return tuple(found)


@dataclass(frozen=True)
class _Totals:
    """What a file states about all neurons at once."""

    images: int
    failed: int
    numerics: tuple[tuple[Numerics, int], ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Totals:
        return cls(
            int(metadata["images"]),
            int(metadata["failed"]),
            tuple(
                (Numerics.from_json(entry["numerics"]), int(entry["images"]))
                for entry in metadata["numerics"]
            ),
            tuple(metadata.get("unknown", ())),
        )


def decode_dna(
    data: bytes, name: str, kind: str = "dna", layers: Sequence[str] | None = None
) -> tuple[DNA, dict[str, Any]]:
    """A DNA (of `layers` only, where given) and its file's metadata; see `DnaFile`."""
    file = DnaFile(data, kind, name)
    return file.read(layers), file.metadata


def _from_rows(rows: pa.Table, spec: Spec, layer: str, totals: _Totals, name: str) -> DNA:
    tap = spec.tap(layer)
    _require_order(rows, layer, tap.neurons, name)
    nulls = {column for column in rows.column_names if rows[column].null_count}
    stated = set(totals.unknown) & set(rows.column_names)
    if nulls != stated or any(rows[column].null_count < tap.neurons for column in nulls):
        raise CorruptFile(
            f"{name}: layer {layer} has nulls in {', '.join(sorted(nulls)) or 'none'}"
        )
    arrays: dict[str, Any] = {
        column: np.zeros(tap.neurons, kind.to_pandas_dtype())
        if column in nulls
        else rows[column].to_numpy().astype(kind.to_pandas_dtype(), copy=False)
        for column, kind in ARROW_TYPES.items()
    }
    if "scatter" in rows.column_names:
        arrays["scatter"] = _scatter(rows, spec, layer, name)
    return DNA(
        spec,
        (layer,),
        images=totals.images,
        failed=totals.failed,
        counts=_counts(rows, spec, layer, name),
        **arrays,
        numerics=totals.numerics,
        unknown=totals.unknown,
    )


def _require_order(rows: pa.Table, layer: str, neurons: int, name: str) -> None:
    layers = pc.unique(rows["layer"]).to_pylist()
    if layers != [layer] or not np.array_equal(rows["neuron"].to_numpy(), np.arange(neurons)):
        raise CorruptFile(
            f"{name}: layer {layer} does not hold neurons 0 to {neurons - 1} in order"
        )


def _counts(rows: pa.Table, spec: Spec, layer: str, name: str) -> Ints:
    neurons = spec.tap(layer).neurons
    lists = rows["counts"].combine_chunks()
    if lists.null_count:
        return np.zeros((neurons, spec.bins), np.int64)
    lengths = np.asarray(pc.list_value_length(lists))
    if lists.flatten().null_count or not (lengths == spec.bins).all():
        raise CorruptFile(f"{name}: layer {layer} has nulls, or rows without {spec.bins} bins")
    return np.asarray(lists.flatten(), np.int64).reshape(neurons, spec.bins)


def _gaussian(rows: pa.Table, spec: Spec, layer: str, name: str) -> tuple[Floats, Floats]:
    _require_order(rows, layer, spec.tap(layer).neurons, name)
    return rows["mean"].to_numpy(), _scatter(rows, spec, layer, name)


def _scatter(rows: pa.Table, spec: Spec, layer: str, name: str) -> Floats:
    neurons = spec.tap(layer).neurons
    lists = rows["scatter"].combine_chunks()
    lengths = np.asarray(pc.list_value_length(lists))
    if lists.flatten().null_count or not np.array_equal(lengths, np.arange(neurons, 0, -1)):
        raise CorruptFile(f"{name}: layer {layer} has no whole triangle of its scatter matrix")
    return np.asarray(lists.flatten(), np.float64)


def _concatenate(parts: Sequence[DNA]) -> DNA:
    arrays: dict[str, Any] = {
        column: np.concatenate([getattr(part, column) for part in parts])
        for column in ("counts", *SCALAR_COLUMNS)
    }
    if parts[0].scatter is not None:
        arrays["scatter"] = np.concatenate([part.scatter for part in parts])
    return replace(parts[0], layers=tuple(la for part in parts for la in part.layers), **arrays)
