"""Cuts new shards into cells, whose sums are kept apart.

>>> new_cells(rows, size=128)                                  # doctest: +SKIP
(128, 120, 136)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.text_columns import text_bytes

CELL_SLACK = 4
"""A cell may have this part of its size less, to end where a folder does, and the last one more."""


def new_cells(rows: pa.Table, size: int) -> tuple[int, ...]:
    """Cuts a new shard into cells, at the end of a folder where one is near.

    Args:
        rows: The members of the shard.
        size: How many members a cell should have. It has up to a quarter less to end where a
            folder does, so that a folder that is deleted touches few cells. It has no more, as a
            GPU would take another micro-batch for what is beyond.

    Returns:
        How many members each cell has; nothing if it is one cell.
    """
    slack = size // CELL_SLACK
    if rows.num_rows <= size + slack:
        return ()
    folders = folders_of(rows["uri"].cast(pa.string()).combine_chunks())
    ends = pc.not_equal(folders[1:], folders[:-1]).to_numpy(zero_copy_only=False)
    ends = (np.flatnonzero(ends) + 1).tolist()
    cells, start, first = [], 0, 0
    while rows.num_rows - start > size + slack:
        wanted = start + size
        first = bisect_left(ends, wanted - slack, first)
        near = ends[first : bisect_right(ends, wanted, first)]
        end = near[-1] if near else wanted
        cells.append(end - start)
        start = end
    return (*cells, rows.num_rows - start)


def folders_of(uris: pa.StringArray) -> pa.StringArray:
    """Returns the folder of each uri, with the slash that ends it.

    All texts are read as one text that is cut at each last slash, which is many times as fast as a
    regular expression.
    """
    data, bounds = text_bytes(uris)
    slashes = np.flatnonzero(data[: bounds[-1]] == ord("/"))
    ends = np.concatenate([[0], slashes + 1])
    last = ends[np.searchsorted(ends, bounds[1:], side="right") - 1]
    cuts = np.empty(2 * len(uris) + 1, np.int32)
    cuts[::2], cuts[1::2] = bounds, np.maximum(last, bounds[:-1])  # a uri may have no slash
    halves = pa.StringArray.from_buffers(2 * len(uris), pa.py_buffer(cuts), pa.py_buffer(data))
    return halves.take(pa.array(np.arange(0, 2 * len(uris), 2)))
