"""sources.archives.parquet: TODO-DOC"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import cast
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadImage, SourceError
from pipeline.sources.archives.file import CHUNK_BYTES, ArchiveFile, Contents, blaming_archive
from pipeline.sources.archives.index import IndexRows
from pipeline.sources.manifest import Entry

# Tables


_MAX_SPARE_ROWS = 1_000_000
"""A table that states more rows than this and than it has bytes is lying."""


def find_image_column(schema: pa.Schema, named: str | None, uri: str) -> str | None:
    found = [field.name for field in schema if _holds_bytes(field.type)]
    if not found:
        return None
    listed = ", ".join(sorted(found))
    if named is None and len(found) > 1:
        raise SourceError(
            f"{uri} has {len(found)} columns that may be images: {listed}; name one by "
            "--image-column"
        )
    if named is not None and found.count(named) != 1:
        raise SourceError(
            f"{uri} has no single column {named!r} of bytes, as --image-column names it; it has "
            f"{listed}"
        )
    return named or found[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind.fields)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def require_rows(rows: int, file: ArchiveFile) -> None:
    if not 0 <= rows <= max(_MAX_SPARE_ROWS, file.size):
        raise BadImage("corrupt", f"it states {rows} rows in {file.size} bytes")


def column_contents(
    file: ArchiveFile, wanted: Sequence[Entry], row: int, columns: Iterable[pa.Array]
) -> Contents:
    """The wanted rows out of consecutive pieces of the column, the first of them starting at `row`.

    A defect fails all that follow.
    """
    left = deque(wanted)
    try:
        with blaming_archive(file):
            for column in columns:
                while left and left[0].position < row + len(column):
                    yield left[0], _value(column[left[0].position - row])
                    left.popleft()
                row += len(column)
                if not left:
                    return
        bad = BadImage("truncated", "the table ends before this row")
    except BadImage as error:
        bad = error
    for entry in left:
        yield entry, BadImage(bad.reason, bad.detail)


def _value(scalar: pa.Scalar) -> bytes | BadImage:
    if scalar.is_valid and isinstance(scalar, pa.StructScalar):
        scalar = scalar["bytes"]
    return cast(bytes, scalar.as_py()) if scalar.is_valid else BadImage("empty", "the row is null")


def index_parquet(file: ArchiveFile, rows: IndexRows, uri: str, named: str | None) -> bool:
    table = _parquet(file)
    column = find_image_column(table.schema_arrow, named, uri)
    if column is None:
        return False
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        require_rows(rows.end + count if count >= 0 else count, file)
        rows.add_numbered(rows.end, count, f"parquet {group} {quote(column, safe='')}")
    return True


def _parquet(file: ArchiveFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES)


def rows_of_parquet(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    with blaming_archive(file):
        table = _parquet(file)
        counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        kinds = {field.name: field.type for field in table.schema_arrow}
    for access, group in groupby(entries, lambda entry: entry.access):
        number, column = int(access.split(" ")[1]), unquote(access.split(" ")[2])
        leaf = f"{column}.bytes" if pa.types.is_struct(kinds[column]) else column
        batches = table.iter_batches(  # one row a batch: never two images in memory
            batch_size=1, row_groups=[number], columns=[leaf], use_threads=False
        )
        pieces = (batch.column(column) for batch in batches)
        yield from column_contents(file, tuple(group), sum(counts[:number]), pieces)
