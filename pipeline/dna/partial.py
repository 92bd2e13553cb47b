"""A partial: the DNA of some shards, which shards those are, and what they could not read.

    >>> (a + b).shards == tuple(sorted(a.shards + b.shards))      # doctest: +SKIP

The same laws as a DNA's, and one more: adding partials that share a shard is an `OverlapError`, so
no image can be counted twice by a sum. Its file is a DNA's file with the shards and the failures
in its metadata, and with each neuron's exemplars in its row where a build keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.dna.exemplars import COLUMN, Exemplars
from pipeline.dna.failures import Failure
from pipeline.dna.file import DnaFile, encode_layers, header, to_table
from pipeline.dna.ranges import Ranges
from pipeline.dna.value import DNA
from pipeline.errors import ConservationError, CorruptFile, OverlapError, SpecMismatch
from pipeline.spec import Spec


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
        """Makes the file of this partial in memory; the same partial gives the same bytes.

        Returns:
            The bytes of the file.
        """
        metadata = header(
            self.dna,
            shards=list(self.shards),
            failures=[asdict(failure) for failure in self.failures],
            **({COLUMN: self.exemplars.keep.product} if self.exemplars else {}),
        )
        return encode_layers("partial", metadata, map(self._rows, self.dna.layers))

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
