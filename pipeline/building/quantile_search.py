"""Finds quantiles of every neuron's activations by counting in ever narrower ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from pipeline.dna import DNA, Floats, Ints, Ranges, neuron_name
from pipeline.errors import UsageError
from pipeline.wording import count_of, option

SEARCH_BINS = 4096
"""The most bins of a pass. They are not those of a DNA, which `Spec.bins` says."""

MAX_CELLS = 2**25
"""The most cells of one thread's table (256 MiB). Larger networks are counted in fewer bins."""

MOST_PASSES = 4
"""The most passes over the images."""

RESOLUTION = 0.01
"""How closely a quantile is to be found, as a share of the distance between the two."""

CountActivations = Callable[[Ranges, int], DNA]
"""Counts the same activations in the given ranges and number of bins."""


def extremes(dna: DNA) -> Ranges:
    """Returns the least and greatest finite activation of every neuron.

    Args:
        dna: Holds both, beside its counts.

    Raises:
        UsageError: A neuron had no finite activation; the message names it.
    """
    taps = dna.spec.shape
    silent = np.flatnonzero(~(np.isfinite(dna.min) & np.isfinite(dna.max)))
    if len(silent):
        others = f", nor had {count_of(len(silent) - 1, 'other')}" if len(silent) > 1 else ""
        raise UsageError(
            f"neuron {neuron_name(taps, int(silent[0]))} of {dna.spec.extractor} had no finite "
            f"activation in {count_of(dna.images, 'image')}{others}; these weights "
            f"({option('weights')}) cannot be calibrated"
        )
    return Ranges(taps, dna.min.astype(np.float64), dna.max.astype(np.float64))


@dataclass(frozen=True, eq=False)
class Quantiles:
    """The lower and upper quantile of each neuron's activations, and how closely they are known.

    The bounds of a range are never inside the true quantiles, only at or outside of them.

    Attributes:
        ranges: From the lower quantile to the upper one, for each neuron.
        resolution: The largest error among the neurons that were resolved to `RESOLUTION`, as a
            share of the distance between the two quantiles.
        unresolved: How many neurons were not resolved so closely.
        coarsest: The largest error of all neurons, as a share of the distance between the least
            and the greatest activation.
        passes: How many passes it took.
    """

    ranges: Ranges
    resolution: float
    unresolved: int
    coarsest: float
    passes: int

    @property
    def stated(self) -> dict[str, float | int]:
        """The numbers, for a file's metadata."""
        return {
            "resolution": self.resolution,
            "unresolved": self.unresolved,
            "coarsest": self.coarsest,
            "passes": self.passes,
        }


@dataclass(frozen=True, eq=False)
class _Brackets:
    """The intervals that hold the quantiles: [a, b] the lower one, [c, d] the upper one.

    Each array has shape (N,), and holds float32 numbers, as activations are, in float64.
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
        """The smallest distance that the two quantiles can have."""
        return np.maximum(self.c - self.b, 0.0)

    @property
    def resolved(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return self.width <= RESOLUTION * self.between


def quantiles(
    least_to_greatest: Ranges,
    finite: Ints,
    quantile: float,
    count: CountActivations,
    bins: int = SEARCH_BINS,
) -> Quantiles:
    """Finds the quantiles `quantile` and `1 - quantile` of each neuron's activations.

    A quantile is an activation that was observed: the one at rank `ceil(quantile * finite)`, from
    below and from above (numpy's method `inverted_cdf`).

    Args:
        least_to_greatest: The least and greatest activation of each neuron.
        finite: How many finite activations each neuron has, shape (N,).
        quantile: The share of activations below the lower quantile, and above the upper one.
        count: Counts the activations in given ranges; called at most `MOST_PASSES` times.
        bins: The number of bins to count in.

    Returns:
        The quantiles, and how closely they are known.
    """
    share = Fraction(str(quantile))
    distinct, where = np.unique(finite, return_inverse=True)
    rank = np.array([ceil(share * int(n)) for n in distinct], np.int64)[where]
    low, high = least_to_greatest.low, least_to_greatest.high
    brackets = _Brackets(low, high, low, high)
    passes = 0
    while passes < MOST_PASSES and not brackets.resolved.all():
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
    """Returns the largest share of `width` in `whole`."""
    share = np.divide(width, whole, out=np.zeros_like(width), where=width > 0)
    return float(share.max(initial=0.0))


def _window(brackets: _Brackets) -> tuple[Floats, Floats]:
    """Returns where to count next: from the lower bracket to the upper one, without their ends.

    Values at the ends are counted as underflow and overflow. These two counts tell whether a
    quantile is at the end itself, as for a neuron that is mostly at the floor of its activation
    function.
    """
    low, high = _next(brackets.a, 1), _next(brackets.d, -1)
    room = low < high
    return np.where(room, low, brackets.a), np.where(room, high, brackets.d)


def _narrowed(old: _Brackets, dna: DNA, rank: Ints) -> _Brackets:
    """Returns the brackets that the counts of one more pass leave possible."""
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
    """Returns the bin in which the running sum, which starts at `before`, reaches `rank`.

    It is -1 if `before` reaches it, and the number of bins if nothing does.
    """
    short = before[:, None] + np.cumsum(counts, axis=1) < rank[:, None]
    index: Ints = short.sum(axis=1)
    return np.where(before >= rank, -1, index)


def _next(values: Floats, direction: int) -> Floats:
    """Returns the next float32 number above (1) or below (-1) each value."""
    with np.errstate(over="ignore"):
        near = np.nextafter(values.astype(np.float32), np.float32(direction * np.inf))
    return near.astype(np.float64)


def _round32(values: Floats, direction: int) -> Floats:
    """Returns the nearest float32 number that is not below (1), or not above (-1), each value."""
    near = values.astype(np.float32).astype(np.float64)
    return np.where((values - near) * direction > 0, _next(near, direction), near)
