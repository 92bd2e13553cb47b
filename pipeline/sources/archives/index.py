"""sources.archives.index: TODO-DOC"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import BadImage, CorruptFile
from pipeline.sources.manifest import Entry

INDEX_FORMAT = 1
"""Of an encoded index; of how archives are looked into, too: another one looks again."""

ROWS_AT_ONCE = 65_536

INDEX_SCHEMA = pa.schema(
    [
        ("member", pa.string()),
        ("size", pa.int64()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)

_DETAIL_CHARACTERS = 200


@dataclass(frozen=True, eq=False)
class Index:
    """`members`: member, size, position, access, in order of position; a member's name only once.

    `ignored`: what lies in the archive and is no file, by kind. `duplicates`: earlier members of a
    name that occurs again, which extracting would overwrite.
    """

    members: pa.Table
    ignored: Mapping[str, int]
    duplicates: int

    def encode(self) -> bytes:
        """A Parquet file."""
        notes = {"format": INDEX_FORMAT, "ignored": self.ignored, "duplicates": self.duplicates}
        sink = pa.BufferOutputStream()
        table = self.members.replace_schema_metadata({"vdna": json.dumps(notes)})
        pq.write_table(
            table, sink, compression="zstd", write_statistics=False, write_page_checksum=True
        )
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def decode(cls, data: bytes, name: str) -> Index:
        """Raises `CorruptFile` with `name`."""
        try:
            source = pa.BufferReader(data)
            table = pq.read_table(source, page_checksum_verification=True)
            notes = json.loads(table.schema.metadata[b"vdna"])
            if notes["format"] != INDEX_FORMAT:
                raise CorruptFile(
                    f"{name}: an index of format {notes['format']}, not {INDEX_FORMAT}"
                )
            members = table.replace_schema_metadata(None).cast(INDEX_SCHEMA)
            return cls(members, notes["ignored"], notes["duplicates"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not the index of an archive: {error}") from error


class IndexRows:
    """An index in the making: plain rows are turned into Arrow's as soon as they are many."""

    def __init__(self) -> None:
        self.ignored: Counter[str] = Counter()
        self.end = 0
        """A position behind all rows."""
        self._rows: list[tuple[str, int, int, str]] = []
        self._tables: list[pa.Table] = []

    def add(self, member: str, size: int, position: int, access: str) -> None:
        self._rows.append((member, size, position, access))
        self.end = max(self.end, position + 1)
        if len(self._rows) >= ROWS_AT_ONCE:
            self._flush()

    def add_numbered(self, first: int, count: int, access: str) -> None:
        """Rows of a table, named by their number."""
        self._flush()
        numbers = pa.array(np.arange(first, first + count, dtype=np.int64))
        columns = [
            numbers.cast(pa.string()),
            pa.array(np.zeros(count, np.int64)),
            numbers,
            pa.repeat(pa.scalar(access, pa.string()), count),
        ]
        self._tables.append(pa.table(columns, schema=INDEX_SCHEMA))
        self.end = max(self.end, first + count)

    def condemn(self, bad: BadImage) -> None:
        """All rows so far fail."""
        self._flush()
        access = pa.scalar(broken_access(bad), pa.string())
        self._tables = [t.set_column(3, "access", pa.repeat(access, len(t))) for t in self._tables]

    def index(self) -> Index:
        self._flush()
        table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *self._tables])
        numbered = table.select(["member"]).append_column("row", pa.array(np.arange(len(table))))
        last = numbered.group_by("member").aggregate([("row", "max")])["row_max"].to_numpy()
        kept = np.zeros(len(table), bool)
        kept[last] = True
        duplicates = len(table) - len(last)
        table = table.filter(pa.array(kept))
        positions = table["position"].to_numpy()
        if (positions[1:] < positions[:-1]).any():
            table = table.sort_by("position")
        return Index(table, dict(self.ignored), duplicates)

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._tables.append(pa.table(columns, schema=INDEX_SCHEMA))
            self._rows.clear()


def broken_access(bad: BadImage) -> str:
    detail = bad.detail[:_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace")
    return f"broken {bad.reason} {quote(detail, safe='')}"


def access_kind(entry: Entry) -> str:
    """As in `access`; of a compressed tar "tar gz" and so on."""
    kind, _, details = entry.access.partition(" ")
    return f"{kind} {details}" if kind == "tar" and details else kind


def printable_member(raw: bytes) -> str:
    r"""A name in UTF-8 as it is; others with `\xff` for a byte that is none; no two alike.

    A backslash is doubled in the latter, and in a name that looks like one of them.
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
