"""Exemplars: for each neuron, the few images with the largest mean activation.

    >>> a + b == b + a, a + Exemplars.empty(settings, spec) == a          # doctest: +SKIP

An image's reaction is the mean of the neuron's activations over its positions. The names of the
images are kept, never their pixels. A larger reaction comes first; equal reactions are ordered by
uri, then by member. This order is total, so a sum does not depend on how the images were divided
into shards and batches.

The number of exemplars and the layers that have them are a product of a build, not part of the
spec, since they change no count. The product's name is part of every shard's key.
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
from pipeline.dna.dna_file import DnaFile
from pipeline.dna.sealed import FileKind, SealedFile, corrupt_if_unreadable, encode_sealed
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from pipeline.spec import Spec, Tap

DEFAULT_EXEMPLARS = 8

MAX_EXEMPLARS = 100
"""The largest number of exemplars of a neuron; the file of every shard holds them all."""

_PREFIX = "exemplars-"

_NAMED = [("uri", pa.string()), ("member", pa.string())]

EXEMPLAR_ROWS_SCHEMA = pa.schema([("neuron", pa.int32()), ("reaction", pa.float32()), *_NAMED])
"""The columns of `Exemplars.rows`. `neuron` is the index among the neurons of all layers."""

EXEMPLAR_TABLE_SCHEMA = pa.schema(
    [
        ("layer", pa.string()),
        ("neuron", pa.int32()),
        ("rank", pa.int32()),
        ("reaction", pa.float32()),
        *_NAMED,
    ]
)
"""The columns of `Exemplars.table`. Rank 1 has the neuron's largest reaction."""

EXEMPLAR_COLUMN = "exemplars"

_KIND = FileKind(EXEMPLAR_COLUMN)

_CELL = pa.list_(pa.struct([("reaction", pa.float32()), *_NAMED]))
"""The type of the exemplars of one neuron, which stand in its row in a partial's file."""


@dataclass(frozen=True)
class ExemplarSettings:
    """How many exemplars a build keeps for each neuron, and in which layers.

    Attributes:
        number: The number of exemplars of each neuron.
        layers: The layers that have exemplars. Empty means all layers.
    """

    number: int = DEFAULT_EXEMPLARS
    layers: tuple[str, ...] = ()

    @property
    def product(self) -> str:
        """The name of the product, as a build and its shard keys state it."""
        return f"{_PREFIX}{self.number}{':' if self.layers else ''}{','.join(self.layers)}"

    @classmethod
    def from_products(cls, products: Sequence[str]) -> ExemplarSettings | None:
        """Finds the settings among the products of a build.

        Args:
            products: The names of the products.

        Returns:
            The settings, or None if the build keeps no exemplars.

        Raises:
            CorruptFile: A product has no readable number of exemplars.
        """
        for product in products:
            if product.startswith(_PREFIX):
                number, _, layers = product.removeprefix(_PREFIX).partition(":")
                if not (number.isascii() and number.isdigit()):
                    raise CorruptFile(f"product {product!r} has no number of exemplars")
                return cls(int(number), tuple(layers.split(",")) if layers else ())
        return None

    @classmethod
    def from_options(
        cls, number: int, taps: str | None, network: Sequence[Tap]
    ) -> ExemplarSettings | None:
        """Makes the settings that a user asks for.

        Args:
            number: The number of exemplars of each neuron.
            taps: Globs of the layers that have exemplars, separated by commas. None means all.
            network: The taps of the network.

        Returns:
            The settings, or None if the number is 0.

        Raises:
            UsageError: The number is out of bounds, or a glob matches no layer.
        """
        if not 0 <= number <= MAX_EXEMPLARS:
            raise UsageError(f"exemplars is {number}; it must be from 0 to {MAX_EXEMPLARS}")
        globs = [glob.strip() for glob in taps.split(",")] if taps else []
        for glob in globs:
            if not any(fnmatchcase(tap.name, glob) for tap in network):
                names = ", ".join(tap.name for tap in network)
                raise UsageError(f"exemplar_taps: {glob!r} matches no layer; there are {names}")
        layers = [tap.name for tap in network if any(fnmatchcase(tap.name, g) for g in globs)]
        return cls(number, tuple(layers)) if number else None

    def neurons(self, spec: Spec) -> Ints:
        """Finds the neurons that have exemplars.

        Args:
            spec: The spec of the build.

        Returns:
            Their indices among the neurons of all layers, in order.
        """
        names = np.repeat(np.array(spec.layers, object), [tap.neurons for tap in spec.taps])
        places = np.arange(spec.neurons)
        return places[np.isin(names, self.layers)] if self.layers else places


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The exemplars of some images.

    Laws: `empty` is neutral; `+` is associative and commutative, to the last bit, for sets of
    images that have none in common. Exemplars with another spec or other settings are refused.

    Attributes:
        settings: How many exemplars each neuron has, and in which layers.
        spec: The spec that the images were counted under.
        rows: The rows, with the columns `EXEMPLAR_ROWS_SCHEMA`. They are sorted by neuron, and by
            reaction from the largest on. A neuron has at most `settings.number` rows.
    """

    settings: ExemplarSettings
    spec: Spec
    rows: pa.Table

    @classmethod
    def empty(cls, settings: ExemplarSettings, spec: Spec) -> Exemplars:
        """Makes the exemplars of no images.

        Args:
            settings: How many exemplars each neuron may have, and in which layers.
            spec: The spec that images are counted under.

        Returns:
            The neutral element of `+`.
        """
        return cls(settings, spec, EXEMPLAR_ROWS_SCHEMA.empty_table())

    def __add__(self, other: Exemplars) -> Exemplars:
        """Adds the exemplars of other images.

        Args:
            other: The exemplars of images that are not among these.

        Returns:
            The exemplars of all the images together.

        Raises:
            SpecMismatch: The specs or the settings differ.
        """
        self.spec.require_same(other.spec, "the left exemplars", "the right exemplars")
        if self.settings != other.settings:
            raise SpecMismatch(
                f"{self.settings.product} cannot be added to {other.settings.product}"
            )
        both = pa.concat_tables([self.rows, other.rows])
        order = [("neuron", "ascending"), ("reaction", "descending")]
        order += [(name, "ascending") for name, _ in _NAMED]
        both = both.take(pc.sort_indices(both, order))
        first = _ranks(both["neuron"].to_numpy()) < self.settings.number
        return Exemplars(self.settings, self.spec, both.filter(pa.array(first)).combine_chunks())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Exemplars)
            and (self.settings, self.spec) == (other.settings, other.spec)
            and bool(self.rows.equals(other.rows))
        )

    __hash__ = None  # type: ignore[assignment]  # a table has none

    def of_neuron(self, layer: str, neuron: int) -> list[dict[str, Any]]:
        """Returns the exemplars of one neuron.

        Args:
            layer: The layer.
            neuron: The index of the neuron in the layer.

        Returns:
            Its rows, the largest reaction first.
        """
        place = _starts(self.spec)[layer] + neuron
        held = self.rows["neuron"].to_numpy()
        first, last = np.searchsorted(held, [place, place + 1])
        return cast(list[dict[str, Any]], self.rows.slice(first, last - first).to_pylist())

    # The file of a partial has a column of exemplars, with one cell in each neuron's row.

    def cells(self, layer: str) -> pa.Array:
        """Makes the column of exemplars of one layer in a partial's file.

        Args:
            layer: The layer.

        Returns:
            One cell for each neuron: the list of its exemplars.
        """
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
    def from_partial(cls, file: DnaFile) -> Exemplars | None:
        """Reads the exemplars in a partial's file.

        Args:
            file: The open file of a partial.

        Returns:
            The exemplars, or None if the build keeps none.

        Raises:
            CorruptFile: They cannot be read.
        """
        product = file.metadata.get(EXEMPLAR_COLUMN)
        if product is None:
            return None
        cells = file.column(EXEMPLAR_COLUMN).combine_chunks()
        with corrupt_if_unreadable(f"{file.name}: its exemplars cannot be read"):
            settings = ExemplarSettings.from_products([product])
            values = cells.flatten()
            neurons = np.repeat(np.arange(len(cells)), np.asarray(cells.value_lengths()))
            columns = {
                name: pc.struct_field(values, name) for name in EXEMPLAR_ROWS_SCHEMA.names[1:]
            }
            table = pa.table({"neuron": neurons.astype(np.int32), **columns}).cast(
                EXEMPLAR_ROWS_SCHEMA
            )
        if settings is None:
            raise CorruptFile(f"{file.name}: {product!r} is not a product of exemplars")
        return cls(settings, file.spec, table)

    # The file of a dataset's exemplars has one row for each exemplar.

    @property
    def table(self) -> pa.Table:
        """The exemplars, one a row, with the columns `EXEMPLAR_TABLE_SCHEMA`."""
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
        return pa.table(columns, schema=EXEMPLAR_TABLE_SCHEMA)

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
            "product": self.settings.product,
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
        table = file.read(EXEMPLAR_TABLE_SCHEMA)
        with corrupt_if_unreadable(f"{name}: torn, or not a file of exemplars"):
            stated, product = file.metadata["spec_digest"], file.metadata["product"]
            settings = ExemplarSettings.from_products([product])
        if settings is None:
            raise CorruptFile(f"{name}: {product!r} is not a product of exemplars")
        if stated != spec.digest:
            raise CorruptFile(f"{name} was made under spec {stated}; the dataset has {spec.digest}")
        with corrupt_if_unreadable(f"{name}: torn, or not a file of exemplars"):
            starts = _starts(spec)
            first = np.array([starts[layer] for layer in table["layer"].to_pylist()], np.int32)
            columns: dict[str, Any] = {n: table[n] for n in EXEMPLAR_ROWS_SCHEMA.names}
            columns["neuron"] = first + table["neuron"].to_numpy()
            found = cls(settings, spec, pa.table(columns, schema=EXEMPLAR_ROWS_SCHEMA))
        if not found.table.equals(table) or found + cls.empty(settings, spec) != found:
            raise CorruptFile(f"{name}: its rows are not in their order")
        return found


def _starts(spec: Spec) -> dict[str, int]:
    """Returns the index of the first neuron of each layer."""
    return {layer: at.start for layer, at in zip(spec.layers, spec.slices, strict=True)}


def _ranks(neurons: NDArray[np.int32]) -> Ints:
    """Returns the rank of each row among its neuron's, from 0; rows are sorted by neuron."""
    starts = np.flatnonzero(np.diff(neurons, prepend=-1))
    return np.arange(len(neurons)) - np.repeat(starts, np.diff([*starts, len(neurons)]))
