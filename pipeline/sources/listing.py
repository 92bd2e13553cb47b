"""Holds the candidates of a source in Parquet files on disk, never all in memory.

>>> writer = ListingWriter()
>>> for page in list_pages("s3://bucket/photos"):            # doctest: +SKIP
...     for item in page:
...         writer.add(item.uri, "", item.size, item.identity)
...     writer.end_page(len(page))
>>> writer.listing("s3://bucket/photos").entries             # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dna import SealedFile, SealedWriter, cut_rows
from pipeline.errors import ConservationError, StorageError
from pipeline.sources.entries_file import ENTRY_SCHEMA, REPEATING, as_single_images
from pipeline.sources.entry import Entry
from pipeline.sources.fold_assignment import HASHED_GROUPS
from pipeline.sources.listing_checkpoint import PART, ListingCheckpoint
from pipeline.sources.manifest import Manifest
from pipeline.sources.manifest_difference import KnownDifference
from pipeline.sources.pair_names import Pairing
from pipeline.storage import Stored

PART_ENTRIES = 100_000
"""Candidates that are collected in memory before they are written."""


PART_KEYS = 1_000_000
"""Files that are looked at before a part is written, however few of them are candidates."""


@dataclass(frozen=True)
class StoredPart:
    """A part of a listing in storage. Its candidates are sorted by their uris.

    Attributes:
        uri: Where it is.
        rows: How many candidates it has, at least one.
        first: The uri of the first one.
        last: The uri of the last one.
        ends: Those of its uris that end a block (see `blocks`).
    """

    uri: str
    rows: int
    first: str
    last: str
    ends: Sequence[str]


@dataclass(frozen=True)
class Listing:
    """The candidates of a source, and how much was left out.

    Attributes:
        source: What was listed.
        parts: Paths of Parquet files with the columns of `ENTRY_SCHEMA` and `label_columns`. They
            are temporary, and deleted with the listing. A candidate may be in them twice.
        ignored: How many files are no images by their names, by kind.
        labels: The names of the labels.
        filtered: How many files the rules leave out.
        duplicates: How many members of archives are replaced by a later one of the same name.
        planned: The plan of the source, if it was made while the source was listed. There are no
            parts then.
        pairing: How images are named for pairing.
        unsized: How many candidates are rows of tables, whose sizes are not known.
        unsized_bytes: About how many bytes these have together, as their tables state.
        difference: How the plan differs from an earlier one, if tasks have compared them.
    """

    source: str
    parts: tuple[str, ...]
    ignored: Mapping[str, int]
    labels: tuple[str, ...] = ()
    filtered: int = 0
    duplicates: int = 0
    planned: Manifest | None = None
    _folders: tuple[storage.ScratchFolder, ...] = field(default=(), repr=False)
    pairing: Pairing = field(default_factory=Pairing)
    unsized: int = 0
    unsized_bytes: int = 0
    difference: KnownDifference | None = None

    @classmethod
    def of(
        cls, entries: Iterable[Entry], source: str = "", ignored: Mapping[str, int] | None = None
    ) -> Listing:
        """Returns a listing of entries in memory.

        Args:
            entries: The candidates.
            source: What was listed.
            ignored: How many files were ignored, by kind.
        """
        writer = ListingWriter()
        writer.ignored.update(ignored or {})
        for entry in entries:
            writer.add(**asdict(entry))
        return writer.listing(source)

    @classmethod
    def joined(cls, listings: Sequence[Listing]) -> Listing:
        """Returns several listings as one without labels, named for the first of them.

        Args:
            listings: At least one. A candidate that is in several of them will count once.
        """
        return cls(
            listings[0].source,
            tuple(part for listing in listings for part in listing.parts),
            dict(sum((Counter(listing.ignored) for listing in listings), Counter())),
            (),
            sum(listing.filtered for listing in listings),
            sum(listing.duplicates for listing in listings),
            _folders=tuple(folder for listing in listings for folder in listing._folders),
            unsized=sum(listing.unsized for listing in listings),
            unsized_bytes=sum(listing.unsized_bytes for listing in listings),
        )

    @property
    def entries(self) -> Iterator[Entry]:
        """The candidates one by one, in the order of the parts.

        Yields:
            Each candidate.
        """
        for part in self.parts:
            for row in pq.read_table(part, columns=ENTRY_SCHEMA.names).to_pylist():
                yield Entry(**row)


def label_columns(labels: Sequence[str]) -> list[str]:
    """Returns the columns of a listing that hold labels: a user's names could clash with ours."""
    return [f"label_{number}" for number, _ in enumerate(labels)]


class ListingWriter:
    """Takes candidates one by one, and writes them to disk in parts.

    Attributes:
        ignored: How many files were ignored so far, by kind.
        filtered: How many files the rules left out so far.
        duplicates: How many members of archives a later one replaced so far.
        unsized: How many rows of tables came so far, whose sizes are not known.
        unsized_bytes: About how many bytes these have together.
        archives: Archives to look into once everything is listed. A part records those that came
            since the part before it.
        stored: Parts that tasks have put into storage. They are no files here.
        groups: The groups that came so far, until they are `HASHED_GROUPS`.
        total: How many candidates came so far, with those of stored parts.
        resumed: How many of them came from the checkpoint.

    Args:
        labels: The names of the labels.
        checkpoint: Parts of an interrupted listing, which are taken over; new parts go there, too.
        part_entries: How many candidates are held in memory before they are written. None takes
            `PART_ENTRIES`.
    """

    def __init__(
        self,
        labels: Sequence[str] = (),
        checkpoint: ListingCheckpoint | None = None,
        part_entries: int | None = None,
    ) -> None:
        self._part_entries = part_entries or PART_ENTRIES
        self.ignored: Counter[str] = Counter()
        self.filtered = 0
        self.duplicates = 0
        self.unsized = self.unsized_bytes = 0
        self.archives: list[Stored] = []
        self.stored: list[StoredPart] = []
        self.groups: dict[str, None] = {}
        self.total = 0
        with _disk_errors():
            self._folder = storage.ScratchFolder("listing")
        self._paths: list[str] = []
        self._made = 0
        self._labels = tuple(labels)
        names = label_columns(labels)
        self._schema = pa.schema([*ENTRY_SCHEMA, *((name, pa.string()) for name in names)])
        self._columns: list[list[Any]] = [[] for _ in self._schema.names]
        self._objects: list[pa.Table] = []
        self._waiting = 0  # rows that are in no part yet
        self._looked_at = 0  # files since the last part
        self._checkpoint = checkpoint
        for data in checkpoint.take_parts() if checkpoint else ():
            self._resume(data)
        self._archives_recorded, self._stored_recorded = len(self.archives), len(self.stored)
        self._groups_recorded = len(self.groups)
        self.resumed = self.total

    def add(
        self,
        uri: str,
        member: str,
        size: int,
        identity: str,
        group: str = "",
        position: int = 0,
        access: str = "",
        labels: Sequence[str | None] = (),
    ) -> None:
        """Adds a candidate (see `Entry`), with a value or None for each label."""
        row = (uri, member, size, identity, group, position, access, *labels)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        if group:
            self.note_groups((group,))
        self._waiting += 1
        self.total += 1

    def note_groups(self, names: Iterable[str]) -> None:
        """Notes groups of candidates, unless enough are known."""
        for name in names:
            if len(self.groups) < HASHED_GROUPS:
                self.groups[name] = None

    def add_objects(self, table: pa.Table) -> None:
        """Adds single images.

        Args:
            table: The columns `uri`, `size` and `identity`, `group` if they are in groups, and
                those of labels (see `label_columns`).
        """
        if "group" in table.column_names and len(self.groups) < HASHED_GROUPS:
            self.note_groups(pc.unique(table["group"]).to_pylist())
        self._objects.append(table)
        self._waiting += table.num_rows
        self.total += table.num_rows

    def add_table(self, table: pa.Table) -> None:
        """Adds many candidates: a table with the columns of a part."""
        if table.num_rows:
            self._flush()
            self._write(table.select(self._schema.names).cast(self._schema))
            self.total += table.num_rows

    def end_page(self, files: int) -> None:
        """Writes a part if there are enough candidates for one, or enough files were looked at.

        Call it only when everything of the pages read so far has been added: an interrupted listing
        goes on behind the last of them.

        Args:
            files: How many files the page has.
        """
        self._looked_at += files
        if self._waiting >= self._part_entries:
            self.end_part()
        elif self._checkpoint is not None and self._looked_at >= PART_KEYS:
            self.end_part() if self._waiting else self.end_round(())

    def end_part(self) -> None:
        """Writes a part of the candidates that are in none yet; see `end_page`."""
        path = self._flush()
        if self._checkpoint is not None and path is not None:
            self._checkpoint.store(path)

    def end_round(self, stored: Sequence[StoredPart]) -> None:
        """Records parts that tasks have stored, so that an interrupted listing goes on behind them.

        Args:
            stored: The parts. What the tasks have ignored was added before.
        """
        self.stored += stored
        self.total += sum(part.rows for part in stored)
        path = self._write(self._schema.empty_table())
        if self._checkpoint is not None:
            self._checkpoint.store(path)
        self._paths.remove(str(path))
        path.unlink()

    def take_stored(self, parts: Iterable[bytes]) -> None:
        """Takes stored parts over as files. Their candidates were counted when they were stored.

        Small parts are put together, as many small files take long to plan.

        Args:
            parts: The parts. They may have only the columns of `OBJECTS_SCHEMA`.
        """
        held: list[pa.Table] = []
        for data in parts:
            rows = as_single_images(pq.read_table(pa.BufferReader(data)), self._schema)
            if rows.num_rows + sum(some.num_rows for some in held) > self._part_entries:
                self._take_tables(held)
                held = []
            held.append(rows)
        self._take_tables(held)

    def _take_tables(self, tables: Sequence[pa.Table]) -> None:
        if tables:
            path, rows = self._new_path(), pa.concat_tables(tables)
            with _disk_errors():
                pq.write_table(rows, path, write_statistics=False, use_dictionary=False)

    @property
    def waiting(self) -> int:
        """How many candidates are held in memory."""
        return self._waiting

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of the candidates that were added here."""
        self._flush()
        return tuple(self._paths)

    def listing(self, source: str, planned: Manifest | None = None) -> Listing:
        """Returns the candidates added so far as a listing of a source.

        Args:
            source: What was listed.
            planned: The plan of all candidates, if there is one.

        Raises:
            ConservationError: The files have another number of candidates than were added.
        """
        if planned is None:
            rows = sum(pq.read_metadata(path).num_rows for path in self.paths)
            if rows != self.total:
                raise ConservationError(
                    f"{source}: {self.total:,} candidates were listed, and {rows:,} are in the "
                    "files of the listing; nothing was committed. Please report this"
                )
        return Listing(
            source,
            self.paths if planned is None else (),
            dict(self.ignored),
            self._labels,
            self.filtered,
            self.duplicates,
            planned,
            (self._folder,),
            unsized=self.unsized,
            unsized_bytes=self.unsized_bytes,
        )

    def take_table(self) -> pa.Table:
        """Returns the candidates that are held in memory, and forgets them."""
        columns = dict(zip(self._schema.names, self._columns, strict=True))
        found = pa.table(columns, self._schema)
        if self._objects:
            objects = pa.concat_tables(self._objects)
            found = pa.concat_tables([as_single_images(objects, self._schema), found])
        self._columns = [[] for _ in self._schema.names]
        self._objects, self._waiting = [], 0
        return found

    def _flush(self) -> Path | None:
        return self._write(self.take_table()) if self._waiting else None

    def _write(self, table: pa.Table) -> Path:
        path = self._new_path()
        self._looked_at = 0
        notes: dict[str, Any] = {"ignored": dict(self.ignored), "filtered": self.filtered}
        if self._checkpoint is not None:
            since = self.archives[self._archives_recorded :]
            notes["archives"] = [[item.uri, item.size, item.identity] for item in since]
            notes["stored"] = [asdict(part) for part in self.stored[self._stored_recorded :]]
            notes["groups"] = list(islice(self.groups, self._groups_recorded, None))
            notes |= self._checkpoint.notes()
            self._archives_recorded, self._stored_recorded = len(self.archives), len(self.stored)
            self._groups_recorded = len(self.groups)
        repeating = [*REPEATING, *label_columns(self._labels)]
        layout = {"write_statistics": False, "use_dictionary": repeating}
        with (
            _disk_errors(),
            path.open("wb") as sink,
            SealedWriter(sink, PART, self._schema, **layout) as writer,
        ):
            for piece in cut_rows(table):
                writer.write(piece)
            writer.seal(notes)
        return path

    def _new_path(self) -> Path:
        self._made += 1
        path = Path(self._folder.path) / f"{self._made:06d}.parquet"
        self._paths.append(str(path))
        return path

    def _resume(self, data: bytes) -> None:
        """Takes over a part of an interrupted listing."""
        path = self._new_path()
        with _disk_errors():
            path.write_bytes(data)
        file = SealedFile(data, PART, path.name)
        notes = file.metadata
        self.ignored = Counter(notes["ignored"])
        self.filtered = notes["filtered"]
        self.archives += [
            Stored(uri, size, identity, None) for uri, size, identity in notes["archives"]
        ]
        self.note_groups(notes.get("groups", ()))
        stored = [StoredPart(**part) for part in notes.get("stored", ())]
        self.stored += stored
        self.total += file.rows + sum(part.rows for part in stored)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the listing cannot be written to {tempfile.gettempdir()}: {error}; set TMPDIR to a "
            "disk with more room"
        ) from error
