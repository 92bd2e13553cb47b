"""Finds the column of images in a table, and reads images out of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import cast

import pyarrow as pa

from pipeline.errors import BadImage, SourceError
from pipeline.sources.archives.access import column_access
from pipeline.sources.archives.archive_file import ArchiveFile, Contents, archive_defects
from pipeline.sources.archives.index import IndexBuilder
from pipeline.sources.entry import Entry
from pipeline.wording import option

MAX_SPARE_ROWS = 1_000_000
"""A table that states more rows than this, and more rows than it has bytes, is damaged."""


def find_image_column(schema: pa.Schema, named: str | None, uri: str) -> str | None:
    """Finds the column that holds images.

    Args:
        schema: The table's schema.
        named: The column that the user names, or None.
        uri: The table, for error messages.

    Returns:
        The column's name, or None if no column holds bytes.

    Raises:
        SourceError: Several columns may be it, or not the one that is named.
    """
    found = [field.name for field in schema if holds_bytes(field.type)]
    if not found:
        return None
    listed = ", ".join(sorted(found))
    if named is None and len(found) > 1:
        raise SourceError(
            f"{uri} has {len(found)} columns that may be images: {listed}; name one by "
            f"{option('image_column')}"
        )
    if named is not None and found.count(named) != 1:
        raise SourceError(
            f"{uri} has no column {named!r} of bytes, or several; give {option('image_column')} "
            f"one of {listed}"
        )
    return named or found[0]


def holds_bytes(kind: pa.DataType) -> bool:
    """Returns whether a column of this type may hold images."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind.fields)
    return is_binary(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Returns whether a column of this type holds bytes."""
    tests = ("is_binary", "is_large_binary", "is_fixed_size_binary", "is_binary_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def add_rows(
    file: ArchiveFile,
    builder: IndexBuilder,
    rows: int,
    kind: str,
    *numbers: int,
    column: str,
    image_bytes: int,
    labels: Sequence[pa.Array] = (),
) -> None:
    """Adds the next rows of a table to its index.

    Args:
        file: The table.
        builder: Gets the rows.
        rows: How many there are.
        kind: The first word of their access.
        numbers: Where they are, as in their access.
        column: The column of images.
        image_bytes: About how many bytes the images take in the table, as it states.
        labels: The values of the labels.

    Raises:
        BadImage: The table states more rows than it can have.
    """
    total = builder.end + rows if rows >= 0 else rows
    if not 0 <= total <= max(MAX_SPARE_ROWS, file.size):
        raise BadImage("corrupt", f"it states {total} rows, which do not fit its {file.size} bytes")
    builder.add_rows(rows, column_access(kind, *numbers, column=column), labels)
    # A damaged table may state anything.
    builder.image_bytes = min(builder.image_bytes + max(0, image_bytes), file.size)


def column_contents(
    file: ArchiveFile, entries: Sequence[Entry], first_row: int, pieces: Iterable[pa.Array]
) -> Contents:
    """Reads images out of consecutive pieces of a column.

    Args:
        file: The table.
        entries: The wanted rows, in order of position.
        first_row: The number of the first row of the first piece.
        pieces: The pieces.

    Yields:
        Each entry with its bytes. After a defect all that follow fail.
    """
    row = first_row
    left = deque(entries)
    try:
        with archive_defects(file):
            for column in pieces:
                while left and left[0].position < row + len(column):
                    yield left[0], _value(column[left[0].position - row])
                    left.popleft()
                row += len(column)
                if not left:
                    break
        bad = BadImage("truncated", "the table ends before this row")
    except BadImage as error:
        bad = error
    for entry in left:
        yield entry, BadImage(bad.reason, bad.detail)


def _value(scalar: pa.Scalar) -> bytes | BadImage:
    if scalar.is_valid and isinstance(scalar, pa.StructScalar):
        scalar = scalar["bytes"]
    return cast(bytes, scalar.as_py()) if scalar.is_valid else BadImage("empty", "the row is null")
