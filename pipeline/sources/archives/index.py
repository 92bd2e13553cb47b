"""Holds what an archive contains: the name, size and place of each member.

>>> builder = IndexBuilder()
>>> builder.add("cat.jpg", size=4096, position=512, access="tar")
>>> builder.index().members.column_names
['member', 'size', 'position', 'access']
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dna import FileKind, SealedFile, corrupt_if_unreadable, cut_rows, encode_sealed
from pipeline.errors import BadImage
from pipeline.sources.archives.access import broken_access

INDEX = FileKind("index", 2)
"""The kind of an index file. Its format changes if archives are listed in another way, so that old
indices are not used."""

ROWS_AT_ONCE = 65_536
"""How many rows are collected as Python objects before they become an Arrow table."""

INDEX_SCHEMA = pa.schema(
    [
        ("member", pa.string()),
        ("size", pa.int64()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class ArchiveIndex:
    """What an archive contains.

    Attributes:
        members: The columns of `INDEX_SCHEMA`, in order of position. Each name is there once.
        ignored: How many things in the archive are no files, by kind.
        duplicates: How many members were dropped because a later one has the same name, as
            unpacking would overwrite them.
        labels: How many labels each member has, in columns that `label_column` names.
        image_bytes: About how many bytes the images of a table take in it. 0 of other archives,
            whose members state their sizes.
    """

    members: pa.Table
    ignored: Mapping[str, int]
    duplicates: int
    labels: int = 0
    image_bytes: int = 0

    def encode(self) -> bytes:
        """Returns the index as a Parquet file."""
        notes: dict[str, Any] = {"ignored": dict(self.ignored), "duplicates": self.duplicates}
        if self.labels:
            notes["labels"] = self.labels
        if self.image_bytes:
            notes["image_bytes"] = self.image_bytes
        return encode_sealed(INDEX, notes, cut_rows(self.members), write_statistics=False)

    @classmethod
    def decode(cls, data: bytes, name: str) -> ArchiveIndex:
        """Reads an index.

        Args:
            data: The Parquet file.
            name: The file's name for error messages.

        Returns:
            The index.

        Raises:
            CorruptFile: The file is damaged, or has another format.
        """
        file = SealedFile(data, INDEX, name)
        with corrupt_if_unreadable(f"{name}: its metadata cannot be read"):
            ignored, duplicates = file.metadata["ignored"], file.metadata["duplicates"]
            labels = int(file.metadata.get("labels", 0))
            image_bytes = int(file.metadata.get("image_bytes", 0))
        return cls(file.read(index_schema(labels)), ignored, duplicates, labels, image_bytes)


def label_column(number: int) -> str:
    """Returns the column of a label in an index."""
    return f"label_{number}"


def index_schema(labels: int) -> pa.Schema:
    """Returns the columns of an index with so many labels."""
    names = map(label_column, range(labels))
    return pa.schema([*INDEX_SCHEMA, *((name, pa.string()) for name in names)])


class IndexBuilder:
    """Collects the members of an archive in little memory.

    Attributes:
        ignored: How many things are no files so far, by kind.
        end: A position behind all members so far.
        labels: The names of the labels that are read for each member.
        image_bytes: About how many bytes the images of a table take so far.
    """

    def __init__(self, labels: Sequence[str] = ()) -> None:
        self.labels = tuple(labels)
        self._find_labels: Callable[[Sequence[str]], list[pa.Array]] | None = None
        self.ignored: Counter[str] = Counter()
        self.end = 0
        self.image_bytes = 0
        self._rows: list[tuple[str, int, int, str]] = []
        self._tables: list[pa.Table] = []

    def add(self, member: str, size: int, position: int, access: str) -> None:
        """Adds a member (see `Entry` for the values)."""
        self._rows.append((member, size, position, access))
        self.end = max(self.end, position + 1)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def add_broken(self, member: str, position: int, bad: BadImage) -> None:
        """Adds a member that cannot be read, with the reason."""
        self.add(member, 0, position, broken_access(bad))

    def take_labels(self, find: Callable[[Sequence[str]], list[pa.Array]]) -> None:
        """Says how the labels of named members are found, once all members are known.

        Args:
            find: Returns the values of each label for the members of these names.
        """
        self._find_labels = find

    def add_rows(self, count: int, access: str, labels: Sequence[pa.Array] = ()) -> None:
        """Adds the next rows of a table; each is named by its number, and has these labels."""
        self._flush()
        numbers = pa.array(np.arange(self.end, self.end + count, dtype=np.int64))
        columns = [
            numbers.cast(pa.string()),
            pa.array(np.zeros(count, np.int64)),
            numbers,
            pa.repeat(pa.scalar(access, pa.string()), count),
            *labels,
        ]
        self._tables.append(pa.table(columns, schema=index_schema(len(labels))))
        self.end += count

    def mark_all_broken(self, bad: BadImage) -> None:
        """Marks all members so far as unreadable, with the reason."""
        self._flush()
        access = pa.scalar(broken_access(bad), pa.string())
        self._tables = [t.set_column(3, "access", pa.repeat(access, len(t))) for t in self._tables]

    def index(self) -> ArchiveIndex:
        """Returns the index; of several members with one name, only the last is in it."""
        self._flush()
        schema = index_schema(len(self.labels))
        # A member that was added by name has no labels yet, and a broken archive none at all.
        table = pa.concat_tables([schema.empty_table(), *self._tables], promote_options="default")
        numbered = table.select(["member"]).append_column("row", pa.array(np.arange(len(table))))
        last = numbered.group_by("member").aggregate([("row", "max")])["row_max"].to_numpy()
        kept = np.zeros(len(table), bool)
        kept[last] = True
        duplicates = len(table) - len(last)
        table = table.filter(pa.array(kept))
        positions = table["position"].to_numpy()
        if (positions[1:] < positions[:-1]).any():
            table = table.sort_by("position")
        if self._find_labels is not None and self.labels:
            for number, values in enumerate(self._find_labels(table["member"].to_pylist())):
                at = table.schema.get_field_index(label_column(number))
                table = table.set_column(at, label_column(number), values)
        return ArchiveIndex(
            table, dict(self.ignored), duplicates, len(self.labels), self.image_bytes
        )

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._tables.append(pa.table(columns, schema=INDEX_SCHEMA))
            self._rows.clear()


def printable_name(raw: bytes) -> str:
    r"""Returns the name of a member as text, so that no two names become the same.

    A name in UTF-8 stays as it is. Others get `\xff` for each byte that is not UTF-8, and their
    backslashes are doubled; so are those of a name that looks like one of them.
    """
    if not raw:
        return "\\x"
    try:
        name = raw.decode()
        if "\\x" not in name:
            return name
    except UnicodeDecodeError:
        pass
    return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
