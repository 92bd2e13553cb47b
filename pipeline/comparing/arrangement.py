"""Where datasets stand beside each other: clusters, neighbours, a map. Pure functions of distances.

    >>> at = np.array([0.0, 9.0, 1.0])
    >>> clusters(np.abs(at[:, None] - at)).order
    (1, 0, 2)

`distances` is (D, D), symmetric, with zeros on its diagonal; NaN where one is not defined. Datasets
that lack distances to the others come last, and are named as `undefined`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from pipeline.dna import Floats, Ints

STEPS = 1000
"""Of the map's, at most."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Average linkage. `order`: all datasets, similar ones beside each other, `undefined` last.

    `merges`: (M, 5) float64, the brackets of a dendrogram, lowest first: the places in `order` of
    the two branches (the middle between their own branches), the heights at which these end, and
    the height at which they join.
    """

    order: tuple[int, ...]
    merges: Floats
    undefined: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Map:
    """`points`: (D, 2), NaN for a dataset without distances. `stress`: Kruskal's stress-1.

    Stress is the root of the squares that the map's distances are off by, over the true ones'
    squares: 0 for a faithful map; above some 0.2 a map's details mean little.
    """

    points: Floats
    stress: float


def defined(distances: Floats) -> tuple[int, ...]:
    """Datasets with a distance to each other; those that lack the most are left out first."""
    kept = list(range(len(distances)))
    while kept:
        lacks = np.isnan(distances[np.ix_(kept, kept)]).sum(axis=1)
        if not lacks.any():
            break
        del kept[len(kept) - 1 - int(lacks[::-1].argmax())]
    return tuple(kept)


def clusters(distances: Floats, *, best: bool = True) -> Clusters:
    """`best`: of the orders that the tree allows, the one of least distance between neighbours.

    Equal distances are clustered in the order that they stand in.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage  # half a second, for who clusters
    from scipy.spatial.distance import squareform

    kept = defined(distances)
    undefined = tuple(i for i in range(len(distances)) if i not in kept)
    if len(kept) < 2:
        return Clusters(kept + undefined, np.zeros((0, 5)), undefined)
    known = _symmetric(distances[np.ix_(kept, kept)])
    tree = linkage(squareform(known, checks=False), "average")
    leaves = _best_leaves(tree, known) if best else leaves_list(tree)
    order = tuple(kept[leaf] for leaf in leaves)
    return Clusters(order + undefined, _brackets(tree, leaves), undefined)


def _best_leaves(tree: Floats, distances: Floats) -> Ints:
    """Bar-Joseph et al. (2001): of the 2^(n-1) orders the shortest, in n^3 steps.

    scipy's `optimal_leaf_ordering` takes n^4, and at times misses the shortest (its issue 11227).
    """
    count = len(distances)
    leaves = [np.array([i]) for i in range(count)]
    # Per branch: the shortest way through it from a leaf of its left side to one of its right.
    across: list[Floats] = [np.zeros((1, 0))] * count
    for row in tree:
        left, right = int(row[0]), int(row[1])
        between = distances[np.ix_(leaves[left], leaves[right])]
        ways = _shortest(_between_ends(across[left]), between)
        across.append(_shortest(ways, _between_ends(across[right])))
        leaves.append(np.concatenate([leaves[left], leaves[right]]))
    start, end = np.unravel_index(across[-1].argmin(), across[-1].shape)
    order: list[int] = []
    # A branch, and the places among its leaves that the way begins and ends with.
    todo = [(2 * count - 2, int(start), len(across[-1]) + int(end))]
    while todo:
        branch, first, last = todo.pop()
        if branch < count:
            order.append(branch)
            continue
        left, right = (int(side) for side in tree[branch - count, :2])
        size, backwards = len(leaves[left]), first > last
        first, last = min(first, last), max(first, last) - size
        ways = distances[np.ix_(leaves[left], leaves[right])]
        ways = ways + _between_ends(across[left])[first][:, None]
        ways = ways + _between_ends(across[right])[:, last]
        out, into = (int(at) for at in np.unravel_index(ways.argmin(), ways.shape))
        halves = [(left, first, out), (right, into, last)]
        if backwards:
            halves = [(right, last, into), (left, out, first)]
        todo += reversed(halves)
    return np.array(order)


def _between_ends(across: Floats) -> Floats:
    """(n, n): the shortest ways between any two leaves as ends; infinite within one side."""
    left, right = across.shape
    if not right:
        return np.zeros((1, 1))  # a leaf: both of its ends
    ways = np.full((left + right, left + right), np.inf)
    ways[:left, left:] = across
    ways[left:, :left] = across.T
    return ways


def _shortest(ways: Floats, steps: Floats) -> Floats:
    """(a, b) and (b, c) -> (a, c): the least sum over what lies between."""
    rows = max(1, 2**20 // max(1, steps.size))
    parts = [(ways[i : i + rows, :, None] + steps).min(axis=1) for i in range(0, len(ways), rows)]
    return np.concatenate(parts)


def _brackets(tree: Floats, leaves: Ints) -> Floats:
    count = len(leaves)
    place, height = np.zeros(2 * count - 1), np.zeros(2 * count - 1)
    place[leaves] = np.arange(count)
    merges = np.zeros((count - 1, 5))
    for row, (left, right, joined, _) in enumerate(tree):
        a, b = sorted((int(left), int(right)), key=lambda branch: place[branch])
        merges[row] = place[a], place[b], height[a], height[b], joined
        place[count + row], height[count + row] = (place[a] + place[b]) / 2, joined
    return merges


def neighbours(distances: Floats, dataset: int) -> tuple[int, ...]:
    """The others, nearest first; without those at no distance that is defined."""
    row = distances[dataset]
    others = [i for i in range(len(row)) if i != dataset and np.isfinite(row[i])]
    return tuple(sorted(others, key=lambda i: (row[i], i)))


def plane_map(distances: Floats) -> Map:
    """Two coordinates a dataset, of least stress nearby: SMACOF (de Leeuw 1977; Borg and Groenen,
    2005, ch. 8), from classical scaling (Torgerson 1952).

    The axes are those of most spread; what they are of, no one says. Each points so that its
    farthest dataset is on the positive side.
    """
    from scipy.linalg import eigh, svd

    points = np.full((len(distances), 2), np.nan)
    kept = defined(distances)
    if not kept:
        return Map(points, 0.0)
    known = _symmetric(distances[np.ix_(kept, kept)])
    squares = known**2
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1)[:, None] + squares.mean()
    axes = min(2, len(kept))
    values, vectors = eigh(-centred / 2, subset_by_index=(len(kept) - axes, len(kept) - 1))
    start = np.zeros((len(kept), 2))
    start[:, :axes] = vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0.0))
    found, stress = _majorised(start, known)
    left, spread, _ = svd(found - found.mean(axis=0), full_matrices=False)
    found = np.zeros_like(found)
    for axis in range(axes):
        sign = 1.0 if left[np.abs(left[:, axis]).argmax(), axis] >= 0 else -1.0
        found[:, axis] = sign * left[:, axis] * spread[axis]
    points[list(kept)] = found
    return Map(points, stress)


def _majorised(points: Floats, distances: Floats) -> tuple[Floats, float]:
    """Guttman's transform over and over, which never adds to the stress; and what is left of it."""
    total = float((distances**2).sum())
    if not total:
        return np.zeros_like(points), 0.0
    before = np.inf
    for _ in range(STEPS):
        drawn = np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))
        stress = float(np.sqrt(((drawn - distances) ** 2).sum() / total))
        if before - stress < 1e-6:
            break
        before = stress
        pull = -distances / np.where(drawn > 0, drawn, np.inf)
        np.fill_diagonal(pull, -pull.sum(axis=1))
        points = pull @ points / len(points)
    return points, stress


def _symmetric(distances: Floats) -> Floats:
    """Sums in another order differ in their last bit; zeros on the diagonal, and nothing below."""
    even = np.maximum((distances + distances.T) / 2, 0.0)
    np.fill_diagonal(even, 0.0)
    return cast(Floats, even)
