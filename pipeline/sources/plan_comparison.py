"""Compares the listing of a very large source with an earlier plan, by tasks.

    >>> comparison = PlanComparison(before, source, folder)                     # doctest: +SKIP
    >>> while tasks := comparison.tasks(parts, unlisted, most=64):              # doctest: +SKIP
    ...     for done in engine.map(run_in_task, tasks):
    ...         comparison.take(done)
    >>> comparison.changes(parts).rows_added                                    # doctest: +SKIP
    20000

Both are cut into ranges of names, and a task compares what is in one range, once all of its names
are listed. The listing is stored in the order of names already. The members of the earlier shards
are not: shards of small builds have names from everywhere. So tasks sort these first, a million at
a time.

The process that builds gets counters, the numbers of the shards that have changed, and where the
candidates are that were added. It holds no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import groupby, islice
from operator import add
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConservationError
from pipeline.mapper import Mapper
from pipeline.sources import blocks, stretches
from pipeline.sources.blocks import Bounds, OpenNames, bounds_of_blocks
from pipeline.sources.changed_shards import MEMBER_SCHEMA, member_schema
from pipeline.sources.entries_file import OBJECTS_SCHEMA, Entries, object_schema
from pipeline.sources.entry import ShardHead
from pipeline.sources.listing import StoredPart
from pipeline.sources.manifest import Manifest
from pipeline.sources.manifest_difference import ImageChanges, KnownDifference
from pipeline.sources.pair_names import Pairing
from pipeline.sources.sorted_rows import each_once, rows_within, sort_pages
from pipeline.sources.stretches import parts_of_blocks, read_stored, run_in_task, store_sorted
from pipeline.spec import FOLDS

T = TypeVar("T")


@dataclass(frozen=True)
class ListedTotals:
    """Counts candidates of a listing.

    Attributes:
        candidates: How many there are, each counted once.
        duplicates: How often one was listed again.
        sized: How many of them have a size.
        sized_bytes: How many bytes these have together.
        text_bytes: How many bytes the uris, identities and groups of all have.
    """

    candidates: int = 0
    duplicates: int = 0
    sized: int = 0
    sized_bytes: int = 0
    text_bytes: int = 0

    def __add__(self, other: ListedTotals) -> ListedTotals:
        return ListedTotals(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class ComparedNames:
    """What a task has found in a range of names.

    Attributes:
        bounds: The range.
        totals: Of the listed names.
        members: How many members the earlier plan has.
        touched: The numbers of shards that have changed in this range.
        added: Where the candidates are that are not in the plan.
        changed: Where those are that it has with another size or identity.
        removed: Where its members are that are not in the listing.
        regrouped: Whether a candidate is in another group than before.
    """

    bounds: Bounds
    totals: ListedTotals
    members: int
    touched: frozenset[int]
    added: tuple[StoredPart, ...]
    changed: tuple[StoredPart, ...]
    removed: tuple[StoredPart, ...]
    regrouped: bool = False


@dataclass(frozen=True)
class PlanChanges:
    """How the candidates of a listing differ from those of an earlier plan.

    Attributes:
        ranges: What was found in each range of names.
        touched: The shards that have lost a member, or of which one has changed. Those that lie
            together in files are together.
        former: The digest of the earlier plan.
    """

    ranges: tuple[ComparedNames, ...]
    touched: tuple[tuple[ShardHead, ...], ...]
    former: str

    @cached_property
    def totals(self) -> ListedTotals:
        """Counts the candidates of the whole listing."""
        return sum((each.totals for each in self.ranges), ListedTotals())

    @cached_property
    def added(self) -> tuple[StoredPart, ...]:
        """Where the candidates are that are not in the plan."""
        return tuple(part for each in self.ranges for part in each.added)

    @property
    def rows_added(self) -> int:
        """How many candidates are not in the plan."""
        return sum(part.rows for part in self.added)

    @property
    def difference(self) -> KnownDifference:
        """How many images differ, as a join of both plans would tell."""
        members = sum(each.members for each in self.ranges)
        equal = members - self.rows_removed - self.rows_changed
        images = ImageChanges(self.rows_added, self.rows_removed, self.rows_changed, equal)
        return KnownDifference(self.former, images)

    @property
    def rows_changed(self) -> int:
        """How many candidates the plan has with another size or identity."""
        return sum(part.rows for each in self.ranges for part in each.changed)

    @property
    def rows_removed(self) -> int:
        """How many of its members are gone."""
        return sum(part.rows for each in self.ranges for part in each.removed)


@dataclass(frozen=True)
class SortedMembers:
    """What a task has sorted.

    Attributes:
        shards: The numbers of the shards.
        parts: Their members, as parts with the columns of `MEMBER_SCHEMA` and any groups.
        is_single: Whether `single_members` takes them. Else nothing is stored.
    """

    shards: tuple[int, ...]
    parts: tuple[StoredPart, ...]
    is_single: bool = True


@dataclass(frozen=True)
class FormerShards:
    """Shards of an earlier plan for one task to sort by names.

    Attributes:
        heads: The shards.
        entries: Where their members are.
        folder: Where the sorted members go.
        groups: See `single_members`.
    """

    heads: tuple[ShardHead, ...]
    entries: Entries
    folder: str
    groups: Pairing | None = None

    def run(self) -> SortedMembers:
        """Sorts the members."""
        rows = single_members(self.heads, self.entries, self.groups)
        if rows is None:
            return SortedMembers((), (), is_single=False)
        most = stretches.REPORT_PART_ENTRIES
        parts = store_sorted(rows, self.folder, blocks.BLOCK_IMAGES, (), most)
        return SortedMembers(tuple(head.index for head in self.heads), tuple(parts))


@dataclass(frozen=True)
class NameRange:
    """A range of names for one task to compare.

    Attributes:
        bounds: The range.
        listed: The parts that have its candidates, and others.
        former: The parts that have its members of the earlier plan, and others.
        folder: Where the added, changed and removed rows go.
        grouped: Whether candidates and members are in groups.
    """

    bounds: Bounds
    listed: tuple[StoredPart, ...]
    former: tuple[StoredPart, ...]
    folder: str
    grouped: bool = False

    def run(self) -> ComparedNames:
        """Compares the names, sizes, identities and groups."""
        rows = self._read(self.listed, object_schema(grouped=self.grouped))
        now = each_once(rows)
        before = self._read(self.former, member_schema(grouped=self.grouped))
        at = pc.index_in(now["uri"], value_set=before["uri"])
        its = before.take(at)
        same = pc.and_(*(pc.equal(now[name], its[name]) for name in ("size", "identity")))
        is_known = pc.is_valid(at).to_numpy()
        is_changed = is_known & ~pc.fill_null(same, fill_value=False).to_numpy()
        is_gone = np.ones(before.num_rows, np.bool_)
        is_gone[at.filter(pc.is_valid(at)).to_numpy()] = False
        gone = before.select(MEMBER_SCHEMA.names).filter(pa.array(is_gone))
        changed = now.select(OBJECTS_SCHEMA.names).append_column("shard", its["shard"])
        changed = changed.filter(pa.array(is_changed))
        moved = self.grouped and pc.any(pc.not_equal(now["group"], its["group"])).as_py()
        return ComparedNames(
            self.bounds,
            totals_of(now, rows.num_rows - now.num_rows),
            before.num_rows,
            frozenset(n for of in (changed, gone) for n in of["shard"].unique().to_pylist()),
            self._stored(now.filter(pa.array(~is_known))),
            self._stored(changed),
            self._stored(gone),
            bool(moved),
        )

    def _read(self, parts: Sequence[StoredPart], schema: pa.Schema) -> pa.Table:
        """Reads the rows of the range, sorted by their uris."""
        tables = (
            pq.ParquetFile(pa.BufferReader(data)).read(columns=schema.names, use_threads=False)
            for data in read_stored(parts)
        )
        found = [rows_within(table, *self.bounds).cast(schema) for table in tables]
        return sort_pages(pa.concat_tables([schema.empty_table(), *found]))

    def _stored(self, rows: pa.Table) -> tuple[StoredPart, ...]:
        return tuple(store_sorted(rows, self.folder, blocks.BLOCK_IMAGES)) if len(rows) else ()


def totals_of(rows: pa.Table, duplicates: int = 0) -> ListedTotals:
    """Counts candidates.

    Args:
        rows: The candidates, each once.
        duplicates: How often one was listed again.

    Returns:
        Their numbers.
    """
    sized = rows["size"].filter(pc.greater(rows["size"], 0))
    columns = (rows[field.name] for field in rows.schema if pa.types.is_string(field.type))
    texts = (pc.sum(pc.binary_length(column)).as_py() or 0 for column in columns)
    sized_bytes = pc.sum(sized).as_py() or 0
    return ListedTotals(rows.num_rows, duplicates, len(sized), sized_bytes, sum(texts))


class PlanComparison:
    """Compares a listing of single images with an earlier plan, while it is listed.

    Args:
        previous: The plan.
        source: What is listed.
        folder: Where tasks put what they have found.
        groups: See `single_members`. Each candidate is in a group, too, if this is not None.

    Raises:
        CorruptFile: The plan's first entries are damaged.
        SourceError: They are missing.
    """

    def __init__(
        self, previous: Manifest, source: str, folder: str, groups: Pairing | None = None
    ) -> None:
        self._previous, self._source, self._folder = previous, source, folder
        self._is_grouped = groups is not None
        of_tasks = shards_for_tasks(previous, groups)
        self._can_compare = of_tasks is not None
        entries = previous.entries
        self._to_sort = [FormerShards(its, entries, folder, groups) for its in of_tasks or ()]
        self._sorted: list[SortedMembers] = []
        self._found: dict[Bounds, ComparedNames] = {}
        self._pending: list[Bounds] = []
        self._is_complete = False

    @property
    def can_compare(self) -> bool:
        """Whether tasks can compare the plan and the listing, as far as is known."""
        return self._can_compare

    @property
    def rows_added(self) -> int:
        """How many candidates are known that are not in the plan."""
        return sum(part.rows for part in self.added)

    @property
    def added(self) -> list[StoredPart]:
        """Where the candidates are that are known and not in the plan."""
        return [part for each in self._found.values() for part in each.added]

    def tasks(
        self, listed: Sequence[StoredPart], unlisted: Sequence[Bounds], most: int
    ) -> list[FormerShards | NameRange]:
        """Returns what tasks can do now.

        All tasks that were returned before must have ended, and `take` must have what they found.

        Args:
            listed: The candidates that are listed by now.
            unlisted: Ranges of names that are not listed yet.
            most: How many tasks to return at most.

        Returns:
            The tasks. None are left once all names are listed and compared.
        """
        if not self._can_compare or self._is_complete:
            return []
        if self._to_sort:
            some, self._to_sort = self._to_sort[:most], self._to_sort[most:]
            return [*some]
        former = [part for members in self._sorted for part in members.parts]
        ranges = _ranges(listed, former, self._folder, grouped=self._is_grouped)
        left = [each for each in ranges if each.bounds not in self._found]
        self._pending, names = [each.bounds for each in left], OpenNames(unlisted)
        self._is_complete = not left and not unlisted
        return [*islice((each for each in left if not names.overlap(each.bounds)), most)]

    def take(self, done: SortedMembers | ComparedNames) -> None:
        """Takes what a task has found."""
        if isinstance(done, SortedMembers):
            self._sorted.append(done)
            self._can_compare &= done.is_single
        else:
            self._found[done.bounds] = done
            self._can_compare &= not done.regrouped

    @property
    def pending(self) -> list[Bounds]:
        """The ranges of names that were not compared when `tasks` was asked last.

        Only those that had names by then, in the listing or in the plan.
        """
        return self._pending

    def changes(self, listed: Sequence[StoredPart]) -> PlanChanges | None:
        """Tells how the candidates differ from the plan, after the last task.

        Args:
            listed: The candidates.

        Returns:
            How they differ. None if `single_members` does not take all of the plan, or a candidate
            is in another group than before.

        Raises:
            ConservationError: Tasks have lost a candidate or a member.
        """
        if not self._can_compare:
            return None
        found = sorted(self._found.values(), key=lambda each: each.bounds[0])
        shards = [members.shards for members in self._sorted]
        rows = sum(part.rows for part in listed)
        return joined_changes(found, shards, rows, self._previous, self._source)


def compare_ranges(
    listed: Sequence[StoredPart],
    former: Sequence[StoredPart],
    folder: str,
    mapper: Mapper,
    say: Callable[[str], None],
    *,
    grouped: bool = False,
) -> list[ComparedNames]:
    """Has tasks compare candidates with members, range by range.

    Args:
        listed: The candidates.
        former: The members.
        folder: Where tasks put what they have found.
        mapper: Where tasks run.
        say: Is told how far they are.
        grouped: Whether candidates and members are in groups.

    Returns:
        What was found in each range.
    """
    ranges = list(_ranges(listed, former, folder, grouped=grouped))
    done = mapper.map(run_in_task, ranges)
    return list(told(done, len(ranges), "of the names compared", say))


def joined_changes(
    found: Sequence[ComparedNames],
    shards: Sequence[Sequence[int]],
    listed: int,
    previous: Manifest,
    source: str,
) -> PlanChanges:
    """Puts together what tasks have found, and checks that they have seen everything.

    Args:
        found: What they have found.
        shards: The numbers of the shards whose members each task has read.
        listed: How many candidates there are to compare.
        previous: The plan.
        source: What was listed.

    Returns:
        How the candidates differ from the plan.

    Raises:
        ConservationError: Tasks have lost a candidate or a member.
    """
    numbers = frozenset[int]().union(*(each.touched for each in found))
    touched = (
        tuple(previous.heads[number] for number in its if number in numbers) for its in shards
    )
    its = tuple(heads for heads in touched if heads)
    changes = PlanChanges(tuple(found), its, previous.digest)
    rows, totals = (listed, previous.candidates), changes.totals
    compared = totals.candidates + totals.duplicates, sum(each.members for each in found)
    if compared != rows:
        raise ConservationError(
            f"{source}: {rows[0]:,} candidates were listed and {rows[1]:,} planned before; tasks "
            f"have compared {compared[0]:,} and {compared[1]:,}; nothing was committed. Please "
            "report this"
        )
    return changes


def single_members(
    heads: Iterable[ShardHead], entries: Entries, groups: Pairing | None = None
) -> pa.Table | None:
    """Reads the members of shards.

    Args:
        heads: The shards, at least one.
        entries: Where their members are.
        groups: How images are named for pairing, if each has to be in a group. None if none may be.

    Returns:
        The members, with the columns of `member_schema`. None if there are others than single
        images, or a group that may not be, or one that has another fold than its name says.
    """
    empty: dict[str, str | int] = {"member": "", "group": "", "access": "", "position": 0}
    if groups is not None:
        del empty["group"]
    schema = member_schema(grouped=groups is not None)
    held: list[pa.Table] = []
    for head, rows in entries.read_shards(heads):
        if any(pc.any(pc.not_equal(rows[name], its)).as_py() for name, its in empty.items()):
            return None
        if groups is not None and not _are_hashed(rows["group"], head.fold, groups):
            return None
        shard = pa.repeat(pa.scalar(head.index, pa.int32()), rows.num_rows)
        held.append(rows.append_column("shard", shard).select(schema.names))
    return pa.concat_tables(held).cast(schema)


def _are_hashed(groups: pa.ChunkedArray, fold: int, pairing: Pairing) -> bool:
    """Tells whether these are groups, and the fold is the one that their names say."""
    from pipeline.sources.name_kernel import group_numbers  # loads numba, for large sources only

    names = pc.unique(groups)
    said = group_numbers(names, pairing) % np.uint64(FOLDS)
    return bool((said == fold).all()) and not pc.any(pc.equal(names, "")).as_py()


def told(results: Iterable[T], tasks: int, what: str, say: Callable[[str], None]) -> Iterator[T]:
    """Tells how many tasks have ended.

    Args:
        results: What tasks return.
        tasks: How many there are.
        what: What they do, as in "of the names compared".
        say: Is told.

    Yields:
        The results.
    """
    for done, result in enumerate(results, 1):
        say(f"{done / tasks:.0%} {what}")
        yield result


def shards_for_tasks(
    previous: Manifest, groups: Pairing | None = None
) -> list[tuple[ShardHead, ...]] | None:
    """Spreads the shards of a plan over tasks.

    Args:
        previous: The plan.
        groups: See `single_members`.

    Returns:
        The shards of each task. They have about `REPORT_ENTRIES` members, or some more: all shards
        of a file are together. None if the first shard shows that tasks cannot compare the plan.
    """
    if previous.heads and single_members(previous.heads[:1], previous.entries, groups) is None:
        return None
    of_tasks: list[tuple[ShardHead, ...]] = []
    held: list[ShardHead] = []
    rows = 0
    for _, of_file in groupby(previous.in_files, lambda head: head.address.file):
        heads = list(of_file)
        held += heads
        rows += sum(head.candidates for head in heads)
        if rows >= stretches.REPORT_ENTRIES:
            of_tasks.append(tuple(held))
            held, rows = [], 0
    return [*of_tasks, tuple(held)] if held else of_tasks


def _ranges(
    listed: Sequence[StoredPart], former: Sequence[StoredPart], folder: str, *, grouped: bool
) -> Iterator[NameRange]:
    """Cuts the names into ranges: at those that end a block, of the listing or of the plan.

    So no range has very many candidates or members.

    Yields:
        Each range that may have a name, with the parts that may have some of its names.
    """
    ends = sorted({end for part in (*listed, *former) for end in part.ends})
    now, before = parts_of_blocks(ends, listed), parts_of_blocks(ends, former)
    for at, bounds in enumerate(bounds_of_blocks(ends)):
        if at in now or at in before:
            yield NameRange(bounds, tuple(now[at]), tuple(before[at]), folder, grouped)
