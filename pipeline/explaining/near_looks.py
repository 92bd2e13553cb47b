"""Finds hashes that differ in few bits, all of them, without comparing each with each.

>>> near_groups(np.array([0b1, 0b11, 2**63 + 2**20 - 1], np.uint64))
array([0, 0, 1], dtype=int32)

The 64 bits are cut into two bands more than bits may differ. Whatever bits differ, two bands at
least are equal then. So hashes are compared only with those that have the same two bands, for each
choice of two: 15 sorts for 4 bits. That finds every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.dna import Ints

NEAR_BITS = 4
"""Images look alike if at most so many of the 64 bits of their looks differ."""

MOST_LINKS = 1 << 22
"""How many pairs are held before they are put together, 16 bytes each."""

Looks = NDArray[np.uint64]


def near_groups(looks: Looks) -> NDArray[np.int32]:
    """Finds groups of hashes that are linked by pairs that differ in at most `NEAR_BITS` bits.

    The memory is about 60 bytes for each hash, and 100 MB. The time grows as the number of hashes,
    unless many of them have two bands in common: these are all compared with each other.

    Args:
        looks: (N,) hashes, each once.

    Returns:
        (N,) the number of the group of each; those of one group have the same number.
    """
    groups = np.arange(len(looks), dtype=np.int32)
    held: list[tuple[Ints, Ints]] = []
    links = 0
    for a, b in _near_pairs(looks):
        held.append((a, b))
        links += len(a)
        if links > MOST_LINKS:
            groups, held, links = _linked(groups, held), [], 0
    return _linked(groups, held) if held else groups


def _near_pairs(looks: Looks) -> Iterator[tuple[Ints, Ints]]:
    """Yields all pairs that differ in few bits; some come several times."""
    bands = NEAR_BITS + 2
    widths = [64 // bands + (at < 64 % bands) for at in range(bands)]
    starts = [0, *accumulate(widths)]
    masks = [(1 << width) - 1 << start for width, start in zip(widths, starts, strict=False)]
    for one, other in combinations(masks, 2):
        keys = looks & np.uint64(one | other)
        order = np.argsort(keys)
        keys = keys[order]
        # Those that agree with the next one, with the one after, and so on: few are left soon.
        left = np.arange(len(keys) - 1)
        step = 1
        while len(left := left[left + step < len(keys)]):
            left = left[keys[left] == keys[left + step]]
            a, b = order[left], order[left + step]
            near = bits_set(looks[a] ^ looks[b]) <= NEAR_BITS
            if near.any():
                yield a[near], b[near]
            step += 1


def bits_set(values: Looks) -> NDArray[np.uint8]:
    """Counts the bits that are set in each number."""
    pairs, fours = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
    eights, ones = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
    values = values - ((values >> np.uint64(1)) & pairs)
    values = (values & fours) + ((values >> np.uint64(2)) & fours)
    values = (values + (values >> np.uint64(4))) & eights
    return ((values * ones) >> np.uint64(56)).astype(np.uint8)


def _linked(groups: NDArray[np.int32], held: list[tuple[Ints, Ints]]) -> NDArray[np.int32]:
    """Puts groups together that have a link."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (groups[np.concatenate(ends)] for ends in zip(*held, strict=True))
    size = int(groups.max()) + 1
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), (size, size))
    _, joined = connected_components(graph, directed=False)
    return np.asarray(joined, np.int32)[groups]
