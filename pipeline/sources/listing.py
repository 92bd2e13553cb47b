"""Candidates as they are listed: Parquet parts on disk, never a list of them all in memory.

    >>> parts = Parts()
    >>> for page in pages("s3://bucket/photos"):                 # doctest: +SKIP
    ...     for item in page:
    ...         parts.add(item.uri, "", item.size, item.identity)
    ...     parts.checkpoint()
    >>> parts.listing("s3://bucket/photos").entries              # doctest: +SKIP

A prefix of S3 is listed from many places at a time. A span of keys is read page by page; whoever
has nothing to do cuts another's span in two, half-way between the key it has come to and its end,
so that any layout, flat or deep, is listed in parallel without knowing it. Parts may be kept in
storage with how far each span was read, and an interrupted listing goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import SourceError, StorageError
from pipeline.sources.listing_pages import Span
from pipeline.sources.manifest import ENTRY_COLUMNS, SCHEMA, Entry
from pipeline.storage import Stored

PART_ENTRIES = 100_000

RESUME_WITHIN = timedelta(hours=1)
"""An interrupted listing that is older is begun anew: the source may have changed meanwhile."""


@dataclass(frozen=True)
class Listing:
    """What a source holds: candidates in Parquet parts, and what was left out on purpose, by kind.

    The parts are temporary files, gone with the listing. A candidate may be in them twice.
    """

    source: str
    parts: tuple[str, ...]
    ignored: Mapping[str, int]
    labels: tuple[str, ...] = ()
    filtered: int = 0
    duplicates: int = 0
    """Members of archives that a later one of the same name replaces."""
    _folders: tuple[_Folder, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls, entries: Iterable[Entry], source: str = "", ignored: Mapping[str, int] | None = None
    ) -> Listing:
        """Of entries that are at hand."""
        parts = Parts()
        for entry in entries:
            parts.add(**asdict(entry))
        return parts.listing(source, ignored or {})

    @classmethod
    def all(cls, listings: Sequence[Listing]) -> Listing:
        """Several as one, without labels; what lies in more than one of them will count once."""
        first = listings[0]
        return cls(
            first.source,
            tuple(part for listing in listings for part in listing.parts),
            dict(sum((Counter(listing.ignored) for listing in listings), Counter())),
            (),
            sum(listing.filtered for listing in listings),
            sum(listing.duplicates for listing in listings),
            _folders=tuple(folder for listing in listings for folder in listing._folders),
        )

    @property
    def entries(self) -> Iterator[Entry]:
        """One by one, in the order of the parts."""
        for part in self.parts:
            for row in pq.read_table(part, columns=list(ENTRY_COLUMNS)).to_pylist():
                yield Entry(**row)


def label_columns(labels: Sequence[str]) -> list[str]:
    """The names of labels in parts: the user's may be anything."""
    return [f"label_{number}" for number, _ in enumerate(labels)]


@contextlib.contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the listing does not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk "
            "with more room"
        ) from error


class _Folder:
    """A temporary folder that lives as long as whoever holds this."""

    def __init__(self) -> None:
        with _on_disk():
            self.path = tempfile.mkdtemp(prefix="vdna-listing-")
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Parts:
    """Takes in candidates, and writes them as Parquet as they come.

    `labels`: names of text columns beyond a listing's own. `kept`: where parts are kept for a
    listing that may be interrupted.
    """

    def __init__(self, labels: Sequence[str] = (), kept: Kept | None = None) -> None:
        self._folder = _Folder()
        self._paths: list[str] = []
        self._labels = tuple(labels)
        self._schema = pa.schema(
            [*(SCHEMA.field(name) for name in ENTRY_COLUMNS)]
            + [(name, pa.string()) for name in label_columns(labels)]
        )
        self._columns: list[list[Any]] = [[] for _ in self._schema.names]
        self._kept = kept
        self.ignored: Counter[str] = Counter()
        self.filtered = 0
        self.duplicates = 0
        self.archives: list[Stored] = []
        """To be looked into when all is listed; a part notes those that came since the last."""
        self._noted = 0
        self.total = 0
        self.resumed = 0
        if kept is not None:
            self._take_up(kept)

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
        row = (uri, member, size, identity, group, position, access, *labels)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self.total += 1

    def add_table(self, table: pa.Table) -> None:
        """Many at once, with the columns of a listing."""
        if table.num_rows:
            self._flush()
            self._write(table.select(self._schema.names).cast(self._schema))
            self.total += table.num_rows

    def checkpoint(self) -> None:
        """Write a part if there is enough for one. Whatever was read so far has been added."""
        if len(self._columns[0]) >= PART_ENTRIES:
            path = self._flush()
            if self._kept is not None and path is not None:
                self._kept.put(path)

    def _flush(self) -> Path | None:
        if not self._columns[0]:
            return None
        columns = dict(zip(self._schema.names, self._columns, strict=True))
        self._columns = [[] for _ in self._schema.names]
        return self._write(pa.table(columns, self._schema))

    def listing(self, source: str, ignored: Mapping[str, int] | None = None) -> Listing:
        self._flush()
        return Listing(
            source,
            tuple(self._paths),
            dict(self.ignored if ignored is None else ignored),
            self._labels,
            self.filtered,
            self.duplicates,
            (self._folder,),
        )

    def _write(self, table: pa.Table) -> Path:
        path = self._new_path()
        notes: dict[str, Any] = {"ignored": dict(self.ignored), "filtered": self.filtered}
        if self._kept is not None:
            since = self.archives[self._noted :]
            notes["archives"] = [[item.uri, item.size, item.identity] for item in since]
            notes |= self._kept.notes()
            self._noted = len(self.archives)
        described = table.replace_schema_metadata({"vdna": json.dumps(notes)})
        with _on_disk():
            pq.write_table(described, path, compression="zstd", write_statistics=False)
        return path

    def _new_path(self) -> Path:
        path = Path(self._folder.path) / f"{len(self._paths):06d}.parquet"
        self._paths.append(str(path))
        return path

    def _take_up(self, kept: Kept) -> None:
        for data in kept.found():
            path = self._new_path()
            with _on_disk():
                path.write_bytes(data)
            file = pq.ParquetFile(path)
            notes = _notes(file)
            self.ignored = Counter(notes["ignored"])
            self.filtered = notes["filtered"]
            self.archives += [
                Stored(uri, size, identity, None) for uri, size, identity in notes["archives"]
            ]
            self.total += file.metadata.num_rows
        self._noted = len(self.archives)
        self.resumed = self.total


class Kept:
    """Parts of an interrupted listing in storage, and how far its spans were read.

    Each part states the sha256 of the one before it, so that parts of two that list at once are
    never taken for one listing. One that is older than `RESUME_WITHIN`, or not whole, is removed
    and begun anew.
    """

    def __init__(self, folder: str, now: datetime, *, relist: bool = False) -> None:
        self._folder = folder
        self._now = now
        self.spans: dict[int, Span] = {}
        self.written: datetime | None = None
        self._parts: list[bytes] = []
        self._before = ""
        self._mine = True
        items = sorted(_walk_if_there(folder), key=lambda item: item.uri)
        if items and (relist or not self._take_up(items)):
            storage.delete_tree(folder)
            self.spans, self.written, self._parts, self._before = {}, None, [], ""
        self._next = len(self._parts)

    def _take_up(self, items: Sequence[Stored]) -> bool:
        for number, item in enumerate(items):
            data = storage.read(item.uri)
            try:
                notes = _notes(pq.ParquetFile(pa.BufferReader(data)))
                self.spans = {int(name): Span(**span) for name, span in notes["spans"].items()}
                self.written = datetime.fromisoformat(notes["written"])
            except (pa.ArrowException, KeyError, TypeError, ValueError):
                return False
            if item.uri != self._uri(number) or notes.get("before") != self._before:
                return False
            self._parts.append(data)
            self._before = hashlib.sha256(data).hexdigest()
        return self.written is not None and abs(self._now - self.written) <= RESUME_WITHIN

    def found(self) -> Iterator[bytes]:
        """The parts, each once."""
        while self._parts:
            yield self._parts.pop(0)

    def notes(self) -> dict[str, Any]:
        spans = {str(name): asdict(span) for name, span in self.spans.items()}
        return {
            "spans": spans,
            "written": datetime.now(UTC).isoformat(),
            "before": self._before,
        }

    def put(self, path: Path) -> None:
        if self._mine:
            data = path.read_bytes()
            try:
                self._mine = storage.create(self._uri(self._next), data)
            except StorageError:  # then an interruption costs the whole listing, and no more
                self._mine = False
            self._before = hashlib.sha256(data).hexdigest()
            self._next += 1

    def remove(self) -> None:
        """The listing has become a plan."""
        if self._next:
            storage.delete_tree(self._folder)

    def _uri(self, number: int) -> str:
        return storage.join(self._folder, f"{number:06d}.parquet")


def _notes(file: pq.ParquetFile) -> dict[str, Any]:
    notes: dict[str, Any] = json.loads(file.schema_arrow.metadata[b"vdna"])
    return notes


def _walk_if_there(folder: str) -> Iterator[Stored]:
    try:
        yield from storage.walk(folder)
    except SourceError:
        return
