"""Plans one block of a very large source, of the parts of its listing that tasks have stored.

    >>> plan_block(tables, "s3://b/a", "s3://b/k", sizes, entries, pairing)     # doctest: +SKIP

The shards of all blocks, in their order, are those that `plan` makes of the whole source. A block
is small enough to be held in memory, where that is several times as fast as in a database.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources import blocks
from pipeline.sources.blocks import even_pieces, mean_bytes
from pipeline.sources.cell_cuts import folder_numbers, new_cells
from pipeline.sources.entries_file import ENTRY_SCHEMA, OBJECTS_SCHEMA, Entries, as_single_images
from pipeline.sources.manifest import Manifest, ManifestWriter
from pipeline.sources.pair_names import Pairing
from pipeline.sources.shard_sizes import NewShardSizes
from pipeline.sources.sorted_rows import rows_up_to, sort_pages
from pipeline.spec import FOLDS


def plan_block(
    parts: Iterable[pa.Table],
    after: str,
    until: str | None,
    sizes: NewShardSizes,
    entries: Entries,
    pairing: Pairing,
) -> Manifest:
    """Plans one block of a source that has at least `MANY` single images, and no earlier plan.

    Args:
        parts: Candidates without groups and labels; all of the block's, and any others. Each table
            is sorted by the uris.
        after: The uri that ends the block before; empty for the first block.
        until: The uri that ends the block. None for the last one.
        sizes: How large shards and cells are.
        entries: Where the candidates are stored.
        pairing: How images are named for pairing.

    Returns:
        A plan of the block.
    """
    # Loads numba, for large sources only.
    from pipeline.sources.name_kernel import folder_starts, name_numbers

    # The parts are not held beside the sorted rows, and neither are columns that say nothing.
    listed = sort_pages(pa.concat_tables(_within(part, after, until) for part in parts))
    rows = _each_once(listed)
    folds = (name_numbers(rows["uri"], pairing) % np.uint64(FOLDS)).astype(np.uint8)
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
                largest, cell = max(largest, size), sizes.cell(size, mean)
                for shard in even_pieces(of_fold, size):
                    cells = new_cells(folders[start : start + shard.num_rows], cell)
                    writer.add(fold, shard, cells=cells, cell_images=sizes.stated_cell(cell))
                    start += shard.num_rows
    return writer.manifest(largest, duplicates=listed.num_rows - rows.num_rows)


def _within(part: pa.Table, after: str, until: str | None) -> pa.Table:
    """Returns the rows of a sorted table that belong to a block."""
    start = rows_up_to(after, part)
    stop = part.num_rows if until is None else rows_up_to(until, part)
    return part.select(OBJECTS_SCHEMA.names).slice(start, stop - start)


def _each_once(rows: pa.Table) -> pa.Table:
    """Returns sorted rows with each candidate once.

    A candidate that changed while it was listed has several rows: the least of them counts, so that
    every run takes the same one.
    """
    uris = rows["uri"]
    is_again = pc.equal(uris[1:], uris[:-1])
    if not pc.any(is_again).as_py():
        return rows
    rows = rows.sort_by([(name, "ascending") for name in ("uri", "size", "identity")])
    return rows.filter(pa.chunked_array([[True], *pc.invert(is_again).chunks]))
