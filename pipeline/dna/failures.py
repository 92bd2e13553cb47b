"""The candidates that could not be read, why, and the file that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline.buffers import Data
from pipeline.dna.sealed import FileKind, SealedFile, encode_sealed
from pipeline.errors import printable
from pipeline.wording import spelled


@dataclass(frozen=True, order=True)
class Failure:
    """One candidate that could not be read, and why.

    Attributes:
        uri: The object.
        member: The name inside an archive; empty for an object of its own.
        reason: One word of `pipeline.images.REASONS`.
        detail: What happened, for people.
        nondeterministic: Whether the decoder crashed or timed out, three times, in a process of
            its own, so that another run may find something else.
    """

    uri: str
    member: str
    reason: str
    detail: str
    nondeterministic: bool = False

    def __str__(self) -> str:
        name = spelled(self.uri, self.member)
        return f"{name}: {self.reason}: {printable(self.detail)}"


_FAILURES = FileKind("failures")

_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uri", "member", "reason", "detail")]
    + [("nondeterministic", pa.bool_())]
)


def encode_failures(failures: Iterable[Failure]) -> bytes:
    """Makes a file of failures in memory: one row a failure, with the fields as columns.

    Args:
        failures: The failures, in the order of the rows.

    Returns:
        The bytes of the file.
    """
    table = pa.Table.from_pylist([asdict(failure) for failure in failures], schema=_SCHEMA)
    return encode_sealed(_FAILURES, {}, [table])


def decode_failures(data: Data, name: str) -> list[Failure]:
    """Reads a file of failures.

    Args:
        data: The bytes of the file.
        name: The name of the file in errors.

    Returns:
        The failures, in the order of the rows.

    Raises:
        CorruptFile: The file is torn, or not what was written.
    """
    table = SealedFile(data, _FAILURES, name).read(_SCHEMA)
    return [Failure(**row) for row in table.to_pylist()]
