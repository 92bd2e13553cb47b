"""Plans one block of a very large source, of the parts of its listing that tasks have stored.

    >>> plan_block(tables, "s3://b/a", "s3://b/k", sizes, entries, pairing)     # doctest: +SKIP

The shards of all blocks, in their order, are those that `plan` makes of the whole source. A block
is small enough to be held in memory, where that is several times as fast as in a database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources import blocks
from pipeline.sources.blocks import Bounds, even_pieces, mean_bytes
from pipeline.sources.cell_cuts import folder_numbers, new_cells
from pipeline.sources.entries_file import (
    ENTRY_SCHEMA,
    Entries,
    as_single_images,
    cut_row_groups,
    object_schema,
)
from pipeline.sources.entry import ShardHead
from pipeline.sources.listing import StoredPart
from pipeline.sources.manifest import Manifest, ManifestWriter
from pipeline.sources.pair_names import Pairing
from pipeline.sources.shard_sizes import NewShardSizes
from pipeline.sources.sorted_rows import each_once, rows_within, sort_pages
from pipeline.sources.stretches import read_stored
from pipeline.spec import FOLDS


def plan_block(
    parts: Iterable[pa.Table],
    after: str,
    until: str | None,
    sizes: NewShardSizes,
    entries: Entries,
    pairing: Pairing,
    former_cell: int = 0,
    *,
    grouped: bool = False,
) -> Manifest:
    """Plans one block of at least `MANY` single images that are in no earlier plan.

    Args:
        parts: Candidates without labels; all of the block's, and any others. Each table is sorted
            by the uris.
        after: The uri that ends the block before; empty for the first block.
        until: The uri that ends the block. None for the last one.
        sizes: How large shards and cells are.
        entries: Where the candidates are stored.
        pairing: How images are named for pairing.
        former_cell: The size of the largest cells of an earlier plan; 0 if there is none.
        grouped: Whether each candidate is in a group, whose name decides its fold.

    Returns:
        A plan of the block.
    """
    # Loads numba, for large sources only.
    from pipeline.sources.name_kernel import folder_starts, group_numbers, name_numbers

    # The parts are not held beside the sorted rows, and neither are columns that say nothing.
    tables = (part.select(object_schema(grouped=grouped).names) for part in parts)
    listed = sort_pages(pa.concat_tables(rows_within(part, after, until) for part in tables))
    rows = each_once(listed)
    if grouped:
        numbers = group_numbers(rows["group"], pairing)
    else:
        numbers = name_numbers(rows["uri"], pairing)
    folds = (numbers % np.uint64(FOLDS)).astype(np.uint8)
    largest = 0
    with ManifestWriter(entries) as writer:
        order = np.argsort(folds, kind="stable")
        starts = folder_starts(rows["uri"])
        folders = folder_numbers(rows["uri"].filter(pa.array(starts)))[np.cumsum(starts) - 1][order]
        rows = as_single_images(rows.take(pa.array(order)), ENTRY_SCHEMA)
        ends = np.cumsum(np.bincount(folds, minlength=FOLDS)).tolist()
        for fold, (start, stop) in enumerate(pairwise([0, *ends])):
            if start < stop:
                of_fold = rows.slice(start, stop - start)
                mean = mean_bytes(of_fold)
                size = sizes.shard(blocks.MANY, mean)
                largest, cell = max(largest, size), sizes.cell(size, mean, former_cell)
                for shard in even_pieces(of_fold, size):
                    for rows_of in cut_row_groups(shard):
                        cells = new_cells(folders[start : start + rows_of.num_rows], cell)
                        writer.add(fold, rows_of, cells=cells, cell_images=sizes.stated_cell(cell))
                        start += rows_of.num_rows
    return writer.manifest(largest, duplicates=listed.num_rows - rows.num_rows)


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
        former_cell: The size of the largest cells of an earlier plan; 0 if there is none.
        grouped: Whether each candidate is in a group.
    """

    bounds: Bounds
    parts: tuple[StoredPart, ...]
    sizes: NewShardSizes
    entries: Entries
    pairing: Pairing
    former_cell: int = 0
    grouped: bool = False

    def run(self) -> PlannedBlock:
        """Plans the block."""
        names = object_schema(grouped=self.grouped).names
        parts = (
            # Other columns say nothing of single images. Threads would cost more than they save.
            pq.ParquetFile(pa.BufferReader(data)).read(columns=names, use_threads=False)
            for data in read_stored(self.parts)
        )
        made = plan_block(
            *(parts, *self.bounds, self.sizes, self.entries, self.pairing, self.former_cell),
            grouped=self.grouped,
        )
        return PlannedBlock(self.bounds, made.shard_images, made.heads, made.duplicates)
