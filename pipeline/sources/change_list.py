"""Applies a change list to an earlier manifest, in place of listing the source.

    >>> before = catalogue.manifest("photos", version)                    # doctest: +SKIP
    >>> listing, counts = list_changed("s3://bucket/photos", "s3://bucket/night.csv", before)
    >>> counts.added, counts.removed                                      # doctest: +SKIP
    (120, 3)

A change list is a table with a column `change` that says `added`, `removed` or `changed` of the
image that the row names. The result is the listing that the source itself would give, if it has
changed in just this way: images are looked up, selected, grouped and labelled as in a listing.

The list says what is there now. So an image that is `added` and was there before is taken as it is
now, one that is `removed` and was not there stays away, and a list may be applied twice.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from posixpath import splitext
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import SourceError, StorageError, UsageError, printable, shortened
from pipeline.events import Listener, ignore
from pipeline.mapper import Mapper, map_in_order
from pipeline.sources import blocks
from pipeline.sources.archives.contents import archive_kind
from pipeline.sources.change_planning import plan_changes
from pipeline.sources.database import connect, quoted_column
from pipeline.sources.entries_file import ENTRY_SCHEMA, object_schema
from pipeline.sources.listing import Listing, StoredPart, label_columns
from pipeline.sources.lists_and_tables import (
    CHANGE_COLUMN,
    SourceTable,
    TableRow,
    absolute_uri,
    lacks_column,
    member_in,
    named_in_errors,
    require_nameable,
)
from pipeline.sources.manifest import Manifest
from pipeline.sources.named_members import (
    UNIQUE_NAMES_SCHEMA,
    first_folder,
    folders_above,
    match_members,
)
from pipeline.sources.plan_comparison import PlanChanges, compare_ranges, joined_changes
from pipeline.sources.rules import Rules
from pipeline.sources.source_lister import PAGE_OBJECTS, FoundPage, SourceLister
from pipeline.sources.stretches import store_sorted
from pipeline.sources.table_file import JSON_LINES, TABLE_EXTENSIONS
from pipeline.sources.task_listing import PlanAhead
from pipeline.storage import Stored
from pipeline.wording import count_of, option

IS_GONE = "removed"

CHANGE_WORDS = ("added", IS_GONE, "changed")
"""What the column may say."""

ONE_OF_THEM = "added, removed or changed"

CHUNK_ROWS = 100_000
"""Rows of the earlier manifest that are in memory at a time."""

STORED_TOGETHER = 2**18
"""Rows of a change list that are put into storage at a time, for tasks."""

NAMED_SCHEMA = pa.schema(
    [
        ("number", pa.int64()),
        ("uri", pa.string()),
        ("member", pa.string()),
        ("change", pa.string()),
        ("size", pa.int64()),
        ("identity", pa.string()),
        ("archive", pa.bool_()),
    ]
)
"""What is kept of each row of a change list."""

_UNIQUE_NAMES = f"""
select uri, min(number) as number, bool_and(change = '{IS_GONE}') as is_removed,
       uri in (select uri from found) as is_found
from named group by uri order by uri
"""

_LISTED_OBJECTS = "select {} from listed order by uri"


@dataclass(frozen=True)
class ChangeCounts:
    """What a change list did to a manifest.

    Attributes:
        added: Images that are new.
        removed: Images that are gone.
        changed: Images that are there as before, with another content, group or label.
        unchanged: Images that were already as the list says.
        filtered: Images that the rules leave out.
    """

    added: int
    removed: int
    changed: int
    unchanged: int
    filtered: int

    def __str__(self) -> str:
        done = {"added": self.added, "removed": self.removed, "changed": self.changed}
        words = [f"{number:,} {word}" for word, number in done.items()]
        words += [f"{self.unchanged:,} already so"]
        words += [f"{self.filtered:,} left out by include and exclude"] if self.filtered else []
        return ", ".join(words)


def list_changed(
    source: str | os.PathLike[str],
    changes: str,
    before: Manifest,
    rules: Rules | None = None,
    *,
    mapper: Mapper | None = None,
    cache: str | None = None,
    outside: str | None = None,
    progress: Listener | None = None,
    ahead: PlanAhead | None = None,
    folder: str | None = None,
) -> tuple[Listing, ChangeCounts]:
    """Lists the candidates of a source by what has changed in it.

    Args:
        source: The source that `before` was listed from, with the same rules.
        changes: The path or url of the change list.
        before: What the source had before.
        rules: Which candidates count, and how they are grouped and labelled.
        mapper: As in `list_source`.
        cache: As in `list_source`.
        outside: As in `list_source`.
        progress: As in `list_source`.
        ahead: How a very large source of single images is planned by tasks, which keep the shards
            of `before`. None leaves that to the caller.
        folder: The uri of a folder for what tasks tell each other, which is removed in the end.
            None has no tasks.

    Returns:
        The candidates, and how many of them the change list has changed. If tasks have planned the
        source, the listing has the plan in place of candidates.

    Raises:
        UsageError: The table is no change list, or is none for this source.
        SourceError: A row says what cannot be; the message has the table's name and the row's
            number.
        ConservationError: Tasks have lost a candidate.
        StorageError: The disk for temporary files has no room.
    """
    text, rules = os.fspath(source), rules or Rules()
    try:
        with ExitStack() as stack:
            with (
                storage.ScratchFolder("changes") as scratch,
                connect(scratch) as database,
            ):
                lister = _ChangeLister(text, rules, progress or ignore, changes, before, database)
                lister.list_objects(outside and storage.resolved(outside))
                lister.require_clear()
                lister.list_archives(mapper, cache)
                lister.note_found()
                if (
                    ahead is None
                    or folder is None
                    or mapper is None
                    or mapper.in_process
                    or not lister.may_be_compared_by_tasks(ahead)
                ):
                    return lister.merge()
                stack.callback(storage.delete_tree, folder)
                compared = lister.compare(mapper, folder)
                if compared is None:
                    return lister.merge()
            # The database is closed by now, as the plan needs the memory.
            found, counts = compared
            listing = Listing(
                lister.source, (), dict(lister.candidates.ignored), pairing=lister.pairing
            )
            sizes = ahead.sizes()
            made = plan_changes(
                *(listing, found, before, ahead.entries, sizes, mapper), grouped=lister.is_grouped
            )
            return replace(lister.listing(made), difference=found.difference), counts
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise StorageError(
            f"the changes cannot be applied in {tempfile.gettempdir()}: {error}; set TMPDIR to a "
            "disk with more room"
        ) from error


@dataclass(frozen=True)
class _Change:
    """A row of a change list."""

    number: int
    word: str
    row: TableRow

    @property
    def named(self) -> tuple[Any, ...]:
        """The values of `NAMED_SCHEMA`."""
        item, archive = self.row.item, archive_kind(self.row.item.uri) is not None
        about = (item.uri, self.row.member, self.word, item.size, item.identity, archive)
        return self.number, *about


class _ChangeLister(SourceLister):
    """Lists what a change list adds and changes, and then what else was there before.

    Its tables: `named` (the rows of the change list), `archives` and `keys` (what they name) and
    `touched` (what was there before of that).
    """

    def __init__(
        self,
        text: str,
        rules: Rules,
        progress: Listener,
        changes: str,
        before: Manifest,
        database: duckdb.DuckDBPyConnection,
    ) -> None:
        super().__init__(text, rules, None, progress)
        self._classes = None
        self._before = before
        self._db = database
        if self._kind == "glob":
            raise UsageError(
                f"{option('changes')} does not go with a glob, and the source is {self._shown}; "
                f"name its folder, and give {option('include')}"
            )
        if before.source != self.source:
            raise UsageError(
                f"the images were listed from {storage.readable(before.source)}, and the source is "
                f"{storage.readable(self.source)} now; build once without {option('changes')}"
            )
        if before.labels != self._labels:
            raise UsageError(
                f"the images were listed with the labels {', '.join(before.labels) or 'none'}, and "
                f"{self._shown} has {', '.join(self._labels) or 'none'} now; build once without "
                f"{option('changes')}"
            )
        self._uri_of_changes = storage.canonical(changes)
        self._changes = self._open(changes)
        self._columns = [*ENTRY_SCHEMA.names, *label_columns(self._labels)]

    def _open(self, changes: str) -> SourceTable | None:
        """Opens the change list.

        Returns:
            The table; None for JSON lines without a line, which have no columns either.

        Raises:
            UsageError: It is no change list.
        """
        uri, rules = self._uri_of_changes, self.rules
        lines = splitext(uri)[1].lower() in JSON_LINES and storage.exists(uri)
        if lines and not storage.info(uri).size:
            return None
        names = Rules(image_column=rules.image_column, allow_query=rules.allow_query)
        table = SourceTable.open(uri, names)
        if table is None:
            raise UsageError(
                f"changes is {changes!r}, which is no table of changes or does not exist; it must "
                f"be a file of {', '.join(sorted(TABLE_EXTENSIONS - {'.json'}))}"
            )
        if CHANGE_COLUMN not in table.file.columns:
            raise UsageError(
                f"{uri} has no column {CHANGE_COLUMN}, which says {ONE_OF_THEM} of each image"
                f"{table.file.head()}"
            )
        source = self._table
        if source is not None and source.has_other_uris and table.name == "uri":
            refusal = lacks_column(table.file, source.name)
            raise refusal
        if CHANGE_COLUMN in self._labels:
            raise UsageError(
                f"{self._shown} has a label {CHANGE_COLUMN}, which is the column of a change list "
                "that says what has happened; rename the label"
            )
        return table if self._table is None else replace(table, group=self._table.group)

    def _pages(self, outside: str | None) -> Generator[FoundPage, None, None]:
        """Yields pages of what was added and what was changed."""
        empty = NAMED_SCHEMA.empty_table()
        self._db.register("page", empty)
        self._db.execute("create table named as select * from page")
        rows: Iterator[_Change] = iter(())
        if (table := self._changes) is not None:
            rows = map_in_order(partial(self._look_up, table), enumerate(table.file.rows(), 1))
        while some := list(islice(rows, PAGE_OBJECTS)):
            named = zip(*(each.named for each in some), strict=True)
            columns = [
                pa.array(values, field.type)
                for values, field in zip(named, NAMED_SCHEMA, strict=True)
            ]
            self._db.register("page", pa.table(columns, NAMED_SCHEMA))
            self._db.execute("insert into named select * from page")
            here = [each for each in some if each.word != IS_GONE]
            yield len(some), [each.row for each in here if self._is_ours(each, outside)]
        self._db.unregister("page")

    def _look_up(self, table: SourceTable, numbered: tuple[int, Mapping[str, Any]]) -> _Change:
        """Looks up what a row names, unless that is gone."""
        number, row = numbered
        with named_in_errors(f"{table.uri}, row {number}"):
            word = row[CHANGE_COLUMN]
            if word not in CHANGE_WORDS:
                raise SourceError(f"{CHANGE_COLUMN} is {shortened(word)}; it must be {ONE_OF_THEM}")
            uri = absolute_uri(table.name_in(row), self._root, self.rules)
            if self._kind in ("table", "list"):
                require_nameable(uri, table.uri)
            elif not f"{uri}/".startswith(f"{self._root.rstrip('/')}/"):
                raise SourceError(f"{uri} is not in the source, {storage.readable(self._root)}")
            if not {".", ".."}.isdisjoint(uri.split("/")):
                raise SourceError(
                    f"{uri} has a part that is . or ..; name the image as it is listed"
                )
            member = member_in(row)
            if member and self._table is None:
                raise SourceError(
                    f"it names the member {member!r} of {uri}; a source that is no table has "
                    "archives as a whole, so name the archive alone"
                )
            if word == IS_GONE:
                return _Change(number, word, TableRow(Stored(uri, 0, "", None), member, None, ()))
            labels = self._labels if self._table else ()
            wanted = dict.fromkeys([*labels, *([table.group] if table.group else [])])
            if missing := [name for name in wanted if name not in row]:
                raise SourceError(
                    f"there is no column {', '.join(map(printable, missing))}, which "
                    f"{self._shown} has; an image that is {word} needs it"
                )
            return _Change(number, word, table.row_of(row, uri, labels))

    def _is_ours(self, change: _Change, outside: str | None) -> bool:
        """Tells whether an object is none of the results, which may lie in the same bucket.

        Returns:
            Whether it counts.

        Raises:
            UsageError: A link leads to the results.
            SourceError: A link leads to the object.
        """
        item = change.row.item
        if self.inventory is not None and outside is not None:
            if item.uri.startswith(f"{outside}/"):
                self.candidates.filtered += 1
                return False
        elif self._table is None:
            next(self._found([item], outside))
            if self._kind != "list":
                with named_in_errors(f"{self._uri_of_changes}, row {change.number}"):
                    _require_no_link(item.uri, self._root)
        return True

    def require_clear(self) -> None:
        """Checks that the list says one thing of each image.

        Raises:
            SourceError: It says two.
        """
        self._db.execute(
            "create table archives as select uri, bool_or(member = '') as whole, "
            f"max(identity) filter (change <> '{IS_GONE}') as identity "
            "from named where archive group by uri"
        )
        self._db.execute(
            "create table keys as select distinct uri, member from named "
            "where not (archive and member = '')"
        )
        said = {  # what must agree, in which rows, of which name
            "change": (
                "change",
                "true",
                "case when coalesce(whole, false) then '' else member end",
            ),
            "identity": ("n.identity", f"change <> '{IS_GONE}'", "''"),
            "size": ("size::text", f"change <> '{IS_GONE}'", "''"),
        }
        for what, (value, where, name) in said.items():
            query = (
                f"select uri, {name} as name, min({value}), max({value}), "
                f"arg_min(number, {value}), arg_max(number, {value}) "
                f"from named n left join archives using (uri) where {where} "
                f"group by all having min({value}) <> max({value}) order by min(number) limit 1"
            )
            for uri, member, one, other, first, second in self._db.execute(query).fetchall():
                its = f"{uri}::{member}" if member else uri
                raise SourceError(
                    f"{self._uri_of_changes} says two things of {its}: "
                    f"{what} {one} in row {first} and {other} in row {second}; leave the one that "
                    "is so now"
                )

    def note_found(self) -> None:
        """Takes over what was added and changed: the views `listed` and, each once, `found`."""
        kinds = {
            name: "bigint" if name in ("size", "position") else "text" for name in self._columns
        }
        columns = ", ".join(f"{quoted_column(name)} {kind}" for name, kind in kinds.items())
        self._db.execute(f"create table touched ({columns})")
        self._db.execute("create table folders (number bigint, uri text)")
        parts = [part.replace("'", "''") for part in self.candidates.listing(self.source).parts]
        files = ", ".join(f"'{part}'" for part in parts)
        names = ", ".join(map(quoted_column, self._columns))
        found = f"read_parquet([{files}])" if parts else "touched where false"
        self._db.execute(f"create view listed as select {names} from {found}")
        self._db.execute("create view found as select distinct * from listed")

    def compare(self, mapper: Mapper, folder: str) -> tuple[PlanChanges, ChangeCounts] | None:
        """Has tasks compare what the change list names with what was there before.

        Args:
            mapper: Where tasks run.
            folder: Where tasks put what they have found.

        Returns:
            How the plan changes, and what the change list did. None if this process has to merge
            both: what tasks plan has no members of archives, and no groups but those of folders
            that are very many.

        Raises:
            ConservationError: Tasks have lost a candidate or a member.
            SourceError: A folder is named that images are in.
        """
        before = self._before
        named = list(self._stored(_UNIQUE_NAMES, UNIQUE_NAMES_SCHEMA, folder))
        schema = object_schema(grouped=self.is_grouped)
        groups = self.pairing if self.is_grouped else None
        columns = ", ".join(map(quoted_column, schema.names))
        found = list(self._stored(_LISTED_OBJECTS.format(columns), schema, folder))
        names = count_of(sum(part.rows for part in named), "image")
        self.tell(f"looking for {names} of the list among {before.candidates:,} of the plan before")
        runs = match_members(named, before, folder, mapper, self.say, groups)
        if runs is None:
            return None
        for run in runs:
            self.candidates.note_groups(run.groups)
        if not self.has_hashed_folds:
            return None
        if (like := first_folder(runs)) is not None:
            self._refuse_folder(*like)
        parts = [part for run in runs for part in run.parts]
        matched = sum(part.rows for part in parts)
        compared = compare_ranges(
            *(found, parts, folder, mapper, self.say), grouped=self.is_grouped
        )
        if any(each.regrouped for each in compared):
            return None
        changes = joined_changes(
            [*(run.rest for run in runs), *compared],
            [run.shards for run in runs],
            self.candidates.total + before.candidates - matched,
            before,
            self.source,
        )
        if changes.totals.candidates < blocks.MANY:
            return None
        gone = self._number(f"select distinct uri from named where change = '{IS_GONE}'")
        absent = gone - sum(run.removed for run in runs)
        return changes, ChangeCounts(
            added=changes.rows_added,
            removed=changes.rows_removed,
            changed=changes.rows_changed,
            unchanged=matched - changes.rows_removed - changes.rows_changed + absent,
            filtered=self.candidates.filtered,
        )

    def may_be_compared_by_tasks(self, ahead: PlanAhead) -> bool:
        """Tells whether tasks can plan what the change list makes of the plan before.

        Args:
            ahead: How the source is planned.

        Returns:
            Whether the plan is very large, and has single images without labels or other names for
            pairing, as far as is known, and the list names no archive.
        """
        before = self._before
        return (
            before.candidates >= blocks.MANY
            and not self._labels
            and self.is_single
            and self.pairing.by is None
            and ahead.entries.holds_those_of(before.entries)
            and not self._number("select 1 from named where archive or member <> '' limit 1")
        )

    def _stored(self, query: str, schema: pa.Schema, folder: str) -> Iterator[StoredPart]:
        """Stores what a query finds, sorted by the column `uri`, for tasks to read."""
        for some in self._db.sql(query).to_arrow_reader(STORED_TOGETHER):
            rows = pa.Table.from_batches([some]).cast(schema)
            yield from store_sorted(rows, folder, blocks.BLOCK_IMAGES)

    def merge(self) -> tuple[Listing, ChangeCounts]:
        """Adds what was there before, except for what the change list names.

        Returns:
            The candidates, and what the change list did.

        Raises:
            SourceError: A part of an archive is named, and the rest has changed, too. Or a folder
                is named that images are in.
        """
        for rows in _chunks(self._before):
            self._sort_out(rows.rename_columns(self._columns))
        self._require_no_folder()
        counts = self._counts()
        return self.listing(), counts

    def _sort_out(self, rows: pa.Table) -> None:
        """Adds the rows that the change list does not name, and notes the others.

        Raises:
            SourceError: A part of an archive is named, and the rest has changed, too.
        """
        self._note_folders(rows["uri"].combine_chunks())
        self._db.register("chunk", rows)
        joined = self._db.sql(
            "select chunk.*, keys.uri is not null or coalesce(whole, false) as hit, "
            "not hit and coalesce(archives.identity <> chunk.identity, false) as stale "
            "from chunk left join keys on chunk.uri = keys.uri and chunk.member = keys.member "
            "left join archives on chunk.uri = archives.uri"
        ).to_arrow_table()
        self._db.unregister("chunk")
        if left := joined.filter(joined["stale"]).slice(0, 1).to_pylist():
            raise SourceError(
                f"{self._uri_of_changes}: {left[0]['uri']} has changed since it was listed, and "
                f"its member {left[0]['member']!r} is not in the change list; name the archive "
                "without a member, which takes all of them, or name each"
            )
        named = joined.filter(joined["hit"]).select(self._columns)
        if named.num_rows:
            self._db.register("chunk", named)
            self._db.execute("insert into touched select * from chunk")
            self._db.unregister("chunk")
        self.candidates.add_table(joined.filter(pc.invert(joined["hit"])).select(self._columns))

    def _note_folders(self, uris: pa.Array) -> None:
        """Notes which names of the list are those of folders that images are in.

        Args:
            uris: Some of what was there before.
        """
        self._db.register("chunk", pa.table({"uri": folders_above(uris)}))
        self._db.execute(
            "insert into folders select number, uri from named semi join chunk using (uri)"
        )
        self._db.unregister("chunk")

    def _require_no_folder(self) -> None:
        """Checks that the list names images, and no folder that images are in.

        An object store may have an image and a folder of one name.

        Raises:
            SourceError: It names a folder.
        """
        query = (
            "select number, uri from folders anti join touched using (uri) "
            "anti join found using (uri) order by number limit 1"
        )
        for number, uri in self._db.execute(query).fetchall():
            self._refuse_folder(number, uri)

    def _refuse_folder(self, number: int, uri: str) -> None:
        """Says that a row names a folder.

        Raises:
            SourceError: Always.
        """
        raise SourceError(
            f"{self._uri_of_changes}, row {number}: {uri} is a folder of images; name each image "
            "in it"
        )

    def _counts(self) -> ChangeCounts:
        rest = self._columns[2:]
        same = " and ".join(
            f"f.{quoted_column(name)} is not distinct from t.{quoted_column(name)}" for name in rest
        )
        names = "select distinct uri, member from"
        both = "found f join touched t on f.uri = t.uri and f.member = t.member"
        kept = self._number(f"select distinct f.uri, f.member from {both}")
        equal = self._number(f"select distinct f.uri, f.member from {both} where {same}")
        absent = self._number(
            f"{names} named n where change = '{IS_GONE}' and not exists (select 1 from touched t "
            "where t.uri = n.uri and (t.member = n.member or (n.archive and n.member = '')))"
        )
        return ChangeCounts(
            added=self._number(f"{names} found anti join touched using (uri, member)"),
            removed=self._number(f"{names} touched anti join found using (uri, member)"),
            changed=kept - equal,
            unchanged=equal + absent,
            filtered=self.candidates.filtered,
        )

    def _number(self, rows: str) -> int:
        """Returns how many rows a query finds."""
        ((number,),) = self._db.execute(f"select count(*) from ({rows})").fetchall()
        return int(number)


def _require_no_link(uri: str, root: str) -> None:
    """Checks that a file is not named by way of a link, as a listing may name it by another.

    Args:
        uri: The url of a file, or of an object elsewhere.
        root: The url of the source, which may be a link itself.

    Raises:
        SourceError: A folder between the source and the file is a link.
    """
    if storage.protocol_of(uri) != "file":
        return
    top, folder = storage.local_path(root), os.path.dirname(storage.local_path(uri))
    if os.path.realpath(folder) != os.path.join(
        os.path.realpath(top), os.path.relpath(folder, top)
    ).removesuffix("/."):
        raise SourceError(
            f"{storage.readable(uri)} is reached through a link; name it by its own folder, or "
            f"build once without {option('changes')}"
        )


def _chunks(manifest: Manifest) -> Iterator[pa.Table]:
    """Yields the rows of a manifest, those of many shards at a time."""
    names = [*ENTRY_SCHEMA.names, *manifest.labels]
    held: list[pa.Table] = []
    count = 0
    for _, table in manifest.tables():
        held.append(table.select(names))
        count += table.num_rows  # shards may be of a few images, and very many
        if count >= CHUNK_ROWS:
            yield pa.concat_tables(held)
            held, count = [], 0
    if held:
        yield pa.concat_tables(held)
