"""Lists a very large prefix of S3 by tasks, and has it planned while it is listed.

    >>> planned = TaskListing(lister, checkpoint, engine, ahead).run()       # doctest: +SKIP

The process that builds lists a prefix alone at first. If it turns out to be large, rounds of tasks
go on, each with some ranges of keys (see `stretches`). Which ranges are left tells which blocks of
names are complete (see `blocks`). The next round's tasks plan these, and their shards can be
counted while the listing still runs. The process itself holds no candidates of these tasks, and of
their names only those that end blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ConservationError
from pipeline.mapper import Mapper
from pipeline.sources import blocks
from pipeline.sources.block_plan import plan_block
from pipeline.sources.blocks import BLOCK_IMAGES
from pipeline.sources.entries_file import OBJECTS_SCHEMA, Entries
from pipeline.sources.entry import ShardHead
from pipeline.sources.listing import StoredPart
from pipeline.sources.listing_checkpoint import ListingCheckpoint
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import Pairing
from pipeline.sources.parallel_listing import KeyRange, midpoint
from pipeline.sources.shard_sizes import NewShardSizes
from pipeline.sources.source_lister import SourceLister
from pipeline.sources.stretches import (
    STRETCH_KEYS,
    FoundStretch,
    Stretch,
    gap_ends,
    read_stored,
    store_sorted,
)

MOST_TASKS = 64
"""How many tasks list at a time. Each asks for 28 pages a second, and S3 answers some thousands."""

OWN_FILES = 8
"""How many of its files this process holds at a time, to sort them."""

Bounds = tuple[str, str | None]
"""The uri that ends the block before, empty if there is none, and the one that ends the block."""


@dataclass(frozen=True)
class PlanAhead:
    """How a large source is planned while it is listed.

    Attributes:
        sizes: How large shards and cells are.
        entries: Where the candidates are stored.
        planned: Is called with a plan of each block, as soon as it is made.
    """

    sizes: NewShardSizes
    entries: Entries
    planned: Callable[[Manifest], None]


@dataclass(frozen=True)
class PlannedBlock:
    """What a task has planned: a block, and its shards.

    Attributes:
        bounds: The block.
        shard_images: The size of a new shard, at most.
        heads: The shards.
        duplicates: How often a candidate was listed again.
    """

    bounds: Bounds
    shard_images: int
    heads: tuple[ShardHead, ...]
    duplicates: int


@dataclass(frozen=True)
class NameBlock:
    """A block for one task to plan.

    Attributes:
        bounds: The block.
        parts: The parts that have its candidates, and others.
        sizes: How large shards and cells are.
        entries: Where the candidates are stored.
        pairing: How images are named for pairing.
    """

    bounds: Bounds
    parts: tuple[StoredPart, ...]
    sizes: NewShardSizes
    entries: Entries
    pairing: Pairing

    def run(self) -> PlannedBlock:
        """Plans the block."""
        names = OBJECTS_SCHEMA.names
        parts = (
            # Other columns say nothing of single images. Threads would cost more than they save.
            pq.ParquetFile(pa.BufferReader(data)).read(columns=names, use_threads=False)
            for data in read_stored(self.parts)
        )
        made = plan_block(parts, *self.bounds, self.sizes, self.entries, self.pairing)
        return PlannedBlock(self.bounds, made.shard_images, made.heads, made.duplicates)


class TaskListing:
    """Goes on with a listing by rounds of tasks.

    Args:
        lister: What this process has listed; its ranges tell what is left.
        checkpoint: Where the listing is kept.
        mapper: Where tasks run.
        ahead: How the source is planned meanwhile. None does not plan it.
    """

    def __init__(
        self,
        lister: SourceLister,
        checkpoint: ListingCheckpoint,
        mapper: Mapper,
        ahead: PlanAhead | None,
    ) -> None:
        self._lister = lister
        self._found = lister.candidates
        self._folder = checkpoint.parts_folder
        self._mapper = mapper
        self._ahead = ahead
        self._own: list[StoredPart] = []
        self._planned: dict[Bounds, PlannedBlock] = {}

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
        if self._ahead is not None and self._is_planned_by_blocks:
            return self._manifest(self._ahead)
        return None

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

    def _tasks(self) -> list[Stretch | NameBlock]:
        return [*self._stretches(), *self._blocks()]

    @property
    def _left(self) -> list[KeyRange]:
        ranges = self._lister.ranges.values()
        return sorted((r for r in ranges if not r.done), key=lambda r: r.after)

    @property
    def _is_planned_by_blocks(self) -> bool:
        return self._lister.is_single and self._found.total >= blocks.MANY

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

    def _end_round(self, listed: Sequence[FoundStretch]) -> None:
        """Takes over what the tasks of a round have listed, and records it."""
        ranges = self._lister.ranges
        ranges.clear()
        ranges |= enumerate(left for found in listed for left in found.left)
        for found in listed:
            self._found.ignored.update(found.ignored)
            self._found.filtered += found.filtered
            self._lister.add_archives(found.archives)
            self._lister.add_classes(found.classes)
        if not ranges:
            ranges[0] = KeyRange("", done=True)
        self._found.end_round([part for found in listed for part in found.parts])

    def _blocks(self) -> list[NameBlock]:
        """Returns the blocks whose candidates are all listed and that are not planned yet."""
        if self._ahead is None or not self._is_planned_by_blocks:
            return []
        parts = [*self._own, *self._found.stored]
        last = max(part.last for part in parts)
        ends = sorted({end for part in parts for end in part.ends})
        bounds: list[str | None] = ["", *ends]
        if not ends or ends[-1] < last:
            bounds.append(None)
        left = [(self._uri(r.after), r.until and self._uri(r.until)) for r in self._left]
        ready = []
        for after, until in pairwise(bounds):
            block = after or "", until
            if block in self._planned or any(_have_names_in_common(block, each) for each in left):
                continue
            its = tuple(part for part in parts if _may_have_some_of(part, block))
            ahead, pairing = self._ahead, self._lister.pairing
            ready.append(NameBlock(block, its, ahead.sizes, ahead.entries, pairing))
        return ready

    def _uri(self, key: str) -> str:
        return storage.join(self._lister.uri, key)

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

        Raises:
            ConservationError: It has another number of candidates than were listed.
        """
        in_order = sorted(self._planned.values(), key=lambda block: block.bounds[0])
        made = self._plan(ahead, in_order)
        planned = made.candidates + made.duplicates
        if planned != self._found.total:
            raise ConservationError(
                f"{self._lister.source}: {self._found.total:,} candidates were listed, and "
                f"{planned:,} are in the plan; nothing was counted. Please report this"
            )
        return made if made.candidates >= blocks.MANY else None


def _run(task: Stretch | NameBlock) -> FoundStretch | PlannedBlock:
    """Runs a task, whose Arrow takes its memory from glibc.

    In workers, glibc keeps what is freed. Arrow's own allocator keeps less of it, and asks the
    kernel for memory again for each block, which takes time.

    Returns:
        What the task returns.
    """
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        return task.run()
    finally:
        pa.set_memory_pool(before)


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


def _may_have_some_of(part: StoredPart, block: Bounds) -> bool:
    after, until = block
    return part.last > after and (until is None or part.first <= until)
