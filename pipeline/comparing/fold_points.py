"""Counts the activations of each fold of a DNA below some bins, all that error bars need of folds.

    >>> points = FoldPoints.of(folds, step=32)                              # doctest: +SKIP
    >>> points.below.shape                       # folds, neurons, points      # doctest: +SKIP

A fold has as many counts as the whole DNA. Sums over folds look at few points of each neuron, and
at fewer of a layer that has many neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numba.np.numpy_support import carray

from pipeline.comparing.emd_kernel import pointer
from pipeline.comparing.intervals import splits
from pipeline.compiled import compiled
from pipeline.dna import DNA, DnaFile, Floats, Ints
from pipeline.spec import FOLDS

SPLITS = FOLDS - 1
"""Balanced ways to cut that many folds in halves; see `intervals.splits`."""

MOST_POINTS = 128
"""The most points of a cumulative distribution that sums over folds look at."""

LEAST_POINTS = 31
"""The fewest points, in a layer of many neurons."""

LAYER_POINTS = 5_000
"""So many points a layer should have in all, if that takes no more than `MOST_POINTS` a neuron."""

_SPREAD = 0.38
"""Successive neurons begin by about this share of a step later, near the golden ratio's."""


@dataclass(frozen=True, eq=False)
class FoldPoints:
    """What error bars need of the folds of a DNA, in one layer of C neurons.

    Attributes:
        numbers: The numbers of the K folds that have images, in order.
        images: (K,) images of each.
        below: (K, C, G) activations up to the end of each bin of `grid`; 0 past the last bin but
            one.
        totals: (K, C) activations that are finite.
        halves: (C, S) EMD of both halves of the folds, for each of `splits`.
    """

    numbers: tuple[int, ...]
    images: Ints
    below: Ints
    totals: Ints
    halves: Floats

    @classmethod
    def without_counts(cls, numbers: tuple[int, ...], images: Ints) -> FoldPoints:
        """Makes what is known of fewer than two folds, which show nothing.

        Args:
            numbers: The numbers of the folds that have images.
            images: (K,) images of each.

        Returns:
            Empty counts.
        """
        none = np.empty((0, 0), np.int64)
        return cls(numbers, images, none[None], none, none.astype(np.float64))

    @classmethod
    def of(cls, folds: Mapping[int, DNA], step: int) -> FoldPoints:
        """Counts folds.

        Args:
            folds: The folds by number, 16 at most; those without images are left out.
            step: Bins from one point of `grid` to the next.

        Returns:
            Their counts; empty if fewer than two folds have images.
        """
        numbers = tuple(number for number, part in sorted(folds.items()) if part.images)
        parts = [folds[number] for number in numbers]
        images = np.array([part.images for part in parts], np.int64)
        if len(parts) < 2:
            return cls.without_counts(numbers, images)
        counts = [np.ascontiguousarray(part.counts, np.int64) for part in parts]
        underflow, overflow = (
            np.array([getattr(part, side) for part in parts]) for side in ("underflow", "overflow")
        )
        return cls._of(numbers, images, counts, underflow, overflow, step)

    @classmethod
    def read(cls, file: DnaFile, layer: str, step: int) -> FoldPoints:
        """Reads folds and counts them, as `of` does.

        Args:
            file: A file of folds.
            layer: The layer.
            step: Bins from one point of `grid` to the next.

        Returns:
            Their counts.

        Raises:
            CorruptFile: The layer cannot be read.
            ConservationError: The counts of a fold do not add up to its images.
        """
        folds = file.read_counts_by_fold(layer)
        if folds is None:
            return cls.of(file.read_folds(layer), step)
        there = np.flatnonzero(folds.images)
        numbers, images = tuple(folds.numbers[k] for k in there), folds.images[there]
        if len(there) < 2:
            return cls.without_counts(numbers, images)
        counts = [folds.counts[k] for k in there]
        flows = folds.underflow[there], folds.overflow[there]
        return cls._of(numbers, images, counts, *flows, step)

    @classmethod
    def _of(
        cls,
        numbers: tuple[int, ...],
        images: Ints,
        counts: Sequence[Ints],
        underflow: Ints,
        overflow: Ints,
        step: int,
    ) -> FoldPoints:
        """Counts K folds, of which each has counts (C, B)."""
        neurons, bins = counts[0].shape
        at, signs = grid(bins, neurons, step), splits(len(counts))
        below = np.zeros((*at.shape, len(counts)), np.int64)
        totals = np.empty((len(counts), neurons), np.int64)
        halves = np.empty((neurons, len(signs)))
        _count(
            np.array([array.ctypes.data for array in counts], np.int64),
            counts[0].shape,
            underflow,
            overflow,
            signs,
            at,
            below,
            totals,
            halves,
        )
        return cls(numbers, images, below.transpose(2, 0, 1), totals, halves)


def finest_step(bins: int) -> int:
    """Returns how many bins lie between points where as many as possible are looked at.

    Args:
        bins: Bins of a histogram.

    Returns:
        The number of bins: eight of a thousand.
    """
    return -(-bins // MOST_POINTS)


def step_for(bins: int, neurons: float) -> int:
    """Chooses how many bins lie between points, for sums over a number of neurons.

    A sum over many neurons needs few points of each: errors of single neurons cancel out, as each
    looks at other bins.

    Args:
        bins: Bins of a histogram.
        neurons: How many neurons are added up; with weights, the number of equal weights whose sum
            would be as uncertain.

    Returns:
        The number of bins: 8, 16 or 32 of a thousand.
    """
    step = finest_step(bins)
    while (fewer := points_of(bins, 2 * step)) >= LEAST_POINTS and fewer * neurons >= LAYER_POINTS:
        step *= 2
    return step


def points_of(bins: int, step: int) -> int:
    """Computes how many points a curve has.

    Args:
        bins: Bins of a histogram.
        step: Bins from one point to the next.

    Returns:
        The number of points of those neurons that have most.
    """
    return -(-(bins - 1) // step)


def grid(bins: int, neurons: int, step: int) -> Ints:
    """Chooses the bins at whose ends cumulative distributions enter sums over folds.

    Args:
        bins: Bins of a histogram.
        neurons: Number of neurons.
        step: Bins from one point to the next.

    Returns:
        (C, G) numbers of bins. They begin elsewhere for each neuron. Those from the last bin on do
        not count, as a cumulative distribution is 1 there.
    """
    later = math.ceil(_SPREAD * step)
    while math.gcd(later, step) > 1:  # so that all bins have their turn
        later += 1
    first = np.arange(neurons) * later % step
    return np.asarray(first[:, None] + np.arange(points_of(bins, step)) * step)


@compiled
def _count(
    counts: Ints,
    shape: tuple[int, int],
    underflow: Ints,
    overflow: Ints,
    signs: Ints,
    at: Ints,
    points: Ints,
    totals: Ints,
    halves: Floats,
) -> None:
    """Fills the arrays of `FoldPoints`. Sums are exact but for the distances of halves.

    `counts` holds the addresses (K,) of arrays (neurons, bins). The flows are (K, neurons), and
    `points` is (neurons, points, K). Distances of halves are of sums in float64, which is faster.
    """
    folds, bins = len(counts), shape[1]
    size = 1
    while size < folds:
        size *= 2
    sums, running = np.empty((size, bins)), np.empty(bins, np.int64)
    for neuron in range(shape[0]):
        for k in range(folds):
            part = carray(pointer(counts[k]), shape)[neuron]
            total = underflow[k, neuron]
            for i in range(bins):
                total += part[i]
                running[i] = sums[k, i] = total
            totals[k, neuron] = total + overflow[k, neuron]
            for g in range(at.shape[1]):
                if at[neuron, g] < bins - 1:
                    points[neuron, g, k] = running[at[neuron, g]]
        sums[folds:] = 0
        _mix(sums)
        for s in range(len(signs)):
            left, right, row = 0, 0, 0  # the row of the Hadamard matrix with these signs
            for k in range(folds):
                if signs[s, k] > 0:
                    left += totals[k, neuron]
                    continue
                right += totals[k, neuron]
                if k & (k - 1) == 0:
                    row += k
            halves[neuron, s] = _between(sums[0], sums[row], left, right)


@compiled
def _mix(sides: Floats) -> None:
    """Replaces (2^n, bins) rows by their sums with the signs of each row of a Hadamard matrix."""
    half = 1
    while half < len(sides):
        for start in range(0, len(sides), 2 * half):
            for row in range(start, start + half):
                one, other = sides[row], sides[row + half]
                for i in range(len(one)):
                    x, y = one[i], other[i]
                    one[i] = x + y
                    other[i] = x - y
        half *= 2


@compiled(fastmath={"reassoc"})
def _between(whole: Floats, mixed: Floats, left: int, right: int) -> float:
    """Returns the EMD of two halves of folds, in bins.

    `whole` is the sum of all folds' numbers below each bin's end, and `mixed` the sum of one half
    less that of the other. The halves have so many activations.
    """
    mine, theirs = 0.5 / max(left, 1), 0.5 / max(right, 1)
    apart = 0.0
    for i in range(len(whole) - 1):
        apart += abs((whole[i] + mixed[i]) * mine - (whole[i] - mixed[i]) * theirs)
    return apart
