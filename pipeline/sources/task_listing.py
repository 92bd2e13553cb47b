"""Lists a very large source by tasks, and has tasks plan it, too.

    >>> planned = TaskListing(lister, checkpoint, engine, ahead).run()       # doctest: +SKIP

The process that builds lists a prefix alone at first. If it turns out to be large, rounds of tasks
go on, each with some ranges of keys (see `stretches`). Which ranges are left tells which blocks of
names are complete (see `blocks`). The next round's tasks plan these, and their shards can be
counted while the listing still runs. The process itself holds no candidates of these tasks, and of
their names only those that end blocks.

A large report of S3 Inventory is read by such tasks, too, each with some of its files. A file may
have any names, so all blocks are complete when all files are read. Then tasks plan them.

If the source has an earlier plan, tasks compare the listing with it, a range of names as soon as it
is listed (see `plan_comparison`). Once `MANY` candidates are known to be new, these have blocks of
their own, which are planned and counted in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConservationError
from pipeline.mapper import Mapper
from pipeline.sources import blocks
from pipeline.sources.block_plan import NameBlock, PlannedBlock
from pipeline.sources.blocks import BLOCK_IMAGES, Bounds, OpenNames, bounds_of_blocks
from pipeline.sources.change_planning import plan_changes
from pipeline.sources.entries_file import Entries
from pipeline.sources.inventory import Inventory
from pipeline.sources.listing import Listing, StoredPart
from pipeline.sources.listing_checkpoint import ListingCheckpoint
from pipeline.sources.manifest import Manifest
from pipeline.sources.manifest_difference import KnownDifference
from pipeline.sources.parallel_listing import KeyRange, midpoint
from pipeline.sources.plan_comparison import (
    ComparedNames,
    FormerShards,
    NameRange,
    PlanComparison,
    SortedMembers,
    told,
)
from pipeline.sources.shard_sizes import NewShardSizes
from pipeline.sources.sharding import largest_cell
from pipeline.sources.source_lister import SourceLister
from pipeline.sources.stretches import (
    STRETCH_KEYS,
    FoundStretch,
    ReportFiles,
    Stretch,
    Task,
    gap_ends,
    parts_of_blocks,
    run_in_task,
    store_sorted,
)

MOST_TASKS = 64
"""How many tasks list at a time. Each asks for 28 pages a second, and S3 answers some thousands."""

TASK_BYTES = 2**26
"""How many bytes of a report a task reads, if its files are not larger: a million rows or more."""

WAVES = 4
"""How many tasks for each worker a round has that reads a report, or that compares names beside a
listing. A round ends with its slowest."""

OWN_FILES = 8
"""How many of its files this process holds at a time, to sort them."""


_AnyTask = Stretch | ReportFiles | FormerShards | NameRange | NameBlock

_AnyResult = FoundStretch | SortedMembers | ComparedNames | PlannedBlock

_WHAT_IS_LEFT = {
    FormerShards: "of the rest of the plan before sorted",
    NameRange: "of the rest of the names compared",
}
"""What tasks do when all is listed. A round has all that is left of it."""


@dataclass(frozen=True)
class PlanAhead:
    """How a large source is planned while it is listed.

    Attributes:
        sizes: Returns how large shards and cells are.
        entries: Where the candidates are stored.
        planned: Is called with a plan of each block, as soon as it is made. If there is an earlier
            plan, it is called for blocks of candidates that are new, if these are very many.
        previous: Returns the earlier plan, without shards whose entries are missing. None if there
            is none.
    """

    sizes: Callable[[], NewShardSizes]
    entries: Entries
    planned: Callable[[Manifest], None]
    previous: Callable[[], Manifest] | None = None


class TaskListing:
    """Goes on with a listing by rounds of tasks.

    Attributes:
        difference: How the plan differs from an earlier one. None if there is none.

    Args:
        lister: What this process has listed; its ranges tell what is left.
        checkpoint: Where the listing is kept.
        mapper: Where tasks run.
        ahead: How the source is planned meanwhile. None does not plan it.
        outside: The folder of results, whose objects a report lists, too. None if there is none.
    """

    def __init__(
        self,
        lister: SourceLister,
        checkpoint: ListingCheckpoint,
        mapper: Mapper,
        ahead: PlanAhead | None,
        outside: str | None = None,
    ) -> None:
        self._lister = lister
        self._outside = outside
        self._found = lister.candidates
        self._folder = checkpoint.parts_folder
        self._mapper = mapper
        self._ahead = ahead
        self._planned: dict[Bounds, PlannedBlock] = {}
        self._comparison: PlanComparison | None = None
        self.difference: KnownDifference | None = None

    def run(self) -> Manifest | None:
        """Lists what is left.

        Returns:
            The plan, if the source was planned meanwhile. Otherwise the lister has all candidates,
            those of tasks as stored parts.

        Raises:
            ConservationError: The blocks have not as many images as were listed.
        """
        if not self._left and not self._found.stored:
            return None  # the source is small
        self._found.end_part()
        while tasks := self._tasks():
            listed: list[FoundStretch] = []
            done = self._mapper.map(_run, tasks)
            if (what := _WHAT_IS_LEFT.get(type(tasks[0]))) is not None:
                done = told(done, len(tasks), what, self._lister.say)
            for each in done:
                if isinstance(each, FoundStretch):
                    listed.append(each)
                elif isinstance(each, PlannedBlock):
                    self._take_block(each)
                elif self._comparison is not None:
                    self._comparison.take(each)
            if listed:
                self._end_round(listed)
            self._lister.say()
        if self._ahead is None or not self._is_planned_by_blocks:
            return None
        if self._ahead.previous is not None:
            return self._changed_plan(self._ahead, self._ahead.previous())
        return self._manifest(self._ahead)

    def _changed_plan(self, ahead: PlanAhead, before: Manifest) -> Manifest | None:
        """Plans what was listed, keeping the shards of an earlier plan.

        Returns:
            The plan. None if this process has to make it, because tasks cannot compare the listing
            with the earlier plan, or too many candidates were listed twice.
        """
        listed = self._listed
        changes = None if self._comparison is None else self._comparison.changes(listed)
        if changes is None or changes.totals.candidates < blocks.MANY:
            return None
        lister = self._lister
        listing = Listing(lister.source, (), dict(self._found.ignored), pairing=lister.pairing)
        made = plan_changes(
            *(listing, changes, before, ahead.entries, ahead.sizes(), self._mapper, self._planned),
            grouped=lister.is_grouped,
        )
        self.difference = changes.difference
        return self._complete(made)

    @cached_property
    def _own(self) -> list[StoredPart]:
        """What this process has listed, stored as tasks do. Small sources do not need it."""
        return [part for rows in self._own_rows() for part in self._stored(rows)]

    def _own_rows(self) -> Iterator[pa.Table]:
        """Yields what this process has listed, some files at a time.

        That is little, unless a listing goes on that one process has begun.
        """
        paths = self._found.paths
        for first in range(0, len(paths), OWN_FILES):
            some = paths[first : first + OWN_FILES]
            yield pa.concat_tables([pq.read_table(path) for path in some])

    def _stored(self, rows: pa.Table) -> Iterator[StoredPart]:
        """Stores what this process has listed, as tasks do."""
        # Of ranges that tasks have read to their ends, what they have stored tells.
        cuts = {self._uri(end) for end in gap_ends(self._left)}
        cuts |= {part.first for part in self._found.stored}
        return store_sorted(rows, self._folder, BLOCK_IMAGES, sorted(cuts))

    def _tasks(self) -> list[_AnyTask]:
        report = self._lister.inventory
        listing = self._stretches() if report is None else self._report_files(report)
        ahead = self._ahead
        if ahead is None or not self._is_planned_by_blocks:
            return [*listing]
        if ahead.previous is None:
            return [*listing, *self._blocks(ahead, self._listed, self._unlisted)]
        most = WAVES * self._mapper.workers if listing else sys.maxsize
        return [*listing, *self._comparing(ahead, ahead.previous(), most)]

    def _comparing(self, ahead: PlanAhead, before: Manifest, most: int) -> list[_AnyTask]:
        """Returns what tasks can do now to compare the listing, and to plan what is new.

        Args:
            ahead: How the source is planned.
            before: The earlier plan.
            most: How many tasks may compare at a time.

        Returns:
            The tasks. There are none if tasks cannot compare both: images are paired by other names
            than their paths, or the earlier plan has labels or archives, or is stored elsewhere, or
            groups are others than before or have not the folds that their names say.
        """
        lister = self._lister
        is_here = ahead.entries.holds_those_of(before.entries)
        if before.labels or lister.pairing.by is not None or not is_here:
            return []
        if self._comparison is None:
            lister.tell(f"comparing the listing with {before.candidates:,} of the plan before")
            groups = lister.pairing if lister.is_grouped else None
            self._comparison = PlanComparison(before, lister.source, self._folder, groups)
        comparison = self._comparison
        tasks: list[_AnyTask] = [*comparison.tasks(self._listed, self._unlisted, most)]
        if comparison.can_compare and comparison.rows_added >= blocks.MANY:
            not_known = [*self._unlisted, *comparison.pending]
            former_cell = largest_cell(before)
            tasks += self._blocks(ahead, comparison.added, not_known, former_cell)
        return tasks

    @property
    def _listed(self) -> list[StoredPart]:
        return [*self._own, *self._found.stored]

    @property
    def _unlisted(self) -> list[Bounds]:
        """The ranges of names that are not listed yet."""
        return [(self._uri(r.after), r.until and self._uri(r.until)) for r in self._left]

    @property
    def _left(self) -> list[KeyRange]:
        ranges = self._lister.ranges.values()
        return sorted((r for r in ranges if not r.done), key=lambda r: r.after)

    @property
    def _is_planned_by_blocks(self) -> bool:
        lister = self._lister
        is_large = self._found.total >= blocks.MANY
        return is_large and lister.is_single and lister.has_hashed_folds

    def _stretches(self) -> list[Stretch]:
        """Spreads what is left over tasks. A range is halved where there are fewer than tasks."""
        ranges = self._left
        workers = min(self._mapper.workers, MOST_TASKS)
        while 0 < len(ranges) < workers:
            halves = [half for each in ranges for half in _halves(each)]
            if len(halves) == len(ranges):
                break
            ranges = halves
        each = -(-len(ranges) // workers)
        source, rules, folder = self._lister.text, self._lister.rules, self._folder
        return [
            Stretch(
                source, rules, tuple(ranges[at : at + each]), folder, STRETCH_KEYS, BLOCK_IMAGES
            )
            for at in range(0, len(ranges), max(1, each))
        ]

    def _report_files(self, report: Inventory) -> list[ReportFiles]:
        """Spreads files of a report over tasks, each as many bytes as the others."""
        left = sorted(number for number, its in self._lister.ranges.items() if not its.done)
        sizes = [report.files[number].size for number in left]
        workers = min(self._mapper.workers, MOST_TASKS)
        most = max(1, min(TASK_BYTES, sum(sizes) // workers))
        starts = accumulate(sizes, initial=0)
        of_tasks = groupby(zip(starts, left, strict=False), key=lambda file: file[0] // most)
        groups = [tuple(number for _, number in its) for _, its in of_tasks]
        return [
            ReportFiles(
                self._lister.text,
                self._lister.rules,
                replace(report, files=tuple(report.files[number] for number in numbers)),
                numbers,
                self._outside,
                self._folder,
                BLOCK_IMAGES,
            )
            for numbers in groups[: WAVES * workers]
        ]

    def _end_round(self, listed: list[FoundStretch]) -> None:
        """Takes over what the tasks of a round have listed, and records it."""
        ranges = self._lister.ranges
        if self._lister.inventory is None:
            ranges.clear()
            ranges |= enumerate(left for found in listed for left in found.left)
        for number in [number for found in listed for number in found.files]:
            del ranges[number]
        # In the report's order, as the first row of an archive counts.
        listed.sort(key=lambda found: found.files)
        for found in listed:
            self._found.ignored.update(found.ignored)
            self._found.filtered += found.filtered
            self._found.note_groups(found.groups)
            self._lister.add_archives(found.archives)
            self._lister.add_classes(found.classes)
        if not ranges:
            ranges[0] = KeyRange("", done=True)
        self._found.end_round([part for found in listed for part in found.parts])

    def _blocks(
        self,
        ahead: PlanAhead,
        parts: Sequence[StoredPart],
        not_known: Sequence[Bounds],
        former_cell: int = 0,
    ) -> list[NameBlock]:
        """Returns blocks whose candidates are all known and that are not planned yet.

        They are one for each worker at most. The shards of the first ones may take all CPUs, and
        the next round then runs beside them.

        Args:
            ahead: How the source is planned.
            parts: Where the candidates are.
            not_known: The ranges of names of which some candidates may not be known.
            former_cell: The size of the largest cells of an earlier plan; 0 if there is none.
        """
        ends = sorted({end for part in parts for end in part.ends})
        its, names = parts_of_blocks(ends, parts), OpenNames(not_known)
        ready = (
            (bounds, tuple(its[at]))
            for at, bounds in enumerate(bounds_of_blocks(ends))
            if at in its and bounds not in self._planned and not names.overlap(bounds)
        )
        sizes, entries, pairing = ahead.sizes(), ahead.entries, self._lister.pairing
        return [
            NameBlock(
                *(bounds, some, sizes, entries, pairing, former_cell),
                grouped=self._lister.is_grouped,
            )
            for bounds, some in islice(ready, self._mapper.workers)
        ]

    def _uri(self, key: str) -> str:
        return storage.join(self._lister.source, key)

    def _take_block(self, planned: PlannedBlock) -> None:
        self._planned[planned.bounds] = planned
        if self._ahead is not None:
            self._ahead.planned(self._plan(self._ahead, [planned]))

    def _plan(self, ahead: PlanAhead, planned: Sequence[PlannedBlock]) -> Manifest:
        """Returns the plan of some blocks, in their order."""
        heads = [head for block in planned for head in block.heads]
        return Manifest(
            tuple(replace(head, index=at) for at, head in enumerate(heads)),
            ahead.entries,
            max(block.shard_images for block in planned),
            self._lister.source,
            dict(self._found.ignored),
            sum(block.duplicates for block in planned),
            pairing=self._lister.pairing,
        )

    def _manifest(self, ahead: PlanAhead) -> Manifest | None:
        """Returns the plan of the whole source, and checks that it has every candidate.

        Returns:
            The plan; None if too many candidates were listed twice for a plan by blocks.
        """
        made = self._complete(self._plan(ahead, self._in_order()))
        return made if made.candidates >= blocks.MANY else None

    def _in_order(self) -> list[PlannedBlock]:
        """Returns the blocks in the order of their names."""
        return sorted(self._planned.values(), key=lambda block: block.bounds[0])

    def _complete(self, made: Manifest) -> Manifest:
        """Checks that a plan has every candidate.

        Returns:
            The plan.

        Raises:
            ConservationError: It has another number of candidates than were listed.
        """
        planned = made.candidates + made.duplicates
        if planned != self._found.total:
            raise ConservationError(
                f"{self._lister.source}: {self._found.total:,} candidates were listed, and "
                f"{planned:,} are in the plan; nothing was committed. Please report this"
            )
        return made


def _run(task: Task[_AnyResult]) -> _AnyResult:
    return run_in_task(task)


def _halves(of_range: KeyRange) -> list[KeyRange]:
    """Returns the halves of a range of keys; the range itself if it cannot be cut."""
    middle = midpoint(of_range.after, of_range.until)
    if middle is None:
        return [of_range]
    return [KeyRange(of_range.after, middle), KeyRange(middle, of_range.until)]
