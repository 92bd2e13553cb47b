"""Reads a user's list of images (text) or table of images.

>>> for item in objects_in_list("s3://bucket/list.txt", "s3://bucket"):   # doctest: +SKIP
...     print(item.uri, item.size)
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import isnan
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import (
    QUERY_VARIABLE,
    SourceError,
    UsageError,
    VdnaError,
    printable,
    shortened,
)
from pipeline.mapper import map_in_order
from pipeline.sources.archives.class_labels import utf8_text
from pipeline.sources.archives.contents import archive_kind
from pipeline.sources.coco import COCO_COLUMNS, coco_folder
from pipeline.sources.entries_file import ENTRY_SCHEMA
from pipeline.sources.rules import Rules
from pipeline.sources.stated_images import stated_images
from pipeline.sources.table_file import TableFile, as_table, rows_of
from pipeline.storage import Stored
from pipeline.wording import option

LIST_EXTENSION = ".txt"

_WHAT_A_LIST_IS = f"A {LIST_EXTENSION} file is read as a list of images: one path or url a line"

PAGE_ROWS = 1000
"""How many rows are looked up before their images are added."""

LONGEST_LINE = 2**16
"""The most characters of a line. A file without line breaks would be held whole otherwise."""

NAME_COLUMNS = ("uri", "path", "file_name", "image", "url")
"""Columns that may name images. `uri` does if it is there, unless the user names another."""

CHANGE_COLUMN = "change"
"""The column that says what became of an image."""

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
        with named_in_errors(f"{uri}, line {number}"):
            try:
                return storage.info(absolute_uri(name, parent, rules))
            except SourceError as error:
                raise SourceError(f"{error}. {_WHAT_A_LIST_IS}") from error

    def lines() -> Iterator[tuple[int, str]]:
        for number, line in enumerate(iter(lambda: text.readline(LONGEST_LINE + 1), ""), 1):
            if len(line) > LONGEST_LINE:
                raise SourceError(
                    f"{uri}, line {number} has over {LONGEST_LINE} characters. {_WHAT_A_LIST_IS}"
                )
            name = line.strip(" \t\r\n")  # other spaces may belong to the name
            if name and not name.startswith("#"):
                yield number, name

    try:
        with storage.open_random(uri) as file:
            text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="\n")
            yield from map_in_order(look_up, lines())
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{uri} is not a list of paths in UTF-8: {error}. {_WHAT_A_LIST_IS}"
        ) from error


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
    """A user's table of images, with one image a row and a column that names it.

    A column `member` names a member of an archive. If `size` and `identity` are given, the object
    is not looked up; a wrong identity is found when the image is read. All other columns are
    labels.

    Attributes:
        file: The table.
        name: The column that names images.
        group: The column that names groups, or None.
    """

    file: TableFile
    name: str
    group: str | None

    @classmethod
    def open(cls, uri: str, rules: Rules) -> SourceTable | None:
        """Reads the columns of a table.

        Args:
            uri: The table.
            rules: What names a group, and what names an image if several columns may.

        Returns:
            The table, or None if the object is none: a folder, or a Parquet file of images.

        Raises:
            UsageError: A column that is needed is missing, or a name is there twice. The message
                shows the first rows.
        """
        file = TableFile.open(uri)
        if file is None:
            return None
        name = cls._find_name(file, rules)
        if name is None:
            return None
        columns = file.columns
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice or "" in columns:
            raise UsageError(
                f"{uri} must have columns of different names; these are not: {twice or ['']}"
            )
        if rules.group_column is not None and rules.group_column not in columns:
            raise UsageError(
                f"group-by is {rules.group_column!r}; {uri} has no such column; it has: "
                f"{', '.join(map(printable, columns))}{file.head()}"
            )
        # Bytes of images are no labels, and may be larger than the memory.
        kept = {name, rules.group_column, CHANGE_COLUMN, *TABLE_COLUMNS}
        file = replace(file, skipped=file.embedded - kept)
        return cls(file, name, rules.group_column)

    @staticmethod
    def _find_name(file: TableFile, rules: Rules) -> str | None:
        """Chooses the column that names images.

        Returns:
            The column; None for a table that holds images themselves.

        Raises:
            UsageError: No column names images, or several may.
        """
        found = [column for column in NAME_COLUMNS if column in file.text]
        if rules.image_column in file.text:
            return rules.image_column
        if rules.image_column in file.embedded:
            return None
        if "uri" in file.columns and rules.image_column not in file.columns:
            return "uri"  # the column may be one of the archives that it names
        if file.embedded:
            return None
        if rules.image_column in file.columns:
            return rules.image_column
        if file.columns == COCO_COLUMNS and rules.image_column is None:
            return "file_name"
        if len(found) == 1 and rules.image_column is None:
            return found[0]
        if len(found) > 1 and rules.image_column is None:
            raise UsageError(
                f"{file.uri} has {len(found)} columns that may name images: "
                f"{', '.join(map(printable, found))}; choose one with {option('image_column')}"
                f"{file.head()}"
            )
        wanted = rules.image_column or f"{', '.join(NAME_COLUMNS[:-1])} or {NAME_COLUMNS[-1]}"
        refusal = lacks_column(file, wanted)
        raise refusal

    @property
    def uri(self) -> str:
        """The table."""
        return self.file.uri

    @property
    def has_other_uris(self) -> bool:
        """Whether it has a column `uri`, which may name other files than the column of images."""
        return self.name != "uri" and "uri" in self.file.columns

    def folder(self, parent: str, rules: Rules) -> str:
        """Returns the folder that relative paths start from.

        Args:
            parent: The folder of the table.
            rules: What the query of a url may have.
        """
        if self.file.columns != COCO_COLUMNS or self.name != "file_name":
            return parent
        first = next(self.file.rows(), None)
        if first is None:
            return parent
        with named_in_errors(self.uri):
            return coco_folder(self.uri, first["file_name"], rules)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels: all columns without a meaning of their own, or bytes."""
        own = (self.name, *TABLE_COLUMNS, *ENTRY_SCHEMA.names, *self.file.embedded)
        return tuple(column for column in self.file.columns if column not in own)

    def _look_up(
        self, numbered: Iterable[tuple[int, Mapping[str, Any]]], place_of: Callable[[str], str]
    ) -> Iterator[TableRow]:
        """Looks up what rows name; each comes with its number."""

        def look_up(numbered: tuple[int, Mapping[str, Any]]) -> TableRow:
            number, row = numbered
            with named_in_errors(f"{self.uri}, row {number}"):
                return self.row_of(row, place_of(self.name_in(row)), self.labels)

        yield from map_in_order(look_up, numbered)

    def pages(
        self, parent: str, rules: Rules
    ) -> Iterator[tuple[int, pa.Table | None, Iterator[TableRow]]]:
        """Looks up what the rows name, some rows at a time.

        Rows that state all of a single image are taken together (see `stated_images`), unless
        patterns have to be matched.

        Args:
            parent: The folder that relative paths start from.
            rules: What the query of a url may have, and which files count.

        Yields:
            How many rows they are, those images (None if rows are not taken together), and the
            other rows.
        """
        place_of = partial(absolute_uri, parent=parent, rules=rules)
        if not self._may_state or not self.file.has_batches or rules.include or rules.exclude:
            rows = self._look_up(enumerate(self.file.rows(), 1), place_of)
            while some := list(islice(rows, PAGE_ROWS)):
                yield len(some), None, iter(some)
            return
        first = 1
        for batch in self.file.batches():
            with as_table(self.uri):
                images, taken = stated_images(batch, self.name, self.group, self.labels, place_of)
                left = np.flatnonzero(~taken)
                others = batch.take(pa.array(left)) if taken.any() else batch
                numbered = zip((left + first).tolist(), rows_of(others), strict=True)
            yield batch.num_rows, images, self._look_up(numbered, place_of)
            first += batch.num_rows

    @property
    def _may_state(self) -> bool:
        """Whether rows may state all of what they name, in names that cannot hold a secret."""
        columns = self.file.columns
        is_stated = "size" in columns and "identity" in columns and not self.has_other_uris
        return is_stated and not any(name.startswith(QUERY_VARIABLE) for name in os.environ)

    def name_in(self, row: Mapping[str, Any]) -> str:
        """Returns what a row names, as it is written there.

        Raises:
            SourceError: It names nothing.
        """
        given = row[self.name]
        if not isinstance(given, str) or not given:
            raise SourceError(
                f"the column {self.name} must hold text; here it is {shortened(given)}"
            )
        return given

    def row_of(self, row: Mapping[str, Any], uri: str, labels: Sequence[str]) -> TableRow:
        """Looks up what a row names, unless the row states its size and identity.

        A row with a `uri` states those of the `uri`.

        Args:
            row: The row.
            uri: The canonical uri of what it names.
            labels: The columns that hold labels.

        Returns:
            The object, with its member, group and labels.

        Raises:
            SourceError: There is no such object, or a value is out of place.
        """
        is_stated = row.get("identity") and not _is_missing(row.get("size"))
        if is_stated and not self.has_other_uris:
            item = Stored(uri, _size(row["size"]), utf8_text(row["identity"]), None)
        else:
            item = storage.info(uri)
        member = member_in(row)
        if member and archive_kind(uri) is None:
            raise SourceError(f"{uri} is not an archive, so it cannot have a member")
        group = None if self.group is None else _text(row[self.group]) or ""
        values = tuple(_text(row[label]) for label in labels)
        return TableRow(item, member, group, values)


def member_in(row: Mapping[str, Any]) -> str:
    """Returns the member of an archive that a row names; empty if it names the whole object.

    Rows of tables have numbers for names. A column of numbers with gaps holds 3.0 for 3.
    """
    value = row.get("member")
    if _is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return utf8_text(value)


def lacks_column(file: TableFile, wanted: str) -> UsageError:
    """Returns the error that a table lacks the column that names images.

    Args:
        file: The table.
        wanted: The column.
    """
    return UsageError(
        f"{file.uri} has no column {wanted}, with one image's path or url a row; it has: "
        f"{', '.join(map(printable, file.columns))}{file.head()}"
    )


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
    return None if value is None else utf8_text(value)


@contextlib.contextmanager
def named_in_errors(where: str) -> Iterator[None]:
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


def absolute_uri(name: str, parent: str, rules: Rules) -> str:
    """Returns the canonical uri of what a list or table names.

    Args:
        name: What it names: a path or a url.
        parent: The folder that relative paths start from.
        rules: What the query of a url may have.

    Raises:
        UsageError: A list in a store names what only this machine can read.
    """
    uri = rules.uri_of(name, parent)
    require_nameable(uri, parent)
    return uri


def require_nameable(uri: str, place: str) -> None:
    """Checks that a list may name an object.

    Args:
        uri: The object.
        place: Where the list lies.

    Raises:
        UsageError: The list lies in a store, and names what only this machine can read.
    """
    allowed = (storage.protocol_of(place), *SHARED_STORES)
    if not storage.store_of(place).is_local and storage.protocol_of(uri) not in allowed:
        raise UsageError(
            f"{uri} is not in a store; a list that lies in one may name objects of "
            f"{', '.join(SHARED_STORES)} and of its own store only"
        )
