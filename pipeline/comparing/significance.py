"""Tests from folds whether two datasets differ at all, and adjusts p for many tests.

    >>> import numpy as np
    >>> gram = np.eye(8) + 2.0                 # eight differences that point the same way
    >>> float(flip_test(gram))                 # no other of the 128 choices of signs adds up so far
    0.0078125

Under the null hypothesis the differences of paired folds, each an average over images of its own,
are as likely as their negatives. So all ways of giving them signs are compared (Fisher, 1935). The
statistic is the squared norm of the sum of the differences. Computed on cumulative distributions it
is the energy distance of Szekely and Rizzo (2013), which needs inner products only; a term corrects
for the skewness of differences (Johnson, 1978). The test is exact for datasets of equal size, and
nearly so for others. A permutation of folds would mix samples of unequal noise. Fewer than six
pairs of folds cannot show anything at 5%, and are not tested.

Nothing of that supposes that the two folds of a pair are independent of each other. If datasets
share images, or one has altered copies, folds of the same number are paired. What their images have
in common then cancels in their difference.

`experiments.statistics` measures false alarms and power on real images.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from pipeline.comparing.intervals import Images
from pipeline.compiled import compiled
from pipeline.dna import Floats, Ints
from pipeline.spec import LEAST_FOLDS as LEAST_FOLDS

FALSE_DISCOVERY_RATE = 0.05
"""Share of the pairs called different that may be so by chance."""

CHECKED_IMAGES = 16
"""The smallest sample on which false alarms were measured (docs/statistics.md)."""

_BESIDE = 3
"""Differences whose signs are all tried at once, for each choice of the others' signs."""

_SKEWNESS = 2.0
"""Factor of the cubes in the statistic of a test; `_correct_skewness` derives it."""


def curve_difference_gram(
    curves_a: Floats, curves_b: Floats, shares_a: Floats, shares_b: Floats
) -> Floats:
    """Computes inner products of the differences of paired folds, from the folds' curves.

    Values are up to 1, so that differences of 1e-12 are rounding. They are set to zero, as a test
    would make something of their signs.

    Args:
        curves_a: (..., K_a, G) cumulative distributions of a's folds.
        curves_b: (..., K_b, G) those of b's folds.
        shares_a: (..., K, K_a) share of each of a's folds in each of K; see `fold_shares`.
        shares_b: (..., K, K_b) the same of b's folds.

    Returns:
        (..., K, K) inner products.
    """
    pairs = shares_a.shape[-2]
    apart = shares_a @ curves_a - shares_b @ curves_b
    difference: Floats = apart @ np.swapaxes(apart, -1, -2)
    difference[_trace(difference) <= 1e-24 * apart.shape[-1] * pairs] = 0
    return difference


def _trace(gram: Floats) -> Floats:
    return cast(Floats, np.einsum("...kk->...", gram))


def fold_shares(images_a: Images, images_b: Images) -> tuple[Floats, Floats]:
    """Finds which folds of independent datasets are paired.

    If one dataset has more folds, several of them make one, weighted by their images.

    Args:
        images_a: (..., K_a) images of each fold of a.
        images_b: (..., K_b) images of each fold of b.

    Returns:
        (..., K, K_a) share of each of a's folds in each of K, the smaller number of folds, and
        (..., K, K_b) that of each of b's. Rows sum to one.
    """
    pairs = min(images_a.shape[-1], images_b.shape[-1])
    places = (np.arange(images.shape[-1]) % pairs for images in (images_a, images_b))
    one, other = (
        _merged(images, at, pairs) for images, at in zip((images_a, images_b), places, strict=True)
    )
    return one, other


def paired_shares(
    images_a: Images, numbers_a: Ints, images_b: Images, numbers_b: Ints
) -> tuple[Floats, Floats]:
    """Finds which folds of datasets are paired whose images are in pairs: those of the same number.

    A fold that one dataset alone has is joined to the next one that both have.

    Args:
        images_a: (K_a,) images of each fold of a.
        numbers_a: (K_a,) their numbers, in order.
        images_b: (K_b,) images of each fold of b.
        numbers_b: (K_b,) their numbers, in order.

    Returns:
        (K, K_a) share of each of a's folds in each of the K folds that both have, and (K, K_b) that
        of each of b's.
    """
    both = np.intersect1d(numbers_a, numbers_b)
    places = (np.searchsorted(both, of) % max(len(both), 1) for of in (numbers_a, numbers_b))
    one, other = (
        _merged(images, at, len(both))
        for images, at in zip((images_a, images_b), places, strict=True)
    )
    return one, other


def _merged(images: Images, places: Ints, pairs: int) -> Floats:
    """Returns the (..., pairs, K) share of each fold in the pair that has its place."""
    shares = (places == np.arange(pairs)[:, None]) * images[..., None, :]
    return cast(Floats, shares / shares.sum(axis=-1, keepdims=True))


def flip_test(gram: Floats) -> Floats:
    """Tests whether differences agree more than chance makes them.

    Args:
        gram: (..., K, K) inner products of K differences.

    Returns:
        (...) p: the share of all choices of signs under which the differences agree as well as
        found. Choices that differ by a hundred-thousandth of the sum of all squares count as
        equal, since products may be rounded to float32. It is at least 1 / 2^(K - 1), which is
        3e-5 for 16. NaN for unknown products, and for fewer than `LEAST_FOLDS` differences, which
        could show nothing.
    """
    folds = gram.shape[-1]
    flat = np.ascontiguousarray(gram, np.float64).reshape(-1, folds, folds)
    if folds < LEAST_FOLDS:
        return np.full(gram.shape[:-2], np.nan)
    found = np.empty(len(flat))
    _flip_tests(flat, found)
    return found.reshape(gram.shape[:-2])


@compiled
def _correct_skewness(gram: Floats, to: Floats) -> None:
    """Writes h + 2 h^3 / (sum of all h^2) for the inner product h of each two differences.

    Let W be the sum of h over all pairs, in units of its deviation under random signs. Differences
    of few images from many are skewed, so that h^3 has a mean above zero: c in those units, over
    all pairs. To the first order, W then has a mean of -c / 2 and a third cumulant that is 2 c too
    low, as Student's t has for a skewed sample, and too few are as large as they should be.
    Johnson's remedy (1978, "Modified t tests and confidence intervals for asymmetrical
    populations"; Hall, 1992, "On the removal of skewness by transformation") is to add c (1 / 2 +
    (W^2 - 1) / 3) with the sample's own c: between once and three times c where p is 5% to 1%. A
    constant twice c is a sum over pairs again, and so costs nothing; it does too much where p is
    20% and nothing depends on it. Cubes change their sign as h does, so that the test stays exact
    for differences that are symmetric.
    """
    total = 0.0
    for i in range(len(gram)):
        for j in range(len(gram)):
            total += gram[i, j] * gram[i, j] if i != j else 0.0
    total /= 2
    for i in range(len(gram)):
        for j in range(len(gram)):
            h = gram[i, j]
            share = h * h / total if i != j and total > 0 else 0.0
            to[i, j] = h * (1 + _SKEWNESS * share)


@compiled
def _flip_tests(gram: Floats, p: Floats) -> None:
    """Writes the (N,) p of N grams.

    All signs of the first half of the differences, whose first keeps its sign, are held at once,
    and so are those of the next three. Those of the others follow each other so that only one
    changes at a time (a Gray code).
    """
    folds = gram.shape[-1]
    free = folds // 2
    at = folds - free
    lengths, within, room = np.empty(1 << at - 1), np.empty(1 << free), np.empty(1 << free)
    products = np.empty((free, len(lengths)))
    turned = np.empty((1 << _BESIDE, len(lengths)))
    one, none = np.empty((folds, folds)), np.zeros(folds)
    for test in range(len(gram)):
        _correct_skewness(gram[test], one)
        if not np.isfinite(one).all():
            p[test] = np.nan
            continue
        _square(one[1:at, 1:at], one[0, 1:at], one[0, 0], room, lengths)
        for j in range(free):
            _choose_signs(2 * one[1:at, at + j], 2 * one[0, at + j], products[j])
            for k in range(len(lengths)):
                lengths[k] += products[j, k]
        _square(one[at:, at:], none[at:], 0.0, room, within)
        found = lengths[0] + within[0]
        for i in range(folds):  # equal lengths differ by rounding, of products in float32
            found -= 1e-5 * one[i, i]
        turned[0] = 0
        for j in range(_BESIDE):
            for choice in range(1 << j):
                for k in range(len(lengths)):
                    turned[choice + (1 << j), k] = turned[choice, k] - 2 * products[j, k]
        for choice in range(len(within)):
            within[choice] = found - within[choice]
        count = _at_least(lengths, products[0], 0.0, turned, within)
        choice = 0
        for step in range(1, 1 << free - _BESIDE):
            other = 0
            while not step >> other & 1:
                other += 1
            choice ^= 1 << other
            sign = -2.0 if choice >> other & 1 else 2.0
            least = within[choice << _BESIDE :]
            count += _at_least(lengths, products[_BESIDE + other], sign, turned, least)
        p[test] = count / 2.0 ** (folds - 1)


@compiled
def _at_least(lengths: Floats, products: Floats, sign: float, turned: Floats, least: Floats) -> int:
    """Adds products to squared lengths, and counts how many are so large, turned in each way."""
    count = 0
    a, b, c, d, e, f, g, h = (
        least[0], least[1], least[2], least[3], least[4], least[5], least[6], least[7],
    )  # fmt: skip
    for k in range(len(lengths)):
        length = lengths[k] + sign * products[k]
        lengths[k] = length
        count += 1 if length + turned[0, k] >= a else 0
        count += 1 if length + turned[1, k] >= b else 0
        count += 1 if length + turned[2, k] >= c else 0
        count += 1 if length + turned[3, k] >= d else 0
        count += 1 if length + turned[4, k] >= e else 0
        count += 1 if length + turned[5, k] >= f else 0
        count += 1 if length + turned[6, k] >= g else 0
        count += 1 if length + turned[7, k] >= h else 0
    return count


@compiled
def _choose_signs(terms: Floats, constant: float, to: Floats) -> None:
    """Writes a constant plus all terms, for all choices of their signs, the unchanged one first."""
    to[0] = constant
    for i in range(len(terms)):
        size = 1 << i
        for k in range(size):
            to[size + k] = to[k] - terms[i]
        for k in range(size):
            to[k] += terms[i]


@compiled
def _square(gram: Floats, fixed: Floats, constant: float, room: Floats, to: Floats) -> None:
    """Writes the squared length of the sum of differences, for all choices of their signs."""
    # `fixed` are the products with a difference that keeps its sign, whose square is `constant`.
    to[0] = constant
    for i in range(len(gram)):
        size = 1 << i
        _choose_signs(gram[i, :i], fixed[i], room)
        for k in range(size):
            to[size + k] = to[k] + gram[i, i] - 2 * room[k]
        for k in range(size):
            to[k] += gram[i, i] + 2 * room[k]


def false_discovery(p: Floats) -> Floats:
    """Adjusts the p of all pairs of a matrix, plane by plane.

    Args:
        p: (planes, D, D) symmetric p.

    Returns:
        (planes, D, D) q, `adjusted` over the pairs of each plane. NaN on the diagonal and for pairs
        of unknown p, which are no tests.
    """
    q = np.full_like(p, np.nan)
    rows, columns = np.triu_indices(p.shape[-1], 1)
    for of_plane, values in zip(q, p, strict=True):
        of_plane[rows, columns] = of_plane[columns, rows] = adjusted(values[rows, columns])
    return q


def adjusted(p: Floats) -> Floats:
    """Adjusts p for the number of tests (Benjamini and Hochberg, 1995).

    `scipy.stats.false_discovery_control` computes the same, but multiplies in another order, which
    moves a third of all values by up to two units in the last place; it also takes no NaN, and
    SciPy's statistics are slow to import.

    Args:
        p: (N,) p; NaN where there is no test.

    Returns:
        (N,) q; NaN where there is no test.
    """
    q = np.full_like(p, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q
