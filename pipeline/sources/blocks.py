"""Cuts the names of a very large source into blocks, which are planned one by one.

A block ends with a name whose hash says so, on average after `BLOCK_IMAGES` names. So the blocks
depend on the names alone, and not on how they were listed: a block can be planned as soon as all
its names are known. A name that comes or goes moves the end of one block at most.

>>> block_ends(pa.array(["s3://b/a", "s3://b/b"]), 1)
['s3://b/a', 's3://b/b']
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

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

Bounds = tuple[str, str | None]
"""The uri that ends the block before, empty if there is none, and the one that ends the block; None
for the last block. Other ranges of names have such bounds, too."""

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


def bounds_of_blocks(ends: Sequence[str]) -> list[Bounds]:
    """Returns the bounds of all blocks, in their order.

    Args:
        ends: The uris that end blocks, in their order.
    """
    return list(zip(["", *ends], [*ends, None], strict=True))


class OpenNames:
    """Ranges of names of which not everything is known yet.

    >>> names = OpenNames([("d", "g"), ("s", None)])
    >>> names.overlap(("a", "d")), names.overlap(("a", "e")), names.overlap(("z", None))
    (False, True, True)

    Args:
        ranges: The ranges, which may have names in common.
    """

    def __init__(self, ranges: Iterable[Bounds]) -> None:
        self._ranges: list[Bounds] = []  # without names in common, in their order
        for after, until in sorted(ranges, key=lambda bounds: bounds[0]):
            start, end = self._ranges[-1] if self._ranges else ("", "")
            if self._ranges and (end is None or after <= end):
                last = None if end is None or until is None else max(end, until)
                self._ranges[-1] = start, last
            else:
                self._ranges.append((after, until))

    def overlap(self, bounds: Bounds) -> bool:
        """Tells whether a name of a range, above its first bound and up to its last, is open."""
        at = bisect_right(self._ranges, bounds[0], key=lambda each: each[0])
        near = self._ranges[max(at - 1, 0) : at + 1]
        return any(_have_names_in_common(bounds, each) for each in near)


def _have_names_in_common(one: Bounds, other: Bounds) -> bool:
    """Tells whether a name may be in both: above the first bound of each, up to its last."""
    lasts = [last for _, last in (one, other) if last is not None]
    return not lasts or max(one[0], other[0]) < min(lasts)


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
