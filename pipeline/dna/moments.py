"""Spatial means -> Gaussians: mean, sum of squares, and where asked for the scatter of each layer.

    >>> moments = Moments([3, 2], layerwise=True)                    # doctest: +SKIP
    >>> moments.add(means)                                           # (images, 5) float64
    >>> moments.scatter.shape                                        # 3 x 4 / 2 + 2 x 3 / 2
    (9,)

Every number is added in one fixed order, without fused or reordered operations, so that it comes
out the same to the last bit on any number of threads. Sums are of deviations from the mean so far
(Chan, Golub and LeVeque, 1979), never of raw squares, which cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.dna.arrays import Floats


def merge_moments(
    n_a: int, mean_a: Floats, m2_a: Floats, n_b: int, mean_b: Floats, m2_b: Floats
) -> tuple[Floats, Floats]:
    """Mean and sum of squared deviations of two samples together; an empty one is neutral."""
    if n_a == 0 or n_b == 0:
        return (mean_a, m2_a) if n_b == 0 else (mean_b, m2_b)
    total = n_a + n_b
    with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
        delta = mean_b - mean_a
        mean = mean_a + delta * (n_b / total)
        m2 = m2_a + m2_b + delta * delta * (n_a * (n_b / total))
    return mean, m2


class Moments:
    """Gaussians of a growing sample, of layers of the given widths.

    `images`; `mean`, `m2` (N,) float64; `scatter`: float64, each layer's upper triangle row by row,
    or None.
    """

    def __init__(self, widths: Sequence[int], *, layerwise: bool) -> None:
        neurons = sum(widths)
        self.images = 0
        self.mean: Floats = np.zeros(neurons)
        self.m2: Floats = np.zeros(neurons)
        self.scatter: Floats | None = None
        if layerwise:
            self.scatter = np.zeros(sum(width * (width + 1) // 2 for width in widths))
        self._widths = np.array(widths, np.int64)

    def add(self, means: Floats) -> None:
        """Add images' spatial means (B, N)."""
        n = len(means)
        mean = means.mean(axis=0)
        with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
            deviations = means - mean
            m2 = (deviations**2).sum(axis=0)
            if self.scatter is not None:
                _add_products(deviations, 1.0, self._widths, self.scatter)
                if self.images:
                    weight = self.images * (n / (self.images + n))
                    shift = (mean - self.mean)[None]
                    _add_products(shift, weight, self._widths, self.scatter)
        self.mean, self.m2 = merge_moments(self.images, self.mean, self.m2, n, mean, m2)
        self.images += n


@njit(nogil=True, cache=True, error_model="numpy")
def _add_products(x: Floats, weight: float, widths: NDArray[np.int64], out: Floats) -> None:
    """out += weight x the products of all pairs within a layer, for each row of x (B, N)."""
    first = 0
    start = 0
    for width in widths:
        for i in range(width):
            row = out[start : start + width - i]
            start += width - i
            for k in range(x.shape[0]):
                factor = x[k, first + i] * weight
                others = x[k, first + i : first + width]
                for j in range(width - i):
                    row[j] += factor * others[j]
        first += width
