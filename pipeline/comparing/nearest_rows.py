"""Searches the nearest of many, given how far each is at least: few distances are computed.

    >>> least = np.array([[np.nan, 1.0, 2.0, 9.0]])     # 1, 2 and 3 are so far from 0 at least
    >>> exact = {(0, 1): 3.0, (0, 2): 2.5}
    >>> search(least, [0], 1, lambda pairs: {pair: exact[pair] for pair in pairs}).nearest
    ((2,),)

The distance of 3 was not computed, because it is 9 at least and 2.5 is less. The result is the same
as if all distances had been computed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isnan

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import Floats

AHEAD = 4
"""Distances of a row that are computed at a time once it has as many as are asked for."""

Edge = tuple[int, int]
"""The numbers of two datasets, the lower first."""


@dataclass(frozen=True)
class NearestOfRows:
    """The nearest of each row.

    Attributes:
        nearest: For each row the numbers of the nearest, in the order of their distance. Equal
            distances are in the order of the numbers.
        exact: The distances that were computed.
    """

    nearest: tuple[tuple[int, ...], ...]
    exact: Mapping[Edge, float]


@dataclass
class _Ladder:
    """The candidates of one row by their bounds, and the distances of the first of them."""

    own: int
    order: NDArray[np.int32]
    least: Floats
    top: int
    seen: list[tuple[float, int]] = field(default_factory=list)
    next: int = 0

    def ask(self) -> list[int]:
        """Returns the candidates to look at next; none if no other can be among the nearest."""
        missing = self.top - len(self.seen)
        limit, count = (inf, missing) if missing > 0 else (self.seen[self.top - 1][0], AHEAD)
        some = self.order[self.next : self.next + count]
        asked = [int(j) for j in some if self.least[j] <= limit]
        self.next += len(asked)
        return asked


def pair_of(i: int, j: int) -> Edge:
    """Returns two numbers, the lower first."""
    return (i, j) if i < j else (j, i)


def search(
    least: Floats,
    own: Sequence[int],
    top: int,
    compute: Callable[[Sequence[Edge]], Mapping[Edge, float]],
) -> NearestOfRows:
    """Finds the nearest of each row, and computes no distance that its bound rules out.

    Args:
        least: (R, D) how far each of D datasets is at least; NaN for those without a distance.
        own: The number of the dataset that each row is of. It is not its own neighbour.
        top: How many to find for each row.
        compute: Computes the distances of some pairs, and of others if that costs little; NaN for
            a pair without a distance.

    Returns:
        The nearest, exactly as if all distances had been computed, and then sorted.
    """
    rows = []
    for i, bounds in zip(own, least, strict=True):
        order = np.argsort(bounds, kind="stable")
        candidates = order[order != i].astype(np.int32)  # NaN is last, and within no limit
        rows.append(_Ladder(i, candidates, bounds, top))
    exact: dict[Edge, float] = {}
    while asked := {n: some for n, row in enumerate(rows) if (some := row.ask())}:
        wanted = dict.fromkeys(pair_of(rows[n].own, j) for n, some in asked.items() for j in some)
        missing = [pair for pair in wanted if pair not in exact]
        if missing:
            exact |= compute(missing)
        for n, some in asked.items():
            for j in some:
                if not isnan(apart := exact[pair_of(rows[n].own, j)]):
                    insort(rows[n].seen, (apart, j))
    return NearestOfRows(tuple(tuple(j for _, j in row.seen[:top]) for row in rows), exact)
