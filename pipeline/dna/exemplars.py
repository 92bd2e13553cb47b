"""Exemplars: of each neuron, the few images that it reacts to most; kept while they are counted.

    >>> a + b == b + a, a + Exemplars.empty(keep, spec) == a              # doctest: +SKIP

An image's reaction is the mean of the neuron's activations over its positions. Names are kept,
never pixels. The order is total: the larger reaction first, of equal ones the lesser uri and
member; so that a sum is the same in whatever shards, batches and order the images came.

How many are kept, and in which layers, is a product of a build: its name stands in the key of every
shard, not in the spec, for it changes no count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.buffers import Data
from pipeline.dna.arrays import Ints
from pipeline.dna.file import DnaFile
from pipeline.dna.sealed import Kind, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Spec, Tap

DEFAULT_KEPT = 8

MOST_KEPT = 100
"""Of a neuron: every shard's file holds them all."""

_PREFIX = "exemplars-"

_NAMED = [("uri", pa.string()), ("member", pa.string())]

SUM = pa.schema([("neuron", pa.int32()), ("reaction", pa.float32()), *_NAMED])
"""`neuron`: its place among those of all layers."""

SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        ("rank", pa.int32()),
        ("reaction", pa.float32()),
        *_NAMED,
    ]
)
"""The columns of a dataset's exemplars, a row each; rank 1 is the image reacted to most."""

COLUMN = "exemplars"

_KIND = Kind(COLUMN)

_CELL = pa.list_(pa.struct([("reaction", pa.float32()), *_NAMED]))
"""In a partial, of the neuron whose row it is."""


@dataclass(frozen=True)
class Keep:
    """How many exemplars of each neuron, and of which layers; all of them for none named."""

    number: int = DEFAULT_KEPT
    layers: tuple[str, ...] = ()

    @property
    def product(self) -> str:
        return f"{_PREFIX}{self.number}{':' if self.layers else ''}{','.join(self.layers)}"

    @classmethod
    def of(cls, products: Sequence[str]) -> Keep | None:
        """As a build's products say; None where it keeps none. Raises `CorruptFile`."""
        for product in products:
            if product.startswith(_PREFIX):
                number, _, layers = product.removeprefix(_PREFIX).partition(":")
                if not (number.isascii() and number.isdigit()):
                    raise CorruptFile(f"product {product!r} says no number of exemplars")
                return cls(int(number), tuple(layers.split(",")) if layers else ())
        return None

    @classmethod
    def asked(cls, number: int, taps: str | None, network: Sequence[Tap]) -> Keep | None:
        """Of a network's taps that match globs, separated by commas. None for the number 0."""
        if not 0 <= number <= MOST_KEPT:
            raise UsageError(f"exemplars is {number}; it must be from 0 to {MOST_KEPT}")
        globs = [glob.strip() for glob in taps.split(",")] if taps else []
        for glob in globs:
            if not any(fnmatchcase(tap.name, glob) for tap in network):
                names = ", ".join(tap.name for tap in network)
                raise UsageError(f"exemplar_taps: {glob!r} matches no layer; there are {names}")
        layers = [tap.name for tap in network if any(fnmatchcase(tap.name, g) for g in globs)]
        return cls(number, tuple(layers)) if number else None

    def neurons(self, spec: Spec) -> Ints:
        """Places of the neurons looked at, among those of all layers."""
        names = np.repeat(np.array(spec.layers, object), [tap.neurons for tap in spec.taps])
        places = np.arange(spec.neurons)
        return places[np.isin(names, self.layers)] if self.layers else places


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Rows of `SUM`: by neuron, the largest reaction first, at most `keep.number` a neuron."""

    keep: Keep
    spec: Spec
    rows: pa.Table

    @classmethod
    def empty(cls, keep: Keep, spec: Spec) -> Exemplars:
        return cls(keep, spec, SUM.empty_table())

    def __add__(self, other: Exemplars) -> Exemplars:
        """Of images that are in one of the two. Raises `SpecMismatch` where others were kept."""
        self.spec.require_same(other.spec, "the left exemplars", "the right exemplars")
        if self.keep != other.keep:
            raise SpecMismatch(f"{self.keep.product} cannot be added to {other.keep.product}")
        both = pa.concat_tables([self.rows, other.rows])
        order = [("neuron", "ascending"), ("reaction", "descending")]
        order += [(name, "ascending") for name, _ in _NAMED]
        both = both.take(pc.sort_indices(both, order))
        first = _ranks(both["neuron"].to_numpy()) < self.keep.number
        return Exemplars(self.keep, self.spec, both.filter(pa.array(first)).combine_chunks())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Exemplars)
            and (self.keep, self.spec) == (other.keep, other.spec)
            and bool(self.rows.equals(other.rows))
        )

    __hash__ = None  # type: ignore[assignment]  # a table has none

    def of(self, layer: str, neuron: int) -> list[dict[str, Any]]:
        """Rows of one neuron, its largest reaction first."""
        place = _starts(self.spec)[layer] + neuron
        held = self.rows["neuron"].to_numpy()
        first, last = np.searchsorted(held, [place, place + 1])
        return cast(list[dict[str, Any]], self.rows.slice(first, last - first).to_pylist())

    # In a partial: a cell in each neuron's row.

    def cells(self, layer: str) -> pa.Array:
        """Of each neuron of a layer, its exemplars."""
        start = _starts(self.spec)[layer]
        neurons = self.spec.tap(layer).neurons
        held = self.rows["neuron"].to_numpy()
        first, last = np.searchsorted(held, [start, start + neurons])
        rows = self.rows.slice(first, last - first).combine_chunks()
        counts = np.bincount(held[first:last] - start, minlength=neurons)
        offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
        fields = [rows.column(field.name).combine_chunks() for field in _CELL.value_type]
        parts = [part.chunk(0) if isinstance(part, pa.ChunkedArray) else part for part in fields]
        values = pa.StructArray.from_arrays(parts, fields=list(_CELL.value_type))
        return pa.ListArray.from_arrays(pa.array(offsets), values, _CELL)

    @classmethod
    def of_partial(cls, file: DnaFile) -> Exemplars | None:
        """Reads the exemplars in a partial's file.

        Args:
            file: The open file of a partial.

        Returns:
            The exemplars, or None if the build keeps none.

        Raises:
            CorruptFile: They cannot be read.
        """
        product = file.metadata.get(COLUMN)
        if product is None:
            return None
        cells = file.column(COLUMN).combine_chunks()
        with corrupt_if_unreadable(f"{file.name}: its exemplars cannot be read"):
            keep = Keep.of([product])
            values = cells.flatten()
            neurons = np.repeat(np.arange(len(cells)), np.asarray(cells.value_lengths()))
            columns = {name: pc.struct_field(values, name) for name in SUM.names[1:]}
            table = pa.table({"neuron": neurons.astype(np.int32), **columns}).cast(SUM)
        if keep is None:
            raise CorruptFile(f"{file.name}: {product!r} says nothing of exemplars")
        return cls(keep, file.spec, table)

    # A dataset's file.

    @property
    def table(self) -> pa.Table:
        """As `SCHEMA`."""
        places = self.rows["neuron"].to_numpy()
        bounds = np.array([*_starts(self.spec).values(), self.spec.neurons])
        layers = np.searchsorted(bounds, places, side="right") - 1
        columns: dict[str, Any] = {
            "layer": pa.array(np.array(self.spec.layers, object)[layers], pa.string()),
            "neuron": (places - bounds[layers]).astype(np.int32),
            "rank": (_ranks(places) + 1).astype(np.int32),
            "reaction": self.rows["reaction"],
            "uri": self.rows["uri"],
            "member": self.rows["member"],
        }
        return pa.table(columns, schema=SCHEMA)

    def encode(self, dataset: str, digest: str) -> bytes:
        """Makes the file of a dataset's exemplars in memory, with the rows of `table`.

        Args:
            dataset: The name of the dataset.
            digest: The digest of the DNA that the file stands beside.

        Returns:
            The bytes of the file.
        """
        metadata = {
            "dataset": dataset,
            "digest": digest,
            "product": self.keep.product,
            "spec_digest": self.spec.digest,
        }
        return encode_sealed(_KIND, metadata, [self.table])

    @classmethod
    def decode(cls, data: Data, name: str, spec: Spec) -> Exemplars:
        """Reads the file of a dataset's exemplars.

        Args:
            data: The bytes of the file.
            name: The name of the file in errors.
            spec: The spec that the dataset was built under.

        Returns:
            The exemplars.

        Raises:
            CorruptFile: The file is torn, not what was written, or of another spec.
        """
        file = SealedFile(data, _KIND, name)
        table = file.read(SCHEMA)
        with corrupt_if_unreadable(f"{name}: torn, or not a file of exemplars"):
            stated, product = file.metadata["spec_digest"], file.metadata["product"]
            keep = Keep.of([product])
        if keep is None:
            raise CorruptFile(f"{name}: {product!r} says nothing of exemplars")
        if stated != spec.digest:
            raise CorruptFile(f"{name}: of spec {stated}, not {spec.digest}")
        with corrupt_if_unreadable(f"{name}: torn, or not a file of exemplars"):
            starts = _starts(spec)
            first = np.array([starts[layer] for layer in table["layer"].to_pylist()], np.int32)
            columns: dict[str, Any] = {n: table[n] for n in SUM.names}
            columns["neuron"] = first + table["neuron"].to_numpy()
            found = cls(keep, spec, pa.table(columns, schema=SUM))
        if not found.table.equals(table) or found + cls.empty(keep, spec) != found:
            raise CorruptFile(f"{name}: its rows are not in their order")
        return found


def _starts(spec: Spec) -> dict[str, int]:
    """Of each layer, the place of its first neuron."""
    return {layer: at.start for layer, at in zip(spec.layers, spec.slices, strict=True)}


def _ranks(neurons: NDArray[np.int32]) -> Ints:
    """Of rows sorted by neuron, which they are of their neuron's, from 0."""
    starts = np.flatnonzero(np.diff(neurons, prepend=-1))
    return np.arange(len(neurons)) - np.repeat(starts, np.diff([*starts, len(neurons)]))
