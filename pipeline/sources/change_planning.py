"""Plans a very large source that was planned before, from what has changed in it.

    >>> changes = comparison.changes(parts)                                  # doctest: +SKIP
    >>> plan_changes(listing, changes, before, entries, sizes, engine)       # doctest: +SKIP

The plan is the one that `plan` makes of the whole listing. Tasks write the shards that have
changed. This process reads the candidates that were added, unless they are so many that tasks plan
them, and the members of small shards that are put together. All other shards it keeps as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import duckdb
import numpy as np
import pyarrow as pa

from pipeline.errors import ConservationError
from pipeline.mapper import Mapper
from pipeline.sources import blocks
from pipeline.sources.block_plan import NameBlock, PlannedBlock
from pipeline.sources.blocks import Bounds, bounds_of_blocks
from pipeline.sources.changed_shards import ChangedShards
from pipeline.sources.database import quoted_text
from pipeline.sources.entries_file import ENTRY_SCHEMA, Entries
from pipeline.sources.entry import ShardHead
from pipeline.sources.fold_assignment import FoldSizes
from pipeline.sources.listing import Listing, ListingWriter, StoredPart
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import Pairing
from pipeline.sources.plan_comparison import PlanChanges
from pipeline.sources.shard_sizes import NewShardSizes
from pipeline.sources.sharding import PREVIOUS_SCHEMA, ShardPlanner, largest_cell, planning
from pipeline.sources.stretches import parts_of_blocks, read_stored, run_in_task


def plan_changes(
    listing: Listing,
    changes: PlanChanges,
    previous: Manifest,
    entries: Entries,
    sizes: NewShardSizes,
    mapper: Mapper,
    planned: Mapping[Bounds, PlannedBlock] = MappingProxyType({}),
    *,
    grouped: bool = False,
) -> Manifest:
    """Plans a listing of at least `MANY` single images, which has an earlier plan.

    Args:
        listing: What was listed, without the candidates.
        changes: How it differs from that plan.
        previous: The plan.
        entries: Where its candidates are, and where those of new shards are stored.
        sizes: How large new shards and cells are.
        mapper: Where tasks plan new candidates, if these are very many.
        planned: Blocks of new candidates that tasks have planned already.
        grouped: Whether candidates are in groups, which all have the folds that their names say.

    Returns:
        The plan.

    Raises:
        ConservationError: It has another number of candidates than were listed.
        StorageError: The disk for temporary files has no room.
    """
    totals, former_cell = changes.totals, largest_cell(previous)
    mean = totals.sized_bytes / max(1, totals.sized)
    size = sizes.shard(totals.candidates, mean)
    cell = sizes.cell(size, mean, former_cell)
    changed = _changed_shards(changes, entries, sizes.stated_cell(cell), mapper)
    many = changes.rows_added >= blocks.MANY
    added = _taken(() if many else changes.added, listing)
    with planning(is_large=True) as (folder, database):
        planner = _ChangePlanner(database, folder, added, changes, previous, sizes)
        planner.load(changed, size, cell)
        made = planner.write(entries)
    if many:
        made = _with_blocks(
            *(made, changes.added, former_cell, sizes, mapper, planned), grouped=grouped
        )
    if made.candidates != totals.candidates:
        raise ConservationError(
            f"{listing.source}: {totals.candidates:,} candidates were listed, and "
            f"{made.candidates:,} are in the plan; nothing was committed. Please report this"
        )
    return made


def _taken(parts: Sequence[StoredPart], listing: Listing) -> Listing:
    """Brings parts here, as the candidates of a listing."""
    writer = ListingWriter()
    writer.end_round(parts)
    writer.take_stored(read_stored(parts))
    found = writer.listing(listing.source)
    return replace(found, ignored=listing.ignored, pairing=listing.pairing)


def _changed_shards(
    changes: PlanChanges, entries: Entries, cell: int, mapper: Mapper
) -> dict[int, ShardHead | None]:
    """Has tasks write the shards that have changed.

    Returns:
        Their new descriptions by their numbers in the earlier plan. None if nothing is left.

    Raises:
        ConservationError: A member was removed or has changed, and that is not in the shards.
    """

    def task(heads: tuple[ShardHead, ...]) -> ChangedShards:
        numbers = {head.index for head in heads}
        its = [each for each in changes.ranges if not each.touched.isdisjoint(numbers)]
        removed, changed = (
            tuple(part for each in its for part in getattr(each, name))
            for name in ("removed", "changed")
        )
        return ChangedShards(heads, entries, removed, changed, cell)

    written: dict[int, ShardHead | None] = {
        head.index: None for heads in changes.touched for head in heads
    }
    done = list(mapper.map(run_in_task, list(map(task, changes.touched))))
    for shards in done:
        written |= dict(shards.heads)
    found = changes.rows_removed, changes.rows_changed
    applied = sum(shards.removed for shards in done), sum(shards.changed for shards in done)
    if applied != found:
        raise ConservationError(
            f"of the plan before, {found[0]:,} images are gone and {found[1]:,} have changed; the "
            f"new plan leaves out {applied[0]:,} and changes {applied[1]:,}; nothing was "
            "committed. Please report this"
        )
    return written


def _with_blocks(
    made: Manifest,
    added: Sequence[StoredPart],
    former_cell: int,
    sizes: NewShardSizes,
    mapper: Mapper,
    planned: Mapping[Bounds, PlannedBlock],
    *,
    grouped: bool,
) -> Manifest:
    """Has tasks plan very many new candidates by blocks, and adds their shards to a plan."""
    ends = sorted({end for part in added for end in part.ends})
    its, pairing = parts_of_blocks(ends, added), made.pairing or Pairing()
    tasks = [
        NameBlock(
            *(bounds, tuple(its[at]), sizes, made.entries, pairing, former_cell), grouped=grouped
        )
        for at, bounds in enumerate(bounds_of_blocks(ends))
        if at in its and bounds not in planned
    ]
    of_blocks = [*planned.values(), *mapper.map(run_in_task, tasks)]
    of_blocks.sort(key=lambda block: block.bounds[0])
    heads = [*made.heads, *(head for block in of_blocks for head in block.heads)]
    return replace(
        made,
        heads=tuple(replace(head, index=at) for at, head in enumerate(heads)),
        shard_images=max(block.shard_images for block in of_blocks),
    )


class _ChangePlanner(ShardPlanner):
    """Plans with the candidates alone that were added."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        folder: str,
        added: Listing,
        changes: PlanChanges,
        previous: Manifest,
        sizes: NewShardSizes,
    ) -> None:
        super().__init__(database, folder, added, None, sizes)
        self._changes = changes
        self._before = self._previous = previous
        self._candidates = changes.totals.candidates
        self._duplicates = changes.totals.duplicates

    def load(self, changed: Mapping[int, ShardHead | None], size: int, cell: int) -> None:
        """Fills the tables.

        Args:
            changed: The shards that were written anew, by their numbers in the earlier plan. None
                stands for one of which nothing is left.
            size: The size of new shards.
            cell: The size of their cells.
        """
        self._changed, self._size, self._cell = changed, size, cell
        if self._listing.parts:
            files = ", ".join(map(quoted_text, self._listing.parts))
            self._db.execute(f"create view listing as select * from read_parquet([{files}])")
        else:
            self._db.register("listing", ENTRY_SCHEMA.empty_table())
        self._db.execute("create view fresh as select * from listing")
        # Single images have no groups, or groups whose names tell their folds.
        self._db.register("previous", PREVIOUS_SCHEMA.empty_table())

    def _kept_shards(self) -> Iterator[tuple[ShardHead, pa.Table | None]]:
        together = {head.index for group in self._merge_groups() for head in group}
        whole = self._before.entries.read_shards(
            self._before.heads[at] for at in sorted(together - self._changed.keys())
        )
        for head in self._before.heads:
            if head.index in self._changed:
                if (now := self._changed[head.index]) is not None:
                    yield now, None
            elif head.index in together:
                _, rows = next(whole)
                places = pa.array(np.arange(rows.num_rows, dtype=np.int32))
                yield head, rows.append_column("place", places)
            else:
                yield head, None

    def _fresh_shards(self, sizes: FoldSizes) -> Iterator[tuple[int, pa.Table, int, int]]:
        return super()._fresh_shards(sizes) if self._listing.parts else iter(())

    @property
    def _to_write(self) -> int:
        here = self._number("select count(*) from fresh")
        return self._candidates - self._changes.rows_added + here

    @property
    def _has_new(self) -> bool:
        return self._changes.rows_added > 0

    def _group_counts(self, table: str, condition: str = "true") -> dict[str, tuple[int, int]]:
        # Names without suffixes may coincide, and groups have many images. But there are at least
        # `HASHED_GROUPS` names or groups, and callers ask for nothing else.
        if table == "listing":
            return {"": (self._candidates, self._candidates)}
        return super()._group_counts(table, condition)

    def _mean_text_bytes(self) -> float:
        texts = len([name for name in self._columns if name not in ("size", "position")])
        return (4 * texts * self._candidates + self._changes.totals.text_bytes) / self._candidates
