"""Lists and reads the images in a column of an Arrow IPC file or stream (Feather version 2, too).

The messages are walked here, because the library would read every body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa

from pipeline.errors import BadImage, SourceError
from pipeline.sources.archives.access import column_details
from pipeline.sources.archives.archive_file import ArchiveFile, Contents, archive_defects
from pipeline.sources.archives.class_labels import label_arrays, label_defects, require_columns
from pipeline.sources.archives.image_column import (
    add_rows,
    column_contents,
    find_image_column,
    holds_bytes,
)
from pipeline.sources.archives.index import IndexBuilder
from pipeline.sources.entry import Entry

MAX_BATCH_BYTES = 2**31
"""Limit for a record batch, which is unpacked whole."""

_SCHEMA_MESSAGE, _BATCH_MESSAGE = 1, 3


def index_arrow(file: ArchiveFile, builder: IndexBuilder, named: str | None) -> bool:
    """Lists the rows of an Arrow file or stream, without reading the bodies of its messages.

    Args:
        file: The file.
        builder: Gets the rows.
        named: The column of images that the user names, or None.

    Returns:
        False if no column holds images.

    Raises:
        BadImage: The file is damaged.
    """
    column, schema = None, None
    for at, metadata, kind, header, body in _messages(file):
        if kind == _SCHEMA_MESSAGE:
            schema = _schema(file, at)
            column = find_image_column(schema, named, file.uri)
            if column is None:
                return False
            _schema(file, at, builder.labels)  # says so if a label cannot be read
        elif kind == _BATCH_MESSAGE:
            if column is None or schema is None:
                raise BadImage("corrupt", "there are rows before the schema")
            place = _field(metadata, header, 0)
            count = struct.unpack_from("<q", metadata, place)[0] if place else 0
            labels = _labels(file, at, schema, builder.labels)
            # How large each column is would take a walk through all of them. Those that hold bytes
            # are taken for equal.
            columns = sum(holds_bytes(field.type) for field in schema)
            add_rows(
                file,
                builder,
                count,
                "arrow",
                at,
                builder.end,
                column=column,
                image_bytes=body // columns,
                labels=labels,
            )
    if column is None:
        raise BadImage("corrupt", "there is no schema")
    return True


def _labels(file: ArchiveFile, at: int, schema: pa.Schema, labels: Sequence[str]) -> list[pa.Array]:
    """Reads labels of the rows of a record batch, which can only be read whole.

    Returns:
        The values of each label; an empty list if the batch is damaged, and no image of it can be
            read either.

    Raises:
        SourceError: The values of a label cannot be read.
    """
    if not labels:
        return []
    try:
        with archive_defects(file):
            batch = _batch(file, at, schema)
    except BadImage:
        return []
    with label_defects(file.uri, labels):
        return label_arrays(batch, labels)


def _messages(file: ArchiveFile) -> Iterator[tuple[int, bytes, int, int, int]]:
    """Walks the messages of a file or stream.

    See https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format.

    Yields:
        The offset of each message, its metadata, its type, where its header is in the metadata, and
            how many bytes its body has.

    Raises:
        BadImage: The file is damaged.
    """
    magic = b"ARROW1"
    at, end = 0, file.size
    if file.read(len(magic)) == magic:
        file.seek(max(0, end - 10))
        length, tail = struct.unpack("<i6s", file.read(10).rjust(10, b"\0"))
        if tail != magic:
            raise BadImage("truncated", "an Arrow file without its end")
        at, end = 8, end - 10 - length
    while at != end:
        file.seek(at)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadImage("truncated", "the stream ends without its end marker")
        mark, length = struct.unpack("<Ii", prefix)
        if mark != 0xFFFFFFFF or length < 0 or length > file.size:
            raise BadImage("corrupt", f"there is no Arrow message at byte {at}")
        if length == 0:
            if at + 8 < end:
                raise BadImage("corrupt", "more data follows the end marker; it is not read")
            return
        metadata = file.read(length)
        (root,) = struct.unpack_from("<I", metadata)
        kind_at, header_at = (_field(metadata, root, i) for i in (1, 2))
        body = _body_bytes(metadata)
        if body < 0 or at + 8 + length + body > end:
            raise BadImage("truncated", f"the message at byte {at} is not whole")
        header = header_at + struct.unpack_from("<I", metadata, header_at)[0]
        yield at, metadata, metadata[kind_at], header, body
        at += 8 + length + body
    if file.size == end:
        raise BadImage("truncated", "the stream ends without its end marker")


def _field(data: bytes, table: int, number: int) -> int:
    """Returns where a field of a Flatbuffers table is; 0 if it has its default value."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (length,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot + 2 <= length else 0
    return table + offset if offset else 0


def _schema(file: ArchiveFile, at: int, labels: Sequence[str] = ()) -> pa.Schema:
    """Returns the schema, with dictionaries replaced by their indices: their values are not read.

    Raises:
        SourceError: A label is missing, or it is a dictionary.
    """
    file.seek(at)
    schema = pa.ipc.read_schema(pa.ipc.read_message(file))
    require_columns(labels, schema, file.uri)
    for label in labels:
        if pa.types.is_dictionary(schema.field(label).type):
            raise SourceError(
                f"{file.uri}: the column {label!r} is encoded by a dictionary, which is not read "
                "for labels; write it as plain values, or as Parquet"
            )
    return pa.schema(
        [f.with_type(f.type.index_type) if pa.types.is_dictionary(f.type) else f for f in schema],
        metadata=schema.metadata,
    )


def rows_of_arrow(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    """Reads images out of an Arrow file or stream.

    Args:
        file: The file.
        entries: The wanted rows, in order of position.

    Yields:
        Each entry with its bytes. A defect fails the rows behind it in the same record batch.
    """
    with archive_defects(file):
        schema = _schema(file, next(_messages(file))[0])
    for access, of_batch in groupby(entries, lambda entry: entry.access):
        (at, first_row), column = column_details(access)
        piece = _column(file, at, schema, column)
        yield from column_contents(file, tuple(of_batch), first_row, piece)


def _column(file: ArchiveFile, at: int, schema: pa.Schema, name: str) -> Iterator[pa.Array]:
    """Reads one column of a record batch.

    Yields:
        The column, as the only piece.
    """
    column = _batch(file, at, schema).column(name)
    column.validate(full=True)
    yield column


def _batch(file: ArchiveFile, at: int, schema: pa.Schema) -> pa.RecordBatch:
    """Reads a record batch, which can only be read whole.

    Returns:
        The batch.

    Raises:
        BadImage: The batch is too large.
    """
    file.seek(at)
    _, length = struct.unpack("<Ii", file.read(8))
    _require_small(_body_bytes(file.read(length)))  # before it is read
    file.seek(at)
    message = pa.ipc.read_message(file)
    _require_small(_unpacked_bytes(message))
    return pa.ipc.read_record_batch(message, schema)


def _require_small(size: int) -> None:
    if size > MAX_BATCH_BYTES:
        raise BadImage(
            "too_many_bytes",
            f"a record batch of {size} bytes; write smaller ones (the limit is {MAX_BATCH_BYTES})",
        )


def _body_bytes(metadata: bytes) -> int:
    """Returns how many bytes follow the metadata of a message."""
    (root,) = struct.unpack_from("<I", metadata)
    place = _field(metadata, root, 3)
    return int(struct.unpack_from("<q", metadata, place)[0]) if place else 0


def _unpacked_bytes(message: pa.Message) -> int:
    """Returns the size of a message's body once its compressed buffers are unpacked."""
    metadata, body = message.metadata.to_pybytes(), message.body
    (root,) = struct.unpack_from("<I", metadata)
    header = _field(metadata, root, 2)
    header += struct.unpack_from("<I", metadata, header)[0]
    buffers = _field(metadata, header, 2)
    if not _field(metadata, header, 3) or not buffers:
        return int(body.size)
    buffers += struct.unpack_from("<I", metadata, buffers)[0]
    (count,) = struct.unpack_from("<I", metadata, buffers)
    places = struct.iter_unpack("<qq", metadata[buffers + 4 : buffers + 4 + 16 * count])
    stated = [int(*struct.unpack_from("<q", body, at)) for at, length in places if length >= 8]
    return int(body.size) + sum(size for size in stated if size > 0)
