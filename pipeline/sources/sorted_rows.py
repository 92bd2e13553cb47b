"""Sorts the pages of a listing, and finds places in them."""

from __future__ import annotations

from bisect import bisect_right

import pyarrow as pa
import pyarrow.compute as pc


def sort_pages(rows: pa.Table) -> pa.Table:
    """Sorts candidates by their uris.

    A page of a listing is sorted, and mostly no other page has keys between its own. Then only the
    pages have to be sorted, which is many times as fast.

    Args:
        rows: The candidates. Each page is a chunk of its own.

    Returns:
        The same rows in one chunk.
    """
    pages = [page for page in rows.to_batches() if page.num_rows]
    pages.sort(key=lambda page: str(page["uri"][0]))
    joined = pa.Table.from_batches(pages, rows.schema).combine_chunks()
    uris = joined["uri"]
    if pc.all(pc.less_equal(uris[:-1], uris[1:])).as_py():
        return joined
    return joined.sort_by("uri").combine_chunks()


def rows_up_to(uri: str, rows: pa.Table) -> int:
    """Returns how many candidates have a uri that is not above another.

    Args:
        uri: The other uri.
        rows: The candidates, sorted by their uris.
    """
    uris = rows["uri"]
    return bisect_right(range(len(uris)), uri, key=lambda at: str(uris[at].as_py()))
