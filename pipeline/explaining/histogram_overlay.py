"""Draws the histograms of one neuron in two datasets on one axis, as heights of bars.

>>> overlay(dna_a, dna_b, 7).a                                   # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.comparing import cumulative
from pipeline.dna import DNA, Floats, Ints

PARTS = 48
"""The number of bars in a histogram that is shown."""

TAIL = 5e-4
"""Share of the activations that a shown histogram may leave out at either end."""


@dataclass(frozen=True)
class Overlay:
    """Two histograms of a neuron on one axis.

    Attributes:
        low: Left end of the axis, as an activation.
        high: Right end of the axis.
        a: Heights of the bars of one dataset; the highest of both is 999.
        b: Heights of the bars of the other.
        peak: The share of all activations that the highest bar stands for.
    """

    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]
    peak: float


def overlay(a: DNA, b: DNA, neuron: int) -> Overlay:
    """Makes the histograms of a neuron of two DNAs.

    Args:
        a: One DNA.
        b: The other DNA, under the same spec.
        neuron: Position of the neuron in both.

    Returns:
        Both histograms on one axis.
    """
    sums = [cumulative(dna, np.array([neuron]))[0] for dna in (a, b)]
    return overlaid(sums[0], sums[1], float(a.low[neuron]), float(a.high[neuron]))


def overlaid(a: Floats, b: Floats, low: float, high: float, parts: int = PARTS) -> Overlay:
    """Makes the histograms of a neuron from its cumulative distributions.

    Args:
        a: (bins,) cumulative distribution in one dataset.
        b: (bins,) cumulative distribution in the other.
        low: Lower end of the neuron's range.
        high: Upper end of the range.
        parts: Most bars to make, of equal width.

    Returns:
        Both histograms on one axis, without the empty ends.
    """
    edges, bins = bar_edges(a, b, parts), len(a)
    shares = [np.diff(np.concatenate([[0.0], sums])[edges]) / np.diff(edges) for sums in (a, b)]
    most = max(float(share.max()) for share in shares) or 1.0
    left, right = (tuple(int(v) for v in np.rint(share / most * 999)) for share in shares)
    first, last = int(edges[0]), int(edges[-1])
    width = (high - low) / bins
    peak = most * (last - first) / (len(edges) - 1)
    return Overlay(low + first * width, low + last * width, left, right, peak)


def bar_edges(a: Floats, b: Floats, parts: int = PARTS) -> Ints:
    """Chooses the bars of a histogram that is shown.

    Args:
        a: (bins,) cumulative distribution in one dataset.
        b: (bins,) cumulative distribution in the other.
        parts: Most bars to make, of equal width.

    Returns:
        (bars + 1,) the bins at which bars begin and end, without the empty ends of the range.
    """
    both, bins = (a + b) / 2, len(a)
    first = int(np.searchsorted(both, TAIL))
    last = min(bins, int(np.searchsorted(both, 1 - TAIL)) + 1)
    return np.unique(np.linspace(first, last, parts + 1).round().astype(int))
