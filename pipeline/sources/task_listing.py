"""Lists a very large source by tasks, and has tasks plan it, too.

    >>> planned = TaskListing(lister, checkpoint, engine, ahead).run()       # doctest: +SKIP

The process that builds lists a prefix alone at first. If it turns out to be large, rounds of tasks
go on, each with some ranges of keys (see `stretches`). Which ranges are left tells which blocks of
names are complete (see `blocks`). The next round's tasks plan these, and their shards can be
counted while the listing still runs. The process itself holds no candidates of these tasks, and of
their names only those that end blocks.

A large report of S3 Inventory is read by such tasks, too, each with some of its files. A file may
have any names, so all blocks are complete when all files are read. Then tasks plan them.

If the source has an earlier plan, no block is planned while it is listed. Tasks compare the whole
listing with that plan (see `plan_comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConservationError
from pipeline.mapper import Mapper
from pipeline.sources import blocks
from pipeline.sources.block_plan import Bounds, NameBlock, PlannedBlock
from pipeline.sources.blocks import BLOCK_IMAGES
from pipeline.sources.change_planning import plan_changes
from pipeline.sources.entries_file import Entries
from pipeline.sources.inventory import Inventory
from pipeline.sources.listing import Listing, StoredPart
from pipeline.sources.listing_checkpoint import ListingCheckpoint
from pipeline.sources.manifest import Manifest
from pipeline.sources.manifest_difference import KnownDifference
from pipeline.sources.parallel_listing import KeyRange, midpoint
from pipeline.sources.plan_comparison import compare_with_plan
from pipeline.sources.shard_sizes import NewShardSizes
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
from pipeline.wording import count_of

MOST_TASKS = 64
"""How many tasks list at a time. Each asks for 28 pages a second, and S3 answers some thousands."""

TASK_BYTES = 2**26
"""How many bytes of a report a task reads, if its files are not larger: a million rows or more."""

WAVES = 4
"""How many tasks for each worker a round has that reads a report. A round ends with its slowest."""

OWN_FILES = 8
"""How many of its files this process holds at a time, to sort them."""


@dataclass(frozen=True)
class PlanAhead:
    """How a large source is planned while it is listed.

    Attributes:
        sizes: Returns how large shards and cells are.
        entries: Where the candidates are stored.
        planned: Is called with a plan of each block, as soon as it is made; never if there is an
            earlier plan.
        previous: Returns the earlier plan, without shards whose entries are missing. None if there
            is none.
    """

    sizes: Callable[[], NewShardSizes]
    entries: Entries
    planned: Callable[[Manifest], None]
    previous: Callable[[], Manifest] | None = None


def may_be_compared(before: Manifest) -> bool:
    """Tells whether tasks may have to compare a source with its earlier plan.

    Args:
        before: The plan.

    Returns:
        Whether the plan is large enough, and has no labels. If not, this process plans the source,
        however much it has grown. Tasks would cost small sources time.
    """
    return 2 * before.candidates >= blocks.MANY and not before.labels


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
        self._own: list[StoredPart] = []
        self._planned: dict[Bounds, PlannedBlock] = {}
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
        if self._ahead is not None:
            self._own = [part for rows in self._own_rows() for part in self._stored(rows)]
        while tasks := self._tasks():
            listed: list[FoundStretch] = []
            for done in self._mapper.map(_run, tasks):
                if isinstance(done, FoundStretch):
                    listed.append(done)
                else:
                    self._take_block(done)
            if listed:
                self._end_round(listed)
            self._lister.say()
        if self._ahead is None or not self._is_planned_by_blocks:
            return None
        if self._ahead.previous is not None:
            return self._changed_plan(self._ahead, self._ahead.previous)
        return self._manifest(self._ahead)

    def _changed_plan(self, ahead: PlanAhead, previous: Callable[[], Manifest]) -> Manifest | None:
        """Plans what was listed, keeping the shards of an earlier plan.

        Returns:
            The plan. None if this process has to make it: images are paired by other names than
            their paths, the earlier plan has labels or archives, or is stored elsewhere, its groups
            have been others or have not the folds that their names say, or too many candidates were
            listed twice.
        """
        pairing, grouped = self._lister.pairing, self._lister.is_grouped
        if pairing.by is not None:
            return None
        before = previous()
        if before.labels or not ahead.entries.holds_those_of(before.entries):
            return None
        self._lister.tell(
            f"comparing {count_of(self._found.total, 'candidate')} with "
            f"{before.candidates:,} of the plan before"
        )
        changes = compare_with_plan(
            [*self._own, *self._found.stored],
            before,
            self._lister.source,
            self._folder,
            self._mapper,
            self._lister.say,
            pairing if grouped else None,
        )
        if changes is None or changes.totals.candidates < blocks.MANY:
            return None
        listing = Listing(self._lister.source, (), dict(self._found.ignored), pairing=pairing)
        made = plan_changes(
            *(listing, changes, before, ahead.entries, ahead.sizes(), self._mapper),
            grouped=grouped,
        )
        self.difference = changes.difference
        return self._complete(made)

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

    def _tasks(self) -> list[Stretch | ReportFiles | NameBlock]:
        report = self._lister.inventory
        listing = self._stretches() if report is None else self._report_files(report)
        return [*listing, *self._blocks()]

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

    def _blocks(self) -> list[NameBlock]:
        """Returns blocks whose candidates are all listed and that are not planned yet.

        They are one for each worker at most. The shards of the first ones may take all CPUs, and
        the next round then runs beside them.
        """
        ahead = self._ahead
        if ahead is None or ahead.previous is not None or not self._is_planned_by_blocks:
            return []
        parts = [*self._own, *self._found.stored]
        ends = sorted({end for part in parts for end in part.ends})
        its = parts_of_blocks(ends, parts)
        left = [(self._uri(r.after), r.until and self._uri(r.until)) for r in self._left]
        ready: list[NameBlock] = []
        for at, (after, until) in enumerate(pairwise(["", *ends, None])):
            if len(ready) == self._mapper.workers:
                break
            block = after or "", until
            if block in self._planned or any(_have_names_in_common(block, each) for each in left):
                continue
            if at in its:
                ready.append(self._block(ahead, block, its[at]))
        return ready

    def _block(self, ahead: PlanAhead, bounds: Bounds, parts: Iterable[StoredPart]) -> NameBlock:
        return NameBlock(
            *(bounds, tuple(parts), ahead.sizes(), ahead.entries, self._lister.pairing),
            grouped=self._lister.is_grouped,
        )

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
                f"{planned:,} are in the plan; nothing was counted. Please report this"
            )
        return made


def _run(task: Task[FoundStretch | PlannedBlock]) -> FoundStretch | PlannedBlock:
    return run_in_task(task)


def _halves(of_range: KeyRange) -> list[KeyRange]:
    """Returns the halves of a range of keys; the range itself if it cannot be cut."""
    middle = midpoint(of_range.after, of_range.until)
    if middle is None:
        return [of_range]
    return [KeyRange(of_range.after, middle), KeyRange(middle, of_range.until)]


def _have_names_in_common(one: Bounds, other: Bounds) -> bool:
    """Tells whether a name may be in both: above the first bound of each, up to its last."""
    lasts = [last for _, last in (one, other) if last is not None]
    return not lasts or max(one[0], other[0]) < min(lasts)
