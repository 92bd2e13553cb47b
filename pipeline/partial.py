"""A partial: the DNA of some shards, which shards those are, and what they could not read.

    >>> (a + b).shards == tuple(sorted(a.shards + b.shards))      # doctest: +SKIP

The same laws as a DNA's, and one more: adding partials that share a shard is an `OverlapError`, so
no image can be counted twice by a sum. Its file is a DNA's file with the shards and the failures
in its metadata, and with each neuron's exemplars in its row where a build keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.blocks import Data
from pipeline.dna import (
    DNA,
    FORMAT,
    DnaFile,
    Ranges,
    digest_of_layer,
    encode,
    encode_tables,
    header,
    to_table,
)
from pipeline.errors import ConservationError, CorruptFile, OverlapError, SpecMismatch, printable
from pipeline.exemplars import COLUMN, Exemplars
from pipeline.spec import Spec


@dataclass(frozen=True, order=True)
class Failure:
    """One candidate that could not be read, and why (`reason`: a word of `images.REASONS`).

    `nondeterministic`: the decoder crashed or timed out, three times, in a process of its own.
    """

    uri: str
    member: str
    reason: str
    detail: str
    nondeterministic: bool = False

    def __str__(self) -> str:
        name = f"{self.uri}{'::' + self.member if self.member else ''}"
        return printable(f"{name}: {self.reason}: {self.detail}")


@dataclass(frozen=True, eq=False)
class Partial:
    """`shards`: keys, sorted, distinct. `failures`: sorted. `candidates` = counted + failed."""

    dna: DNA
    shards: tuple[str, ...]
    failures: tuple[Failure, ...]
    exemplars: Exemplars | None = None

    def __post_init__(self) -> None:
        if self.dna.failed != len(self.failures):
            raise ConservationError(
                f"a partial of {len(self.shards)} shards counts {self.dna.failed} failures and "
                f"lists {len(self.failures)}"
            )

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges, *, layer_gaussian: bool = False) -> Partial:
        return cls(DNA.empty(spec, ranges, layer_gaussian=layer_gaussian), (), ())

    @property
    def candidates(self) -> int:
        return self.dna.images + len(self.failures)

    def __add__(self, other: Partial) -> Partial:
        """Raises `OverlapError` naming the shards that both hold."""
        both = sorted(set(self.shards) & set(other.shards))
        if both:
            raise OverlapError(f"{len(both)} shards would count twice: {', '.join(both[:5])}")
        return Partial(
            self.dna + other.dna,
            tuple(sorted(self.shards + other.shards)),
            tuple(sorted(self.failures + other.failures)),
            add_exemplars(self.exemplars, other.exemplars),
        )

    def identical(self, other: Partial) -> bool:
        """Equal to the last bit, numerics apart."""
        return (self.shards, self.failures, self.exemplars) == (
            other.shards,
            other.failures,
            other.exemplars,
        ) and self.dna.identical(other.dna)

    def encode(self) -> bytes:
        metadata = header(
            self.dna,
            "partial",
            shards=list(self.shards),
            failures=[asdict(failure) for failure in self.failures],
            content={la: digest_of_layer(self.dna.select([la])) for la in self.dna.layers},
            **({COLUMN: self.exemplars.stated()} if self.exemplars else {}),
        )
        return encode(metadata, (self._rows(layer) for layer in self.dna.layers))

    def _rows(self, layer: str) -> pa.Table:
        table = to_table(self.dna.select([layer]))
        return table.append_column(COLUMN, self.exemplars.cells(layer)) if self.exemplars else table

    @classmethod
    def decode(cls, data: bytes, name: str, layers: Sequence[str] | None = None) -> Partial:
        """Raises `CorruptFile` or `ConservationError`, with `name`."""
        file = DnaFile(data, "partial", name)
        shards, failures = ledger(file.metadata, name)
        return cls(file.read(layers), shards, failures, Exemplars.of_partial(file))


def add_exemplars(a: Exemplars | None, b: Exemplars | None) -> Exemplars | None:
    """Raises `SpecMismatch` where only one side keeps them."""
    if a is None or b is None:
        if a is not b:
            raise SpecMismatch("a partial with exemplars cannot be added to one without")
        return None
    return a + b


def ledger(metadata: dict[str, Any], name: str) -> tuple[tuple[str, ...], tuple[Failure, ...]]:
    """The shards and failures that a partial's metadata states."""
    try:
        shards = tuple(metadata["shards"])
        failures = tuple(Failure(**failure) for failure in metadata["failures"])
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{name}: no readable list of shards and failures: {error!r}") from error
    if list(shards) != sorted(set(shards)):
        raise CorruptFile(f"{name}: its shards are not distinct and sorted")
    return shards, failures


_FAILURES = pa.schema(
    [(name, pa.string()) for name in ("uri", "member", "reason", "detail")]
    + [("nondeterministic", pa.bool_())]
)


def encode_failures(failures: Iterable[Failure]) -> bytes:
    """A Parquet file, one row a failure, columns as the fields of `Failure`."""
    table = pa.Table.from_pylist([asdict(failure) for failure in failures], schema=_FAILURES)
    metadata = {"format": FORMAT, "kind": "failures", "rows": table.num_rows}
    return encode_tables(metadata, _FAILURES, [table])


def decode_failures(data: Data, name: str) -> list[Failure]:
    """Raises `CorruptFile` with `name` where it is no whole list of failures."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        metadata = json.loads(file.metadata.metadata[b"vdna"])
        rows = file.read().to_pylist()
        if (metadata["kind"], metadata["format"]) != ("failures", FORMAT):
            raise CorruptFile(
                f"{name}: {metadata['kind']!r} of format {metadata['format']}; this version of "
                f"vdna reads failures of format {FORMAT}"
            )
        if metadata["rows"] != len(rows):
            raise CorruptFile(f"{name}: states {metadata['rows']} failures, holds {len(rows)}")
        return [Failure(**row) for row in rows]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"{name}: torn, or not a list of failures: {error}") from error
