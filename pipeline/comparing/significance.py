"""What the folds of two datasets say of their distance: how sure it is, and whether it is any.

    >>> import numpy as np
    >>> gram = np.eye(8) + 2.0                       # eight differences that point the same way
    >>> float(flip_test(gram))                       # of 128 choices of signs none adds up so far
    0.0078125

A DNA is kept in folds, up to 16 parts of its images, so that no estimate needs another pass.

`emd` is a sum of absolute differences: noise only ever adds to it, and two samples of one
distribution are apart, too. What noise adds to its *square* is proportional to 1 / images at the
null, where all of `emd` is noise, and far from it: that the jackknife takes away, and hence the
correction is of the square (Quenouille, 1956; folds of unequal size: Busing, Meijer and van der
Leeden, 1999, "Delete-m jackknife for unequal m"). The interval is a score interval on the square's
scale, with Student's t at Satterthwaite's degrees of freedom.

It goes part of the way only where a few neurons differ much and all others not at all: these add to
`emd` in proportion to 1 / sqrt(images), and `low` may lie above the truth. Of each neuron alone it
holds (`pipeline.explain`).

Whether two datasets differ at all is a test of its own: under the null hypothesis the differences
of paired folds, each an average over images of its own, are as likely as their negatives, so that
all ways of giving them signs are compared (Fisher, 1935). The statistic is the squared norm of
their sum, of cumulative distributions the energy distance of Szekely and Rizzo (2013), which needs
inner products only, with a term for the skewness of differences (Johnson, 1978). That is exact for
datasets of equal size, and nearly so for others; a permutation of folds would mix samples of
unequal noise. Fewer than six pairs of folds cannot tell anything at 5%, and are not tested.

`experiments.statistics` measures all of it on real images: coverage, false alarms, power.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard
from scipy.special import stdtrit

from pipeline.dna import Floats

METHOD = "3"
"""Version of what is estimated, and how: of another, a matrix is computed anew."""

CONFIDENCE = 0.95

FALSE_DISCOVERY_RATE = 0.05
"""Of the pairs that are said to differ, the share that may do so by chance."""

CHECKED_IMAGES = 16
"""Of the smaller sample: false alarms were measured down to here (docs/statistics.md)."""

LEAST_FOLDS = 6
"""Whose least p, 1 / 2^5, is below 5%."""

_SKEWNESS = 2.0
"""Of the cubes in the statistic of a test; `_straightened` says why."""

_SPLIT = 8

_CHUNK = 4
"""Tests at a time: 32,768 sums of each stay in the cache."""


Images = NDArray[Any]
"""How many of each fold, (..., K)."""


@dataclass(frozen=True, eq=False)
class Estimates:
    """Of distances of any one shape; see `pipeline.matrix.Matrix`."""

    emd_corrected: Floats
    se: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class _Jackknife:
    """Of a statistic of one sample in folds: what it is biased by, and its variance."""

    bias: Floats
    variance: Floats

    @classmethod
    def of(cls, whole: Floats, dropped: Floats, images: Floats) -> _Jackknife:
        """`whole` (...), `dropped` (..., K) without each fold of `images` (..., K) images."""
        total = images.sum(axis=-1, keepdims=True)
        kept = 1 - images / total
        inverse = total / images
        folds = images.shape[-1]
        bias = (kept * dropped).sum(axis=-1) - (folds - 1) * whole
        pseudo = inverse * whole[..., None] - (inverse - 1) * dropped
        spread = (pseudo - (whole - bias)[..., None]) ** 2 / (inverse - 1)
        return cls(bias, spread.mean(axis=-1))


def estimate(
    emd: Floats,
    dropped_a: Floats,
    dropped_b: Floats,
    images_a: Images,
    images_b: Images,
) -> Estimates:
    """The distance that samples without end would show, and its 95% interval.

    `emd` (...): of all images. `dropped_a` (..., K_a): without each fold of a; `images_a`: how many
    images that fold has, of a shape that broadcasts to it. The same of b. A distance of which a
    dataset has fewer than two folds has NaN.

    Near the null, where `low` is 0, `high` is an upper bound; `experiments.statistics` shows how
    both cover.
    """
    if dropped_a.shape[-1] < 2 or dropped_b.shape[-1] < 2:
        unknown = np.full_like(emd, np.nan)
        return Estimates(unknown, unknown, unknown, unknown)
    sizes_a = np.broadcast_to(images_a, dropped_a.shape).astype(np.float64)
    sizes_b = np.broadcast_to(images_b, dropped_b.shape).astype(np.float64)
    plain = [_Jackknife.of(emd, d, n) for d, n in ((dropped_a, sizes_a), (dropped_b, sizes_b))]
    squares = [
        _Jackknife.of(emd**2, d**2, n) for d, n in ((dropped_a, sizes_a), (dropped_b, sizes_b))
    ]
    variance = plain[0].variance + plain[1].variance
    square = emd**2 - squares[0].bias - squares[1].bias
    of_square = squares[0].variance + squares[1].variance
    freedom = _satterthwaite(
        squares[0].variance, dropped_a.shape[-1] - 1, squares[1].variance, dropped_b.shape[-1] - 1
    )
    quantile: Floats = stdtrit(freedom, (1 + CONFIDENCE) / 2)
    # All v with |square - v| <= quantile x sd(v), where sd(v)^2 = 4 v variance + what is left of
    # `of_square` at v = 0: the noise of a square grows with it.
    # A square below zero, which is chance, has the upper end of zero's interval: there is no point.
    shift = 2 * quantile**2 * variance
    reach = np.sqrt(shift**2 + quantile**2 * of_square)
    return Estimates(
        _root(square),
        np.sqrt(variance),
        _root(square + shift - reach),
        _root(np.maximum(square, 0) + shift + reach),
    )


def jackknife(whole: Floats, dropped: Floats, images: Images) -> tuple[Floats, Floats]:
    """A statistic of one sample without its bias, and its standard error; (...) each.

    `whole` (...): of all images. `dropped` (..., K): without each fold.
    """
    sizes = np.broadcast_to(images, dropped.shape).astype(np.float64)
    found = _Jackknife.of(whole, dropped, sizes)
    return whole - found.bias, np.sqrt(found.variance)


def _satterthwaite(one: Floats, of_one: int, other: Floats, of_other: int) -> Floats:
    """Degrees of freedom of the sum of two variances."""
    scale = one**2 / of_one + other**2 / of_other
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (one + other) ** 2 / scale
    return np.where(scale > 0, freedom, float(of_one + of_other))


def _root(square: Floats) -> Floats:
    return cast(Floats, np.sqrt(np.maximum(square, 0)))  # NaN stays


def splits(folds: int) -> NDArray[np.int64]:
    """(S, K) of 1 and -1: ways to cut K folds in halves, 15 of 16 folds.

    Rows of a Hadamard matrix, those that halve best: in the rows for 16 folds, any two are as often
    on the same side as not, but for one time.
    """
    size = 1 << (folds - 1).bit_length()
    rows = hadamard(size, dtype=np.int64)[1:, :folds]
    uneven = np.abs(rows.sum(axis=1))
    return np.ascontiguousarray(rows[uneven == uneven.min()])


def floor(halves_a: Floats, images_a: Images, halves_b: Floats, images_b: Images) -> Floats:
    """The `emd` that two samples of one distribution would show at these sizes, (...).

    `halves_a` (..., S): distances between the sides of each of the `splits` of a's folds, of
    `images_a` (..., K) images. Sides of n1 and n2 images are sqrt(1 / n1 + 1 / n2) apart where
    samples of n_a and n_b are sqrt(1 / n_a + 1 / n_b).
    """
    square = 0.0
    for apart, images in ((halves_a, images_a), (halves_b, images_b)):
        one = (splits(images.shape[-1]) + 1) // 2
        share = (images @ one.T) / images.sum(axis=-1, keepdims=True)
        square = square + (apart**2 * share * (1 - share)).mean(axis=-1)
    return cast(Floats, np.sqrt(square))


def differences(
    gram_aa: Floats, gram_bb: Floats, gram_ab: Floats, images_a: Images, images_b: Images
) -> Floats:
    """(..., K, K) inner products of the differences of paired folds, K the lesser number of them.

    `gram_aa` (..., K_a, K_a), `gram_bb`, `gram_ab` (..., K_a, K_b): of the folds' own cumulative
    distributions. Where one dataset has more folds, several make one, weighted by their images.
    Differences that may be rounding are zero, or a test would make something of their signs: those
    that are below a thousandth of what folds of one dataset differ by, or 3e-7 of what they are.
    """
    pairs = min(gram_ab.shape[-2:])
    of_a, of_b = _merged(images_a, pairs), _merged(images_b, pairs)
    across: Floats = of_a @ gram_ab @ np.swapaxes(of_b, -1, -2)
    own_a, own_b = (
        of @ x @ np.swapaxes(of, -1, -2) for of, x in ((of_a, gram_aa), (of_b, gram_bb))
    )
    difference: Floats = own_a + own_b - across - np.swapaxes(across, -1, -2)
    size = _trace(own_a) + _trace(own_b)
    spread = size - (own_a.sum(axis=(-1, -2)) + own_b.sum(axis=(-1, -2))) / pairs
    difference[_trace(difference) <= 1e-6 * np.abs(spread) + 1e-13 * size] = 0
    return difference


def differences_of(
    curves_a: Floats, curves_b: Floats, images_a: Images, images_b: Images
) -> Floats:
    """The same, of the folds' cumulative distributions themselves, (..., K_a, G) and (..., K_b, G).

    So nothing cancels. Values are up to 1: differences of 1e-12 are rounding.
    """
    pairs = min(curves_a.shape[-2], curves_b.shape[-2])
    apart = _merged(images_a, pairs) @ curves_a - _merged(images_b, pairs) @ curves_b
    difference: Floats = apart @ np.swapaxes(apart, -1, -2)
    difference[_trace(difference) <= 1e-24 * apart.shape[-1] * pairs] = 0
    return difference


def _trace(gram: Floats) -> Floats:
    return cast(Floats, np.einsum("...kk->...", gram))


def _merged(images: Images, pairs: int) -> Floats:
    """(..., pairs, K): which folds make up each of `pairs`, in shares that sum to one."""
    folds = images.shape[-1]
    shares = (np.arange(folds) % pairs == np.arange(pairs)[:, None]) * images[..., None, :]
    return cast(Floats, shares / shares.sum(axis=-1, keepdims=True))


def flip_test(gram: Floats) -> Floats:
    """(...) the share of all choices of signs under which the differences agree as well as found.

    `gram` (..., K, K): inner products of K differences. At least 1 / 2^(K - 1), which is 3e-5 for
    16; NaN for unknown ones, and for fewer than `LEAST_FOLDS`, which could show nothing.
    """
    folds = gram.shape[-1]
    flat = np.ascontiguousarray(gram, np.float64).reshape(-1, folds, folds)
    if folds < LEAST_FOLDS:
        return np.full(gram.shape[:-2], np.nan)
    chunks = (flat[i : i + _CHUNK] for i in range(0, len(flat), _CHUNK))
    values = [_flip_tests(_straightened(chunk)) for chunk in chunks]
    found = np.concatenate(values) if values else np.empty(0)
    found[~np.isfinite(flat).all(axis=(1, 2))] = np.nan
    return found.reshape(gram.shape[:-2])


def _straightened(gram: Floats) -> Floats:
    """(N, K, K) h + 2 h^3 / (sum of all h^2) of the inner product h of each two differences.

    Let W be the sum of h over all pairs, in units of its deviation under random signs. Differences
    of few images from many are skewed, so that h^3 has a mean above zero: c in those units, over
    all pairs. To the first order, W then has a mean of -c / 2 and a third cumulant that is 2 c too
    low, as Student's t has for a skewed sample, and too few are as large as they should be.
    Johnson's remedy (1978, "Modified t tests and confidence intervals for asymmetrical
    populations"; Hall, 1992, "On the removal of skewness by transformation") is to add
    c (1 / 2 + (W^2 - 1) / 3) with the sample's own c: between once and three times c where p is 5%
    to 1%. A constant twice c is a sum over pairs again, and so costs nothing; it does too much
    where p is 20% and nothing hangs on it. Cubes change their sign as h does, so that the test
    stays exact for differences that are symmetric.
    """
    folds = gram.shape[-1]
    squares = gram**2
    squares[:, range(folds), range(folds)] = 0
    total = squares.sum(axis=(1, 2))[:, None, None] / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(total > 0, squares / total, 0)
    return np.asarray(gram * (1 + _SKEWNESS * share))


def _flip_tests(gram: Floats) -> Floats:
    """Signs of the first folds and of the others, apart: their own squares, and twice their cross
    products, in one product of matrices.
    """
    at = min(_SPLIT, gram.shape[-1] - 1)
    one, other = _signs(at, fixed=True), _signs(gram.shape[-1] - at, fixed=False)
    of_one = ((one @ gram[:, :at, :at]) * one).sum(axis=-1)
    of_other = ((other @ gram[:, at:, at:]) * other).sum(axis=-1)
    left = np.dstack([2 * (one @ gram[:, :at, at:]), of_one, np.ones_like(of_one)])
    right = np.concatenate(
        [
            np.broadcast_to(other.T, (len(gram), *other.T.shape)),
            np.ones_like(of_other)[:, None],
            of_other[:, None],
        ],
        axis=1,
    )
    length = left @ right
    slack = 1e-6 * _trace(gram)  # equal ones differ by rounding
    found = length[:, 0, 0] - slack  # all signs as they are
    return cast(Floats, (length >= found[:, None, None]).mean(axis=(1, 2)))


@cache
def _signs(folds: int, *, fixed: bool) -> Floats:
    """All choices of signs, the unchanged one first; `fixed`: the first fold keeps its sign."""
    free = folds - 1 if fixed else folds
    rows = np.array(list(itertools.product((1.0, -1.0), repeat=free))).reshape(2**free, free)
    return np.hstack([np.ones((len(rows), 1)), rows]) if fixed else rows


def false_discovery(p: Floats) -> Floats:
    """(planes, D, D) q of symmetric p, `adjusted` over the pairs of each plane.

    The diagonal, and pairs of unknown p, are no pairs: NaN.
    """
    q = np.full_like(p, np.nan)
    rows, columns = np.triu_indices(p.shape[-1], 1)
    for of_plane, values in zip(q, p, strict=True):
        of_plane[rows, columns] = of_plane[columns, rows] = adjusted(values[rows, columns])
    return q


def adjusted(p: Floats) -> Floats:
    """(N,) q of p, after Benjamini and Hochberg (1995); NaN for NaN, which is no test."""
    q = np.full_like(p, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q
