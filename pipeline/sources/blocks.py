"""Cuts the names of a very large source into blocks, which are planned one by one.

A block ends with a name whose hash says so, on average after `BLOCK_IMAGES` names. So the blocks
depend on the names alone, and not on how they were listed: a block can be planned as soon as all
its names are known. A name that comes or goes moves the end of one block at most.

>>> block_ends(pa.array(["s3://b/a", "s3://b/b"]), 1)
['s3://b/a', 's3://b/b']
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.database import quoted_text
from pipeline.sources.shard_sizes import SHARD_MULTIPLE

BLOCK_IMAGES = 2**19
"""How many images a block has on average. Each block has shards of its own in every fold, of which
small blocks would make too many; a large block has to wait long until it is listed."""

MANY = 2**20
"""From this number of single images on, their folds are taken from a hash alone, and they are
planned block by block. The sizes of the folds then differ by about 1 in 250."""

_SPREAD = 0x9E3779B1
"""2^32 divided by the golden ratio. It spreads hashes that differ in few bits (Knuth, The Art of
Computer Programming, volume 3, section 6.4)."""


def block_ends(uris: pa.Array | pa.ChunkedArray, block_images: int) -> list[str]:
    """Finds the uris that end a block: those whose CRC-32, spread, is below 2^32 / `block_images`.

    A cryptographic hash would take longer than the rest of a listing.

    Args:
        uris: Any uris.
        block_images: How many images a block has on average.

    Returns:
        Those that end a block, in the same order.
    """
    from pipeline.sources.name_kernel import crc32_of  # loads numba, for large sources only

    hashes = crc32_of(uris).astype(np.uint64)
    ends = (hashes * np.uint64(_SPREAD) % np.uint64(2**32)) * np.uint64(block_images) < 2**32
    return [str(uris[at].as_py()) for at in np.flatnonzero(ends)]


def block_number(ends: Sequence[str]) -> str:
    """Returns SQL for the number of the block that the `uri` is in, from 0.

    Args:
        ends: The uris that end blocks, in their order.
    """

    def search(low: int, high: int) -> str:
        if low == high:
            return str(low)
        middle = (low + high) // 2
        lower, upper = search(low, middle), search(middle + 1, high)
        return f"case when uri <= {quoted_text(ends[middle])} then {lower} else {upper} end"

    return search(0, len(ends))


def mean_bytes(rows: pa.Table) -> float:
    """Returns the size of an image on average, of those whose size is known; 0 if there is none."""
    sizes = rows["size"]
    return pc.mean(sizes.filter(pc.greater(sizes, 0))).as_py() or 0.0


def even_pieces(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    """Cuts the rows of a block's fold into shards.

    Args:
        rows: The rows.
        most: The most rows of a piece.

    Yields:
        As few pieces as may be, of nearly equal size.
    """
    pieces = -(-rows.num_rows // most)
    each = -(-rows.num_rows // (pieces * SHARD_MULTIPLE)) * SHARD_MULTIPLE
    each = min(each, most)
    for start in range(0, rows.num_rows, each):
        yield rows.slice(start, each)
