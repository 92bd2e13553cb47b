"""Writes and reads the candidates of a manifest: files of about 100,000 rows.

    >>> entries = Entries("s3://bucket/dnas/entries")                  # doctest: +SKIP
    >>> entries.read_shard(manifest.heads[7]).num_rows                 # doctest: +SKIP
    4096

One row is one candidate, one row group is one shard. A file is named by the sha256 of its bytes.
The manifests of several versions may point into it: a version writes only the shards that are new.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.buffers import Data, footer_start, sha256
from pipeline.dna import FileKind, SealedFile, SealedWriter, corrupt_if_unreadable
from pipeline.errors import CorruptFile, SourceError
from pipeline.sources.entry import Address, Entry, Shard, ShardHead, members_digest
from pipeline.sources.shard_sizes import SHARD_MULTIPLE
from pipeline.sources.table_digest import table_digest

ENTRIES = FileKind("entries")

ENTRY_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("identity", pa.string()),
        ("group", pa.string()),
        ("position", pa.int64()),
        ("access", pa.string()),
    ]
)
"""The columns of an entries file (see `Entry`). The user's label columns follow them, as text."""

OBJECTS_SCHEMA = pa.schema([ENTRY_SCHEMA.field(name) for name in ("uri", "size", "identity")])
"""What is known of an object that was listed."""

GROUPED_SCHEMA = pa.schema([*OBJECTS_SCHEMA, ENTRY_SCHEMA.field("group")])
"""The same, with the group that the image is in."""


def object_schema(*, grouped: bool) -> pa.Schema:
    """Returns what tasks store of single images, which may be in groups."""
    return GROUPED_SCHEMA if grouped else OBJECTS_SCHEMA


REPEATING = ["group", "access"]
"""Columns of few values, which are written with a dictionary. One of the names would cost time."""

FILE_ROWS = 100_000
"""A file ends with the shard that makes it this long."""

FILE_BYTES = 16 * 2**20
"""It also ends when its rows take this many bytes in memory, as those with long labels do."""

FOOTERS_KEPT = 32
"""How many files' footers are kept for the next shard that is read from them."""

WRITERS = 4
"""How many files are stored at a time."""

LOOKED_UP_AT_ONCE = 16

ROW_GROUP_BYTES = 2**20
"""The members of a new shard take no more, before they are packed. Each worker that counts a shard
reads so much."""

LARGEST_FILE = 2**30
"""A larger file is none of ours: 100,000 rows take about 4 MB."""


class Entries:
    """The folder of entries files; its methods may be called from several threads.

    Args:
        folder: The url of the folder. None keeps the files in this process's temporary files.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._held: dict[str, Data] = {}
        self._footers: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Entries], tuple[str | None]]:
        if self._held:
            raise TypeError("entries that this process holds cannot be sent to another")
        return Entries, (self.folder,)

    def holds_those_of(self, other: Entries) -> bool:
        """Tells whether what the other has stored can be read here."""
        return self is other or (self.folder is not None and self.folder == other.folder)

    def uri(self, name: str) -> str:
        """Returns the url of a file; its name alone if this process holds it."""
        return storage.join(self.folder, f"{name}.parquet") if self.folder is not None else name

    def store(self, name: str, data: bytes) -> None:
        """Stores a file. One that is there is written again, so that no collection takes it."""
        if self.folder is None:
            self._held[name] = storage.on_disk(data)
        else:
            storage.replace(self.uri(name), data)

    def renew(self, names: Iterable[str]) -> None:
        """Writes files again, so that they are young, and no collection takes them."""
        for name in names:
            self.store(name, bytes(self.read(name)))

    def read(self, name: str) -> Data:
        """Returns the bytes of a file.

        Raises:
            CorruptFile: They are not those that the name stands for.
            SourceError: There is no such file.
        """
        if name in self._held:
            return self._held[name]
        data = storage.read(self.uri(name))
        if (found := sha256(data)) != name:
            raise CorruptFile(
                f"{self.uri(name)} has sha256 {found}, which is not its name; restore the file, or "
                "delete it and build the dataset again"
            )
        return data

    def read_shard(self, head: ShardHead) -> pa.Table:
        """Reads the members of one shard: one request, and one for the footer of its file.

        Args:
            head: The shard's description.

        Returns:
            The rows, with all columns.

        Raises:
            CorruptFile: They are not those of the description.
            SourceError: There is no such file.
        """
        at, name = head.address, self.uri(head.address.file)
        if not 0 <= at.footer < at.size <= LARGEST_FILE:
            raise CorruptFile(f"{name}: a footer at {at.footer} of {at.size} bytes")
        tail = self._footer(at)
        with corrupt_if_unreadable(f"{name}: shard {head.index} has no row group {at.row_group}"):
            place = SealedFile(tail, ENTRIES, name, start=at.footer).row_groups[at.row_group]
        whole = bytearray(at.size)
        whole[place.start : place.stop] = self._range(at.file, place.start, place.stop)
        whole[at.footer :] = tail
        return _checked_rows(SealedFile(memoryview(whole), ENTRIES, name), head)

    def shard(self, head: ShardHead) -> Shard:
        """Returns a shard with its members (see `read_shard`)."""
        members = tuple(entries_of(self.read_shard(head)))
        shard = Shard(head.index, head.fold, members, head.cells, head.origins, head.runs)
        vars(shard)["digest"] = head.digest  # the rows that were read have it
        return shard

    def read_shards(self, heads: Iterable[ShardHead]) -> Iterator[tuple[ShardHead, pa.Table]]:
        """Reads the members of many shards; neighbours in a file are read in one piece.

        Args:
            heads: The shards' descriptions.

        Yields:
            Each description with its rows.

        Raises:
            CorruptFile: A file is damaged, or its rows are not those of the description.
            SourceError: A file is missing.
        """
        for name, of_file in groupby(heads, lambda head: head.address.file):
            file = SealedFile(self.read(name), ENTRIES, self.uri(name))
            for head in of_file:
                yield head, _checked_rows(file, head)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Finds the files that are not there.

        Args:
            names: The names of the files.

        Returns:
            The names of those that are missing, in the same order.
        """
        there = [name for name in names if name not in self._held]
        if self.folder is None:
            return there
        with ThreadPoolExecutor(LOOKED_UP_AT_ONCE, "entries") as pool:
            found = pool.map(storage.exists, [self.uri(name) for name in there])
            return [name for name, exists in zip(there, found, strict=True) if not exists]

    def _footer(self, at: Address) -> bytes:
        with self._lock:  # held while it is read, so that no two threads read the same one
            if (kept := self._footers.get(at.file)) is not None:
                self._footers.move_to_end(at.file)
                return kept
            tail = self._range(at.file, at.footer, at.size)
            self._footers[at.file] = tail
            while len(self._footers) > FOOTERS_KEPT:
                self._footers.popitem(last=False)
            return tail

    def _range(self, name: str, start: int, stop: int) -> bytes:
        if name in self._held:
            return bytes(memoryview(self._held[name])[start:stop])
        if self.folder is None:
            raise SourceError(f"there are no entries {name}")
        found = storage.read_range(self.uri(name), start, stop - start)
        if len(found) != stop - start:
            raise CorruptFile(f"{self.uri(name)}: torn; it ends before {stop}")
        return found


class EntriesWriter:
    """Writes shards into files, and stores each file as soon as it is long enough.

    Leaving the `with` block stores the last file, and waits for all of them.

    Args:
        entries: Where the files go.
        labels: The names of the label columns.
    """

    def __init__(self, entries: Entries, labels: Sequence[str]) -> None:
        self.schema = pa.schema([*ENTRY_SCHEMA, *((name, pa.string()) for name in labels)])
        self._repeating = [*REPEATING, *labels]
        self._entries = entries
        self._waiting: list[tuple[ShardHead, pa.Table]] = []
        self._rows = self._bytes = 0
        self._pool = ThreadPoolExecutor(WRITERS, "entries")
        self._stored: list[Future[None]] = []

    def __enter__(self) -> EntriesWriter:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        with self._pool:
            for stored in self._stored:
                if error is None:
                    stored.result()
                else:
                    stored.cancel()

    def add(self, head: ShardHead, rows: pa.Table) -> list[ShardHead]:
        """Adds a shard.

        Args:
            head: Its description, without an address.
            rows: Its members, with the columns of `schema`.

        Returns:
            The descriptions of the shards whose file is complete now, with their addresses.
        """
        self._waiting.append((head, rows))
        self._rows += rows.num_rows
        self._bytes += rows.nbytes
        full = self._rows >= FILE_ROWS or self._bytes >= FILE_BYTES
        return self.end_file() if full else []

    def end_file(self) -> list[ShardHead]:
        """Completes the file of the shards that were added last.

        Returns:
            Their descriptions, with their addresses.
        """
        if not self._waiting:
            return []
        sink = io.BytesIO()
        layout = {"write_statistics": False, "use_dictionary": self._repeating}
        with SealedWriter(sink, ENTRIES, self.schema, **layout) as writer:
            for _, rows in self._waiting:
                writer.write(rows)
            writer.seal({})
        data = sink.getvalue()
        name, footer = sha256(data), footer_start(data)
        self._stored = [stored for stored in self._stored if not _ended(stored)]
        if len(self._stored) >= WRITERS:  # do not hold more files than are being stored
            self._stored.pop(0).result()
        self._stored.append(self._pool.submit(self._entries.store, name, data))
        placed = [
            replace(head, address=Address(name, footer, len(data), row_group))
            for row_group, (head, _) in enumerate(self._waiting)
        ]
        self._waiting = []
        self._rows = self._bytes = 0
        return placed


def _ended(stored: Future[None]) -> bool:
    """Tells whether a file is stored; raises what kept it from being stored."""
    if not stored.done():
        return False
    stored.result()
    return True


def describe_shard(
    index: int,
    fold: int,
    rows: pa.Table,
    cells: tuple[int, ...] = (),
    runs: tuple[int, ...] = (),
) -> ShardHead:
    """Returns the description of a shard, without an address and origins.

    Args:
        index: The number of the shard in its manifest.
        fold: The shard's fold.
        rows: Its members, with the columns of `ENTRY_SCHEMA` and the labels.
        cells: How many members each cell has; empty if the shard is one cell.
        runs: How many members each run has; empty if each cell is one run.
    """
    labels = label_names(rows.column_names)
    belongs = table_digest("belongs", rows.select(["group", *labels]))
    values = tuple(_common_value(rows[label]) for label in labels)
    digest = members_digest(rows)
    return ShardHead(index, fold, rows.num_rows, digest, belongs, values, cells, runs=runs)


def _common_value(column: pa.ChunkedArray) -> str | None:
    """Returns the value that all rows have; empty if none has one, and None if they differ."""
    values = {value or "" for value in pc.unique(column).to_pylist()}
    return str(values.pop()) if len(values) == 1 else None


def _checked_rows(file: SealedFile, head: ShardHead) -> pa.Table:
    """Reads the rows of a shard from its file, and compares them with its description."""
    index, about = head.address.row_group, f"{file.name}: shard {head.index}"
    with corrupt_if_unreadable(f"{about} cannot be read"):
        file.check({index: f"shard {head.index}"})
        table = file.parquet.read_row_group(index)
        labels = label_names(table.column_names)
        schema = pa.schema([*ENTRY_SCHEMA, *((name, pa.string()) for name in labels)])
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)  # finds text that is not UTF-8 now and not when it is used
        if any(table[name].null_count for name in ENTRY_SCHEMA.names):
            raise CorruptFile(f"{about} lacks a value")
        found = describe_shard(head.index, head.fold, table, head.cells, head.runs)
    if found != head:
        raise CorruptFile(f"{about} is not what its manifest describes: {found}, not {head}")
    return table


def cut_row_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Halves the members of a shard until each part takes at most `ROW_GROUP_BYTES`.

    That happens where names or labels are long: of 4,096 members, if a row has over 256 bytes.

    Args:
        rows: The members, with the columns of `ENTRY_SCHEMA` and the labels, and no others.

    Yields:
        The parts, in their order. Each has a multiple of `SHARD_MULTIPLE` members, except for the
        last one. So many are not cut, whatever they take.
    """
    if rows.num_rows <= SHARD_MULTIPLE or row_bytes(rows) <= ROW_GROUP_BYTES:
        yield rows
        return
    half = -(-rows.num_rows // (2 * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    for part in (rows.slice(0, half), rows.slice(half)):
        yield from cut_row_groups(part)


def row_bytes(rows: pa.Table) -> int:
    """Returns about how many bytes rows take in a file before they are packed.

    It depends on their values alone, and not on how Arrow holds them. A text takes four bytes more
    than it has, as Parquet's plain encoding writes its length.
    """
    texts = [rows[field.name] for field in rows.schema if not pa.types.is_integer(field.type)]
    numbers = len(rows.schema) - len(texts)
    lengths = sum(pc.sum(pc.binary_length(text)).as_py() or 0 for text in texts)
    return int(lengths + rows.num_rows * (4 * len(texts) + 8 * numbers))


def entries_of(table: pa.Table) -> Iterator[Entry]:
    """Yields the candidates in the rows of a shard."""
    columns = [table[name].to_pylist() for name in Entry.__dataclass_fields__]
    for row in zip(*columns, strict=True):
        yield Entry(*row)


def as_single_images(objects: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns objects as candidates: single images, without group unless it is stated.

    Args:
        objects: The columns of `OBJECTS_SCHEMA`. Others that are there are kept.
        schema: The columns of candidates: those of `ENTRY_SCHEMA` and of any labels.
    """
    count = objects.num_rows
    fixed: dict[str, pa.Array] = {"position": pa.repeat(pa.scalar(0, pa.int64()), count)}
    fixed |= dict.fromkeys(("member", "group", "access"), pa.repeat(pa.scalar(""), count))
    none = pa.nulls(count, pa.string())
    columns = [
        objects[name] if name in objects.column_names else fixed.get(name, none)
        for name in schema.names
    ]
    return pa.table(columns, schema)


def label_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of columns that are the user's labels."""
    return tuple(name for name in names if name not in ENTRY_SCHEMA.names)
