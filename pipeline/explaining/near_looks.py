"""Finds hashes that differ in few bits, all of them, without comparing each with each.

>>> near_groups(np.array([0b1, 0b11, 2**63 + 2**20 - 1], np.uint64))
array([0, 0, 2], dtype=int32)

The 64 bits are dealt out to two bands more than bits may differ. Whatever bits differ, two bands at
least are equal then. So hashes are compared only with those that have the same two bands, for each
choice of two: 15 sorts for 4 bits. That finds every pair. Where many have the same two bands, as
the images of a fixed camera do, the other bits of these are dealt out again.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import Ints
from pipeline.events import Listener, Started, StepDone, ignore, stage

NEAR_BITS = 4
"""Images look alike if at most so many of the 64 bits of their looks differ."""

LARGE_BUCKET = 64
"""Up to so many hashes of the same bands are compared, each with each. More than 32 have more
than five bits that are not the same in all, so each band has bits left."""

MOST_LINKS = 1 << 22
"""How many pairs are held before they are put together, 16 bytes each."""

Looks = NDArray[np.uint64]


def near_groups(
    looks: Looks, limit: int | None = None, progress: Listener = ignore
) -> NDArray[np.int32] | None:
    """Finds groups of hashes that are linked by pairs that differ in at most `NEAR_BITS` bits.

    The memory is about 60 bytes for each hash, and 100 MB. The time grows as the number of hashes,
    and is up to some hundred times longer if most of their bits are the same.

    Args:
        looks: (N,) hashes, each once.
        limit: How many hashes may be sorted and compared, each as often as it is; None for any
            number.
        progress: Told how far it is.

    Returns:
        (N,) the number of the group of each: the place of its first hash. None if the limit was
        reached.
    """
    search = _NearGrouping(looks, limit)
    masks = _masks(0)
    started = Started(len(masks), len(masks), unit="sorts", step="look-alikes")
    try:
        with stage(progress, started):
            for mask in masks:
                search.link(np.arange(len(looks)), mask)
                progress(StepDone(1))
    except _LimitError:
        return None
    return search.groups


class _LimitError(Exception):
    """The limit is reached."""


class _NearGrouping:
    """The groups that were found so far."""

    def __init__(self, looks: Looks, limit: int | None) -> None:
        self.groups = np.arange(len(looks), dtype=np.int32)
        self._looks = looks
        self._limit = limit
        self._done = 0

    def link(self, places: Ints, mask: int) -> None:
        """Links near hashes that agree in the bits of a mask.

        Args:
            places: (M,) the places of the hashes to look at.
            mask: The bits. The hashes of one group say nothing new, and are left out.
        """
        self._count(len(places))
        keys = self._looks[places] & np.uint64(mask)
        order = np.argsort(keys)
        places, keys = places[order], keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        if not len(starts):
            return
        sizes = np.diff(starts, append=len(keys))
        groups = self.groups[places]
        new = np.minimum.reduceat(groups, starts) < np.maximum.reduceat(groups, starts)
        few = np.repeat(new & (sizes <= LARGE_BUCKET), sizes)
        self._compare(places[few], keys[few])
        many = places[np.repeat(new & (sizes > LARGE_BUCKET), sizes)]
        for further in _masks(mask) if len(many) else ():
            self.link(many, further)

    def _compare(self, places: Ints, keys: Looks) -> None:
        """Compares hashes of equal keys, each with each; the keys are sorted."""
        held: list[tuple[Ints, Ints]] = []
        links = 0
        # Those that agree with the next one, with the one after, and so on: few are left soon.
        left = np.arange(len(keys) - 1)
        step = 1
        while len(left := left[left + step < len(keys)]):
            left = left[keys[left] == keys[left + step]]
            self._count(len(left))
            a, b = places[left], places[left + step]
            near = bits_set(self._looks[a] ^ self._looks[b]) <= NEAR_BITS
            near &= self.groups[a] != self.groups[b]
            if near.any():
                held.append((a[near], b[near]))
                links += len(held[-1][0])
            if links > MOST_LINKS:
                self.groups, held, links = _linked(self.groups, held), [], 0
            step += 1
        if held:
            self.groups = _linked(self.groups, held)

    def _count(self, hashes: int) -> None:
        self._done += hashes
        if self._limit is not None and self._done > self._limit:
            raise _LimitError


@lru_cache(4096)
def _masks(fixed: int) -> tuple[int, ...]:
    """Returns a mask for each choice of two bands of the other bits, with the fixed bits."""
    bands = NEAR_BITS + 2
    bits = [1 << at for at in range(64) if not fixed >> at & 1]
    dealt = [sum(bits[first::bands]) for first in range(bands)]
    return tuple(fixed | one | other for one, other in combinations(dealt, 2))


def bits_set(values: Looks) -> NDArray[np.uint8]:
    """Counts the bits that are set in each number."""
    pairs, fours = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    eights, ones = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
    values = values - ((values >> np.uint64(1)) & pairs)
    values = (values & fours) + ((values >> np.uint64(2)) & fours)
    values = (values + (values >> np.uint64(4))) & eights
    return ((values * ones) >> np.uint64(56)).astype(np.uint8)


def _linked(groups: NDArray[np.int32], held: list[tuple[Ints, Ints]]) -> NDArray[np.int32]:
    """Puts groups together that have a link. The number of each is the least of theirs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([groups[np.concatenate(of)] for of in zip(*held, strict=True)])
    numbers, known = np.unique(ends, return_inverse=True)
    shape = (len(numbers), len(numbers))
    graph = coo_array((np.ones(len(known) // 2, np.int8), tuple(np.split(known, 2))), shape)
    _, joined = connected_components(graph, directed=False)
    _, first = np.unique(joined, return_index=True)
    now = np.arange(len(groups), dtype=np.int32)
    now[numbers] = numbers[first][joined]
    return now[groups]
