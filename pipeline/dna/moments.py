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
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.dna.arrays import Floats


def merge_moments(
    n_a: int, mean_a: Floats, m2_a: Floats, n_b: int, mean_b: Floats, m2_b: Floats
) -> tuple[Floats, Floats]:
    """Joins the means and sums of squared deviations of two samples.

    An empty sample is neutral. Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise
    algorithm for computing sample variances", 1979.

    Args:
        n_a: The size of the first sample.
        mean_a: (N,) float64, its means.
        m2_a: (N,) float64, its sums of squared deviations from the mean.
        n_b: The size of the second sample.
        mean_b: (N,) float64, its means.
        m2_b: (N,) float64, its sums of squared deviations from the mean.

    Returns:
        The means and the sums of squared deviations of both samples together, (N,) each.
    """
    if n_a == 0 or n_b == 0:
        return (mean_a, m2_a) if n_b == 0 else (mean_b, m2_b)
    total = n_a + n_b
    with np.errstate(invalid="ignore"):  # inf - inf, where a network overflowed
        delta = mean_b - mean_a
        mean = mean_a + delta * (n_b / total)
        m2 = m2_a + m2_b + delta * delta * (n_a * (n_b / total))
    return mean, m2


class Moments:
    """The Gaussians of a growing sample of images.

    The same images added in the same batches and order give the same bits, on any number of
    threads; in other batches, the same up to rounding.

    Attributes:
        images: How many images were added.
        mean: (N,) float64, the mean of each neuron.
        m2: (N,) float64, its sum of squared deviations from the mean.
        scatter: float64, the upper triangle of each layer's scatter matrix row by row, one layer
            after the other; None unless it was asked for.
    """

    def __init__(self, widths: Sequence[int], *, layerwise: bool) -> None:
        """Begins with no images.

        Args:
            widths: The number of neurons of each layer.
            layerwise: Whether to keep the scatter matrix of each layer.
        """
        neurons = sum(widths)
        self.images = 0
        self.mean: Floats = np.zeros(neurons)
        self.m2: Floats = np.zeros(neurons)
        self.scatter: Floats | None = None
        if layerwise:
            self.scatter = np.zeros(sum(width * (width + 1) // 2 for width in widths))
        self._widths = np.array(widths, np.int64)

    def add(self, means: Floats) -> None:
        """Adds images.

        Args:
            means: (B, N) float64, each image's spatial mean of each neuron.
        """
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


@compiled
def _add_products(x: Floats, weight: float, widths: NDArray[np.int64], out: Floats) -> None:
    """Adds to `out` the weighted products of all pairs in a layer, for each row of x (B, N)."""
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
