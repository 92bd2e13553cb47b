"""building.quantile_search: TODO-DOC"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from pipeline.dna import DNA, Floats, Ints, Ranges, neuron_name
from pipeline.errors import UsageError

MAX_BINS = 4096

MAX_CELLS = 2**25
"""Of one thread's table: 256 MiB. Larger networks are counted in fewer bins."""

PASSES = 4

RESOLUTION = 0.01
"""Of a quantile, in widths of the range between the two."""

Count = Callable[[Ranges, int], DNA]
"""Counts the same activations in these ranges and so many bins."""


def extremes(dna: DNA) -> Ranges:
    """The least and greatest finite activation of every neuron.

    Raises `UsageError` naming the first neuron that had none.
    """
    taps = tuple((tap.name, tap.neurons) for tap in dna.spec.taps)
    silent = np.flatnonzero(~(np.isfinite(dna.min) & np.isfinite(dna.max)))
    if len(silent):
        raise UsageError(
            f"neuron {neuron_name(taps, int(silent[0]))} of {dna.spec.extractor} had no finite "
            f"activation in {dna.images} images, nor had {len(silent) - 1} others; these weights "
            "(--weights) cannot be calibrated"
        )
    return Ranges(taps, dna.min.astype(np.float64), dna.max.astype(np.float64))


# Quantiles.


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Per neuron, the activations below which, and above which, less than a share of all lie.

    Each end stands outside of the true one, by at most `resolution` of the width between the two in
    the worst of the neurons that were resolved to `RESOLUTION`. `unresolved` others were not; none
    is off by more than `coarsest` of its width from the least activation to the greatest.
    """

    ranges: Ranges
    resolution: float
    unresolved: int
    coarsest: float
    passes: int

    @property
    def stated(self) -> dict[str, float | int]:
        """For a file's metadata."""
        return {
            "resolution": self.resolution,
            "unresolved": self.unresolved,
            "coarsest": self.coarsest,
            "passes": self.passes,
        }


@dataclass(frozen=True, eq=False)
class _Brackets:
    """(N,) each: the lower quantile is in [a, b], the upper one in [c, d].

    All are float32 numbers, as activations are, held in float64.
    """

    a: Floats
    b: Floats
    c: Floats
    d: Floats

    @property
    def width(self) -> Floats:
        return np.maximum(self.b - self.a, self.d - self.c)

    @property
    def between(self) -> Floats:
        """The least that the quantiles lie apart."""
        return np.maximum(self.c - self.b, 0.0)

    @property
    def resolved(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return self.width <= RESOLUTION * self.between


def quantiles(
    least_to_greatest: Ranges, finite: Ints, quantile: float, count: Count, bins: int = MAX_BINS
) -> Quantiles:
    """Between the `quantile` and the `1 - quantile` quantile of each neuron's activations.

    `finite` (N,): how many activations a neuron has. A quantile is an activation that was observed:
    the one at rank `ceil(quantile * finite)`, from below and from above (numpy's method
    `inverted_cdf`). At most `PASSES` calls of `count`.
    """
    share = Fraction(str(quantile))
    distinct, where = np.unique(finite, return_inverse=True)
    rank = np.array([ceil(share * int(n)) for n in distinct], np.int64)[where]
    low, high = least_to_greatest.low, least_to_greatest.high
    brackets = _Brackets(low, high, low, high)
    passes = 0
    while passes < PASSES and not brackets.resolved.all():
        passes += 1
        window = Ranges(least_to_greatest.taps, *_window(brackets))
        brackets = _narrowed(brackets, count(window, bins), rank)
    resolved, width = brackets.resolved, brackets.width
    return Quantiles(
        # Adding zero makes -0.0 into 0.0, which would have another digest.
        Ranges(least_to_greatest.taps, brackets.a + 0.0, brackets.d + 0.0),
        _worst(width[resolved], brackets.between[resolved]),
        int((~resolved).sum()),
        _worst(width, high - low),
        passes,
    )


def _worst(width: Floats, whole: Floats) -> float:
    share = np.divide(width, whole, out=np.zeros_like(width), where=width > 0)
    return float(share.max(initial=0.0))


def _window(brackets: _Brackets) -> tuple[Floats, Floats]:
    """Where to count next: from the lower quantile's bracket to the upper one's, ends left out.

    The ends fall to underflow and overflow, which thus tell whether a quantile is the end itself,
    as where a neuron is mostly at the floor of its activation function.
    """
    low, high = _next(brackets.a, 1), _next(brackets.d, -1)
    room = low < high
    return np.where(room, low, brackets.a), np.where(room, high, brackets.d)


def _narrowed(old: _Brackets, dna: DNA, rank: Ints) -> _Brackets:
    low, high, bins = dna.low, dna.high, dna.counts.shape[1]
    step = (high - low) / bins
    slack = 8 * np.spacing(np.maximum(abs(low), abs(high)))  # more than all rounding of the rule
    below, above = _next(low, -1), _next(high, 1)

    def edges(index: Ints) -> tuple[Floats, Floats]:
        lower = _round32(low + index * step - slack, 1)
        upper = _round32(low + (index + 1) * step + slack, -1)
        return np.maximum(lower, low), np.minimum(upper, high)

    index = _reached(dna.underflow, dna.counts, rank)
    lower, upper = edges(index)
    a = np.select([index < 0, index == bins], [old.a, above], lower)
    b = np.select([index < 0, index == bins], [below, old.b], upper)
    index = bins - 1 - _reached(dna.overflow, dna.counts[:, ::-1], rank)
    lower, upper = edges(index)
    c = np.select([index == bins, index < 0], [above, old.c], lower)
    d = np.select([index == bins, index < 0], [old.d, below], upper)
    a, d = np.maximum(a, old.a), np.minimum(d, old.d)
    b, c = np.maximum(np.minimum(b, old.b), a), np.minimum(np.maximum(c, old.c), d)
    point = old.a == old.d
    return _Brackets(*(np.where(point, old.a, new) for new in (a, b, c, d)))


def _reached(before: Ints, counts: Ints, rank: Ints) -> Ints:
    """The bin in which the sum of `before` and the bins comes to `rank`: -1 for `before` itself,
    the number of bins where it never does."""
    short = before[:, None] + np.cumsum(counts, axis=1) < rank[:, None]
    index: Ints = short.sum(axis=1)
    return np.where(before >= rank, -1, index)


def _next(values: Floats, direction: int) -> Floats:
    """The float32 number next to each, upwards or downwards."""
    with np.errstate(over="ignore"):
        near = np.nextafter(values.astype(np.float32), np.float32(direction * np.inf))
    return near.astype(np.float64)


def _round32(values: Floats, direction: int) -> Floats:
    """The nearest float32 number that is not below (1), or not above (-1)."""
    near = values.astype(np.float32).astype(np.float64)
    return np.where((values - near) * direction > 0, _next(near, direction), near)
