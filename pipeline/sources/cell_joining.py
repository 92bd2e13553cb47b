"""Finds what is left of the cells of a shard whose members have changed, and joins small ones.

>>> left = cells_left(head, places)                            # doctest: +SKIP
>>> stated(join_cells(left, size=128))                         # doctest: +SKIP
((90, 128), (40, 50, 128))

A cell that loses members is never filled up, so it would stay small for ever, and what is kept of
it takes as many bytes as of a full one. So neighbours are joined that have become much smaller
together than a cell should be. Cells are never cut, so none is joined and cut again.

A cell should have the size that the shard's cells were cut with, or that of this plan if it is
smaller. If one plan alone asked for larger cells and joined the others up to them, they would stay
so large for good, and each image that changes would have that many others counted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.cell_cuts import CELL_SLACK
from pipeline.sources.entry import ShardHead, runs_by_cell

MOST_ORIGINS = 4
"""How many earlier states of a shard are kept in mind. The latest may never have been counted."""


@dataclass(frozen=True)
class LeftCell:
    """What is left of a cell.

    Attributes:
        runs: How many members each of its runs has.
        shrunk: Whether it has lost members, so that its images are counted again.
    """

    runs: tuple[int, ...]
    shrunk: bool = False

    @property
    def size(self) -> int:
        """How many members it has."""
        return sum(self.runs)


def cells_left(shard: ShardHead, places: NDArray[np.int32]) -> list[LeftCell]:
    """Finds what is left of each cell, without cells of which nothing is.

    Args:
        shard: The shard as it was.
        places: Where in it those members were that are left.

    Returns:
        The cells, in their order. One that has lost members is one run.
    """
    before = shard.cells or (shard.candidates,)
    left = np.bincount(
        np.searchsorted(np.cumsum(before), places, side="right"), minlength=len(before)
    )
    cells = zip(left.tolist(), before, runs_by_cell(before, shard.runs), strict=True)
    return [
        LeftCell(runs) if size == whole else LeftCell((size,), shrunk=True)
        for size, whole, runs in cells
        if size
    ]


def cut_size(shard: ShardHead) -> int:
    """Returns the size that the cells of a shard were cut with.

    Args:
        shard: The shard. If it does not state the size, as those of earlier versions do not, its
            largest cell shows it.

    Returns:
        The size; 0 if it is not known, as of a shard of one cell.
    """
    return shard.cell_images or max(shard.cells, default=0)


def join_left(shard: ShardHead, left: Sequence[LeftCell], cell: int) -> list[LeftCell]:
    """Joins small cells of a shard, if the plan keeps the sums of cells.

    Args:
        shard: The shard as it was. Its cells never exceed the size that they were cut with.
        left: What is left of them.
        cell: The size of new cells; 0 if the plan keeps no sums of cells.

    Returns:
        The cells as they are to be.
    """
    return join_cells(left, min(cell, cut_size(shard) or cell)) if cell else [*left]


def join_cells(cells: Sequence[LeftCell], size: int) -> list[LeftCell]:
    """Joins neighbours that together have less than a cell that is cut anew has at least.

    So two cells of a new shard are never joined. A cell of several runs is joined with what comes
    after it only: sums are added from left to right.

    Args:
        cells: The cells of a shard.
        size: How many members a cell should have: at most what they were cut with.

    Returns:
        The cells as they are to be. Each run is one that was a run before, or is counted again in
        any case.
    """
    groups: list[list[LeftCell]] = []
    for cell in cells:
        so_far = sum(each.size for each in groups[-1]) if groups else size
        if len(cell.runs) == 1 and so_far + cell.size < size - size // CELL_SLACK:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return [group[0] if len(group) == 1 else _one_cell(group) for group in groups]


def _one_cell(group: Sequence[LeftCell]) -> LeftCell:
    """Makes one cell of neighbours; what is counted again in any case becomes one run."""
    runs: list[int] = []
    for shrunk, some in groupby(group, lambda cell: cell.shrunk):
        sizes = [run for cell in some for run in cell.runs]
        runs += [sum(sizes)] if shrunk else sizes
    return LeftCell(tuple(runs), shrunk=len(runs) == 1)


def stated(cells: Sequence[LeftCell]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the cells and the runs of a shard, as a `ShardHead` states them."""
    sizes = tuple(cell.size for cell in cells)
    runs = tuple(run for cell in cells for run in cell.runs)
    return sizes if len(sizes) > 1 else (), runs if len(runs) > len(sizes) else ()


def origins_of(kept: ShardHead) -> tuple[str, ...]:
    """Returns the origins of a shard that has changed.

    Args:
        kept: The shard as it was. Of one cell of one run, nothing is kept that could be taken.
    """
    content = (kept.content,) if kept.cells or kept.runs else ()
    return (*content, *kept.origins)[:MOST_ORIGINS]
