"""Cuts a few chosen pairs into tiles, so that few DNAs are loaded for them.

    >>> tiles = cut_pairs(job, members, [(0, 7), (0, 9), (7, 9)])           # doctest: +SKIP

Loading a DNA takes as long as comparing some pairs. Where the pairs lie close together, a tile of
all pairs among a few DNAs is cheaper than one tile for each of them, although some of its pairs are
not asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pipeline.comparing.comparison_job import Job
from pipeline.comparing.nearest_rows import Edge
from pipeline.comparing.tiles import Member, Tile

LOAD_WORK, LOAD_WORK_BARRED = 100, 8
"""Loading a DNA takes about as long as comparing so many pairs; the second is with error bars."""

BLOCK_SIDE, BLOCK_SIDE_BARRED = 128, 16
"""The most DNAs on a side of such a tile."""


def cut_pairs(job: Job, members: Sequence[Member], pairs: Sequence[Edge]) -> list[Tile]:
    """Cuts pairs into tiles, each pair into one.

    Args:
        job: What is computed.
        members: All datasets.
        pairs: Numbers of datasets, the lower first.

    Returns:
        The tiles. Some have pairs that are not among `pairs`.
    """
    load = LOAD_WORK_BARRED if job.error_bars else LOAD_WORK
    side = max(1, min(BLOCK_SIDE_BARRED if job.error_bars else BLOCK_SIDE, job.side))
    place = {number: at for at, number in enumerate(_neighbours_together(pairs))}
    blocks = defaultdict[Edge, list[Edge]](list)
    for pair in pairs:
        a, b = sorted(pair, key=place.__getitem__)
        blocks[place[a] // side, place[b] // side].append((a, b))
    made = []
    for (first, second), some in sorted(blocks.items()):
        for rows, columns in _cheapest(some, load, square=first == second):
            of = (tuple(members[number] for number in numbers) for numbers in (rows, columns))
            made.append(Tile(job, *of))
    return made


def _neighbours_together(pairs: Sequence[Edge]) -> list[int]:
    """Returns the numbers in pairs, each soon before its neighbours; those in most pairs first."""
    beside = defaultdict[int, list[int]](list)
    for i, j in pairs:
        beside[i].append(j)
        beside[j].append(i)
    order = dict[int, None]()
    for start in sorted(beside, key=lambda number: (-len(beside[number]), number)):
        todo = [start]
        while todo:
            found = [number for number in dict.fromkeys(todo) if number not in order]
            order |= dict.fromkeys(found)
            todo = [number for of in found for number in beside[of]]
    return list(order)


def _cheapest(
    pairs: Sequence[Edge], load: int, *, square: bool
) -> list[tuple[list[int], list[int]]]:
    """Returns the sides of one tile for all pairs, or of one for each row if that is less work."""
    rows: Mapping[int, list[int]] = defaultdict(list)
    for a, b in pairs:
        rows[a].append(b)
    columns = sorted({b for _, b in pairs})
    alone = len(pairs) + load * sum(1 + len(others) for others in rows.values())
    if square:
        every = sorted({*rows, *columns})
        together = len(every) * (len(every) - 1) // 2 + load * len(every)
        sides = every, every
    else:
        together = len(rows) * len(columns) + load * (len(rows) + len(columns))
        sides = sorted(rows), columns
    return [sides] if together < alone else [([a], others) for a, others in rows.items()]
