"""Coarse cumulative distributions, which show how far apart two DNAs are at least.

    >>> one, other = (CoarseLayer.of(curves, bins=1000) for curves in ...)     # doctest: +SKIP
    >>> least_distances(together([one]), together([other]), weights, 1000)     # doctest: +SKIP

The EMD of a neuron is the sum over bins of |F - G|, the difference of two cumulative distributions.
Over a block of bins, that sum is at least |sum of F - sum of G|. So the sums over sixteen blocks
give a lower bound, which is close to the EMD where few blocks hold a crossing of the two curves. A
DNA's sums are a hundredth of its histograms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.comparing.emd_kernel import LANES, ONE, Curves, distances
from pipeline.dna import Floats

BLOCKS = LANES
"""Blocks of a cumulative distribution: as many as one step of the kernel compares."""

MEAN_PARTS = 2**16
"""A block's mean is kept as a whole number of so many parts of 1, rounded down."""

_SLACK = 1e-9
"""Bounds are lowered by this share, because sums of floats round."""


def block_of(bins: int) -> int:
    """Computes how many bins a block has.

    Args:
        bins: Bins of a histogram.

    Returns:
        The number of bins: 63 of a thousand. The last blocks may have fewer, or none.
    """
    return -(-(bins - 1) // BLOCKS)


@dataclass(frozen=True, eq=False)
class CoarseLayer:
    """The coarse cumulative distributions of one DNA in a layer of C neurons.

    Attributes:
        means: (C, 16) uint16 means over each block, as parts of 1 in `MEAN_PARTS`.
        undefined: (C,) whether the neuron has no finite activation.
    """

    means: NDArray[np.uint16]
    undefined: NDArray[np.bool_]

    @classmethod
    def of(cls, curves: Curves, bins: int) -> CoarseLayer:
        """Makes the coarse curves of the first row of some curves.

        Args:
            curves: The curves.
            bins: Bins of a histogram.

        Returns:
            The coarse curves.
        """
        block = block_of(bins)
        values = np.zeros((len(curves.values), BLOCKS * block), np.int64)
        values[:, : bins - 1] = curves.values[:, 0, : bins - 1]
        sums = values.reshape(len(values), BLOCKS, block).sum(axis=2)
        means = np.minimum(sums // (block * (ONE // MEAN_PARTS)), MEAN_PARTS - 1)
        return cls(means.astype(np.uint16), curves.undefined[:, 0].copy())


def together(layers: Sequence[CoarseLayer]) -> Curves:
    """Makes one row of curves of each DNA's coarse ones.

    Args:
        layers: The same layer of some DNAs.

    Returns:
        Curves of `BLOCKS` values a row.
    """
    curves = Curves.empty(len(layers[0].means), len(layers), BLOCKS + 1)
    for row, layer in enumerate(layers):
        curves.values[:, row] = layer.means
        curves.undefined[:, row] = layer.undefined
    curves.values[:, : len(layers)] *= np.uint32(ONE // MEAN_PARTS)
    curves.sums[:] = curves.values.sum(axis=2, dtype=np.int64)
    return curves


def least_distances(
    a: Curves, b: Curves, weights: Floats, bins: int, *, threads: int | None = None
) -> Floats:
    """Computes how large weighted sums of EMDs are at least.

    Rounding down moves the difference of two means by less than one part in `MEAN_PARTS`, which is
    taken away for every block.

    Args:
        a: Coarse curves of A DNAs.
        b: Coarse curves of B DNAs.
        weights: (C,) weights of the neurons, none of them negative.
        bins: Bins of a histogram.
        threads: Threads to use; None for all cores.

    Returns:
        (A, B) bounds of what `distances` computes of the curves, in bins; NaN where that is NaN.
    """
    least = distances(a, b, weights, threads=threads)  # changed in place: of all pairs it is large
    least -= BLOCKS * float(weights.sum()) / MEAN_PARTS
    least *= block_of(bins)
    least *= 1 - _SLACK
    return np.maximum(least, 0.0, out=least)
