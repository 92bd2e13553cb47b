"""Lists and reads the images in a column of a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.archives.access import column_details
from pipeline.sources.archives.archive_file import (
    CHUNK_BYTES,
    ArchiveFile,
    Contents,
    archive_defects,
)
from pipeline.sources.archives.class_labels import (
    SHOWN_ROWS,
    label_arrays,
    label_defects,
    require_columns,
)
from pipeline.sources.archives.image_column import (
    add_rows,
    column_contents,
    find_image_column,
    is_binary,
)
from pipeline.sources.archives.index import IndexBuilder
from pipeline.sources.entry import Entry


def index_parquet(file: ArchiveFile, builder: IndexBuilder, named: str | None) -> bool:
    """Lists the rows of a Parquet file.

    Args:
        file: The file.
        builder: Gets the rows.
        named: The column of images that the user names, or None.

    Returns:
        False if no column holds images.
    """
    table = _open(file)
    column = find_image_column(table.schema_arrow, named, file.uri)
    if column is None:
        return False
    wanted = builder.labels
    lacks_some = not set(wanted) <= set(table.schema_arrow.names)
    require_columns(wanted, table.schema_arrow, file.uri, _head(table) if lacks_some else ())
    leaf = _leaf(table.schema_arrow.field(column))
    leaves = [at for at, path in enumerate(_paths(table)) if path == leaf]
    for group in range(table.num_row_groups):
        stated = table.metadata.row_group(group)
        size = sum(stated.column(at).total_compressed_size for at in leaves)
        labels: list[pa.Array] = []
        if wanted:
            with label_defects(file.uri, wanted):
                labels = label_arrays(_labels(table, group, wanted), wanted)
        add_rows(
            file,
            builder,
            stated.num_rows,
            "parquet",
            group,
            column=column,
            image_bytes=size,
            labels=labels,
        )
    return True


def _leaf(column: pa.Field) -> str:
    """Returns the path of what holds the bytes of a column of images."""
    return f"{column.name}.bytes" if pa.types.is_struct(column.type) else column.name


def _paths(table: pq.ParquetFile) -> list[str]:
    """Returns the paths of all columns as Parquet stores them, in their order."""
    return [table.schema.column(at).path for at in range(table.metadata.num_columns)]


def _labels(table: pq.ParquetFile, group: int, labels: Sequence[str]) -> pa.Table:
    found = table.read_row_group(group, columns=list(labels), use_threads=False)
    return found.replace_schema_metadata(table.schema_arrow.metadata)


def _head(table: pq.ParquetFile) -> list[dict[str, object]]:
    """Returns the first rows, without columns that may hold images."""
    plain = [f.name for f in table.schema_arrow if not pa.types.is_nested(f.type)]
    shown = [name for name in plain if not is_binary(table.schema_arrow.field(name).type)]
    batches = table.iter_batches(batch_size=SHOWN_ROWS, columns=shown, use_threads=False)
    return [row for batch in islice(batches, 1) for row in batch.to_pylist()]


def rows_of_parquet(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    """Reads images out of a Parquet file, one at a time.

    Args:
        file: The file.
        entries: The wanted rows, in order of position.

    Yields:
        Each entry with its bytes. A defect fails the rows behind it in the same row group.
    """
    with archive_defects(file):
        table = _open(file)
        counts = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        fields = {field.name: field for field in table.schema_arrow}
    for access, of_group in groupby(entries, lambda entry: entry.access):
        (number,), column = column_details(access)
        batches = table.iter_batches(  # one row a batch: never two images in memory
            batch_size=1, row_groups=[number], columns=[_leaf(fields[column])], use_threads=False
        )
        pieces = (batch.column(column) for batch in batches)
        yield from column_contents(file, tuple(of_group), sum(counts[:number]), pieces)


def _open(file: ArchiveFile) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES)
