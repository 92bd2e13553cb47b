"""Writes and reads all Parquet files of this package, with checksums over every byte.

    >>> data = encode_sealed(LENS, {"name": "snow"}, [table])             # doctest: +SKIP
    >>> file = SealedFile(data, LENS, "s3://bucket/lens.parquet")         # doctest: +SKIP
    >>> file.metadata, file.read()                                        # doctest: +SKIP

A file holds one row group for each table, compressed with zstd, with a checksum on every page.
Its key-value metadata `vdna` is JSON: the `kind` and the `format` of the file, whatever that kind
states, `row_groups` (the number of rows and bytes of each, and the sha256 of its bytes), and a
`checksum` of all this. So the footer can be checked by itself, and each row group without the
others.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256 as new_sha256
from mmap import mmap
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.buffers import footer_start, release_pages, sha256
from pipeline.errors import CorruptFile
from pipeline.spec import digest_of

_KEY = b"vdna"

_DATA_START = len("PAR1")
"""Where the first row group begins in a file."""

_UNREADABLE = (
    pa.ArrowException,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
)
"""What pyarrow and our own parsing raise for a file with wrong content."""


ROWS_PER_GROUP = 2**20
"""The number of rows of a row group, if a table is cut into several."""


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Attributes:
        name: The name of the kind, as the file states it.
        format: The version of its layout. Only this version is read.
    """

    name: str
    format: int = 1


@dataclass(frozen=True)
class RowGroup:
    """A row group of a sealed file.

    Attributes:
        rows: The number of its rows.
        start: The offset of its first byte in the file.
        stop: The offset after its last byte.
        sha256: The sha256 of its bytes, as hex.
    """

    rows: int
    start: int
    stop: int
    sha256: str


@contextmanager
def corrupt_if_unreadable(about: str) -> Iterator[None]:
    """Turns the errors that wrong content causes into one that names the file.

    Args:
        about: The beginning of the message: the file's name and what is wrong with it.

    Yields:
        Nothing: the block reads the file.

    Raises:
        CorruptFile: The block raised an error of pyarrow, or could not parse what it read.
    """
    try:
        yield
    except _UNREADABLE as error:
        raise CorruptFile(f"{about}: {error!r}") from error


def open_parquet(source: Any, name: str, words: Sequence[str] = ()) -> pq.ParquetFile:
    """Opens any Parquet file; the checksums of pages are verified when they are read.

    Args:
        source: The bytes of the file, a memory map, or a seekable binary file.
        name: The name of the file in errors.
        words: Columns of text that are read as dictionaries, if they are there.

    Returns:
        The open file.

    Raises:
        CorruptFile: It is torn, or not Parquet.
    """
    held = pa.BufferReader(source) if isinstance(source, bytes | mmap | memoryview) else source
    with corrupt_if_unreadable(f"{name}: torn, or not a Parquet file"):
        plain = pq.ParquetFile(held, page_checksum_verification=True)
        there = [word for word in words if word in plain.schema_arrow.names]
        if not there:
            return plain
        return pq.ParquetFile(
            held, metadata=plain.metadata, page_checksum_verification=True, read_dictionary=there
        )


def is_sealed(parquet: pq.ParquetFile) -> bool:
    """Tells whether an open Parquet file was written by this codec."""
    return _KEY in (parquet.metadata.metadata or {})


class SealedWriter:
    """Writes a sealed file, one row group after the other; it holds one in memory at a time.

    >>> with SealedWriter(sink, MANIFEST, schema) as writer:              # doctest: +SKIP
    ...     writer.write(table)
    ...     writer.seal({"shards": 1})
    """

    def __init__(self, sink: Any, kind: FileKind, schema: pa.Schema, **layout: Any) -> None:
        """Begins a file.

        Args:
            sink: A binary file to write to.
            kind: What the file will say that it is.
            schema: The columns of every table.
            **layout: Further settings of `pyarrow.parquet.ParquetWriter`.
        """
        self._kind = kind
        self._sink = _HashingSink(sink)
        settings = {"compression": "zstd", "store_schema": False, "write_page_checksum": True}
        self._writer = pq.ParquetWriter(self._sink, schema, **(settings | layout))
        self._sink.take()  # the four bytes that every Parquet file begins with
        self._row_groups: list[dict[str, Any]] = []

    def __enter__(self) -> SealedWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Writes the footer."""
        self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Adds a table as the next row group."""
        self._writer.write_table(table, row_group_size=table.num_rows or None)
        self._row_groups.append({"rows": table.num_rows, **self._sink.take()})

    def seal(self, metadata: Mapping[str, Any]) -> None:
        """Adds the metadata, once all row groups are written.

        Args:
            metadata: What the file states of itself; JSON's types only.
        """
        own = {"kind": self._kind.name, "format": self._kind.format, "row_groups": self._row_groups}
        stated = json.loads(json.dumps({**metadata, **own}))
        sealed = stated | {"checksum": digest_of(stated)}
        self._writer.add_key_value_metadata({"vdna": json.dumps(sealed, sort_keys=True)})


class _HashingSink(io.RawIOBase):
    """Passes on what is written, and hashes and counts the bytes since the last `take`."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._begin()

    def _begin(self) -> None:
        self._size, self._hash = 0, new_sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sink.write(data)
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def take(self) -> dict[str, Any]:
        """Returns the size and the sha256 of the bytes since the last call."""
        found = {"bytes": self._size, "sha256": self._hash.hexdigest()}
        self._begin()
        return found


def encode_sealed(
    kind: FileKind,
    metadata: Mapping[str, Any],
    tables: Iterable[pa.Table],
    schema: pa.Schema | None = None,
    **layout: Any,
) -> bytes:
    """Makes a sealed file in memory; the same input gives the same bytes.

    It is made whole before it is stored, since a stream that fails half-way would publish a
    truncated object.

    Args:
        kind: What the file will say that it is.
        metadata: What the file states of itself; JSON's types only.
        tables: The row groups, one or more.
        schema: The columns; those of the first table if None.
        **layout: Further settings of `pyarrow.parquet.ParquetWriter`.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: There are no tables, and no schema.
    """
    rest = iter(tables)
    first = next(rest, None)
    if schema is None:
        if first is None:
            raise ValueError(f"a file of the kind {kind.name!r} needs a table or a schema")
        schema = first.schema
    sink = io.BytesIO()
    with SealedWriter(sink, kind, schema, **layout) as writer:
        if first is not None:
            writer.write(first)
            del first
        for table in rest:
            writer.write(table)
        writer.seal(metadata)
    return sink.getvalue()


def cut_rows(table: pa.Table) -> Iterator[pa.Table]:
    """Cuts a table into row groups.

    Args:
        table: The table.

    Yields:
        The next 2**20 rows. An empty table yields one empty piece.
    """
    for start in range(0, max(1, table.num_rows), ROWS_PER_GROUP):
        yield table.slice(start, ROWS_PER_GROUP)


class SealedFile:
    """A sealed file, open for reading. Opening it checks its metadata, not yet its rows.

    Attributes:
        name: The name of the file in errors.
        metadata: What the file states of itself, without what the codec added.
        row_groups: The place and the sha256 of every row group.
        parquet: The open Parquet file.
    """

    def __init__(
        self,
        source: Any,
        kind: FileKind,
        name: str,
        *,
        start: int = 0,
        words: Sequence[str] = (),
    ) -> None:
        """Opens a file.

        Args:
            source: Its bytes, a memory map, or a seekable binary file.
            kind: What it should be.
            name: The name of the file in errors.
            start: Where in the file the source begins. Its footer alone is enough to open it.
            words: Columns of text that are read as dictionaries.

        Raises:
            CorruptFile: The file is torn, is none of ours, is of another kind or format, or its
                metadata is not what was written.
        """
        self.name = name
        self._data = source
        self.parquet = open_parquet(source, name, words)
        if not is_sealed(self.parquet):
            raise CorruptFile(f"{name}: not a file of vdna; its metadata has no key 'vdna'")
        with corrupt_if_unreadable(f"{name}: torn, or not a file of vdna"):
            self.metadata: dict[str, Any] = json.loads(self.parquet.metadata.metadata[_KEY])
            found = FileKind(self.metadata["kind"], self.metadata["format"])
            stated = self.metadata.pop("checksum")
        if found.name != kind.name:
            raise CorruptFile(f"{name}: a {found.name!r} file where a {kind.name!r} file should be")
        if found != kind:
            raise CorruptFile(
                f"{name}: format {found.format!r} of {kind.name}; this version of vdna reads "
                f"format {kind.format}"
            )
        if stated != digest_of(self.metadata):
            raise CorruptFile(f"{name}: its metadata is not what was written; restore the file")
        with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
            self.row_groups = _row_groups(self.metadata["row_groups"])
        for key in ("kind", "format", "row_groups"):
            del self.metadata[key]
        footer = self.parquet.metadata
        held = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        if held != [row_group.rows for row_group in self.row_groups]:
            raise CorruptFile(
                f"{name}: holds {sum(held)} rows in {len(held)} row groups; states {self.rows} in "
                f"{len(self.row_groups)}"
            )
        if isinstance(source, bytes | mmap | memoryview):
            stop = self.row_groups[-1].stop if self.row_groups else _DATA_START
            if stop != (end := start + footer_start(source)):
                raise CorruptFile(f"{name}: its rows end at {stop}, its footer begins at {end}")

    @property
    def rows(self) -> int:
        """The number of rows in all row groups."""
        return sum(row_group.rows for row_group in self.row_groups)

    def check(self, row_groups: Mapping[int, str] | None = None) -> None:
        """Checks the bytes of row groups against what the footer states.

        Args:
            row_groups: The indices of those to check, each with a name for errors. None checks all.

        Raises:
            CorruptFile: A bit of one of them differs.
        """
        if row_groups is None:
            row_groups = {i: f"row group {i}" for i in range(len(self.row_groups))}
        for index, about in row_groups.items():
            stated = self.row_groups[index]
            with memoryview(self._data) as view, view[stated.start : stated.stop] as held:
                found = sha256(held)
            release_pages(self._data)
            if found != stated.sha256:
                raise CorruptFile(
                    f"{self.name}: {about} has sha256 {found}; its footer states {stated.sha256}. "
                    "Restore the file, or delete it and run the command that made it again"
                )

    def read(self, schema: pa.Schema | None = None) -> pa.Table:
        """Checks and reads all rows of a file in memory.

        Args:
            schema: The columns and types that they must have; None takes any.

        Returns:
            The rows, in chunks of a row group.

        Raises:
            CorruptFile: They are not what was written, or have other columns.
        """
        self.check()
        with corrupt_if_unreadable(f"{self.name}: its rows cannot be read"):
            table = self.parquet.read()
            return table if schema is None else table.cast(schema)


def _row_groups(stated: Sequence[Mapping[str, Any]]) -> tuple[RowGroup, ...]:
    found = []
    stop = _DATA_START
    for row_group in stated:
        for unit in ("rows", "bytes"):
            if type(row_group[unit]) is not int or row_group[unit] < 0:
                raise ValueError(f"a row group of {row_group[unit]} {unit}")
        start, stop = stop, stop + row_group["bytes"]
        found.append(RowGroup(row_group["rows"], start, stop, row_group["sha256"]))
    return tuple(found)
