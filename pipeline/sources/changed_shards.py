"""Rewrites the shards of an earlier plan that have lost members, or whose members have changed.

>>> ChangedShards(heads, entries, removed, changed, 128).run()           # doctest: +SKIP
WrittenShards(heads=((7, ShardHead(...)),), removed=3, changed=1)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.cell_joining import cells_left, cut_size, join_left, origins_of, stated
from pipeline.sources.entries_file import OBJECTS_SCHEMA, Entries, object_schema
from pipeline.sources.entry import ShardHead
from pipeline.sources.listing import StoredPart
from pipeline.sources.manifest import ManifestWriter
from pipeline.sources.stretches import read_stored

MEMBER_SCHEMA = pa.schema([*OBJECTS_SCHEMA, ("shard", pa.int32())])
"""What tasks tell each other of a member of an earlier plan: the object, and its shard's number."""


def member_schema(*, grouped: bool) -> pa.Schema:
    """Returns the columns of `MEMBER_SCHEMA`, with the group if members are in groups."""
    return pa.schema([*object_schema(grouped=grouped), MEMBER_SCHEMA.field("shard")])


@dataclass(frozen=True)
class WrittenShards:
    """What a task has written.

    Attributes:
        heads: The number that each shard has in the earlier plan, and its new description. A shard
            of which nothing is left is not among them.
        removed: How many members were left out.
        changed: How many members have another size or identity now.
    """

    heads: tuple[tuple[int, ShardHead], ...]
    removed: int
    changed: int


@dataclass(frozen=True)
class ChangedShards:
    """Shards for one task to write.

    Attributes:
        heads: The shards as they were, of single images.
        entries: Where their members are, and where the new ones go.
        removed: The parts that have their members that are gone, and those of other shards.
        changed: The parts that have the new sizes and identities, and those of other shards. Both
            kinds have the columns of `MEMBER_SCHEMA`.
        cell: The size of new cells; 0 if the plan keeps no sums of cells.
    """

    heads: tuple[ShardHead, ...]
    entries: Entries
    removed: tuple[StoredPart, ...]
    changed: tuple[StoredPart, ...]
    cell: int

    def run(self) -> WrittenShards:
        """Writes the shards."""
        removed, changed = self._read(self.removed), self._read(self.changed)
        rows = pa.concat_tables(table for _, table in self.entries.read_shards(self.heads))
        is_gone = pc.is_in(rows["uri"], value_set=removed["uri"]).to_numpy()
        at = pc.index_in(rows["uri"], value_set=changed["uri"])
        for name in ("size", "identity"):
            column = pc.coalesce(changed[name].take(at), rows[name])
            rows = rows.set_column(rows.column_names.index(name), name, column)
        bounds = accumulate((head.candidates for head in self.heads), initial=0)
        numbers: list[int] = []
        with ManifestWriter(self.entries) as writer:
            for head, (start, stop) in zip(self.heads, pairwise(bounds), strict=True):
                stays = ~is_gone[start:stop]
                if not stays.any():
                    continue
                left = cells_left(head, np.flatnonzero(stays).astype(np.int32))
                cells, runs = stated(join_left(head, left, self.cell))
                its = rows.slice(start, stop - start).filter(pa.array(stays))
                writer.add(head.fold, its, None, cells, origins_of(head), runs, cut_size(head))
                numbers.append(head.index)
        heads = zip(numbers, writer.manifest(1).heads, strict=True)
        return WrittenShards(tuple(heads), int(is_gone.sum()), len(at) - at.null_count)

    def _read(self, parts: Sequence[StoredPart]) -> pa.Table:
        """Reads what parts have of these shards. All that they have may be too much to hold."""
        its = pa.array([head.index for head in self.heads], pa.int32())
        found = [MEMBER_SCHEMA.empty_table()]
        for data in read_stored(parts):
            rows = pq.read_table(pa.BufferReader(data))
            found.append(rows.filter(pc.is_in(rows["shard"], value_set=its)))
        return pa.concat_tables(found).combine_chunks()
