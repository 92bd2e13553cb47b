"""A DNA: for every neuron, how many activations fell into each bin; and its Parquet file.

    >>> a, b = DNA.empty(spec, ranges), ...            # doctest: +SKIP
    >>> (a + b).images == a.images + b.images          # doctest: +SKIP

Laws: `empty` is neutral; `+` is associative and commutative to the last bit in everything that is
an integer, a minimum or a maximum. `mean` and `m2` are floats: equal to the last bit when added in
the same order, which `pipeline.reduce` fixes. There is no `-`: to retract images, reduce again
over the partials that are kept.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConservationError, CorruptFile, SpecMismatch, VdnaError
from pipeline.spec import Numerics, Spec, digest_of

FORMAT = 1
INT_COLUMNS = ("underflow", "overflow", "nonfinite")
_ARROW = {
    **dict.fromkeys(INT_COLUMNS, pa.int64()),
    "low": pa.float64(),
    "high": pa.float64(),
    "min": pa.float32(),
    "max": pa.float32(),
    "mean": pa.float64(),
    "m2": pa.float64(),
}
SCALAR_COLUMNS = tuple(_ARROW)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranges:
    """Per neuron, the closed interval [low, high] (float64, shape (neurons,)) cut into bins.

    Neurons stand in the order of the extractor's taps. Frozen before counting, so that histograms
    made anywhere add up; `digest` is part of the spec.
    """

    taps: tuple[tuple[str, int], ...]
    low: Floats
    high: Floats

    def __post_init__(self) -> None:
        total = sum(neurons for _, neurons in self.taps)
        if self.low.shape != (total,) or self.high.shape != (total,):
            raise CorruptFile(
                f"ranges hold {len(self.low)} lows and {len(self.high)} highs for {total} neurons"
            )
        bad = ~(np.isfinite(self.low) & np.isfinite(self.high) & (self.low <= self.high))
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise CorruptFile(
                f"range of neuron {neuron_name(self.taps, at)} is "
                f"[{self.low[at]}, {self.high[at]}]; it must be finite, with low <= high"
            )

    @property
    def digest(self) -> str:
        return digest_of(
            "ranges",
            self.taps,
            [value.hex() for value in self.low.tolist()],
            [value.hex() for value in self.high.tolist()],
        )


def neuron_name(taps: Sequence[tuple[str, int]], index: int) -> str:
    """`layer[neuron]` of a position in the concatenation of all layers."""
    for layer, neurons in taps:
        if index < neurons:
            return f"{layer}[{index}]"
        index -= neurons
    raise IndexError(index)


@dataclass(frozen=True, eq=False)
class DNA:
    """Histograms of every neuron of `layers` over `images` images; N neurons in all.

    `counts` (N, bins) int64: activations inside [low, high]. `underflow`, `overflow`, `nonfinite`
    (N,) int64: those outside. `low`, `high` (N,) float64. `min`, `max` (N,) float32: finite
    values observed (+inf and -inf where there were none). `mean`, `m2` (N,) float64: mean and sum
    of squared deviations, over images, of the spatially averaged activation. `failed`: candidates
    that could not be read. `numerics`: how many images were counted under which.
    """

    spec: Spec
    layers: tuple[str, ...]
    images: int
    failed: int
    counts: Ints
    underflow: Ints
    overflow: Ints
    nonfinite: Ints
    low: Floats
    high: Floats
    min: NDArray[np.float32]
    max: NDArray[np.float32]
    mean: Floats
    m2: Floats
    numerics: tuple[tuple[Numerics, int], ...] = ()

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges) -> DNA:
        if ranges.digest != spec.ranges_digest:
            raise SpecMismatch(f"ranges {ranges.digest} are not the spec's {spec.ranges_digest}")
        n = spec.neurons
        zeros: dict[str, Any] = {name: np.zeros(n, np.int64) for name in INT_COLUMNS}
        return cls(
            spec,
            spec.layers,
            images=0,
            failed=0,
            counts=np.zeros((n, spec.bins), np.int64),
            **zeros,
            low=ranges.low,
            high=ranges.high,
            min=np.full(n, np.inf, np.float32),
            max=np.full(n, -np.inf, np.float32),
            mean=np.zeros(n),
            m2=np.zeros(n),
        )

    def __add__(self, other: DNA) -> DNA:
        """Raises `SpecMismatch` unless both were made the same way."""
        self.spec.require_same(other.spec, "the left DNA", "the right DNA")
        if self.layers != other.layers:
            raise SpecMismatch(f"layers {self.layers} cannot be added to {other.layers}")
        images = self.images + other.images
        mean, m2 = _merge_moments(self, other)
        used: defaultdict[Numerics, int] = defaultdict(int)
        for numerics, count in self.numerics + other.numerics:
            used[numerics] += count
        return replace(
            self,
            images=images,
            failed=self.failed + other.failed,
            counts=self.counts + other.counts,
            underflow=self.underflow + other.underflow,
            overflow=self.overflow + other.overflow,
            nonfinite=self.nonfinite + other.nonfinite,
            min=np.minimum(self.min, other.min),
            max=np.maximum(self.max, other.max),
            mean=mean,
            m2=m2,
            numerics=tuple(sorted(used.items(), key=lambda item: repr(item[0]))),
        )

    @property
    def positions(self) -> Ints:
        """(N,) positions per image of each neuron."""
        taps = [self.spec.tap(layer) for layer in self.layers]
        return np.repeat(
            np.array([tap.positions for tap in taps], np.int64), [tap.neurons for tap in taps]
        )

    def slice_of(self, layer: str) -> slice:
        """Where the layer's neurons stand in the arrays."""
        start = 0
        for name in self.layers:
            neurons = self.spec.tap(name).neurons
            if name == layer:
                return slice(start, start + neurons)
            start += neurons
        self.spec.tap(layer)
        raise CorruptFile(f"layer {layer!r} was not loaded; only {', '.join(self.layers)} were")

    def select(self, layers: Sequence[str]) -> DNA:
        """The same DNA, of some layers only (views, no copy where one layer is asked for)."""
        slices = [self.slice_of(layer) for layer in layers]
        arrays: dict[str, Any] = {}
        for name in ("counts", *SCALAR_COLUMNS):
            parts = [getattr(self, name)[s] for s in slices]
            arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return replace(self, layers=tuple(layers), **arrays)

    def check(self, name: str = "this DNA") -> None:
        """Conservation: every activation of every image is in exactly one place.

        Raises `ConservationError` naming the first neuron where it does not hold.
        """
        found = self.counts.sum(axis=1) + self.underflow + self.overflow + self.nonfinite
        expected = self.images * self.positions
        negative = np.asarray((self.counts < 0).any(axis=1))
        for column in INT_COLUMNS:
            negative |= getattr(self, column) < 0
        wrong = np.flatnonzero((found != expected) | negative)
        if len(wrong):
            at = int(wrong[0])
            taps = [(layer, self.spec.tap(layer).neurons) for layer in self.layers]
            raise ConservationError(
                f"{name}: neuron {neuron_name(taps, at)} holds {found[at]} activations"
                f"{', some counts negative' if negative[at] else ''}; {self.images} images x "
                f"{self.positions[at]} positions = {expected[at]} ({len(wrong)} neurons are wrong)"
            )
        counted = sum(count for _, count in self.numerics)
        if counted != self.images:
            raise ConservationError(
                f"{name}: numerics account for {counted} of {self.images} images"
            )

    def identical(self, other: DNA) -> bool:
        """Equal to the last bit, numerics apart (NaN equals NaN)."""
        return (
            self.spec == other.spec
            and (self.layers, self.images, self.failed)
            == (other.layers, other.images, other.failed)
            and all(
                np.array_equal(
                    getattr(self, name), getattr(other, name), equal_nan=name in ("mean", "m2")
                )
                for name in ("counts", *SCALAR_COLUMNS)
            )
        )

    def distributions(self) -> Floats:
        """(N, bins) float64, rows summing to one: underflow in the first bin, overflow in the last.

        That is the reference's clamp. A neuron without a finite activation has a row of NaN.
        """
        filled = self.counts.astype(np.float64)
        filled[:, 0] += self.underflow
        filled[:, -1] += self.overflow
        with np.errstate(invalid="ignore"):
            return cast(Floats, filled / filled.sum(axis=1, keepdims=True))

    def __repr__(self) -> str:
        return (
            f"DNA({self.spec.extractor}, {self.images} images, {len(self.low)} neurons x "
            f"{self.spec.bins} bins, spec {self.spec.digest[:12]})"
        )


def _merge_moments(a: DNA, b: DNA) -> tuple[Floats, Floats]:
    """Pairwise update of Chan, Golub and LeVeque (1979): sums of squares never cancel."""
    return merge_moments(a.images, a.mean, a.m2, b.images, b.mean, b.m2)


def merge_moments(
    n_a: int, mean_a: Floats, m2_a: Floats, n_b: int, mean_b: Floats, m2_b: Floats
) -> tuple[Floats, Floats]:
    """Mean and sum of squared deviations of two samples together; an empty one is neutral."""
    if n_a == 0 or n_b == 0:
        return (mean_a, m2_a) if n_b == 0 else (mean_b, m2_b)
    total = n_a + n_b
    with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
        delta = mean_b - mean_a
        mean = mean_a + delta * (n_b / total)
        m2 = m2_a + m2_b + delta * delta * (n_a * (n_b / total))
    return mean, m2


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
    for name, kind in _ARROW.items():
        columns[name] = pa.array(getattr(dna, name), kind)
    return pa.table(columns)


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
        **extra,
    }


def encode(metadata: Mapping[str, Any], groups: Iterable[pa.Table]) -> bytes:
    """A Parquet file in memory: one row group per table; the same input gives the same bytes.

    Bytes and not a stream, since a stream that fails half-way publishes a truncated object.
    """
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter | None = None
    for table in groups:
        if writer is None:
            writer = pq.ParquetWriter(
                sink,
                table.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                column_encoding={"counts.list.element": "DELTA_BINARY_PACKED"},
                data_page_size=4 * 2**20,
                write_page_checksum=True,
                store_schema=False,
            )
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    if writer is None:
        raise ValueError("a file needs at least one layer")
    sealed = {**metadata, "checksum": digest_of(metadata)}
    writer.add_key_value_metadata({"vdna": json.dumps(sealed, sort_keys=True)})
    writer.close()
    return cast(bytes, sink.getvalue().to_pybytes())


def encode_dna(dna: DNA, kind: str = "dna", **extra: object) -> bytes:
    return encode(header(dna, kind, **extra), (to_table(dna.select([la])) for la in dna.layers))


class DnaFile:
    """A file of a DNA, a partial, or folds, open to be read layer by layer.

    `metadata`: as `header` made it. Raises `CorruptFile` with `name` and what is wrong; readers
    also raise `ConservationError` where the counts do not add up.
    """

    def __init__(self, data: bytes, kind: str, name: str) -> None:
        self.name = name
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
        except (VdnaError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"{name}: its metadata cannot be read: {error!r}") from error
        if self.spec.digest != stated:
            raise CorruptFile(
                f"{name}: states spec digest {stated}, but its spec has {self.spec.digest}"
            )

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
        table = self._group(layer)
        parts = {}
        for fold in self.folds:
            rows = table.filter(pc.equal(table["fold"], fold)).drop_columns("fold")
            parts[fold] = self._decode(rows, layer, self._totals[str(fold)])
            parts[fold].check(f"{self.name}, fold {fold}")
        if sum(len(part.low) for part in parts.values()) != table.num_rows:
            raise CorruptFile(f"{self.name}: layer {layer} has rows of no fold")
        return parts

    def _group(self, layer: str) -> pa.Table:
        self.spec.tap(layer)
        index = self.spec.layers.index(layer)
        try:
            return self._file.read_row_group(index)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise CorruptFile(f"{self.name}: layer {layer} cannot be read: {error}") from error

    def _decode(self, table: pa.Table, layer: str, totals: _Totals) -> DNA:
        try:
            return _from_rows(table.combine_chunks(), self.spec, layer, totals, self.name)
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{self.name}: layer {layer} cannot be read: {error!r}") from error


@dataclass(frozen=True)
class _Totals:
    """What a file states about all neurons at once."""

    images: int
    failed: int
    numerics: tuple[tuple[Numerics, int], ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Totals:
        return cls(
            int(metadata["images"]),
            int(metadata["failed"]),
            tuple(
                (Numerics.from_json(entry["numerics"]), int(entry["images"]))
                for entry in metadata["numerics"]
            ),
        )


def decode_dna(
    data: bytes, name: str, kind: str = "dna", layers: Sequence[str] | None = None
) -> tuple[DNA, dict[str, Any]]:
    """A DNA (of `layers` only, where given) and its file's metadata; see `DnaFile`."""
    file = DnaFile(data, kind, name)
    return file.read(layers), file.metadata


def _from_rows(rows: pa.Table, spec: Spec, layer: str, totals: _Totals, name: str) -> DNA:
    tap = spec.tap(layer)
    layers = pc.unique(rows["layer"]).to_pylist()
    in_order = np.array_equal(rows["neuron"].to_numpy(), np.arange(tap.neurons))
    if layers != [layer] or not in_order:
        raise CorruptFile(
            f"{name}: layer {layer} does not hold neurons 0 to {tap.neurons - 1} in order"
        )
    lists = rows["counts"].combine_chunks()
    lengths = np.asarray(pc.list_value_length(lists))
    nulls = sum(rows[column].null_count for column in rows.column_names)
    if nulls or lists.flatten().null_count or not (lengths == spec.bins).all():
        raise CorruptFile(f"{name}: layer {layer} has nulls, or rows without {spec.bins} bins")
    arrays: dict[str, Any] = {
        column: rows[column].to_numpy().astype(kind.to_pandas_dtype(), copy=False)
        for column, kind in _ARROW.items()
    }
    return DNA(
        spec,
        (layer,),
        images=totals.images,
        failed=totals.failed,
        counts=np.asarray(lists.flatten(), np.int64).reshape(tap.neurons, spec.bins),
        **arrays,
        numerics=totals.numerics,
    )


def _concatenate(parts: Sequence[DNA]) -> DNA:
    arrays: dict[str, Any] = {
        column: np.concatenate([getattr(part, column) for part in parts])
        for column in ("counts", *SCALAR_COLUMNS)
    }
    return replace(parts[0], layers=tuple(la for part in parts for la in part.layers), **arrays)
