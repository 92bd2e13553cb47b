"""Cuts the names of a very large source into blocks, which are planned one by one.

A block ends with a name whose hash says so, on average after `BLOCK_IMAGES` names. So the blocks
depend on the names alone, and not on how they were listed: a block can be planned as soon as all
its names are known. A name that comes or goes moves the end of one block at most.

>>> between("s3://b/a", None)
"uri > 's3://b/a'"
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.sources.database import quoted_text
from pipeline.spec import FOLDS

BLOCK_IMAGES = 2**19
"""How many images a block has on average. Each block has shards of its own in every fold, of which
small blocks would make too many; a large block has to wait long until it is listed."""


def ends_block(block_images: int) -> str:
    """Returns SQL that tells whether the `uri` ends a block.

    The lowest digit of such a hash may be the image's fold, so the others are taken.

    Args:
        block_images: How many images a block has on average.
    """
    return f"(md5_number_lower(uri) // {FOLDS}) % {block_images} = 0"


def between(after: str, until: str | None) -> str:
    """Returns SQL that tells whether the `uri` is in a block.

    Args:
        after: The uri that ends the block before; empty for the first block.
        until: The uri that ends the block. None for the last one.
    """
    return f"uri > {quoted_text(after)}" + (f" and uri <= {quoted_text(until)}" if until else "")


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
