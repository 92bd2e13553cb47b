"""Finds where the histograms of a neuron in two datasets part, in the units of its activations.

    >>> where = part(a, b, low, high)                                    # doctest: +SKIP
    >>> where.value, where.above                                         # doctest: +SKIP
    (1.8, (0.62, 0.2))

The value is the one that tells the two apart best: the shares of activations above it differ most
(as in the test of Kolmogorov and Smirnov). Which activations one dataset has more of than the
other, also between two values, is said for each bin by `leaning`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.counting import bins_of, checked_ranges, scale_of
from pipeline.dna import Floats, Ints
from pipeline.explaining.histogram_overlay import bar_edges

RARE = 1e-3
"""The share of activations below which a bar hardly leans to either dataset: it may be chance."""


@dataclass(frozen=True)
class Parting:
    """The value at which two histograms of a neuron part.

    Attributes:
        value: The value, as an activation.
        above: The share of the activations above it, in one dataset and in the other.
    """

    value: float
    above: tuple[float, float]


def part(a: Floats, b: Floats, low: float, high: float) -> Parting:
    """Finds the value above which the shares of activations differ most.

    Args:
        a: (bins,) cumulative distribution in one dataset.
        b: (bins,) cumulative distribution in the other.
        low: Lower end of the neuron's range.
        high: Upper end of the range.

    Returns:
        The end of the bin where the cumulative distributions are furthest apart.
    """
    at = _parting_bin(a, b)
    return Parting(low + (at + 1) * (high - low) / len(a), (1 - float(a[at]), 1 - float(b[at])))


def leaning(a: Floats, b: Floats) -> Floats:
    """Says for each bin which of two datasets has more activations there, and how clearly.

    Bins are joined to the bars of a shown histogram, so that single counts do not decide. A value
    that both have alike, such as the upper end of a clipped layer, leans to neither.

    Args:
        a: (bins,) cumulative distribution in one dataset.
        b: (bins,) cumulative distribution in the other.

    Returns:
        (bins,) from 1 where only the first has activations, over 0 where both have as many, to -1.
    """
    edges = bar_edges(a, b)
    one, other = (np.diff(np.concatenate([[0.0], sums])[edges]) for sums in (a, b))
    bars = (one - other) / (one + other + RARE)
    ends = np.concatenate([[0], edges[1:-1], [len(a)]])
    return np.repeat(bars, np.diff(ends))


class PartedLayer:
    """Tells of images on which side of the difference some neurons of a layer are.

    Args:
        low: (C,) lower ends of the ranges of these neurons.
        high: (C,) upper ends.
        a: (C, bins) counts of one dataset.
        b: (C, bins) counts of the other.
    """

    def __init__(self, low: Floats, high: Floats, a: Ints, b: Ints) -> None:
        self._bins = a.shape[1]
        self._scale = scale_of(*checked_ranges(low, high, self._bins))
        curves = [np.cumsum(of, axis=1) / of.sum(axis=1, keepdims=True) for of in (a, b)]
        pairs = list(zip(*curves, strict=True))
        self._cuts = np.array([_parting_bin(*pair) for pair in pairs])
        leans = np.array([leaning(*pair) for pair in pairs])
        unknown = np.full((len(pairs), 1), np.nan)
        self._leans = np.concatenate([leans, unknown], axis=1)  # the last is not finite

    def of_image(self, x: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Measures an image.

        Args:
            x: (positions, C) activations of these neurons.

        Returns:
            (C,) the share of activations above where the histograms part, and the mean of
            `leaning` over them; NaN where no activation is finite.
        """
        bins = bins_of(x, self._scale, self._bins)
        finite = bins < self._bins
        lean = np.take_along_axis(self._leans, bins, axis=1)
        above = (bins > self._cuts[:, None]) & finite
        with np.errstate(invalid="ignore", divide="ignore"):
            count = finite.sum(axis=1)
            return above.sum(axis=1) / count, np.where(finite, lean, 0.0).sum(axis=1) / count


def _parting_bin(a: Floats, b: Floats) -> int:
    return int(np.argmax(np.abs(a - b)))
