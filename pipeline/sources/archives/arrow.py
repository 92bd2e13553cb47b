"""sources.archives.arrow: TODO-DOC"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from urllib.parse import quote, unquote

import pyarrow as pa

from pipeline.errors import BadImage
from pipeline.sources.archives.file import ArchiveFile, Contents, blaming_archive
from pipeline.sources.archives.index import IndexRows
from pipeline.sources.archives.parquet import column_contents, find_image_column, require_rows
from pipeline.sources.manifest import Entry

MAX_BATCH_BYTES = 2**31

_SCHEMA_MESSAGE, _BATCH_MESSAGE = 1, 3


def index_arrow(file: ArchiveFile, rows: IndexRows, uri: str, named: str | None) -> bool:
    """Walks the messages of a file or a stream of Arrow's IPC; bodies are passed over."""
    column = None
    for at, metadata, kind, header in _messages(file):
        if kind == _SCHEMA_MESSAGE:
            column = find_image_column(_arrow_schema(file, at), named, uri)
            if column is None:
                return False
        elif kind == _BATCH_MESSAGE:
            if column is None:
                raise BadImage("corrupt", "there are rows before the schema")
            place = _field(metadata, header, 0)
            count = struct.unpack_from("<q", metadata, place)[0] if place else 0
            require_rows(rows.end + count if count >= 0 else count, file)
            access = f"arrow {at} {rows.end} {quote(column, safe='')}"
            rows.add_numbered(rows.end, count, access)
    if column is None:
        raise BadImage("corrupt", "there is no schema")
    return True


def _messages(file: ArchiveFile) -> Iterator[tuple[int, bytes, int, int]]:
    """(offset in the file, metadata, type, place of the header in the metadata) of each message.

    https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """
    magic = b"ARROW1"
    at, end = 0, file.size
    if file.read(len(magic)) == magic:
        file.seek(max(0, end - 10))
        length, tail = struct.unpack("<i6s", file.read(10).rjust(10, b"\0"))
        if tail != magic:
            raise BadImage("truncated", "a file of Arrow's without its end")
        at, end = 8, end - 10 - length
    while at != end:
        file.seek(at)
        prefix = file.read(8)
        if len(prefix) < 8:
            raise BadImage("truncated", "the stream ends without its end marker")
        mark, length = struct.unpack("<Ii", prefix)
        if mark != 0xFFFFFFFF or length < 0 or length > file.size:
            raise BadImage("corrupt", f"there is no message of Arrow's at byte {at}")
        if length == 0:
            if at + 8 < end:
                raise BadImage("corrupt", "after the end marker more follows; it is not read")
            return
        metadata = file.read(length)
        (root,) = struct.unpack_from("<I", metadata)
        kind_at, header_at, body_at = (_field(metadata, root, i) for i in (1, 2, 3))
        body = struct.unpack_from("<q", metadata, body_at)[0] if body_at else 0
        if body < 0 or at + 8 + length + body > end:
            raise BadImage("truncated", f"the message at byte {at} is not whole")
        header = header_at + struct.unpack_from("<I", metadata, header_at)[0]
        yield at, metadata, metadata[kind_at], header
        at += 8 + length + body
    if file.size == end:
        raise BadImage("truncated", "the stream ends without its end marker")


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table of Flatbuffers lies; 0 where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    (length,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot + 2 <= length else 0
    return table + offset if offset else 0


def _arrow_schema(file: ArchiveFile, at: int) -> pa.Schema:
    """With the indices of dictionaries in their place: their values are of no interest."""
    file.seek(at)
    schema = pa.ipc.read_schema(pa.ipc.read_message(file))
    return pa.schema(
        [f.with_type(f.type.index_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    )


def rows_of_arrow(file: ArchiveFile, entries: Sequence[Entry]) -> Contents:
    with blaming_archive(file):
        schema = _arrow_schema(file, next(_messages(file))[0])
    for access, group in groupby(entries, lambda entry: entry.access):
        _, at, first, column = access.split(" ")
        piece = _arrow_column(file, int(at), schema, unquote(column))
        yield from column_contents(file, tuple(group), int(first), piece)


def _arrow_column(file: ArchiveFile, at: int, schema: pa.Schema, name: str) -> Iterator[pa.Array]:
    """A record batch is read whole: it is what can be read of a stream."""
    file.seek(at)
    message = pa.ipc.read_message(file)
    size = _unpacked_bytes(message)
    if size > MAX_BATCH_BYTES:
        raise BadImage(
            "too_many_bytes",
            f"a record batch of {size} bytes; write smaller ones (the limit is {MAX_BATCH_BYTES})",
        )
    column = pa.ipc.read_record_batch(message, schema).column(name)
    column.validate(full=True)
    yield column


def _unpacked_bytes(message: pa.Message) -> int:
    """Of the body, or what its compressed buffers state."""
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
