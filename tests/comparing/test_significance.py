"""Tests from folds: laws that hold exactly, and false alarms over many samples of one truth."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.comparing import FALSE_DISCOVERY_RATE, LEAST_FOLDS, adjusted
from pipeline.comparing.significance import (
    curve_difference_gram,
    false_discovery,
    flip_test,
    fold_shares,
    paired_shares,
)

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)


def sizes(chance: np.random.Generator, folds: int) -> Array:
    return chance.integers(1, 50, folds).astype(float)


# The test.


@given(seeds, st.integers(LEAST_FOLDS, 11))
def test_the_flip_test_compares_all_choices_of_signs(seed: int, folds: int) -> None:
    """The inner product h of each two differences counts, and twice its cube in the test's unit."""
    chance = np.random.default_rng(seed)
    vectors = chance.normal(size=(folds, 3)) + chance.normal(size=3)
    signs = np.array(list(itertools.product((1, -1), repeat=folds)))
    i, j = np.triu_indices(folds, 1)
    h = (vectors[i] * vectors[j]).sum(axis=1)
    deviation = np.sqrt((h**2).sum())
    w, c = ((signs[:, i] * signs[:, j]) @ (h / deviation) ** power for power in (1, 3))
    tie = 1e-5 * (vectors**2).sum() / (2 * deviation)  # of lengths, which are of both triangles
    expected = (w + 2 * c >= w[0] + 2 * c[0] - tie).mean()
    assert float(flip_test(vectors @ vectors.T)) == pytest.approx(expected, abs=1e-12)


@given(seeds, st.floats(1e-9, 1e9))
def test_the_flip_test_does_not_depend_on_units(seed: int, factor: float) -> None:
    vectors = np.random.default_rng(seed).normal(size=(6, 4))
    gram = vectors @ vectors.T
    assert flip_test(gram * factor) == flip_test(gram)


def test_the_smallest_and_the_greatest_p() -> None:
    assert float(flip_test(np.ones((16, 16)))) == 2.0**-15
    assert float(flip_test(np.zeros((16, 16)))) == 1.0
    assert np.isnan(flip_test(np.full((1, 8, 8), np.nan))).all()
    assert flip_test(np.zeros((0, 8, 8))).shape == (0,)


def test_too_few_folds_to_show_a_difference_give_no_p() -> None:
    """Five differences, however plain, have a p of 1/16; that is no finding of no difference."""
    for folds in range(1, LEAST_FOLDS):
        assert np.isnan(flip_test(np.ones((3, folds, folds)))).all()
    assert float(flip_test(np.ones((LEAST_FOLDS, LEAST_FOLDS)))) < FALSE_DISCOVERY_RATE


@given(seeds, st.integers(2, 6), st.integers(2, 6))
def test_differences_pair_folds_and_merge_the_remaining_ones(
    seed: int, of_a: int, of_b: int
) -> None:
    chance = np.random.default_rng(seed)
    a, b = chance.normal(size=(of_a, 5)), chance.normal(size=(of_b, 5))
    n_a, n_b = sizes(chance, of_a), sizes(chance, of_b)
    pairs = min(of_a, of_b)

    def merged(folds: Array, images: Array) -> Array:
        rows = [np.average(folds[i::pairs], axis=0, weights=images[i::pairs]) for i in range(pairs)]
        return np.array(rows)

    d = merged(a, n_a) - merged(b, n_b)
    shares = fold_shares(n_a, n_b)
    np.testing.assert_allclose(curve_difference_gram(a, b, *shares), d @ d.T, atol=1e-9)


numbers = st.sets(st.integers(0, 15), min_size=1).map(sorted)


@given(seeds, numbers, numbers)
def test_folds_of_one_number_are_paired_and_others_join_the_next_pair(
    seed: int, of_a: list[int], of_b: list[int]
) -> None:
    chance = np.random.default_rng(seed)
    n_a, n_b = sizes(chance, len(of_a)), sizes(chance, len(of_b))
    one, other = paired_shares(n_a, np.array(of_a), n_b, np.array(of_b))
    both = sorted({*of_a} & {*of_b})
    assert one.shape == (len(both), len(of_a))
    assert other.shape == (len(both), len(of_b))
    for shares, of, images in ((one, of_a, n_a), (other, of_b, n_b)):
        for at, number in enumerate(of if both else ()):
            pair = min((n for n in both if n >= number), default=both[0])
            assert (shares[:, at] > 0).tolist() == [n == pair for n in both]
        np.testing.assert_allclose(shares.sum(axis=1), 1)
        for weights in shares:  # in proportion to images
            np.testing.assert_allclose(np.ptp((weights / images)[weights > 0]), 0, atol=1e-12)


@given(seeds, st.sampled_from([0.0, 1e-4, 0.1]), st.booleans())
def test_rounding_is_not_taken_for_a_difference(seed: int, spread: float, dead: bool) -> None:
    """Folds are equal, or a neuron is the same for every image."""
    chance = np.random.default_rng(seed)
    level = np.ones(99) if dead else np.sort(chance.random(99))
    a = level + spread * chance.normal(size=(16, 99))
    b = a + chance.normal(0, 1e-16, a.shape)
    images = sizes(chance, 16)
    shares = fold_shares(images, images)
    gram = curve_difference_gram(a, b, *shares)
    assert (gram == 0).all()
    assert float(flip_test(gram)) == 1
    if spread:
        b = b + 0.01 * spread  # as little as would be found of paired ones
        assert float(flip_test(curve_difference_gram(a, b, *shares))) == 2.0**-15


@settings(max_examples=30)
@given(seeds)
def test_q_is_benjamini_and_hochbergs(seed: int) -> None:
    chance = np.random.default_rng(seed)
    p = np.full((2, 6, 6), np.nan)
    rows, columns = np.triu_indices(6, 1)
    p[:, rows, columns] = chance.uniform(size=(2, 15)) ** 3
    p[1, 0, 1] = np.nan
    p = np.where(np.isnan(p), np.swapaxes(p, 1, 2), p)
    q = false_discovery(p)
    for plane in range(2):
        known = ~np.isnan(p[plane][rows, columns])
        expected = scipy.stats.false_discovery_control(p[plane][rows, columns][known])
        np.testing.assert_allclose(q[plane][rows, columns][known], expected)
    assert np.isnan(q[:, range(6), range(6)]).all()
    assert np.isnan(q[1, 0, 1])
    np.testing.assert_array_equal(q, np.swapaxes(q, 1, 2))


# Rates, over samples of a known truth: images are points on a line, in three clumps of neurons.


NEURONS, POINTS, FOLDS = 12, 10, 16
EDGES = np.linspace(0, 1, POINTS + 1)[1:]


def curves(chance: np.random.Generator, images: int, shift: float = 0.0) -> Array:
    """(images, NEURONS, POINTS) cumulative distributions of single images, skewed, correlated."""
    shared = chance.gamma(2.0, 0.08, (images, 3, 1, 4))
    own = chance.gamma(2.0, 0.08, (images, 3, NEURONS // 3, 4))
    values = (shared + own + shift).reshape(images, NEURONS, 4)
    return (values[..., None] <= EDGES).mean(axis=2)


def folds_of(chance: np.random.Generator, images: int, shift: float = 0.0) -> tuple[Array, Array]:
    """Images of each fold, and sums of their curves."""
    each = curves(chance, images, shift)
    sums = np.stack([each[k::FOLDS].sum(axis=0) for k in range(FOLDS)])
    return np.array([len(each[k::FOLDS]) for k in range(FOLDS)], float), sums


def p_of(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    d = (a[1] / a[0][:, None, None] - b[1] / b[0][:, None, None]).reshape(FOLDS, -1)
    return d @ d.T


@pytest.mark.parametrize("images", [(32, 32), (32, 160)])
def test_false_alarms_come_at_the_nominal_rate(images: tuple[int, int]) -> None:
    chance = np.random.default_rng(2)
    grams = [p_of(folds_of(chance, images[0]), folds_of(chance, images[1])) for _ in range(2000)]
    p = flip_test(np.array(grams))
    for level in (0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, rel=0.2)


def test_skewed_differences_raise_alarms_neither_too_often_nor_hardly_ever() -> None:
    """One image a fold against many, of neurons that rarely fire: the sum alone would alarm at less
    than 2%.
    """
    chance = np.random.default_rng(6)
    one = chance.random((4000, FOLDS, 60)) < 0.03
    many = chance.binomial(100, 0.03, one.shape) / 100
    apart = one - many
    p = flip_test(apart @ apart.transpose(0, 2, 1))
    assert 0.025 <= (p <= 0.05).mean() <= 0.055


def test_symmetric_differences_of_unequal_noise_raise_alarms_at_the_nominal_rate() -> None:
    chance = np.random.default_rng(7)
    apart = chance.standard_t(3, (4000, FOLDS, 5)) * chance.gamma(0.5, size=(4000, FOLDS, 1))
    p = flip_test(apart @ apart.transpose(0, 2, 1))
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level / 4000))


def test_real_differences_are_found() -> None:
    chance = np.random.default_rng(3)
    grams = [p_of(folds_of(chance, 64), folds_of(chance, 64, 0.1)) for _ in range(100)]
    assert (flip_test(np.array(grams)) <= 0.05).mean() > 0.9


def test_adjusted_p_is_scipy_s_up_to_rounding() -> None:
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(0)
    for tests in (1, 2, 3, 66, 1000):
        p = rng.random(tests) ** 3
        np.testing.assert_allclose(adjusted(p), false_discovery_control(p), rtol=1e-15)
