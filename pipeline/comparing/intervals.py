"""Estimates the distance that samples without end would show, and its 95% interval.

    >>> import numpy as np
    >>> nothing = np.zeros((1, 30, len(CHANGES)))             # the folds are all alike
    >>> found = estimate(np.array([3.0]), np.zeros((1, len(ADDED))), nothing, 16, 16)
    >>> float(found.low[0]), float(found.high[0])
    (3.0, 3.0)

`emd` sums |difference| over neurons and bins. The difference at one point is the true one, t, plus
noise z, both in units of the noise. The mean of |t + z| is |t| plus a bias: 0.80 for t = 0, 0.17
for t = 1 and 0.02 for t = 2. How much is to be taken away depends on how many points have a small
t, and `emd` alone does not tell.

**Bounds.** So two kinds of functions of x = t + z are summed in place of |x|. The mean of one kind
is never below |t|, whatever t is, and the mean of the other is never above. Both are equal to |x|
for large x. `ABOVE` and `BELOW` hold them: the solutions of linear programs (`experiments.bounds`),
which make them as tight as their noise allows. A sum of them lies above or below the true distance
on average, however the difference is spread over the neurons. The idea is that of confidence
intervals which are honest about a bias (Armstrong and Kolesár, 2018, "Optimal inference in a class
of regression models"; Ignatiadis and Wager, 2022, "Confidence intervals for nonparametric empirical
Bayes analysis"). No function of x has the mean |t| (Cai and Low, 2011, "Testing composite
hypotheses, Hermite polynomials and optimal estimation of a nonsmooth functional").

**Noise.** The folds of a DNA are added with the signs of the rows of a Hadamard matrix. That gives
fifteen curves, each of which is distributed as the noise of the whole curve and keeps its
correlation between neurons and bins (balanced half-samples: McCarthy, 1969). The variance of a sum
is that of its central difference: how much it changes if the noise of such a curve is added instead
of taken away. `REACH` of the noise is added. Less counts curvature several times (Efron and Stein,
1981), and more smooths the slope away.

**Pairs.** Two datasets may share images, or one may have altered copies of the other's: then their
noise is not independent. If the images of a pair are in the same fold, the noise of a difference is
made of the differences of these folds. So both sides' folds are added with the same signs, and one
is taken from the other. That has the covariance in it, whatever part of the images is in pairs. It
is one sample of folds and not two, so there are fifteen draws, and as many degrees of freedom. If
an alteration moves few images past a point, the difference is skewed, and the standard error grows
with it. Then sums that should lie below the true distance, or above it, may not. But the mean of
`emd` is never below it. So no sum below it is taken to be more than `emd`. Between a dataset and
its altered copy there is little noise to correct, and the interval reaches as far as `emd` and its
own error.

**Interval.** Its ends are where a true value would be just likely enough. If the true value were as
large as `emd` or larger, most differences would be far from zero, and noise would enter in full. So
noise is counted in full at such an end, and as it is found at 0, as in a score interval. The truth
is beyond an end in 2.5% of cases if the difference is spread in just the way for which that bound
is exact, and more rarely otherwise. So the interval holds it in 95% or more.

**Corrected distance.** Noise adds to the square of `emd` in proportion to 1 / images if neurons
differ in all degrees, as normally distributed differences do. So the square is extrapolated to no
noise. The result is kept within the bounds.

`experiments.intervals` and `experiments.statistics` measure how often the interval holds the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.special import stdtrit

from pipeline.compiled import compiled
from pipeline.dna import Floats
from pipeline.spec import FOLDS

CONFIDENCE = 0.95
"""Coverage of the interval from `low` to `high`."""

REACH = 0.7
"""Share of the noise that is added and taken away to see how a sum changes."""

PATTERNS = FOLDS - 1
"""Number of ways in which the folds of a DNA are added with signs."""

DRAWS = 2 * PATTERNS
"""Number of draws of the noise of a pair: each pattern of a, plus and minus that of b."""

KNOTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Differences are clipped at so many standard errors; the functions are sums of clipped ones."""

ABOVE = np.array(
    [
        [-1.08, -0.239, 2.696, -1.469, 0.096, -0.004],
        [-5.711, 5.422, 6.172, -7.871, 2.536, -0.547],
        [-0.781, -2.439, 3.219, 0.0, 1.0, -1.0],
    ]
)
"""Factors of the clipped differences. Added to the plain one, and less a constant that makes all of
it |x| for large x, their mean is |t| or more."""

BELOW = np.array(
    [
        [0.0, -0.229, -3.542, 5.102, -1.662, 0.331],
        [-1.048, -3.904, 6.372, 0.382, -2.815, 1.012],
    ]
)
"""The same for functions whose mean is |t| or less."""

ADDED = ("noisier", "above_0", "above_1", "above_2", "below_0", "below_1")
"""What each of these sums is larger by than `emd`."""

CHANGES = (
    "emd", "above_0", "above_1", "above_2", "below_0", "below_1", "by_point", "by_neuron",
)  # fmt: skip
"""Sums whose change is known for each draw of noise. The last two are changes of `emd` if all true
differences were far from zero, with the signs found at each point, or of each neuron."""

_ABOVE, _BELOW = slice(1, 4), slice(4, 6)

_FULL = slice(6, 8)

WIDE = 6.0
"""An interval is called wide if it is longer than so many standard errors."""

Images = NDArray[Any]
"""(..., K) number of images of each of K folds."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """Estimates of distances, in arrays of one shape, in bins.

    Attributes:
        emd_corrected: The distance that samples without end would show.
        se: Standard error of the uncorrected distance.
        low: Lower end of the 95% interval of the distance that samples without end would show.
        high: Upper end of that interval.
    """

    emd_corrected: Floats
    se: Floats
    low: Floats
    high: Floats


def estimate(
    emd: Floats,
    added: Floats,
    changes: Floats,
    folds_a: int,
    folds_b: int,
    paired: NDArray[np.bool_] | bool = False,
    copied: NDArray[np.bool_] | bool = False,
) -> Estimates:
    """Estimates the distance that samples without end would show, and its 95% interval.

    Where `low` is 0, `high` is an upper bound.

    Args:
        emd: (...) distances of all images.
        added: (..., 6) what the sums `ADDED` are larger by.
        changes: (..., 30, 8) changes of the sums `CHANGES`, for each draw of noise. Those of paired
            datasets are fifteen, each of them twice.
        folds_a: Folds of a.
        folds_b: Folds of b.
        paired: (...) whether images of both are in pairs.
        copied: (...) whether all of them are.

    Returns:
        Estimates of shape (...). All are NaN if a dataset has fewer than two folds.
    """
    if min(folds_a, folds_b) < 2:
        unknown = np.full_like(emd, np.nan)
        return Estimates(unknown, unknown, unknown, unknown)
    sums = len(CHANGES)
    variances, sides = np.empty((*emd.shape, sums)), np.empty((*emd.shape, 2))
    flat = changes.reshape(-1, DRAWS, sums)
    _mean_squares(flat, variances.reshape(-1, sums), sides.reshape(-1, 2))
    plain = variances[..., 0]
    more = np.maximum(variances[..., _FULL].max(axis=-1) - plain, 0)
    fewest = min(folds_a, folds_b)
    freedom = np.where(paired, _freedom(sides, fewest, fewest), _freedom(sides, folds_a, folds_b))
    quantile: Floats = stdtrit(freedom, (1 + CONFIDENCE) / 2)

    def tightest(which: slice, sign: int) -> tuple[Floats, Floats]:
        """Returns the sum that makes the tightest bound, and its variance."""
        more_than_emd = added[..., which]
        if sign < 0:
            above_emd = np.asarray(paired)[..., None] & (more_than_emd > 0)
            more_than_emd = np.where(above_emd, 0, more_than_emd)
        sums, spread = emd[..., None] + more_than_emd, variances[..., which]
        bound = sign * sums + quantile[..., None] * np.sqrt(spread)
        at = np.where(np.isnan(bound), np.inf, bound).argmin(axis=-1)[..., None]
        chosen = [np.take_along_axis(of, at, axis=-1)[..., 0] for of in (sums, spread)]
        return chosen[0], chosen[1]

    above, spread_above = tightest(_ABOVE, 1)
    below, spread_below = tightest(_BELOW, -1)
    low = _lower_end(below, emd, quantile, spread_below, more)
    high = _upper_end(np.maximum(above, 0), emd, quantile, spread_above, more)
    least_high = np.where(copied, emd + quantile * np.sqrt(plain), -np.inf)
    high = np.maximum(high, least_high)
    square = emd**2 - ((emd + added[..., 0]) ** 2 - emd**2) / REACH**2
    least = np.maximum(np.minimum(below, above), low)
    corrected = np.clip(_root(square), least, np.maximum(np.minimum(above, high), least))
    se = np.sqrt(plain + np.minimum(_ratio(corrected, emd), 1) ** 2 * more)
    return Estimates(corrected, se, low, high)


def is_wide(low: Floats, high: Floats, se: Floats) -> NDArray[np.bool_]:
    """Tells which intervals are long because the folds do not tell how a difference is spread.

    It could be small in all neurons, or large in a few. Then the interval is a bound, and holds the
    true distance in nearly all cases; docs/statistics.md has what was measured.

    Args:
        low: Lower ends.
        high: Upper ends.
        se: Standard errors of the uncorrected distances.

    Returns:
        Whether the intervals are longer than `WIDE` standard errors; False for unknown ones.
    """
    return np.asarray(high - low > WIDE * se)


def _lower_end(sums: Floats, emd: Floats, quantile: Floats, spread: Floats, more: Floats) -> Floats:
    """Returns the v below `sums` with (sums - v)^2 = quantile^2 (spread + min(1, v / emd)^2 more).

    It is 0 if there is none above 0.
    """
    full = sums - quantile * np.sqrt(spread + more)
    room = np.maximum(sums, 0) ** 2 - quantile**2 * spread
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # of a tiny `emd`
        root = np.sqrt(quantile**2 * spread + _ratio(quantile**2 * more, emd**2) * room)
        end = np.where(full >= emd, full, room / (sums + root))
    return cast(Floats, np.where(room > 0, end, np.where(np.isnan(room), np.nan, 0)))


def _upper_end(sums: Floats, emd: Floats, quantile: Floats, spread: Floats, more: Floats) -> Floats:
    """Returns the v above `sums` that solves the same equation."""
    full = sums + quantile * np.sqrt(spread + more)
    rising = _ratio(quantile**2 * more, emd**2)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # of a tiny `emd`
        root = np.sqrt(rising * sums**2 + (1 - rising) * quantile**2 * spread)
        return cast(Floats, np.where(full < emd, (sums + root) / (1 - rising), full))


@compiled
def _mean_squares(changes: Floats, variances: Floats, sides: Floats) -> None:
    """Writes the (N, 8) mean squares of (N, 30, 8) changes, and the (N, 2) of each side's `emd`.

    The changes of a side are the sums of each two draws, and those of the other their differences.
    """
    draws, sums = changes.shape[1:]
    for n in range(len(changes)):
        variances[n] = sides[n] = 0
        for k in range(draws):
            for i in range(sums):
                variances[n, i] += changes[n, k, i] ** 2
        for k in range(0, draws, 2):
            plus, minus = changes[n, k, 0], changes[n, k + 1, 0]
            sides[n, 0] += (plus + minus) ** 2
            sides[n, 1] += (plus - minus) ** 2
        variances[n] /= draws
        sides[n] /= draws // 2


def _freedom(sides: Floats, folds_a: int, folds_b: int) -> Floats:
    """Returns the degrees of freedom of the sum of both sides' variances (Satterthwaite, 1946).

    For draws that are there twice, that is the number of folds less one.
    """
    one, other = sides[..., 0], sides[..., 1]
    scale = one**2 / (folds_a - 1) + other**2 / (folds_b - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (one + other) ** 2 / scale
    return np.where(scale > 0, freedom, float(folds_a + folds_b - 2))


def _ratio(x: Floats, y: Floats) -> Floats:
    """Returns x / y for values that are not negative; 0 / 0 is 0."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return cast(Floats, np.where(x == 0, 0.0, x / y))


def _root(square: Floats) -> Floats:
    return cast(Floats, np.sqrt(np.maximum(square, 0)))  # NaN stays


@cache
def splits(folds: int) -> NDArray[np.int64]:
    """Finds balanced ways to cut folds in halves.

    They are rows of a Hadamard matrix, those that halve best. Any two of 16 folds are on the same
    side as often as not, but for one time.

    Args:
        folds: Number of folds K.

    Returns:
        (S, K) int64 of 1 and -1, the side of each fold. For 16 folds S is 15.
    """
    size = 1 << (folds - 1).bit_length()
    rows = hadamard(size, dtype=np.int64)[1:, :folds]
    uneven = np.abs(rows.sum(axis=1))
    found = np.ascontiguousarray(rows[uneven == uneven.min()])
    found.flags.writeable = False
    return found


def floor(halves_a: Floats, images_a: Images, halves_b: Floats, images_b: Images) -> Floats:
    """Computes the `emd` that two samples of one distribution would show at these sizes.

    The distance between halves of n1 and n2 images grows with sqrt(1 / n1 + 1 / n2), and that of
    samples of n_a and n_b images with sqrt(1 / n_a + 1 / n_b).

    Args:
        halves_a: (..., S) distances between the two sides of each of the `splits` of a's folds.
        images_a: (..., K_a) images of each fold of a.
        halves_b: The same of b.
        images_b: The same of b.

    Returns:
        (...) distances, in bins.
    """
    return np.sqrt(floor_square(halves_a, images_a) + floor_square(halves_b, images_b))


def floor_square(halves: Floats, images: Images) -> Floats:
    """Computes what one of two samples adds to the square of their `floor`.

    Args:
        halves: (..., S) distances between the two sides of each of the `splits` of its folds.
        images: (..., K) images of each fold.

    Returns:
        (...) squared distances, in bins.
    """
    one = (splits(images.shape[-1]) + 1) // 2
    share = (images @ one.T) / images.sum(axis=-1, keepdims=True)
    squares: Floats = (halves**2 * share * (1 - share)).mean(axis=-1)
    return squares


@cache
def patterns(numbers: tuple[int, ...]) -> Floats:
    """Finds how to add the deviations of folds, so that the sum is distributed as their noise.

    Each fold's deviation from the whole is first multiplied by the fold's share of the images. Rows
    are of a Hadamard matrix, other than `splits` in that they are always fifteen, and need not be
    balanced. Folds of one number have the same signs in all datasets.

    Args:
        numbers: The numbers of the K folds with images, two or more.

    Returns:
        (15, K) float64 factors. The mean over rows of the squared sums is the jackknife's variance.
    """
    rows, folds = hadamard(FOLDS, dtype=np.int64)[1:, list(numbers)], len(numbers)
    return np.asarray(rows * np.sqrt(folds / (folds - 1) * PATTERNS / FOLDS))
