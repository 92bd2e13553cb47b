"""dna.failures: TODO-DOC"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.buffers import Data
from pipeline.dna.file import FORMAT, encode_tables
from pipeline.errors import CorruptFile, printable


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
