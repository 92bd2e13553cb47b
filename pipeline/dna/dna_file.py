"""Reads files of DNAs, folds, layer Gaussians and partials, layer by layer.

>>> DnaFile(data, "dna", "s3://bucket/a.parquet").read()         # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from mmap import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dna.arrays import Floats, Ints
from pipeline.dna.neuron_rows import ARROW_TYPES
from pipeline.dna.pairs import Pairs
from pipeline.dna.sealed import (
    FileKind,
    RowGroup,
    SealedFile,
    corrupt_if_unreadable,
)
from pipeline.dna.value import DNA, NOTED, SCALAR_COLUMNS, concatenate_arrays
from pipeline.errors import CorruptFile, VdnaError
from pipeline.spec import Numerics, Spec

if TYPE_CHECKING:
    from pipeline.dna.counts_by_fold import CountsByFold


class DnaFile:
    """An open file of a DNA, its folds, its layer Gaussians or a partial, read layer by layer.

    Attributes:
        name: The name of the file in errors.
        metadata: What `dna_metadata` made.
        spec: The spec that the metadata states.
        pairs: By which names the images are paired with others', in a file of folds. None if that
            is not known.
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
        """Opens a file. All bytes of a partial are checked, since no commit states its sha256.

        Args:
            data: The bytes of the file, or those from `start` on.
            kind: `dna`, `folds`, `layer_gaussians` or `partial`.
            name: The name of the file in errors.
            start: The offset of the data in the file. The footer alone is enough for everything
                except reading rows.
            layers: The layers whose bytes the data holds; they are checked. None means that the
                data is the whole file, whose sha256 the caller has checked.

        Raises:
            CorruptFile: The file is torn, of another kind or format, or not what was written.
        """
        self.name = name
        self._layers = layers
        self._sealed = SealedFile(data, FileKind(kind), name, start=start)
        self.metadata = self._sealed.metadata
        try:
            stated = self.metadata["spec_digest"]
            self.spec = Spec.from_json(self.metadata["spec"])
            self._totals = {"": _Totals.from_metadata(self.metadata)}
            if kind == "folds":
                folds = self.metadata["folds"].items()
                self._totals |= {fold: _Totals.from_metadata(own) for fold, own in folds}
            pairs = self.metadata.get("pairs")
            self.pairs = None if pairs is None else Pairs.from_json(pairs)
        except (VdnaError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"{name}: its metadata cannot be read: {error!r}") from error
        if self.spec.digest != stated:
            raise CorruptFile(
                f"{name}: states spec digest {stated}, but its spec has {self.spec.digest}"
            )
        found = len(self._sealed.row_groups)
        if found != len(self.spec.layers):
            raise CorruptFile(
                f"{name}: holds {found} layers, but its spec has {len(self.spec.layers)}"
            )
        if layers is not None:
            self.check_bytes(layers)
        elif kind == "partial":
            self.check_bytes()

    @property
    def row_groups(self) -> tuple[RowGroup, ...]:
        """The row group of each layer, in the order of the spec."""
        return self._sealed.row_groups

    def span(self, layer: str) -> tuple[int, int]:
        """Finds the bytes of a layer.

        Args:
            layer: The layer.

        Returns:
            The offset in the file of the first byte, and the offset after the last.
        """
        row_group = self.row_groups[self._index(layer)]
        return row_group.start, row_group.stop

    def check_bytes(self, layers: Sequence[str] | None = None) -> None:
        """Checks the bytes of layers against the sha256 that the footer states.

        Args:
            layers: The layers to check; all of them if None.

        Raises:
            CorruptFile: A layer has another sha256.
        """
        chosen = self.spec.layers if layers is None else layers
        self._sealed.check({self._index(layer): f"layer {layer}" for layer in chosen})

    def column(self, name: str) -> pa.ChunkedArray:
        """Reads one column of all layers' rows.

        Args:
            name: The column.

        Returns:
            Its values.

        Raises:
            CorruptFile: There is no such column, or it cannot be read.
        """
        with corrupt_if_unreadable(f"{self.name}: its column {name} cannot be read"):
            return self._sealed.parquet.read([name])[name]

    @property
    def folds(self) -> list[int]:
        """The numbers of the folds that a file of folds holds, in order."""
        return sorted(int(fold) for fold in self._totals if fold)

    @cached_property
    def _fold_totals(self) -> dict[int, DNA]:
        """What the file states of each fold, checked, by number in order."""
        found = {fold: _without_layers(self.spec, self._totals[str(fold)]) for fold in self.folds}
        for fold, totals in found.items():
            totals.check(f"{self.name}, fold {fold}")
        return found

    @property
    def totals(self) -> DNA:
        """What the file states of all layers at once, as a DNA without layers."""
        return _without_layers(self.spec, self._totals[""])

    def read(self, layers: Sequence[str] | None = None) -> DNA:
        """Reads the DNA and checks that its counts add up.

        Args:
            layers: The layers to read; all of them if None.

        Returns:
            The DNA of those layers.

        Raises:
            CorruptFile: A layer cannot be read.
            ConservationError: The counts do not add up to the images.
        """
        wanted = self.spec.layers if layers is None else layers
        parts = [self._decode(self._group(layer), layer, self._totals[""]) for layer in wanted]
        dna = parts[0] if len(parts) == 1 else _concatenate(parts)
        dna.check(self.name)
        return dna

    def read_folds(self, layer: str) -> dict[int, DNA]:
        """Reads one layer of a file of folds.

        Args:
            layer: The layer.

        Returns:
            The DNA of that layer, of each fold.

        Raises:
            CorruptFile: The layer cannot be read, or does not hold the folds in order.
            ConservationError: The counts of a fold do not add up to its images.
        """
        parts = {}
        for fold, rows in zip_longest(self.folds, self._batches(layer)):
            if fold is None or rows is None or not _is_of_fold(rows, fold):
                raise CorruptFile(f"{self.name}: layer {layer} does not hold its folds in order")
            own = rows.drop_columns("fold")
            parts[fold] = self._decode(own, layer, self._totals[str(fold)])
            parts[fold].check(f"{self.name}, fold {fold}")
        return parts

    def read_counts_by_fold(self, layer: str) -> CountsByFold | None:
        """Reads the counts of one layer of a file of folds, faster than `read_folds`.

        All that `read_folds` checks is checked.

        Args:
            layer: The layer.

        Returns:
            The counts of all folds; None if `read_folds` has to read them, or to say what is wrong
            with them.

        Raises:
            CorruptFile: The layer cannot be read.
            ConservationError: What the file states of a fold contradicts itself.
        """
        self._require_loaded(layer)
        if any(of.unknown for of in self._fold_totals.values()):
            return None
        from pipeline.dna.counts_by_fold import CountsByFold  # loads numba

        tap, index = self.spec.tap(layer), self._index(layer)
        return CountsByFold.read(self._sealed, index, tap, self.spec.bins, self._fold_totals)

    def read_gaussians(self, dna: DNA) -> DNA:
        """Reads a file of layer Gaussians.

        Args:
            dna: The DNA that the Gaussians belong to.

        Returns:
            The DNA with the scatter matrices of its layers.

        Raises:
            CorruptFile: The file is of another DNA, or cannot be read.
            ConservationError: The diagonals are not the DNA's sums of squares.
        """
        parts = []
        for layer in dna.layers:
            rows = self._group(layer)
            with corrupt_if_unreadable(f"{self.name}: layer {layer} cannot be read"):
                means, part = _gaussian(rows.combine_chunks(), self.spec, layer, self.name)
            if not np.array_equal(means, dna.mean[dna.slice_of(layer)], equal_nan=True):
                raise CorruptFile(f"{self.name}: layer {layer} has other means than the DNA")
            parts.append(part)
        whole = replace(dna, scatter=concatenate_arrays(parts))
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

    def _require_loaded(self, layer: str) -> None:
        if self._layers is not None and layer not in self._layers:
            raise CorruptFile(
                f"{self.name}: layer {layer} was not read; only {', '.join(self._layers)} were"
            )

    def _batches(self, layer: str) -> Iterator[pa.Table]:
        """Yields as many rows at a time as the layer has neurons.

        Reading all folds at once would need several times the memory of the rows.

        Raises:
            CorruptFile: The layer was not loaded, or cannot be read.
        """
        self._require_loaded(layer)
        neurons, groups = self.spec.tap(layer).neurons, [self._index(layer)]
        with corrupt_if_unreadable(f"{self.name}: layer {layer} cannot be read"):
            for batch in self._sealed.parquet.iter_batches(neurons, groups, use_threads=False):
                yield pa.Table.from_batches([batch])

    def _decode(self, table: pa.Table, layer: str, totals: _Totals) -> DNA:
        with corrupt_if_unreadable(f"{self.name}: layer {layer} cannot be read"):
            return _from_rows(table.combine_chunks(), self.spec, layer, totals, self.name)


@dataclass(frozen=True)
class _Totals:
    """The totals that a file states for all neurons at once."""

    images: int
    failed: int
    numerics: tuple[tuple[Numerics, int], ...]
    unknown: tuple[str, ...]
    transparent: int | None
    single_colour: int | None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> _Totals:
        return cls(
            int(metadata["images"]),
            int(metadata["failed"]),
            tuple(
                (Numerics.from_json(entry["numerics"]), int(entry["images"]))
                for entry in metadata["numerics"]
            ),
            tuple(metadata.get("unknown", ())),
            *(int(metadata[field]) if field in metadata else None for field in NOTED),
        )


def _from_rows(rows: pa.Table, spec: Spec, layer: str, totals: _Totals, name: str) -> DNA:
    tap = spec.tap(layer)
    _require_order(rows, layer, tap.neurons, name)
    nulls = {column for column in rows.column_names if rows[column].null_count}
    stated = set(totals.unknown) & set(rows.column_names)
    if nulls != stated or any(rows[column].null_count < tap.neurons for column in nulls):
        raise CorruptFile(
            f"{name}: layer {layer} has nulls in {_listed(nulls)}, but its metadata states that "
            f"there are some in {_listed(stated)}"
        )
    arrays: dict[str, Any] = {
        column: np.zeros(tap.neurons, kind.to_pandas_dtype())
        if column in nulls
        else rows[column].to_numpy().astype(kind.to_pandas_dtype(), copy=False)
        for column, kind in ARROW_TYPES.items()
    }
    if "scatter" in rows.column_names:
        arrays["scatter"] = _scatter(rows, spec, layer, name)
    counts = _counts(rows, spec, layer, name)
    return DNA(spec, (layer,), counts=counts, **arrays, **vars(totals))


def _without_layers(spec: Spec, totals: _Totals) -> DNA:
    arrays: dict[str, Any] = {
        column: np.empty(0, kind.to_pandas_dtype()) for column, kind in ARROW_TYPES.items()
    }
    return DNA(spec, (), counts=np.empty((0, spec.bins), np.int64), **arrays, **vars(totals))


def _listed(columns: set[str]) -> str:
    return ", ".join(sorted(columns)) or "no column"


def _require_order(rows: pa.Table, layer: str, neurons: int, name: str) -> None:
    layers = pc.unique(rows["layer"]).to_pylist()
    if layers != [layer] or not np.array_equal(rows["neuron"].to_numpy(), np.arange(neurons)):
        raise CorruptFile(
            f"{name}: layer {layer} does not hold neurons 0 to {neurons - 1} in order"
        )


def _is_of_fold(rows: pa.Table, fold: int) -> bool:
    stated = rows["fold"] if "fold" in rows.column_names else None
    return stated is not None and np.array_equal(stated, np.full(rows.num_rows, fold))


def _counts(rows: pa.Table, spec: Spec, layer: str, name: str) -> Ints:
    neurons = spec.tap(layer).neurons
    lists = rows["counts"].combine_chunks()
    if lists.null_count:
        return np.zeros((neurons, spec.bins), np.int64)
    lengths, values = np.asarray(pc.list_value_length(lists)), lists.flatten()
    if values.null_count or not (lengths == spec.bins).all():
        raise CorruptFile(f"{name}: layer {layer} has nulls, or rows without {spec.bins} bins")
    return np.asarray(values, np.int64).reshape(neurons, spec.bins)


def _gaussian(rows: pa.Table, spec: Spec, layer: str, name: str) -> tuple[Floats, Floats]:
    _require_order(rows, layer, spec.tap(layer).neurons, name)
    return rows["mean"].to_numpy(), _scatter(rows, spec, layer, name)


def _scatter(rows: pa.Table, spec: Spec, layer: str, name: str) -> Floats:
    neurons = spec.tap(layer).neurons
    lists = rows["scatter"].combine_chunks()
    lengths, values = np.asarray(pc.list_value_length(lists)), lists.flatten()
    if values.null_count or not np.array_equal(lengths, np.arange(neurons, 0, -1)):
        raise CorruptFile(f"{name}: layer {layer} lacks a part of its scatter matrix")
    return np.asarray(values, np.float64)


def _concatenate(parts: Sequence[DNA]) -> DNA:
    arrays: dict[str, Any] = {
        column: np.concatenate([getattr(part, column) for part in parts])
        for column in ("counts", *SCALAR_COLUMNS)
    }
    if parts[0].scatter is not None:
        arrays["scatter"] = np.concatenate([part.scatter for part in parts])
    return replace(parts[0], layers=tuple(la for part in parts for la in part.layers), **arrays)
