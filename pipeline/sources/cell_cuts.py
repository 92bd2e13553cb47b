"""Cuts new shards into cells, whose sums are kept apart.

>>> new_cells(folder_numbers(uris), size=128)                  # doctest: +SKIP
(128, 120, 136)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.sources.text_columns import text_bytes

CELL_SLACK = 4
"""A cell may have this part of its size less, to end where a folder does, and the last one more."""


NUMBERED_AT_ONCE = 2**16
"""The folders of so many uris are found at a time. That takes a few megabytes."""


def new_cells(folders: NDArray[np.int32], size: int) -> tuple[int, ...]:
    """Cuts a new shard into cells, at the end of a folder where one is near.

    Args:
        folders: The number of each member's folder (see `folder_numbers`).
        size: How many members a cell should have. It has up to a quarter less to end where a
            folder does, so that a folder that is deleted touches few cells. It has no more, as a
            GPU would take another micro-batch for what is beyond.

    Returns:
        How many members each cell has; nothing if it is one cell.
    """
    slack = size // CELL_SLACK
    if len(folders) <= size + slack:
        return ()
    ends = (np.flatnonzero(folders[1:] != folders[:-1]) + 1).tolist()
    cells, start, first = [], 0, 0
    while len(folders) - start > size + slack:
        wanted = start + size
        first = bisect_left(ends, wanted - slack, first)
        near = ends[first : bisect_right(ends, wanted, first)]
        end = near[-1] if near else wanted
        cells.append(end - start)
        start = end
    return (*cells, len(folders) - start)


def folder_numbers(uris: pa.ChunkedArray) -> NDArray[np.int32]:
    """Numbers the folders of uris.

    Args:
        uris: N uris.

    Returns:
        (N,) int32: two uris have the same number if they are in the same folder.
    """
    pieces = [
        folders_of(uris.slice(start, NUMBERED_AT_ONCE).cast(pa.string()).combine_chunks())
        for start in range(0, len(uris), NUMBERED_AT_ONCE)
    ]
    numbered = pa.chunked_array(pieces, pa.string()).dictionary_encode()
    return np.concatenate([np.empty(0, np.int32), *(c.indices.to_numpy() for c in numbered.chunks)])


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
