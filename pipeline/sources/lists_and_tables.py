"""Reads a user's list of images (text) or table of images (CSV or Parquet).

>>> for item in objects_in_list("s3://bucket/list.txt", "s3://bucket"):   # doctest: +SKIP
...     print(item.uri, item.size)
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isnan
from posixpath import splitext
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import SourceError, UsageError, VdnaError, shortened
from pipeline.sources.archives.contents import archive_kind
from pipeline.sources.manifest_file import MANIFEST_SCHEMA
from pipeline.sources.map_in_order import map_in_order
from pipeline.sources.rules import Rules
from pipeline.storage import Stored

LIST_EXTENSION = ".txt"

LONGEST_LINE = 2**16
"""The most characters of a line. A file without line breaks would be held whole otherwise."""

TABLE_EXTENSIONS = frozenset({".csv", ".parquet"})

TABLE_COLUMNS = ("uri", "member", "size", "identity")
"""Columns of a user's table that have a meaning; all others are labels."""

SHARED_STORES = ("s3", "gs", "gcs", "abfs", "az", "http", "https")
"""What a list that lies in a store may name. Its author must not make this machine read its own
files: `file`, and schemes of fsspec that lead to them, such as `local`, `zip` and `reference`."""


def objects_in_list(uri: str, parent: str, rules: Rules) -> Iterator[Stored]:
    """Looks up the objects of a text list.

    Args:
        uri: The list: one path or url a line; `#` starts a comment.
        parent: The folder that relative paths start from.
        rules: What the query of a url may have.

    Yields:
        The objects, in the order of the list.

    Raises:
        SourceError: The list is no text, or an object does not exist; the message has the line.
        UsageError: A line names what must not be read.
    """

    def look_up(line: tuple[int, str]) -> Stored:
        number, name = line
        with _named_in_errors(f"{uri}, line {number}"):
            return storage.info(_absolute(name, parent, rules))

    def lines() -> Iterator[tuple[int, str]]:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE + 1), ""), 1):
            if len(line) > LONGEST_LINE:
                raise SourceError(
                    f"{uri}, line {number} has over {LONGEST_LINE} characters; a list has one path "
                    "or url a line"
                )
            name = line.strip()
            if name and not name.startswith("#"):
                yield number, name

    try:
        with storage.open_random(uri) as file:
            text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="\n")
            yield from map_in_order(look_up, lines())
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri} is not a list of paths in UTF-8: {error}") from error


class TableRow(NamedTuple):
    """What a row of a table names.

    Attributes:
        item: The object.
        member: The name of a member, if the object is an archive; empty for all members.
        group: The group. None if the table has no column for it.
        labels: The value of each label.
    """

    item: Stored
    member: str
    group: str | None
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class SourceTable:
    """A user's table of images: Parquet or CSV, with a column `uri` and one image a row.

    A column `member` names a member of an archive. If `size` and `identity` are given, the object
    is not looked up; a wrong identity is found when the image is read. All other columns are
    labels.

    Attributes:
        uri: The table.
        columns: The names of its columns.
        group: The column that names groups, or None.
    """

    uri: str
    columns: tuple[str, ...]
    group: str | None

    @classmethod
    def open(cls, uri: str, rules: Rules) -> SourceTable | None:
        """Reads the columns of a table.

        Args:
            uri: The table.
            rules: What names a group.

        Returns:
            The table, or None if the object is none: a folder, or a Parquet file of images.

        Raises:
            UsageError: A column that is needed is missing, or a name is there twice.
        """
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
        if "uri" not in columns:
            if extension == ".parquet":
                return None
            raise UsageError(
                f"{uri} has no column uri, with one image's path or url a row; it has: "
                f"{', '.join(columns)}"
            )
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if twice or "" in columns:
            raise UsageError(
                f"{uri} must have columns of different names; these are not: {twice or ['']}"
            )
        if rules.group_column is not None and rules.group_column not in columns:
            raise UsageError(
                f"group-by is {rules.group_column!r}; {uri} has no such column; it has: "
                f"{', '.join(columns)}"
            )
        return cls(uri, columns, rules.group_column)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels: all columns without a meaning of their own."""
        return tuple(n for n in self.columns if n not in (*TABLE_COLUMNS, *MANIFEST_SCHEMA.names))

    def rows(self, parent: str, rules: Rules) -> Iterator[TableRow]:
        """Looks up what the rows name.

        Args:
            parent: The folder that relative paths start from.
            rules: What the query of a url may have.

        Yields:
            The rows, in their order.
        """

        def look_up(numbered: tuple[int, dict[str, Any]]) -> TableRow:
            number, row = numbered
            with _named_in_errors(f"{self.uri}, row {number}"):
                if not isinstance(row["uri"], str) or not row["uri"]:
                    raise SourceError(
                        f"the column uri must hold text; here it is {shortened(row['uri'])}"
                    )
                name = _absolute(row["uri"], parent, rules)
                if row.get("identity") and not _is_missing(row.get("size")):
                    item = Stored(name, _size(row["size"]), str(row["identity"]), None)
                else:
                    item = storage.info(name)
                if row.get("member") and archive_kind(name) is None:
                    raise SourceError(f"{name} is not an archive, so it cannot have a member")
                group = None if self.group is None else _text(row[self.group]) or ""
                labels = tuple(_text(row[label]) for label in self.labels)
                return TableRow(item, str(row.get("member") or ""), group, labels)

        yield from map_in_order(look_up, enumerate(self._read(), 1))

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


def _is_missing(value: object) -> bool:
    return value in (None, "") or (isinstance(value, float) and isnan(value))


def _size(value: object) -> int:
    """Returns the size of an object that a table states.

    Raises:
        SourceError: It is no number of bytes.
    """
    if isinstance(value, float) and value.is_integer():  # pandas has no integers beside gaps
        value = int(value)
    text = str(value)
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise SourceError(f"size is {shortened(value)}; it must be a whole number of bytes")
    return int(text)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@contextlib.contextmanager
def _as_table(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{uri} cannot be read as a table: {error}") from error


@contextlib.contextmanager
def _named_in_errors(where: str) -> Iterator[None]:
    """Adds the line or the row to an error.

    Yields:
        Nothing.

    Raises:
        SourceError: A value is out of place.
        VdnaError: Another error, of the type that was raised.
    """
    try:
        yield
    except VdnaError as error:
        raise type(error)(f"{where}: {error}") from error
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error


def _absolute(name: str, parent: str, rules: Rules) -> str:
    """Returns the canonical uri of what a list or table names.

    Raises:
        UsageError: A list in a store names what only this machine can read.
    """
    is_local = storage.store_of(parent).is_local
    relative = "://" not in name and not name.startswith(("/", "~"))
    if relative and is_local:
        name = os.path.join(storage.local_path(parent), name)
    elif relative:
        name = storage.join(parent, name)
    uri = rules.canonical(name)
    allowed = (storage.protocol_of(parent), *SHARED_STORES)
    if not is_local and storage.protocol_of(uri) not in allowed:
        raise UsageError(
            f"{name} is not in a store; a list that lies in one may name objects of "
            f"{', '.join(SHARED_STORES)} and of its own store only"
        )
    return uri
