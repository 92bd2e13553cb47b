"""sources.tables: TODO-DOC"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from posixpath import splitext
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import SourceError, UsageError, VdnaError
from pipeline.sources.archives import indexing as archive
from pipeline.sources.manifest import SCHEMA
from pipeline.sources.map_ahead import map_in_order
from pipeline.sources.rules import Rules
from pipeline.storage import Stored

LIST_EXTENSION = ".txt"

TABLE_EXTENSIONS = frozenset({".csv", ".parquet"})

TABLE_COLUMNS = ("uri", "member", "size", "identity")
"""Of a user's table that mean something to us; all others are labels."""

SHARED_STORES = ("s3", "gs", "gcs", "abfs", "az", "http", "https")
"""What a list that comes from a store may name: whoever wrote it may not have this machine's files
read (`file`, and others of fsspec's that lead to them, as `local`, `zip`, `reference`, `sftp`)."""


# Lists and tables.


def uris_of_list(uri: str, parent: str) -> Iterator[Stored]:
    """Objects of a text list: one path or url a line, relative ones to the list's folder."""

    def look(numbered: tuple[int, str]) -> Stored:
        number, name = numbered
        with _naming(f"{uri}, line {number}"):
            return storage.info(_absolute(name, parent))

    def named() -> Iterator[tuple[int, str]]:
        for number, line in enumerate(text, 1):
            name = line.strip()
            if name and not name.startswith("#"):
                yield number, name

    try:
        with storage.open_random(uri) as file:
            text = io.TextIOWrapper(cast(Any, file), encoding="utf-8", newline="\n")
            yield from map_in_order(look, named())
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri} is not a list of paths in UTF-8: {error}") from error


@dataclass(frozen=True)
class _Row:
    item: Stored
    member: str
    group: str | None
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class SourceTable:
    """A user's table of images: Parquet or CSV, one row an image, with a column `uri`.

    `member` names one of an archive's. Where `size` and `identity` are given they are not looked
    up; a wrong one is found when the image is read. All other columns are labels.
    """

    uri: str
    columns: tuple[str, ...]
    group: str | None

    @classmethod
    def of(cls, uri: str, rules: Rules) -> SourceTable | None:
        """None where the object is no table: a folder, or a Parquet file of images."""
        extension = splitext(uri)[1].lower()
        if extension not in TABLE_EXTENSIONS:
            return None
        try:
            storage.info(uri)
        except SourceError:
            return None
        with _as_table(uri), storage.open_random(uri) as file:
            if extension == ".csv":
                columns = tuple(pyarrow.csv.open_csv(file).schema.names)
            else:
                columns = tuple(pq.ParquetFile(file).schema_arrow.names)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if "uri" in columns and (twice or "" in columns):
            raise UsageError(f"{uri} has a column without a name, or names twice: {twice or ['']}")
        if "uri" not in columns:
            if extension == ".parquet":
                return None
            raise UsageError(
                f"{uri} has no column uri, with one image's path or url a row; it has: "
                f"{', '.join(columns)}"
            )
        if rules.column is not None and rules.column not in columns:
            raise UsageError(
                f"group-by is {rules.column!r}; {uri} has no such column, but: {', '.join(columns)}"
            )
        return cls(uri, columns, rules.column)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of ours are not for labels."""
        return tuple(n for n in self.columns if n not in (*TABLE_COLUMNS, *SCHEMA.names))

    def rows(self, parent: str) -> Iterator[_Row]:
        def look(numbered: tuple[int, dict[str, Any]]) -> _Row:
            number, row = numbered
            with _naming(f"{self.uri}, row {number}"):
                if not row["uri"]:
                    raise SourceError("it names no uri")
                name = _absolute(str(row["uri"]), parent)
                if row.get("identity") and row.get("size") not in (None, ""):
                    item = Stored(name, int(row["size"]), str(row["identity"]), None)
                else:
                    item = storage.info(name)
                if row.get("member") and archive.kind_of(name) is None:
                    raise SourceError(f"{name} is no archive, and cannot have a member")
                group = None if self.group is None else _text(row[self.group]) or ""
                labels = tuple(_text(row[label]) for label in self.labels)
                return _Row(item, str(row.get("member") or ""), group, labels)

        yield from map_in_order(look, enumerate(self._read(), 1))

    def _read(self) -> Iterator[dict[str, Any]]:
        with _as_table(self.uri), storage.open_random(self.uri) as file:
            batches: Iterable[pa.RecordBatch]
            if splitext(self.uri)[1].lower() == ".csv":
                text = pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(self.columns, pa.string())
                )
                batches = pyarrow.csv.open_csv(file, convert_options=text)
            else:
                batches = pq.ParquetFile(file).iter_batches(batch_size=4096)
            for batch in batches:
                yield from batch.to_pylist()


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@contextlib.contextmanager
def _as_table(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{uri} cannot be read as a table: {error}") from error


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """An error, with the line or row that it is of."""
    try:
        yield
    except VdnaError as error:
        raise type(error)(f"{where}: {error}") from error
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error


def _absolute(name: str, parent: str) -> str:
    """Raises `UsageError` where a list of a store names what only this machine can read."""
    is_local = storage.store_of(parent).is_local
    plain = "://" not in name and not name.startswith(("/", "~"))
    if plain and is_local:
        name = os.path.join(storage.local_path(parent), name)
    uri = storage.canonical(storage.join(parent, name) if plain and not is_local else name)
    allowed = (storage.protocol_of(parent), *SHARED_STORES)
    if not is_local and storage.protocol_of(uri) not in allowed:
        raise UsageError(
            f"{name} is not in a store; a list that lies in one may name objects of "
            f"{', '.join(SHARED_STORES)} and of its own store only"
        )
    return uri
