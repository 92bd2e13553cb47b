"""A listing -> deterministic shards and folds, out of core.

    >>> m = plan(listing)                                       # doctest: +SKIP
    >>> plan(listing, previous=m).digest == m.digest            # doctest: +SKIP

The same candidates give the same plan on any machine, in any order of listing. A later listing
keeps every old shard whose members are unchanged, so that only what changed is computed again.
Single images are spread over folds and shards by a hash of their group, so that every fold is a
fair sample; a group (a video, a drive, a patient) never straddles folds. The members of an archive
are spread in runs as they lie, so that a shard reads it in one piece. Where parts are made by a
label, each shard is of one value, and each value is spread evenly over the folds.

Sorting and joining is DuckDB's affair, in bounded memory: what does not fit waits on disk.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import SourceError, StorageError, UsageError
from pipeline.sources.listing import Listing, label_columns
from pipeline.sources.manifest import (
    ENTRY_COLUMNS,
    FOLDS,
    SCHEMA,
    SHARD_MULTIPLE,
    Entry,
    Manifest,
    ManifestWriter,
    default_shard_images,
)

MEMORY = "256MiB"
"""DuckDB's, beyond which it sorts and joins on disk."""

THREADS = 2
"""Each holds blocks of its own while it sorts: four did not find room for six million images."""

ROWS = 65_536
"""Of a batch that is looked at."""


def plan(
    found: Listing | Iterable[Entry],
    *,
    shard_images: int | None = None,
    previous: Manifest | None = None,
    limit: int | None = None,
    by: str | None = None,
) -> Manifest:
    """Cut candidates into shards; keep those of `previous` as far as their members still stand.

    `limit`: so many, chosen by a hash of their names, the same on every run. A shard that lost or
    changed a member is kept without it, or with its new identity, and so is computed again;
    candidates not seen before go to new shards. Where they are grouped otherwise than before, all
    is planned anew, for folds must not split a group. `by`: a label; a shard of `previous` that
    mixes values of it is cut anew.

    Raises `SourceError` on no candidates, or on one that is listed with two groups or labels, and
    `StorageError` where the disk for temporary files has no room.
    """
    listing = found if isinstance(found, Listing) else Listing.of(found)
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it must be at least 1")
    if shard_images is not None and shard_images < 1:
        raise UsageError(f"shard_images is {shard_images}; it must be at least 1")
    if by is not None and by not in listing.labels:
        raise UsageError(f"by is {by!r}; the candidates' labels are: {', '.join(listing.labels)}")
    if len(listing.parts) > 1:  # looking for all that is left takes a large process a while
        _give_back()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="vdna-plan-") as folder,
            tempfile.TemporaryFile() as file,
            connect(folder) as database,
        ):
            return _Planner(database, listing, previous, shard_images, limit, by).write(file)
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise StorageError(
            f"the plan does not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk with "
            "more room"
        ) from error


def _give_back() -> None:
    """What listing, or a plan before, took and left is not held beside what DuckDB is allowed."""
    gc.collect()
    pa.default_memory_pool().release_unused()


def connect(folder: str) -> duckdb.DuckDBPyConnection:
    """A database in bounded memory; what does not fit waits in `folder`."""
    settings: dict[str, Any] = {
        "memory_limit": MEMORY,
        "temp_directory": folder,
        "threads": min(THREADS, os.cpu_count() or 1),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=settings)


class _Planner:
    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        listing: Listing,
        previous: Manifest | None,
        shard_images: int | None,
        limit: int | None,
        by: str | None,
    ) -> None:
        self._db = database
        self._listing = listing
        self._columns = [*ENTRY_COLUMNS, *label_columns(listing.labels)]
        self._by = None if by is None else label_columns(listing.labels)[listing.labels.index(by)]
        self._value = "''" if self._by is None else f"coalesce({_quoted(self._by)}, '')"
        self._take_in(limit)
        self._candidates = self._number("select count(*) from listing")
        if not self._candidates:
            raise SourceError("there is no image to plan for")
        self._size = shard_images or default_shard_images(self._candidates)
        self._compare(previous)

    def write(self, file: Any) -> Manifest:
        """Kept shards in their order, then new ones fold by fold."""
        names = [*ENTRY_COLUMNS, *self._listing.labels]
        notes = (self._size, self._listing.source, self._listing.ignored, self._duplicates)
        loads = _Loads()
        with (
            ManifestWriter(file, self._listing.labels) as writer,
            tempfile.TemporaryDirectory(prefix="vdna-plan-") as folder,
        ):
            for fold, table in self._kept():
                writer.add(fold, table.rename_columns(names))
                loads.add(fold, self._value_of(table), table.num_rows)
            spills = [_Spill(os.path.join(folder, f"{fold}.arrow")) for fold in range(FOLDS)]
            self._spread(loads, spills)
            for fold, spill in enumerate(spills):
                for table in self._cut(spill.batches()):
                    writer.add(fold, table.select(self._columns).rename_columns(names))
            writer.note(*notes)
        file.flush()
        return writer.manifest(mmap(file.fileno(), 0, access=ACCESS_READ), *notes)

    def _number(self, query: str) -> int:
        ((number,),) = self._db.execute(query).fetchall()
        return int(number or 0)

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self._db.sql(query).to_arrow_reader(ROWS)

    # What there is.

    def _take_in(self, limit: int | None) -> None:
        """Table `listing`: every candidate once."""
        parts = [part.replace("'", "''") for part in self._listing.parts]
        listed = "[" + ", ".join(f"'{part}'" for part in parts) + "]"
        if not parts:
            raise SourceError("there is no image to plan for")
        self._db.execute(
            f"create view listed as select * from read_parquet({listed}, union_by_name = true)"
        )
        rest = self._columns[2:]
        packed = ", ".join(f"{_quoted(name)} := {_quoted(name)}" for name in rest)
        unpacked = ", ".join(f"row.{_quoted(name)} as {_quoted(name)}" for name in rest)
        # Of a candidate that changed while it was listed, any one; the same on every run.
        self._db.execute(
            f"create table listing as select uri, member, {unpacked} from (select uri, member, "
            f"min(struct_pack({packed})) as row from listed group by uri, member)"
        )
        self._duplicates = self._number("select count(*) from listed") - self._number(
            "select count(*) from listing"
        )
        if self._duplicates:
            self._require_one_group()
        self._duplicates += self._listing.duplicates
        if limit is not None:
            self._db.execute(
                "create or replace table listing as select * from listing "
                "order by sha256(uri || chr(0) || member), uri, position, member "
                f"limit {int(limit)}"
            )

    def _require_one_group(self) -> None:
        named = zip(self._columns[len(ENTRY_COLUMNS) :], self._listing.labels, strict=True)
        for at, name in (("group", "group"), *named):
            column = f"coalesce({_quoted(at)}, '')"
            rows = self._db.execute(
                f"select uri, member, min({column}), max({column}) from listed "
                f"group by uri, member having min({column}) <> max({column}) "
                "order by uri, member limit 1"
            ).fetchall()
            for uri, member, one, other in rows:
                raise SourceError(
                    f"{uri}{'::' + member if member else ''} is listed twice, with {name} {one!r} "
                    f"and {other!r}; it counts once, so give it one"
                )

    def _compare(self, previous: Manifest | None) -> None:
        """Table `previous`: the plan whose shards are kept. `fresh`: what it does not have."""
        if previous is not None:
            self._db.register("previous_rows", _previous_rows(previous))
            self._db.execute("create table previous as select * from previous_rows")
            self._db.unregister("previous_rows")
            regrouped = self._number(
                "select count(*) from previous p join listing l on p.uri = l.uri "
                'and p.member = l.member where p."group" <> l."group"'
            )
            if not regrouped:
                self._has_previous = True
                self._leave_mixed()
                self._db.execute(
                    "create table fresh as select * from listing anti join previous "
                    "using (uri, member)"
                )
                return
        self._has_previous = False
        self._db.execute("create view fresh as select * from listing")

    def _leave_mixed(self) -> None:
        """Shards of the previous plan whose members, as they are listed now, differ in value."""
        if self._by is not None:
            self._db.execute(
                "delete from previous where shard in (select p.shard from previous p join listing "
                "l on p.uri = l.uri and p.member = l.member group by p.shard "
                f"having count(distinct {self._value}) > 1)"
            )

    # What becomes of it.

    def _kept(self) -> Iterator[tuple[int, pa.Table]]:
        """Shards of the previous plan, of the members that are still there: fold, members."""
        if not self._has_previous:
            return
        columns = ", ".join(f"l.{_quoted(name)}" for name in self._columns)
        query = (
            f"select {columns}, p.shard, p.fold from previous p join listing l "
            "on p.uri = l.uri and p.member = l.member order by p.shard, p.place"
        )
        pending: list[pa.RecordBatch] = []
        for batch in self._batches(query):
            shards = batch["shard"].to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(shards)) + 1), len(shards)]
            for start, end in pairwise(starts):
                if pending and pending[-1]["shard"][0].as_py() != shards[start]:
                    yield self._shard(pending)
                    pending = []
                pending.append(batch.slice(start, end - start))
        if pending:
            yield self._shard(pending)

    def _shard(self, batches: list[pa.RecordBatch]) -> tuple[int, pa.Table]:
        table = pa.Table.from_batches(batches)
        return table["fold"][0].as_py(), table.select(self._columns)

    def _value_of(self, rows: pa.Table | pa.RecordBatch) -> str:
        """The value that the rows have in common; empty where there are no parts."""
        return "" if self._by is None else rows[self._by][0].as_py() or ""

    def _spread(self, loads: _Loads, spills: list[_Spill]) -> None:
        """Groups in order of their hash, each to the fold that has least; known ones to theirs.

        Value by value where parts are made; a group of several values is of the first.
        """
        known = (
            'select "group" as name, min(fold) as fold from previous '
            "where \"group\" <> '' group by 1"
            if self._has_previous
            else "select '' as name, 0 as fold where false"
        )
        columns = ", ".join(f"f.{_quoted(name)}" for name in self._columns)
        query = (
            f"with named as ({self._named()}), known as ({known}), valued as (select *, "
            f"{self._value_of_group()} as value from named) "
            f"select {columns}, f.name, f.value, k.fold from valued f left join known k "
            "on f.name = k.name order by value, sha256(f.name), f.name, uri, position, member"
        )
        current, fold = None, 0
        for batch in self._batches(query):
            folds = np.empty(batch.num_rows, np.int8)
            names, fixed = batch["name"].to_pylist(), batch["fold"].to_pylist()
            values = batch["value"].to_pylist()
            for i, (name, its) in enumerate(zip(names, fixed, strict=True)):
                if name != current:
                    current = name
                    fold = loads.least(values[i]) if its is None else its
                folds[i] = fold
                loads.add(fold, values[i])
            rows = batch.select([*self._columns, "name"] if self._by else self._columns)
            for taken in np.unique(folds):
                spills[taken].write(rows.filter(pa.array(folds == taken)))

    def _value_of_group(self) -> str:
        return "''" if self._by is None else f"min({self._value}) over (partition by name)"

    def _named(self) -> str:
        """Fresh candidates, each with the name of what is not to be split: its group, itself, or
        its run of members of an archive.
        """
        columns = ", ".join(_quoted(name) for name in self._columns)
        return (
            f'select {columns}, case when "group" = \'\' then uri else "group" end as name '
            "from fresh where access = '' or \"group\" <> '' union all "
            f"select {columns}, uri || chr(0) || {self._run()} as name "
            "from fresh where access <> '' and \"group\" = ''"
        )

    def _run(self) -> str:
        """The number of a run of an archive's members that stay together: as many as a shard's, or
        fewer where that leaves folds without any. Each value has runs of its own.
        """
        if self._by is None:
            length, value, of_value = str(self._run_length(self._candidates)), "", ""
        else:
            counts = self._db.execute(
                f"select {self._value}, count(*) from listing group by 1"
            ).fetchall()
            lengths = [(value, self._run_length(count)) for value, count in counts]
            self._db.execute("create table lengths (value text, length bigint)")
            self._db.executemany("insert into lengths values (?, ?)", lengths)
            length = f"(select length from lengths where value = {self._value})"
            value, of_value = f"{self._value} || chr(0) || ", f", {self._value}"
        return (
            f"{value}((row_number() over (partition by uri{of_value} order by position, member) "
            f"- 1) // {length})"
        )

    def _run_length(self, candidates: int) -> int:
        even = -(-candidates // (2 * FOLDS))
        return self._size if even > self._size - SHARD_MULTIPLE else even

    def _cut(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """A fold's rows in shards of one size and of one value each, its last one smaller."""
        held: list[pa.RecordBatch] = []
        for batch in self._runs(batches):
            if held and self._value_of(held[0]) != self._value_of(batch):
                yield _sorted(pa.Table.from_batches(held))
                held = []
            held.append(batch)
            while sum(rows.num_rows for rows in held) >= self._size:
                table = pa.Table.from_batches(held)
                yield _sorted(table.slice(0, self._size))
                held = table.slice(self._size).to_batches()
        if held:
            yield _sorted(pa.Table.from_batches(held))

    def _runs(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Batches of one value each."""
        if self._by is None:
            yield from batches
            return
        # A group that has several values stands whole where its first one does.
        schema = pa.schema([*map(self._field, self._columns), ("name", pa.string())])
        self._db.register("spilled", pa.RecordBatchReader.from_batches(schema, iter(batches)))
        query = f"select * from spilled order by {self._value}, sha256(name), uri, position, member"
        for batch in self._batches(query):
            values = pc.fill_null(batch[self._by], "")
            changes = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
            starts = [0, *(np.flatnonzero(changes) + 1), batch.num_rows]
            for start, end in pairwise(starts):
                yield batch.slice(start, end - start)
        self._db.unregister("spilled")

    def _field(self, name: str) -> pa.Field:
        return SCHEMA.field(name) if name in SCHEMA.names else pa.field(name, pa.string())


class _Loads:
    """Candidates in each fold: in all, and of each value."""

    def __init__(self) -> None:
        self._all = [0] * FOLDS
        self._of: dict[str, list[int]] = {}

    def add(self, fold: int, value: str, candidates: int = 1) -> None:
        self._all[fold] += candidates
        if value:
            if value not in self._of:
                self._of[value] = [0] * FOLDS
            self._of[value][fold] += candidates

    def least(self, value: str) -> int:
        """The fold that has fewest of the value, and among equals fewest in all."""
        mine = self._of.get(value, self._all)
        if mine is self._all:
            return mine.index(min(mine))
        return min(range(FOLDS), key=lambda fold: (mine[fold], self._all[fold]))


class _Spill:
    """The rows of a fold on disk, in order."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, rows: pa.RecordBatch) -> None:
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._path, rows.schema)
        self._writer.write_batch(rows)

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self._writer is None:
            return
        self._writer.close()
        # Given a path it would map the file, and what it maps it keeps.
        with pa.OSFile(self._path) as file, pa.ipc.open_stream(file) as reader:
            yield from reader


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("uri", "position", "member")])


def _previous_rows(manifest: Manifest) -> pa.RecordBatchReader:
    schema = pa.schema([SCHEMA.field(n) for n in ("uri", "member", "group", "shard", "fold")])

    def batches() -> Iterator[pa.RecordBatch]:
        for table in manifest.tables():
            rows = table.select(schema.names).cast(schema)
            places = pa.array(range(rows.num_rows), pa.int32())
            yield from rows.append_column("place", places).to_batches()

    return pa.RecordBatchReader.from_batches(
        schema.append(pa.field("place", pa.int32())), batches()
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
