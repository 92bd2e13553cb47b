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


def rows_within(rows: pa.Table, after: str, until: str | None) -> pa.Table:
    """Returns the candidates that belong to a block of names.

    Args:
        rows: The candidates, sorted by their uris.
        after: The uri that ends the block before; empty for the first block.
        until: The uri that ends the block. None for the last one.
    """
    start = rows_up_to(after, rows)
    stop = rows.num_rows if until is None else rows_up_to(until, rows)
    return rows.slice(start, stop - start)


def each_once(rows: pa.Table) -> pa.Table:
    """Returns each candidate once.

    A candidate that changed while it was listed has several rows: the least of them counts, so that
    every run takes the same one.

    Args:
        rows: Candidates with the columns `uri`, `size` and `identity`, sorted by their uris.
    """
    uris = rows["uri"]
    is_again = pc.equal(uris[1:], uris[:-1])
    if not pc.any(is_again).as_py():
        return rows
    rows = rows.sort_by([(name, "ascending") for name in ("uri", "size", "identity")])
    return rows.filter(pa.chunked_array([[True], *pc.invert(is_again).chunks]))
