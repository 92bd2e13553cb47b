"""Plans a listing: cuts it into deterministic shards and folds, without holding it in memory.

    >>> m = plan(listing)                                       # doctest: +SKIP
    >>> plan(listing, previous=m).digest == m.digest            # doctest: +SKIP

The same candidates give the same plan on any machine and in any order of listing, if what decides
the shards' size is the same. A later plan keeps every shard whose members did not change, so
that only what changed is counted again.

Single images are spread over folds by a hash of their group, so that every fold is a fair sample; a
group (a video, a drive, a patient) is never split over folds. The hash is of the path below the
source, so that a set and its altered copy have the same folds (see `fold_assignment`). The members
of an archive are spread in runs of neighbours, so that a shard reads them in one piece. If parts
are made by a label, each shard has one value of it, and each value is spread evenly over the folds.
The shards of a fold are cut in the order of names, and so are the cells of a shard: a folder that
is deleted touches few of them.

DuckDB sorts and joins in bounded memory, and puts what does not fit on disk.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, groupby, pairwise
from math import ceil

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import ConservationError, SourceError, StorageError, UsageError
from pipeline.sources import blocks
from pipeline.sources.blocks import block_ends, block_number, even_pieces, mean_bytes
from pipeline.sources.cell_cuts import folder_numbers, new_cells
from pipeline.sources.cell_joining import (
    LeftCell,
    cells_left,
    cut_size,
    join_cells,
    join_left,
    origins_of,
    stated,
)
from pipeline.sources.database import connect, quoted_column, quoted_text
from pipeline.sources.entries_file import (
    ENTRY_SCHEMA,
    ROW_GROUP_BYTES,
    Entries,
    cut_row_groups,
)
from pipeline.sources.entry import MERGED, Entry, ShardHead, members_digest
from pipeline.sources.fold_assignment import HASHED_GROUPS, FoldFile, FoldSizes
from pipeline.sources.listing import Listing, label_columns
from pipeline.sources.manifest import Manifest, ManifestWriter
from pipeline.sources.pair_names import name_number
from pipeline.sources.plan_options import CELL_IMAGES, LIMIT, SHARD_IMAGES
from pipeline.sources.shard_merging import merge_groups
from pipeline.sources.shard_sizes import SHARD_MULTIPLE, ImageSeconds, NewShardSizes
from pipeline.spec import FOLDS

_DATABASES_AT_ONCE = threading.BoundedSemaphore(2)
"""So many listings are planned at a time in this process, as each may take 256 MiB."""

PREVIOUS_SCHEMA = pa.schema(
    [
        *(ENTRY_SCHEMA.field(name) for name in ("uri", "member", "group")),
        *((name, pa.int32()) for name in ("shard", "fold", "place")),
    ]
)
"""What is known of the images of an earlier plan."""

NAMED_COLUMNS = ("name", "value", "number", "count", "fold")
"""What decides the fold of a candidate: its group's name, value, number and size, and the fold that
the group has in an earlier plan."""

BATCH_ROWS = 65_536
"""Rows of the plan that are in memory at a time."""


def plan(
    found: Listing | Iterable[Entry],
    *,
    shard_images: int | None = None,
    previous: Manifest | None = None,
    limit: int | None = None,
    by: str | None = None,
    entries: Entries | None = None,
    image_seconds: ImageSeconds | None = None,
    cell_images: int | None = None,
    cell_bytes: int | None = None,
) -> Manifest:
    """Cuts candidates into shards and folds.

    Args:
        found: The candidates.
        shard_images: The size of new shards. None takes `default_shard_images`, or less if such a
            shard would take too long (see `NewShardSizes`).
        previous: An earlier plan, whose shards are kept. A shard with a member that is gone is kept
            without it, and one with a changed member gets its new identity; both are counted again.
            New candidates go to new shards. If a candidate's group has changed, everything is
            planned anew, because folds must not split a group.
        limit: Takes only this many candidates, chosen by a hash of their names: the same ones on
            every run.
        by: The label that parts are made by. Each shard then has one value of it; a shard of
            `previous` that mixes values is cut anew.
        entries: Where the candidates of new shards are stored. None takes those of `previous`, or
            else temporary files of this process.
        image_seconds: What a worker takes for an image. None if it was never measured.
        cell_images: The size of the cells of new shards. None takes `default_cell_images`.
        cell_bytes: About how many bytes the sums of a cell take. None makes no cells, unless
            `cell_images` is stated.

    Returns:
        The plan.

    Raises:
        UsageError: An argument is out of range.
        SourceError: There are no candidates, or one is listed with two groups or two labels.
        StorageError: The disk for temporary files has no room.
    """
    listing = found if isinstance(found, Listing) else Listing.of(found)
    for name, option, value in (
        ("limit", LIMIT, limit),
        ("shard_images", SHARD_IMAGES, shard_images),
        ("cell_images", CELL_IMAGES, cell_images),
    ):
        if value is not None:
            option.require(name, value)
    if by is not None and by not in listing.labels:
        raise UsageError(f"by is {by!r}; the candidates' labels are: {', '.join(listing.labels)}")
    if entries is None:
        entries = previous.entries if previous is not None else Entries()
    sizes = NewShardSizes(shard_images, image_seconds, cell_images, cell_bytes)
    with planning(is_large=len(listing.parts) > 1) as (folder, database):
        planner = ShardPlanner(database, folder, listing, by, sizes)
        planner.load_listing(limit=limit)
        planner.load_previous(previous)
        return planner.write(entries)


@contextmanager
def planning(*, is_large: bool) -> Iterator[tuple[str, duckdb.DuckDBPyConnection]]:
    """Opens a database with a folder for what does not fit into memory; words their errors.

    Args:
        is_large: Whether much was listed before.

    Yields:
        The folder and the database.

    Raises:
        StorageError: The disk for temporary files has no room.
    """
    if is_large:  # free what listing left behind, before DuckDB takes its share
        gc.collect()
        pa.default_memory_pool().release_unused()
    try:
        with (
            _DATABASES_AT_ONCE,
            storage.ScratchFolder("plan") as folder,
            connect(folder) as database,
        ):
            yield folder, database
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise StorageError(
            f"the plan cannot be written to {tempfile.gettempdir()}: {error}; set TMPDIR to a disk "
            "with more room"
        ) from error


class ShardPlanner:
    """Plans one listing in a database.

    Its tables: `listing` (every candidate once), `previous` (the members of shards that are kept)
    and `fresh` (the candidates that are in no kept shard).
    """

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        folder: str,
        listing: Listing,
        by: str | None,
        sizes: NewShardSizes,
    ) -> None:
        self._db = database
        self._folder = folder
        self._listing = listing
        labels = label_columns(listing.labels)
        self._columns = [*ENTRY_SCHEMA.names, *labels]
        self._label = by
        self._by = None if by is None else labels[listing.labels.index(by)]
        self._value = "''" if self._by is None else f"coalesce({quoted_column(self._by)}, '')"
        self._previous: Manifest | None = None
        self._sizes = sizes
        self._pairing = pairing = listing.pairing
        named = pairing.label and labels[listing.labels.index(pairing.label)]
        self._name = pairing.name(quoted_column(named or ""))
        group = quoted_column("group")
        self._key = f"case when {group} = '' then {self._name} else {pairing.below(group)} end"

    def load_listing(self, *, limit: int | None = None) -> None:
        """Fills the table `listing`.

        Args:
            limit: Takes only this many candidates.

        Raises:
            SourceError: There are no candidates, or one is listed with two groups or labels.
        """
        if not self._listing.parts:
            raise SourceError("the source has no image")
        files = "[" + ", ".join(map(quoted_text, self._listing.parts)) + "]"
        self._db.execute(
            f"create view listed as select * from read_parquet({files}, union_by_name = true)"
        )
        about = "select count(*), count(*) filter (size > 0), sum(size) filter (size > 0){} from {}"
        names = about.format(", count(distinct hash(uri, member))", "listed")
        ((listed, sized, size, different),) = self._db.execute(names).fetchall()
        candidates = listed
        # Hashes of different names may agree, but never those of equal ones differ.
        if different == listed:
            self._db.execute("create view listing as select * from listed")
            self._duplicates = self._listing.duplicates
        else:
            self._drop_duplicates(listed)
        if limit is not None:
            self._db.execute(
                "create table sample as select * from listing "
                "order by sha256(uri || chr(0) || member), uri, position, member "
                f"limit {int(limit)}"
            )
            self._db.execute("create or replace view listing as select * from sample")
        if limit is not None or different != listed:
            ((candidates, sized, size),) = self._db.execute(about.format("", "listing")).fetchall()
        if not candidates:
            raise SourceError("the source has no image")
        self._candidates = int(candidates)
        self._sized, self._sized_bytes = int(sized), int(size or 0)

    def _mean_bytes(self, *, of_tables: bool) -> float:
        """Returns the size of an image in bytes, on average; 0 if nothing is known of it.

        Args:
            of_tables: Whether images without a size are taken for rows of the tables in the
                listing, if it has any. Else they are left out.
        """
        rows = self._listing.unsized if of_tables else 0
        if not rows:
            return self._sized_bytes / max(1, self._sized)
        unsized = self._candidates - self._sized
        stated = unsized * self._listing.unsized_bytes / rows
        return (self._sized_bytes + stated) / self._candidates

    def _drop_duplicates(self, listed: int) -> None:
        """Fills `listing` with each candidate once; `listed` is how many rows there are."""
        rest = self._columns[2:]
        packed = ", ".join(f"{quoted_column(name)} := {quoted_column(name)}" for name in rest)
        unpacked = ", ".join(f"row.{quoted_column(name)} as {quoted_column(name)}" for name in rest)
        # A candidate that changed while it was listed has several rows: the least of them counts,
        # so that every run takes the same one.
        self._db.execute(
            f"create table once as select uri, member, {unpacked} from (select uri, member, "
            f"min(struct_pack({packed})) as row from listed group by uri, member)"
        )
        self._db.execute("create view listing as select * from once")
        more = listed - self._number("select count(*) from listing")
        if more:
            self._refuse_conflicts()
        self._duplicates = more + self._listing.duplicates

    def _refuse_conflicts(self) -> None:
        """Checks that no candidate is listed with two groups or two labels.

        Raises:
            SourceError: One is.
        """
        labels = zip(self._columns[len(ENTRY_SCHEMA.names) :], self._listing.labels, strict=True)
        for name, printed in (("group", "group"), *labels):
            column = f"coalesce({quoted_column(name)}, '')"
            rows = self._db.execute(
                f"select uri, member, min({column}), max({column}) from listed "
                f"group by uri, member having min({column}) <> max({column}) "
                "order by uri, member limit 1"
            ).fetchall()
            for uri, member, one, other in rows:
                raise SourceError(
                    f"{uri}{'::' + member if member else ''} is listed twice, with {printed} "
                    f"{one!r} and {other!r}; it counts once, so give it one"
                )

    def load_previous(self, previous: Manifest | None) -> None:
        """Fills the tables `previous` and `fresh`, and chooses the sizes of new shards and cells.

        Args:
            previous: The earlier plan. None if there is none.
        """
        if previous is not None:
            self._load_rows(previous)
            joined = "previous p join listing l on p.uri = l.uri and p.member = l.member"
            self._previous = None if self._is_regrouped(joined) else previous
            if self._previous is not None and self._by is not None:
                self._db.execute(
                    f"delete from previous where shard in (select p.shard from {joined} "
                    f"group by p.shard having count(distinct {self._value}) > 1)"
                )
        if self._previous is not None:
            self._db.execute(
                "create table fresh as select * from listing anti join previous using (uri, member)"
            )
        else:
            self._db.execute("create view fresh as select * from listing")
        self._former_cell = 0 if previous is None else largest_cell(previous)
        # Only a list of all images knows of all tables. A change list makes the same plan.
        mean = self._mean_bytes(of_tables=previous is None)
        self._size = self._sizes.shard(self._candidates, mean)
        self._cell = self._sizes.cell(self._size, mean, self._former_cell)

    def _is_regrouped(self, joined: str) -> bool:
        """Tells whether a candidate has another group than before; joins only if there are any."""
        grouped = "select count(*) from (select 1 from {} where \"group\" <> '' limit 1)"
        if not any(self._number(grouped.format(table)) for table in ("listing", "previous")):
            return False
        return self._number(f'select count(*) from {joined} where p."group" <> l."group"') > 0

    def _load_rows(self, previous: Manifest) -> None:
        """Fills the table `previous`.

        Raises:
            CorruptFile: Some of its entries are damaged.
            SourceError: Some of its entries are missing.
            Error: DuckDB cannot take them.
        """
        errors: list[BaseException] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from _rows_of(previous)
            except BaseException as error:
                errors.append(error)  # DuckDB keeps the text of it alone
                raise

        reader = pa.RecordBatchReader.from_batches(PREVIOUS_SCHEMA, batches())
        self._db.register("previous_rows", reader)
        try:
            self._db.execute("create table previous as select * from previous_rows")
        except duckdb.Error:
            if errors:
                raise errors[0] from None
            raise
        finally:
            self._db.unregister("previous_rows")

    def write(self, entries: Entries) -> Manifest:
        """Writes the kept shards in their order, then the new ones fold by fold.

        Returns:
            The manifest.

        Raises:
            ConservationError: It has another number of candidates than were listed.
        """
        names = [*ENTRY_SCHEMA.names, *self._listing.labels]
        sizes = FoldSizes()
        cell = self._sizes.stated_cell(self._cell)
        stays = self._previous is not None and entries.holds_those_of(self._previous.entries)
        with ManifestWriter(entries, self._listing.labels) as writer:

            def add(kept: ShardHead, rows: pa.Table) -> None:
                left = cells_left(kept, rows["place"].to_numpy())
                joined = join_left(kept, left, cell)
                # A shard that nothing else touches is left alone.
                if joined != left and members_digest(rows) == kept.digest:
                    joined = left
                cells, runs = stated(joined)
                writer.add(
                    kept.fold,
                    rows.select(self._columns).rename_columns(names),
                    kept if stays else None,
                    cells,
                    origins_of(kept),
                    runs,
                    cut_size(kept),
                )

            groups = {each.index: group for group in self._merge_groups() for each in group}
            held: dict[int, pa.Table] = {}
            for kept, rows in self._kept_shards():
                if rows is None:
                    sizes.add(kept.fold, "", kept.candidates)
                    writer.keep(kept)
                    continue
                sizes.add(kept.fold, self._value_of(rows), rows.num_rows)
                group, value = groups.get(kept.index), self._value_of(rows)
                same = group and value == self._former_value(kept)
                if not (group and same and members_digest(rows) == kept.digest):
                    add(kept, rows)
                    continue
                held[kept.index] = rows
                if all(each.index in held for each in group):
                    tables = [held.pop(each.index) for each in group]
                    size = min(each.cell_images or cell for each in group)
                    merged = [LeftCell((rows.num_rows,)) for rows in tables]
                    cells, runs = stated(join_cells(merged, min(cell, size)) if cell else merged)
                    writer.add(
                        kept.fold,
                        pa.concat_tables(tables).select(self._columns).rename_columns(names),
                        cells=cells,
                        origins=(MERGED,),
                        runs=runs,
                        cell_images=size,
                    )
            for kept in chain.from_iterable(self._merge_groups() if held else ()):
                if kept.index in held:  # another one of its group has changed
                    add(kept, held[kept.index])
            largest = 0
            for fold, rows, size, its_cell in self._fresh_shards(sizes):
                largest = max(largest, size)
                members = rows.select(self._columns).rename_columns(names)
                for part in cut_row_groups(members):
                    writer.add(
                        fold,
                        part,
                        cells=new_cells(folder_numbers(part["uri"]), its_cell),
                        cell_images=self._sizes.stated_cell(its_cell),
                    )
        listing = self._listing
        most = largest or self._size
        made = writer.manifest(most, listing.source, listing.ignored, self._duplicates)
        if made.candidates != self._to_write:
            raise ConservationError(
                f"{listing.source}: {self._to_write:,} candidates were to be planned, and "
                f"{made.candidates:,} are in the plan; nothing was committed. Please report this"
            )
        return replace(made, pairing=self._pairing)

    @property
    def _to_write(self) -> int:
        """How many candidates the plan must have."""
        return self._candidates

    @property
    def _has_new(self) -> bool:
        """Whether there are candidates that are in no kept shard."""
        return self._number("select count(*) from fresh") > 0

    def _merge_groups(self) -> list[list[ShardHead]]:
        """Finds the kept shards that are put together: some only if there are new candidates."""
        previous = self._previous
        if previous is None or not self._has_new:
            return []
        if self._label is not None and self._label not in previous.labels:
            return []
        # Each number takes 8 bytes.
        rows = ROW_GROUP_BYTES // (16 + ceil(self._mean_text_bytes()))
        size = min(self._size, max(SHARD_MULTIPLE, rows))
        return merge_groups(previous.heads, size, self._former_value)

    def _mean_text_bytes(self) -> float:
        """Returns how many bytes the texts of a candidate take on average (see `row_bytes`)."""
        texts = [quoted_column(name) for name in self._columns if name not in ("size", "position")]
        lengths = " + ".join(f"4 + coalesce(strlen({text}), 0)" for text in texts)
        ((mean,),) = self._db.execute(f"select avg({lengths}) from listing").fetchall()
        return float(mean)

    def _former_value(self, head: ShardHead) -> str:
        """Returns the value that a shard of the previous plan had; empty if no parts are made."""
        if self._label is None or self._previous is None:
            return ""
        return head.values[self._previous.labels.index(self._label)] or ""

    def _kept_shards(self) -> Iterator[tuple[ShardHead, pa.Table | None]]:
        """Finds the shards of the previous plan that still have members.

        Yields:
            Each shard as it was, and its remaining members, with their `place` in it. None stands
            for members that are stored already as they are to be.
        """
        if self._previous is None:
            return
        columns = ", ".join(f"l.{quoted_column(name)}" for name in self._columns)
        query = (
            f"select {columns}, p.shard, p.place from previous p join listing l "
            "on p.uri = l.uri and p.member = l.member order by p.shard, p.place"
        )
        pieces = _cut_at_changes(self._batches(query), "shard")
        for shard, of_shard in groupby(pieces, lambda piece: piece["shard"][0].as_py()):
            yield self._previous.heads[shard], pa.Table.from_batches(list(of_shard))

    def _fresh_shards(self, sizes: FoldSizes) -> Iterator[tuple[int, pa.Table, int, int]]:
        """Cuts the candidates that are in no kept shard into new ones, fold by fold.

        Args:
            sizes: How many candidates of kept shards each fold has.

        Yields:
            The fold and the members of each shard, how many it may have, and the size of its cells.
        """
        if self._goes_by_blocks():
            uris = self._batches("select uri from fresh")
            ends = (block_ends(some["uri"], blocks.BLOCK_IMAGES) for some in uris)
            yield from self._shards_of_blocks(sorted(chain.from_iterable(ends)))
            return
        files = [FoldFile(os.path.join(self._folder, f"{fold}.arrow")) for fold in range(FOLDS)]
        self._assign_folds(sizes, files)
        for fold, rows_on_disk in enumerate(files):
            for rows in self._new_shards(self._by_name(rows_on_disk.batches())):
                yield fold, rows, self._size, self._cell

    def _goes_by_blocks(self) -> bool:
        """Tells whether the candidates that are in no kept shard are cut block by block.

        Returns:
            Whether they are very many, and each one's name or group is enough to tell its fold.
        """
        if self._by is not None or self._number("select count(*) from fresh") < blocks.MANY:
            return False
        if self._number("select count(*) from fresh where access <> ''"):
            return False
        if not self._number("select count(*) from fresh where \"group\" <> ''"):
            return True
        groups = self._number('select count(distinct "group") from listing')
        return groups >= HASHED_GROUPS and (self._previous is None or self._has_hashed_folds())

    def _has_hashed_folds(self) -> bool:
        """Tells whether all groups of the previous plan have the folds that their names say."""
        number = name_number(self._pairing.below(quoted_column("group")))
        query = (
            'select count(*) from (select distinct "group", fold from previous '
            f"where \"group\" <> '') where fold <> ({number} % {FOLDS})::integer"
        )
        return not self._number(query)

    def _shards_of_blocks(self, ends: Sequence[str]) -> Iterator[tuple[int, pa.Table, int, int]]:
        """Cuts candidates into shards block by block; see `_fresh_shards`.

        The fold of each candidate is taken from the hash of its name, or of its group's. Folds of
        many candidates are of nearly equal size anyway. Nothing depends on other blocks.

        Args:
            ends: The uris that end blocks, in their order.

        Yields:
            The fold and the members of each shard, how many it may have, and the size of its cells.
        """
        columns = ", ".join(quoted_column(name) for name in self._columns)
        query = (
            f"select {columns}, {block_number(ends)} * {FOLDS} + "
            f"({name_number(self._key)} % {FOLDS})::integer as place "
            "from fresh order by place, uri"
        )
        pieces = _cut_at_changes(self._batches(query), "place")
        for place, of_place in groupby(pieces, lambda piece: piece["place"][0].as_py()):
            rows = pa.Table.from_batches(list(of_place))
            mean = mean_bytes(rows)
            size = self._sizes.shard(blocks.MANY, mean)
            cell = self._sizes.cell(size, mean, self._former_cell)
            for shard in even_pieces(rows, size):
                yield place % FOLDS, shard, size, cell

    def _assign_folds(self, sizes: FoldSizes, files: list[FoldFile]) -> None:
        """Writes each fresh candidate to the file of its fold.

        Groups come in the order of their names' hash. A group goes to the fold that it has in the
        previous plan, or to the one that its hash says (see `fold_assignment`). If parts are made,
        this is done value by value; a group with several values is treated as having the first of
        them.
        """
        known = (
            'select "group" as name, min(fold) as fold from previous '
            "where \"group\" <> '' group by 1"
            if self._previous is not None
            else "select '' as name, 0 as fold where false"
        )
        self._measure_runs()
        counts = self._group_counts("listing")
        new = counts
        if (
            self._previous is not None
            and min(groups for groups, _ in counts.values()) < HASHED_GROUPS
        ):
            new = self._group_counts("fresh", f"name not in (select name from ({known}))")
        value = "''" if self._by is None else f"min({self._value}) over (partition by name)"
        columns = ", ".join(f"f.{quoted_column(name)}" for name in self._columns)
        query = (
            f"with named as ({self._named_candidates('fresh')}), known as ({known}), "
            f"valued as (select *, {value} as value, count(*) over (partition by name) as count "
            f"from named) select {columns}, f.name, f.value, {name_number('f.key')} as number, "
            "f.count, k.fold from valued f left join known k on f.name = k.name "
            "order by value, sha256(f.key), f.name, uri, position, member"
        )
        current, fold = None, 0
        dealt = Counter[str]()
        for batch in self._batches(query):
            folds = np.empty(batch.num_rows, np.int8)
            read = [batch[column].to_pylist() for column in NAMED_COLUMNS]
            for i, (name, of_value, number, count, own) in enumerate(zip(*read, strict=True)):
                if name != current:
                    current = name
                    groups, candidates = counts[of_value]
                    if own is not None:
                        fold = own
                    elif groups >= HASHED_GROUPS:
                        fold = number % FOLDS
                    else:
                        share, left = candidates // FOLDS, new[of_value][0] - dealt[of_value]
                        fold = sizes.nearest(number, of_value, count, share, left)
                        dealt[of_value] += 1
                folds[i] = fold
                sizes.add(fold, of_value)
            rows = batch.select(self._columns)
            for taken in np.unique(folds):
                files[taken].write(rows.filter(pa.array(folds == taken)))

    def _group_counts(self, table: str, condition: str = "true") -> dict[str, tuple[int, int]]:
        """Returns how many groups and candidates of a table have each value."""
        query = (
            f"select {self._value}, count(distinct name), count(*) "
            f"from ({self._named_candidates(table)}) where {condition} group by 1"
        )
        rows = self._db.execute(query).fetchall()
        return {value: (groups, candidates) for value, groups, candidates in rows}

    def _measure_runs(self) -> None:
        """Fills the table `lengths`: how many neighbours in an archive are a run, by value."""
        counts = self._db.execute(
            f"select {self._value}, count(*) from listing group by 1"
        ).fetchall()
        lengths = [(value, self._run_length(count)) for value, count in counts]
        self._db.execute("create table lengths (value text, length bigint)")
        self._db.executemany("insert into lengths values (?, ?)", lengths)

    def _named_candidates(self, table: str) -> str:
        """Returns SQL: candidates, each with the name of what is not to be split.

        That is its group, itself, or its run of neighbours in an archive. (If images are not paired
        by their paths, it is a member of an archive alone.) A run is as long as
        `NewShardSizes.archive_run` says, or shorter if some folds would get none. Each value has
        runs of its own. `key` is the same name as a path below the source.

        Args:
            table: The table of the candidates.
        """
        prefix = "" if self._by is None else f"{self._value} || chr(0) || "
        run = (
            f"{prefix}((row_number() over (partition by uri, {self._value} "
            f"order by position, member) - 1) // (select length from lengths "
            f"where value = {self._value}))"
        )
        columns = ", ".join(quoted_column(name) for name in self._columns)
        pairing = self._pairing
        alone = "true" if pairing.by else "access = '' or \"group\" <> ''"
        return (
            f'select {columns}, case when "group" = \'\' then {self._name} else "group" end '
            f"as name, {self._key} as key from {table} where {alone} union all "
            f"select {columns}, uri || chr(0) || {run} as name, "
            f"{pairing.below('uri')} || chr(0) || {run} as key "
            f"from {table} where not ({alone})"
        )

    def _run_length(self, candidates: int) -> int:
        even = -(-candidates // (2 * FOLDS))
        most = self._sizes.archive_run(self._candidates)
        return most if even > most - SHARD_MULTIPLE else even

    def _new_shards(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        """Cuts the rows of a fold into shards of one value each.

        Yields:
            The members of each shard; the last one of a value is smaller.
        """
        for _, of_value in groupby(batches, self._value_of):
            held: list[pa.RecordBatch] = []
            for batch in of_value:
                held.append(batch)
                while sum(rows.num_rows for rows in held) >= self._size:
                    table = pa.Table.from_batches(held)
                    yield table.slice(0, self._size)
                    held = table.slice(self._size).to_batches()
            if held:
                yield pa.Table.from_batches(held)

    def _by_name(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Sorts the rows of a fold by value, and then by name.

        A fold of few rows is sorted here: DuckDB would take milliseconds to be asked.

        Yields:
            Batches of one value each.
        """
        batches, held = iter(batches), list[pa.RecordBatch]()
        while sum(rows.num_rows for rows in held) <= BATCH_ROWS:
            if (batch := next(batches, None)) is None:
                yield from _cut_at_changes(self._few_by_name(held), "value")
                return
            held.append(batch)
        fields = [
            (n, ENTRY_SCHEMA.field(n).type if n in ENTRY_SCHEMA.names else pa.string())
            for n in self._columns
        ]
        reader = pa.RecordBatchReader.from_batches(pa.schema(fields), chain(held, batches))
        self._db.register("fold_rows", reader)
        query = (
            f"select *, {self._value} as value from fold_rows order by value, uri, position, member"
        )
        yield from _cut_at_changes(self._batches(query), "value")
        self._db.unregister("fold_rows")

    def _few_by_name(self, batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
        """Sorts rows in memory as `_by_name` does, and adds their value as a column."""
        if not batches:
            return []
        rows = pa.Table.from_batches(batches)
        values = (
            pa.array([""] * rows.num_rows) if self._by is None else pc.fill_null(rows[self._by], "")
        )
        order = [(name, "ascending") for name in ("value", "uri", "position", "member")]
        return list(
            rows.append_column("value", values).sort_by(order).combine_chunks().to_batches()
        )

    def _value_of(self, rows: pa.Table | pa.RecordBatch) -> str:
        """Returns the value that the rows share; empty if no parts are made."""
        return "" if self._by is None else rows[self._by][0].as_py() or ""

    def _number(self, query: str) -> int:
        ((number,),) = self._db.execute(query).fetchall()
        return int(number or 0)

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        yield from self._db.sql(query).to_arrow_reader(BATCH_ROWS)


def largest_cell(previous: Manifest) -> int:
    """Returns the size that the largest cells of an earlier plan were cut with; 0 if unknown."""
    return max(map(cut_size, previous.heads), default=0)


def _cut_at_changes(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[pa.RecordBatch]:
    """Cuts batches where the value of a column changes.

    Yields:
        Pieces of one value each.
    """
    for batch in batches:
        values = batch[column]
        changes = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
        starts = [0, *(np.flatnonzero(changes) + 1), batch.num_rows]
        for start, end in pairwise(starts):
            yield batch.slice(start, end - start)


def _rows_of(manifest: Manifest) -> Iterator[pa.RecordBatch]:
    """Yields a plan's rows for the database; `place` is a member's number in its shard."""
    for head, table in manifest.tables():
        columns = [table[name] for name in ("uri", "member", "group")]
        numbers = (np.full(table.num_rows, n, np.int32) for n in (head.index, head.fold))
        places = np.arange(table.num_rows, dtype=np.int32)
        rows = pa.table([*columns, *map(pa.array, numbers), places], schema=PREVIOUS_SCHEMA)
        yield from rows.to_batches()
