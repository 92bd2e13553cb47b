"""A partial: the DNA of some shards, which shards those are, and what they could not read.

    >>> (a + b).shards == tuple(sorted(a.shards + b.shards))      # doctest: +SKIP

The same laws as a DNA's, and one more: adding partials that share a shard is an `OverlapError`, so
no image can be counted twice by a sum. Its file is a DNA's file with the shards and the failures
in its metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.dna import DNA, Ranges, decode_dna, encode_dna
from pipeline.errors import ConservationError, CorruptFile, OverlapError
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
        return (
            f"{self.uri}{'::' + self.member if self.member else ''}: {self.reason}: {self.detail}"
        )


@dataclass(frozen=True, eq=False)
class Partial:
    """`shards`: keys, sorted, distinct. `failures`: sorted. `candidates` = counted + failed."""

    dna: DNA
    shards: tuple[str, ...]
    failures: tuple[Failure, ...]

    def __post_init__(self) -> None:
        if self.dna.failed != len(self.failures):
            raise ConservationError(
                f"a partial of {len(self.shards)} shards counts {self.dna.failed} failures and "
                f"lists {len(self.failures)}"
            )

    @classmethod
    def empty(cls, spec: Spec, ranges: Ranges) -> Partial:
        return cls(DNA.empty(spec, ranges), (), ())

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
        )

    def identical(self, other: Partial) -> bool:
        """Equal to the last bit, numerics apart."""
        return (self.shards, self.failures) == (
            other.shards,
            other.failures,
        ) and self.dna.identical(other.dna)

    def encode(self) -> bytes:
        return encode_dna(
            self.dna,
            "partial",
            shards=list(self.shards),
            failures=[asdict(failure) for failure in self.failures],
        )

    @classmethod
    def decode(cls, data: bytes, name: str, layers: Sequence[str] | None = None) -> Partial:
        """Raises `CorruptFile` or `ConservationError`, with `name`."""
        dna, metadata = decode_dna(data, name, "partial", layers)
        shards, failures = ledger(metadata, name)
        return cls(dna, shards, failures)


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


def failures_table(failures: Iterable[Failure]) -> pa.Table:
    """Columns `uri`, `member`, `reason`, `detail`, `nondeterministic`."""
    schema = pa.schema(
        [(name, pa.string()) for name in ("uri", "member", "reason", "detail")]
        + [("nondeterministic", pa.bool_())]
    )
    return pa.Table.from_pylist([asdict(failure) for failure in failures], schema=schema)
