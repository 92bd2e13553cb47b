"""Reads the rows of a user's table: CSV, TSV, Parquet, JSON lines, or annotations of COCO.

>>> table = TableFile.open("file:///photos/table.csv")                     # doctest: +SKIP
>>> table.columns, next(table.rows())
(('path', 'weather'), {'path': 'a.jpg', 'weather': 'rain'})
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from posixpath import splitext
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import SourceError, first_rows, printable
from pipeline.sources.archives.class_labels import SHOWN_ROWS, class_names, label_text, utf8_text
from pipeline.sources.archives.image_column import holds_bytes
from pipeline.sources.coco import COCO_COLUMNS, coco_rows
from pipeline.sources.quotes import CheckedQuotes

DELIMITERS = {".csv": ",", ".tsv": "\t"}

JSON_LINES = frozenset({".jsonl", ".ndjson"})

TABLE_EXTENSIONS = frozenset({*DELIMITERS, *JSON_LINES, ".parquet", ".json"})

LONGEST_ROW = 2**24
"""The most characters of a line of JSON. A file without breaks would be held whole otherwise."""


@dataclass(frozen=True)
class TableFile:
    """A table, of which nothing but the columns was read yet, unless that takes reading it whole.

    Attributes:
        uri: The table.
        columns: The names of its columns.
        embedded: The columns that hold images themselves, not names of them.
        text: The columns that may hold names.
        held: The rows of annotations of COCO, which take long to read.
        skipped: The columns that are not read.
    """

    uri: str
    columns: tuple[str, ...]
    embedded: frozenset[str]
    text: frozenset[str]
    held: Sequence[Mapping[str, Any]] = field(default=(), repr=False, compare=False)
    skipped: frozenset[str] = frozenset()

    @classmethod
    def open(cls, uri: str) -> TableFile | None:
        """Reads the columns of a table.

        Args:
            uri: The table.

        Returns:
            The table; None if it is none by its name, or does not exist.

        Raises:
            SourceError: It cannot be read as a table.
        """
        extension = _extension(uri)
        if extension not in TABLE_EXTENSIONS:
            return None
        try:
            storage.info(uri)
        except SourceError:
            return None
        embedded: frozenset[str] = frozenset()
        text: frozenset[str] | None = None
        held: Sequence[Mapping[str, Any]] = ()
        with as_table(uri):
            if extension in DELIMITERS:
                with storage.open_random(uri) as file:
                    columns = tuple(_open_delimited(file, uri).schema.names)
            elif extension == ".parquet":
                with storage.open_random(uri) as file:
                    schema = pq.ParquetFile(file).schema_arrow
                columns = tuple(schema.names)
                embedded = frozenset(field.name for field in schema if holds_bytes(field.type))
                text = frozenset(field.name for field in schema if _is_text(field.type))
            elif extension == ".json":
                columns = COCO_COLUMNS
                held = coco_rows(uri)  # says so if it is none
            else:
                columns = tuple(dict.fromkeys(name for row in _json_lines(uri) for name in row))
        return cls(uri, columns, embedded, frozenset(columns) if text is None else text, held)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Reads the rows.

        Yields:
            The value of each column. Classes of Hugging Face's `datasets` have their names.
        """
        with as_table(self.uri):
            if _extension(self.uri) == ".json":
                yield from self.held
            elif _extension(self.uri) in JSON_LINES:
                for row in _json_lines(self.uri):
                    yield {name: row.get(name) for name in self.columns}
            else:
                for batch in self.batches():
                    yield from rows_of(batch)

    @property
    def has_batches(self) -> bool:
        """Whether it can be read column by column."""
        return _extension(self.uri) in (*DELIMITERS, ".parquet")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Reads the rows of a table that `has_batches`.

        Yields:
            Some rows, with all columns that are not skipped.
        """
        with as_table(self.uri), storage.open_random(self.uri) as file:
            if _extension(self.uri) in DELIMITERS:
                yield from _open_delimited(file, self.uri, self.columns)
            else:
                read = [name for name in self.columns if name not in self.skipped]
                columns = read if self.skipped else None
                for batch in pq.ParquetFile(file).iter_batches(batch_size=4096, columns=columns):
                    batch.validate(full=True)  # that texts are UTF-8, which readers do not ask
                    yield batch

    def head(self) -> str:
        """Shows the first rows, for the end of an error's message."""
        if self.embedded:  # reading a row would read its image
            return ""
        return first_rows(list(islice(self.rows(), SHOWN_ROWS)))


def rows_of(batch: pa.RecordBatch) -> list[Mapping[str, Any]]:
    """Returns the rows of a batch, as `TableFile.rows` yields them."""
    classes = class_names(batch.schema)
    return [
        row | {name: label_text(row[name], classes[name]) for name in classes if name in row}
        for row in batch.to_pylist()
    ]


def _extension(uri: str) -> str:
    return splitext(uri)[1].lower()


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("is_string", "is_large_string", "is_string_view", "is_null")
    return any(getattr(pa.types, test)(value) for test in tests)


def _open_delimited(
    file: IO[bytes], uri: str, columns: tuple[str, ...] = ()
) -> pyarrow.csv.CSVStreamingReader:
    delimiter = DELIMITERS[_extension(uri)]
    return pyarrow.csv.open_csv(
        CheckedQuotes(file, uri, delimiter),
        read_options=pyarrow.csv.ReadOptions(block_size=LONGEST_ROW),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string())
        ),
    )


def _json_lines(uri: str) -> Iterator[dict[str, Any]]:
    """Reads a file with one JSON object a line.

    Yields:
        The objects.

    Raises:
        SourceError: A line is no JSON object.
    """
    with storage.open_random(uri) as file:
        text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="\n")
        for number, line in enumerate(iter(lambda: text.readline(LONGEST_ROW + 1), ""), 1):
            if len(line) > LONGEST_ROW:
                raise SourceError(f"{uri}, line {number} has over {LONGEST_ROW:,} characters")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"{uri}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise SourceError(f"{uri}, line {number} is no JSON object with columns")
            if wrong := [name for name in row if utf8_text(name) != name]:
                raise SourceError(
                    f"{uri}, line {number} has the column {printable(wrong[0])}, whose name is no "
                    "text that can be stored"
                )
            yield row


@contextlib.contextmanager
def as_table(uri: str) -> Iterator[None]:
    """Says of an error of Arrow that the table cannot be read.

    Args:
        uri: The table.

    Yields:
        Nothing.

    Raises:
        SourceError: Arrow has raised an error.
    """
    try:
        yield
    # Arrow raises OSError for much damage, and OverflowError for times outside of Python's. What
    # storage raises is a VdnaError, and stays one.
    except (pa.ArrowException, UnicodeDecodeError, OverflowError, OSError) as error:
        raise SourceError(f"{uri} cannot be read as a table: {error}") from error
