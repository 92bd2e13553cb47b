"""Sums products of the differences between the folds of two DNAs, from which these are tested.

    >>> products = fold_products(a, b, weights)                            # doctest: +SKIP
    >>> products_gram(products, 16).shape                   # A, B, folds, folds  # doctest: +SKIP

A fold of one DNA is paired with that of another which has the same place. The difference of their
cumulative distributions is taken point by point, before anything is multiplied: so what both have
in common does not cancel, and float32 is enough. A vector has a lane for each fold. The products of
all folds with all others are those of the vector with itself, turned by up to eight lanes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import LANES
from pipeline.comparing.vector_writer import VectorWriter, aligned_zeros, neuron_blocks
from pipeline.compiled import compiled
from pipeline.dna import Floats, Ints
from pipeline.spec import FOLDS, available_cpus

TURNS = FOLDS // 2 + 1
"""By so many lanes a vector of folds is turned to meet all others, counted from none."""

_BLOCK = 512
"""About how many points of a DNA are looked at in a row. Those of several fit into a core's cache.
"""

_GROUP = 8
"""How many DNAs of a are compared at most with one of b while its points are in the cache."""

Offsets = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FoldedCurves:
    """Cumulative distributions of D DNAs in C neurons, at G points, and of their folds.

    Attributes:
        whole: (D, C, G or more) float64 cumulative distributions of the whole DNAs.
        offsets: (D, C, G, 16) float32: by how much those of the folds lie above.
    """

    whole: Floats
    offsets: Offsets

    def merged(self, slots: Ints, shares: Floats) -> FoldedCurves:
        """Makes fewer folds of those of some DNAs.

        Args:
            slots: (N,) positions of the DNAs.
            shares: (N, K, L) share of each of their L folds in each of K; see `fold_shares`.

        Returns:
            Curves of N DNAs.
        """
        offsets = aligned_zeros((len(slots), *self.offsets.shape[1:]))
        pairs, folds = shares.shape[1:]
        turned = shares.transpose(0, 2, 1).astype(np.float32)
        for at, slot in enumerate(slots):
            offsets[at, ..., :pairs] = self.offsets[slot, ..., :folds] @ turned[at]
        return FoldedCurves(np.ascontiguousarray(self.whole[slots]), offsets)


def fold_products(
    a: FoldedCurves, b: FoldedCurves, weights: Floats, *, threads: int | None = None
) -> Floats:
    """Sums products of the differences of paired folds over neurons and points.

    If `a` is `b`, half of the pairs are computed.

    Args:
        a: Curves of A DNAs.
        b: Curves of B DNAs.
        weights: (C,) weight of each neuron, times the bins that a point stands for.
        threads: Threads to use; None for all cores.

    Returns:
        (A, B, `TURNS`, 16) products of the difference of each fold with that of the fold so many
        places later, counted round. Those of folds that a DNA does not have mean nothing.
    """
    size_a, size_b, points = len(a.whole), len(b.whole), a.offsets.shape[2]
    sums = np.zeros((size_a, size_b, TURNS, LANES))
    workers = max(1, min(size_a, threads or available_cpus()))
    most = max(1, min(_GROUP, size_a // (2 * workers)))
    blocks = neuron_blocks(np.flatnonzero(weights), max(1, _BLOCK // points))

    def group(first: int) -> None:
        rows = slice(first, min(first + most, size_a))
        start = first if a is b else 0
        apart = np.empty(points, np.float32)
        for at, stop in blocks:
            _add_block(
                at, stop, weights, a is b, a.whole[rows], a.offsets[rows], b.whole[start:],
                b.offsets[start:], apart, sums[rows, start:],
            )  # fmt: skip

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(group, range(0, size_a, most)))
    if a is b:
        below = np.tril_indices(size_a, -1)
        sums[below] = sums.swapaxes(0, 1)[below]
    return sums


_FOLDS = np.arange(FOLDS)
_LATER = (_FOLDS - _FOLDS[:, None]) % FOLDS
_TURN = np.minimum(_LATER, FOLDS - _LATER)
_LANE = np.where(_LATER < TURNS, _FOLDS[:, None], _FOLDS)


def products_gram(products: Floats, folds: int) -> Floats:
    """Arranges products of differences as a matrix.

    Args:
        products: (..., `TURNS`, 16) products; see `fold_products`.
        folds: Number of paired folds, K.

    Returns:
        (..., K, K) products of each difference with each.
    """
    found: Floats = products[..., _TURN[:folds, :folds], _LANE[:folds, :folds]]
    return found


class _Products(VectorWriter):
    """Writes the code of `_add_products`."""

    def add(self) -> None:
        builder, word = self.builder, self.word
        offsets, starts, count = self.given[:2], self.given[2:4], self.given[4]
        apart, weight, sums = self.given[5:]
        held = [cgutils.alloca_once(builder, self.vector) for _ in range(TURNS)]
        for place in held:
            builder.store(self.constant(), place)
        with cgutils.for_range(builder, count) as loop:
            one, other = (
                self.load(of, builder.mul(builder.add(start, loop.index), word(LANES)))
                for of, start in zip(offsets, starts, strict=True)
            )
            whole = builder.load(builder.gep(apart.data, [loop.index]))
            difference = builder.fadd(builder.fsub(one, other), self.everywhere(whole))
            for turn, place in enumerate(held):
                turned = self.turned(difference, turn)
                builder.store(self.fma(difference, turned, builder.load(place)), place)
        wide = ir.VectorType(ir.DoubleType(), LANES)
        weights = self.everywhere(weight, wide)
        for turn, place in enumerate(held):
            at = builder.bitcast(builder.gep(sums.data, [word(turn * LANES)]), wide.as_pointer())
            more = builder.fmul(builder.fpext(builder.load(place), wide), weights)
            builder.store(builder.fadd(builder.load(at, align=8), more), at, align=8)


def _adding_products(
    context: Any, offsets_a: Any, offsets_b: Any, first_a: Any, first_b: Any, count: Any,
    apart: Any, weight: Any, sums: Any,
) -> Any:  # fmt: skip
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Products(context, builder, signature.args, arguments).add()
        return context.get_dummy_value()

    whole = (types.intp,) * 3
    return types.void(offsets_a, offsets_b, *whole, apart, types.float64, sums), code


_add_products: Any = intrinsic(_adding_products)
"""Adds the products of a neuron's differences to the sums of a pair.

Its arguments are the offsets of a and of b (..., 16) float32, and the numbers of the neuron's first
point among all of each; how many points it has; by how much the whole curve of a lies above b's at
each, float32; the weight of the neuron; and the sums (`TURNS`, 16) float64. All arrays are
contiguous.
"""


@compiled
def _add_block(
    first: int, stop: int, weights: Floats, mirrored: bool, whole_a: Floats, offsets_a: Any,
    whole_b: Floats, offsets_b: Any, apart: Offsets, sums: Floats,
) -> None:  # fmt: skip
    """Adds the neurons from `first` to `stop` of some DNAs of a against those of b.

    If `mirrored`, the first of b are those of a, and a DNA is not compared with those before it.
    """
    neurons, points = offsets_a.shape[1:3]
    for j in range(len(whole_b)):
        for i in range(min(j + 1, len(whole_a)) if mirrored else len(whole_a)):
            for n in range(first, stop):
                for g in range(points):
                    apart[g] = whole_a[i, n, g] - whole_b[j, n, g]
                at_a, at_b = (i * neurons + n) * points, (j * neurons + n) * points
                _add_products(
                    offsets_a, offsets_b, at_a, at_b, points, apart, weights[n], sums[i, j]
                )
