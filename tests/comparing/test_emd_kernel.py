"""Tests the arithmetic of all pairs: laws, the plain distance, and folds by brute force."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numba.extending import intrinsic

from pipeline.comparing import (
    Curves,
    FoldCurves,
    FoldSums,
    distances,
    estimates,
    fold_sums,
    neuron_estimates,
    paired_estimates,
)
from pipeline.comparing import emd_kernel as pairwise
from pipeline.comparing.coarse_curves import least_distances
from pipeline.comparing.distance import emd
from pipeline.comparing.fold_differences import products_gram
from pipeline.comparing.fold_points import finest_step
from pipeline.comparing.intervals import CHANGES, splits
from pipeline.comparing.noise_kernel import NoiseCurves, noise_sums, swapped
from pipeline.comparing.significance import flip_test, fold_shares, paired_shares
from pipeline.dna import DNA, Lens, Pairs
from pipeline.errors import SpecMismatch, UsageError
from pipeline.spec import FOLDS, Tap
from tests.support.builders import random_dna, tiny_spec
from tests.support.fold_noise import at_points, brute_noise


def some_dnas(
    size: int, neurons: int, bins: int, seed: int = 0, *, positions: int = 3, images: int = 60
) -> list[DNA]:
    spec, ranges = tiny_spec(bins, (Tap("x", neurons, positions),))
    rng = np.random.default_rng(seed)
    return [random_dna(spec, ranges, int(rng.integers(1, images)), seed + i) for i in range(size)]


def pairwise_emd(dnas: list[DNA], weights: np.ndarray | None = None) -> np.ndarray:
    curves = Curves.of(dnas)
    return distances(curves, curves, np.ones(len(dnas[0].counts)) if weights is None else weights)


def plain(a: list[DNA], b: list[DNA], weights: np.ndarray | None = None) -> np.ndarray:
    each = np.array([[emd(x, y, per_neuron=True) for y in b] for x in a])
    if weights is None:
        return each.sum(axis=2)
    return each[..., weights != 0] @ weights[weights != 0]


some_shapes = st.tuples(
    st.integers(1, 11), st.integers(1, 9), st.one_of(st.integers(2, 70), st.just(1000))
)
seeds = st.integers(0, 2**31)


@settings(max_examples=60)
@given(shape=some_shapes, seed=seeds)
def test_weights_are_linear_and_may_be_negative(shape: tuple[int, int, int], seed: int) -> None:
    size, neurons, bins = shape
    dnas = some_dnas(size, neurons, bins, seed)
    weights = np.random.default_rng(seed).normal(0, 1, neurons)
    weights[seed % neurons] = 0
    found = pairwise_emd(dnas, weights)
    expected = plain(dnas, dnas, weights)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.allclose(found, expected, rtol=1e-6, atol=neurons * bins * 2.0**-25, equal_nan=True)
    doubled = pairwise_emd(dnas, 2 * weights)
    assert np.array_equal(doubled, 2 * found, equal_nan=True)
    parts = [
        pairwise_emd(dnas, np.where(np.arange(neurons) == n, weights, 0)) for n in range(neurons)
    ]
    defined = ~np.isnan(found)
    assert np.allclose(np.sum(parts, axis=0)[defined], found[defined], rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(shape=some_shapes, seed=seeds, data=st.data())
def test_laws_of_a_distance_hold_to_the_last_bit(
    shape: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    size, neurons, bins = shape
    dnas = some_dnas(size, neurons, bins, seed)
    found = pairwise_emd(dnas)
    assert np.array_equal(found, found.T, equal_nan=True)
    assert set(np.diag(found)[~np.isnan(np.diag(found))]) <= {0.0}
    triangle = found[:, :, None] + found[None, :, :] >= found[:, None, :]
    assert np.all(triangle | np.isnan(found[:, :, None] + found[None] + found[:, None, :]))
    order = data.draw(st.permutations(range(size)))
    again = pairwise_emd([dnas[i] for i in order])
    assert np.array_equal(again, found[np.ix_(order, order)], equal_nan=True)
    cut = data.draw(st.integers(0, size - 1))
    rectangle = distances(Curves.of(dnas[: cut + 1]), Curves.of(dnas[cut:]), np.ones(neurons))
    assert np.array_equal(rectangle, found[: cut + 1, cut:], equal_nan=True)


@settings(max_examples=30)
@given(shape=some_shapes, seed=seeds, threads=st.integers(1, 5))
def test_blocks_and_threads_do_not_change_distances(
    shape: tuple[int, int, int], seed: int, threads: int
) -> None:
    size, neurons, bins = shape
    dnas = some_dnas(size, neurons, bins, seed)
    curves = Curves.of(dnas)
    weights = np.random.default_rng(seed).normal(0, 1, neurons)
    for w in (np.ones(neurons), weights):
        one = distances(curves, curves, w, threads=1)
        assert np.array_equal(distances(curves, curves, w, threads=threads), one, equal_nan=True)
        rows = [distances(Curves.of([dna]), curves, w)[0] for dna in dnas]
        assert np.array_equal(rows, one, equal_nan=True)
    cut = neurons // 2
    halves = [
        pairwise_emd([replace_neurons(dna, at) for dna in dnas])
        for at in (slice(0, cut), slice(cut, None))
        if len(range(neurons)[at])
    ]
    assert np.array_equal(sum(halves), pairwise_emd(dnas), equal_nan=True)


@pytest.mark.parametrize("signed", [False, True])
def test_distances_of_many_rows_take_little_more_memory_than_they_fill(
    signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are the same to the last bit as if all were computed at once."""
    dnas = some_dnas(11, 12, 17)
    rows = np.random.default_rng(1).integers(0, 11, 601)
    few = Curves.of(dnas)
    many = Curves.empty(12, 601, 17)
    many.values[:, :601], many.sums[:, :601] = few.values[:, rows], few.sums[:, rows]
    many.undefined[:] = few.undefined[:, rows]
    weights = np.random.default_rng(2).normal(0, 1, 12) if signed else np.ones(12)
    sides = [(many, many), (few, many), (many, few)]
    expected = [distances(a, b, weights, threads=2) for a, b in sides]
    monkeypatch.setattr(pairwise, "RESULTS_AT_ONCE", 2**13)
    for (a, b), whole in zip(sides, expected, strict=True):
        assert np.array_equal(distances(a, b, weights, threads=2), whole, equal_nan=True)
    tracemalloc.start()
    try:
        least = least_distances(many, many, weights, 17, threads=2)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * least.nbytes
    finally:
        tracemalloc.stop()


def test_shares_are_added_in_order_and_few_are_held() -> None:
    chance = np.random.default_rng(0).normal(0, 1, (32, 2**15)) * 10.0 ** np.arange(32)[:, None]
    tracemalloc.start()
    try:
        found = pairwise._in_parts(lambda used: chance[used].sum(axis=0), np.arange(32), 1, 2)
        assert tracemalloc.get_traced_memory()[1] < 8 * found.nbytes
    finally:
        tracemalloc.stop()
    assert np.array_equal(found, np.sum(list(chance), axis=0))


@pytest.mark.parametrize("lens", [[0, 39], [3, 4, 5], [0, 1, 20, 21, 38]])
def test_a_lens_takes_memory_for_its_own_neurons_only(
    lens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds however far apart the neurons are."""
    dnas = some_dnas(7, 40, 30)
    made: list[int] = []
    empty = Curves.empty

    def spy(neurons: int, rows: int, bins: int) -> Curves:
        made.append(neurons)
        return empty(neurons, rows, bins)

    monkeypatch.setattr(pairwise.Curves, "empty", spy)
    through = Lens.from_rows("some", dnas[0].spec, [("x", at, 1.0 + at) for at in lens])
    found = pairwise.pairwise_emd(dnas, through)
    assert sum(made) == len(lens)
    expected = [[emd(a, b, lens=through) for b in dnas] for a in dnas]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def replace_neurons(dna: DNA, at: slice) -> DNA:
    cut = {name: getattr(dna, name)[at] for name in ("counts", "underflow", "overflow")}
    return replace(dna, **cut)


@settings(max_examples=30)
@given(shape=some_shapes, seed=seeds, signed=st.booleans())
def test_torch_gives_the_same_bits(shape: tuple[int, int, int], seed: int, signed: bool) -> None:
    """The code for GPUs runs on the CPU here."""
    size, neurons, bins = shape
    dnas = some_dnas(size, neurons, bins, seed)
    a, b = Curves.of(dnas), Curves.of(dnas[::-1][: size // 2 + 1])
    weights = np.random.default_rng(seed).normal(0, 1, neurons) if signed else np.ones(neurons)
    expected = distances(a, b, weights)
    used = np.flatnonzero(weights)
    found = pairwise._on_device(a, b, used, weights, "cpu")
    found[np.isnan(expected)] = np.nan
    if signed:
        assert np.allclose(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        assert np.array_equal(found, expected, equal_nan=True)


def test_extreme_histograms_and_many_bins_do_not_overflow() -> None:
    """One curve is all ones, the other all zeros but the last; no 32-bit sum may overflow."""
    for bins in (2, 17, 1008, 1009, 1010, 5000):
        spec, ranges = tiny_spec(bins, (Tap("x", 3, 1),))
        empty = DNA.empty(spec, ranges)
        low, high = np.zeros((3, bins), np.int64), np.zeros((3, bins), np.int64)
        low[:, 0], high[:, -1] = 7, 11
        ends = [replace(empty, images=1, counts=counts) for counts in (low, high)]
        assert pairwise_emd(ends)[0, 1] == 3 * (bins - 1)
        nothing = np.zeros((3, bins), np.int64)
        seven = np.full(3, 7)
        below = replace(empty, images=7, counts=nothing, underflow=seven)
        above = replace(empty, images=7, counts=nothing, overflow=seven)
        at_ends = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
        assert np.array_equal(pairwise_emd([*ends, below, above]), 3 * (bins - 1) * at_ends)


@pytest.mark.parametrize("features", ["+avx512f,+avx2", "+avx2", ""])
def test_the_sums_do_not_depend_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, features: str
) -> None:
    chosen = pairwise._block_of(features)
    monkeypatch.setattr(pairwise, "_block_of", lambda _: chosen)
    add_maxima = intrinsic(pairwise._add_maxima)

    @njit
    def added(a: np.ndarray, b: np.ndarray, start: int, stop: int, to: np.ndarray) -> None:
        add_maxima(a, 4, b, 8, start, stop, to)

    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**26, (rows, 64 * 16), np.uint32, endpoint=True) for rows in (8, 12))
    a[4], b[8] = 2**26, 2**26  # nothing is greater
    for start, stop in ((0, 63), (63, 64), (5, 9)):
        found = np.ones(16, np.int64)
        added(a, b, start, stop, found)
        mine, theirs = (x[:, 16 * start : 16 * stop].astype(np.int64) for x in (a, b))
        expected = np.maximum(mine[4:8, None], theirs[None, 8:12]).sum(axis=2)
        assert np.array_equal(found, 1 + expected.ravel())


def test_zero_weights_give_zero_and_other_neurons_are_refused() -> None:
    dnas = some_dnas(3, 4, 9)
    assert np.array_equal(pairwise_emd(dnas, np.zeros(4)), np.zeros((3, 3)))
    with pytest.raises(UsageError, match=r"\(neurons, bins\) \(4, 16\) and \(5, 16\)"):
        distances(Curves.of(dnas), Curves.of(some_dnas(3, 5, 9)), np.ones(4))


# Folds.


def in_folds(folds: list[int], neurons: int, bins: int, seed: int) -> tuple[DNA, dict[int, DNA]]:
    """Makes a DNA with folds of the given numbers of images."""
    spec, ranges = tiny_spec(bins, (Tap("x", neurons, 8),))
    parts = {k: random_dna(spec, ranges, images, seed + k) for k, images in enumerate(folds)}
    return reduce(DNA.__add__, parts.values()), parts


def brute_force(
    a: tuple[DNA, dict[int, DNA]],
    b: tuple[DNA, dict[int, DNA]],
    weights: np.ndarray,
    *,
    paired: bool,
) -> dict[str, np.ndarray]:
    """Computes each number in float64, by sums of DNAs and the plain distance."""

    def apart(x: DNA, y: DNA) -> float:
        return float(np.nansum(emd(x, y, per_neuron=True) * weights))

    def folds_of(side: tuple[DNA, dict[int, DNA]]) -> dict[int, DNA]:
        return {number: part for number, part in side[1].items() if part.images}

    def halves(side: tuple[DNA, dict[int, DNA]]) -> list[float]:
        parts = folds_of(side).values()
        return [
            apart(
                *(
                    reduce(DNA.__add__, [p for p, s in zip(parts, row, strict=True) if s == sign])
                    for sign in (1, -1)
                )
            )
            for row in splits(len(parts))
        ]

    def points(side: tuple[DNA, dict[int, DNA]]) -> np.ndarray:
        return np.array([at_points(part) for part in folds_of(side).values()])

    parts = [folds_of(side) for side in (a, b)]
    images = [np.array([part.images for part in of.values()]) for of in parts]
    shares = (
        paired_shares(images[0], np.array([*parts[0]]), images[1], np.array([*parts[1]]))
        if paired
        else fold_shares(*images)
    )
    one, other = (
        np.einsum("kl,lng->kng", of, points(side)) for of, side in zip(shares, (a, b), strict=True)
    )
    step = finest_step(a[0].spec.bins)
    with np.errstate(invalid="ignore"):  # a neuron may have no finite activation in a fold
        added, changes = brute_noise(folds_of(a), folds_of(b), weights, paired=paired)
    return {
        "theta": np.array(apart(a[0], b[0])),
        "added": added,
        "changes": changes,
        "half_a": np.array(halves(a)),
        "half_b": np.array(halves(b)),
        "gram": np.einsum("kng,lng,n->kl", one - other, one - other, weights * step),
    }


@settings(max_examples=15)
@given(
    sizes=st.lists(
        st.lists(st.integers(0, 9), min_size=2, max_size=16).filter(
            lambda folds: sum(n > 0 for n in folds) > 1
        ),
        min_size=2,
        max_size=3,
    ),
    neurons=st.integers(1, 5),
    bins=st.sampled_from([2, 7, 130, 1000]),
    seed=seeds,
    signed=st.booleans(),
    paired=st.booleans(),
)
def test_fold_sums_are_those_by_brute_force(
    sizes: list[list[int]], neurons: int, bins: int, seed: int, signed: bool, paired: bool
) -> None:
    """There are folds of any number and size, also empty ones; some DNAs may be paired."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, neurons) if signed else np.ones(neurons)
    sides = [in_folds(folds, neurons, bins, seed + 100 * i) for i, folds in enumerate(sizes)]
    curves = FoldCurves.of(*zip(*sides, strict=True))
    names = [Pairs.of({n: n // 9 for n in range(9 * i, 9 * i + 9)}, 9) for i in range(len(sizes))]
    curves.pairs[:] = [names[0], names[0] if paired else names[1], *names[2:]]
    square = fold_sums(curves, curves, weights)
    first = FoldCurves.of([sides[0][0]], [sides[0][1]])
    first.pairs[0] = names[0]
    row = fold_sums(first, curves, weights)
    unknown = [any((parts_undefined(p)).any() for p in s[1].values() if p.images) for s in sides]
    scale = np.abs(weights).sum() * bins
    for i, j in ((0, 1), (0, 0), (len(sides) - 1, 0)):
        expected = brute_force(
            sides[i], sides[j], weights, paired=i == j or (paired and i + j == 1)
        )
        for column, values in expected.items():
            index = {"half_a": (0, i), "half_b": (0, j)}
            at = index.get(column, (0, i, j))
            found = found_of(square, column, *at)
            if column != "theta" and (
                (unknown[i] and column != "half_b") or (unknown[j] and column != "half_a")
            ):
                continue
            if column == "theta" and np.isnan(found):
                continue
            there = tuple(slice(0, n) for n in values.shape)
            close = 2e-5 if column in ("added", "changes") else 2e-7  # float32 within a neuron
            judged = np.isfinite(values)
            assert judged.all() or column == "changes"
            mine = found[there]
            assert np.allclose(mine[judged], values[judged], rtol=1e-6, atol=close * scale), column
            outside = found.copy()
            outside[there] = np.nan
            assert np.isnan(outside).all()
            if i == 0 and column != "half_b":
                again = found_of(row, column, 0, 0, *at[2:])
                assert np.allclose(again, found, rtol=1e-6, atol=1e-7 * scale, equal_nan=True)


def found_of(sums: FoldSums, column: str, *at: int) -> np.ndarray:
    """Returns the sums of a pair, or of a DNA; `gram` are the products of paired folds."""
    if column != "gram":
        return np.array(getattr(sums, column)[at])
    return products_gram(sums.products[at], int(sums.tested[at[1:]]))


def parts_undefined(dna: DNA) -> np.ndarray:
    return dna.counts.sum(axis=1) + dna.underflow + dna.overflow == 0


def test_fewer_than_two_folds_and_undefined_folds_are_nan() -> None:
    whole = in_folds([5, 5, 5], 3, 9, 0)
    single = in_folds([5], 3, 9, 50)
    without = (whole[0], {})
    spec, ranges = tiny_spec(9, (Tap("x", 3, 8),))
    dead = random_dna(spec, ranges, 4, 9)
    gone = dead.counts.copy()
    gone[1] = 0
    cut = {c: np.where(np.arange(3) == 1, 0, getattr(dead, c)) for c in ("underflow", "overflow")}
    dead = replace(dead, counts=gone, **cut, nonfinite=np.where(np.arange(3) == 1, 32, 0))
    holed = (whole[0] + dead, {**whole[1], 7: dead})
    curves = FoldCurves.of(*zip(whole, single, without, holed, strict=True))
    sums = fold_sums(curves, curves, np.ones(3))
    assert np.isfinite(sums.theta).all()
    for of in (sums.added, sums.changes):
        assert np.isfinite(of[0, 0, 0]).all()
        assert np.isnan(of[0, 1:]).all()
        assert np.isnan(of[0, :, 1:]).all()
    assert np.isnan(sums.half_a[0, 1:]).all()
    assert np.isnan(sums.products[0, 0, 1:]).all()
    assert np.isnan(sums.products[0, 1:]).all()
    assert np.isfinite(products_gram(sums.products[0, 0, 0], 3)).all()
    seeing = fold_sums(curves, curves, np.array([1.0, 0, 1]))  # without the undefined neuron
    assert np.isfinite(seeing.changes[0, 3, [0, 3]]).all()


def test_splits_are_orthogonal_and_balanced() -> None:
    for folds in range(2, FOLDS + 1):
        rows = splits(folds)
        assert len(rows) >= 1
        assert len({abs(row.sum()) for row in rows}) == 1
        assert {abs(int(row.sum())) for row in rows} <= ({0} if folds % 2 == 0 else {1})
    assert splits(16).shape == (15, 16)
    assert np.array_equal(splits(16) @ splits(16).T, 16 * np.eye(15))


def test_a_neuron_whose_differences_cancel_leans_the_other_way_if_turned_around() -> None:
    """Its mean difference is zero, so the first point that differs decides."""
    draws = np.random.default_rng(0).normal(0, 0.01, (2, 1, 2, 15))
    sides = []
    for whole, noise in zip(([0.25, 0.5], [0.5, 0.25]), draws, strict=True):
        made = NoiseCurves.empty(1, 1, 2)
        made.whole[0, 0, :2], made.rows[0, :, :2, :15] = whole, noise
        made.finish(0)
        sides.append(made)
    one, other = (noise_sums(*pair, np.ones(1))[1] for pair in (sides, sides[::-1]))
    assert (one[0, 0, :, CHANGES.index("by_neuron")] != 0).all()
    np.testing.assert_array_equal(swapped(one), other)


def test_neurons_that_do_not_differ_lean_as_they_do_without_rounding() -> None:
    """A copy with three times the images has the same curves, but for what float64 rounds."""
    whole, parts = in_folds([5] * 16, 40, 129, 0)
    turned = {
        k: replace(of, counts=np.where(np.arange(40)[:, None] % 2, of.counts, of.counts[:, ::-1]))
        for k, of in parts.items()
    }
    thrice = {k: reduce(DNA.__add__, [of] * 3) for k, of in parts.items()}
    sides = [(whole, parts), (reduce(DNA.__add__, thrice.values()), thrice)]
    curves = FoldCurves.of(*zip(*sides, strict=True))
    assert (curves.noise.areas[0] != curves.noise.areas[1]).any()
    other = FoldCurves.of([reduce(DNA.__add__, turned.values())], [turned])
    _, changes = noise_sums(curves.noise, other.noise, np.ones(40))
    np.testing.assert_allclose(changes[1], changes[0], rtol=1e-4, atol=1e-4)
    for of in noise_sums(curves.noise, curves.noise, np.ones(40)):
        np.testing.assert_array_equal(of[0, 1, ..., 0], of[0, 0, ..., 0])


def test_pairs_of_different_numbers_of_folds_have_one_interval_in_either_order() -> None:
    curves = FoldCurves.of(*zip(*(in_folds([5] * n, 3, 130, n) for n in (16, 7)), strict=True))
    curves.pairs[:] = [Pairs.of({n: n // 9 for n in range(9)}, 9)] * 2
    found = estimates(fold_sums(curves, curves, np.ones(3)), 3.0)
    assert (found["paired"] == 1).all()
    for name, of in found.items():
        assert of[0, 0, 1] == of[0, 1, 0], name


def test_stacked_sums_are_means_of_each_layer_and_then_of_all() -> None:
    sides = [in_folds([3, 4, 5, 6], 4, 20, i) for i in (0, 10, 20)]
    curves = FoldCurves.of(*zip(*sides, strict=True))
    weights = [np.array([1.0, 2, 0, 0]), np.array([0, 0, 1.0, -1]), np.zeros(4)]
    layers = [fold_sums(curves, curves, w) for w in weights]
    stacked = FoldSums.stack(layers, [3.0, 2.0, 0.0], whole=True)
    together = fold_sums(curves, curves, weights[0] + weights[1])
    of_dnas = ("images", "tested", "paired", "copied")
    for column in (f.name for f in fields(FoldSums) if not f.name.startswith(of_dnas)):
        planes, of_all = getattr(stacked, column), getattr(together, column)
        assert planes.shape == (4, *of_all.shape[1:])
        assert np.allclose(planes[3], of_all[0] / 5, rtol=1e-6, atol=1e-5, equal_nan=True), column
        assert np.allclose(planes[0] * 3, getattr(layers[0], column)[0], equal_nan=True)
        assert np.isnan(planes[2]).all()
    assert stacked.images_a.tolist() == [[3, 4, 5, 6] + [0] * 12] * 3


# DNAs in memory.


@settings(max_examples=40)
@given(
    size=st.integers(1, 9),
    neurons=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    bins=st.integers(2, 70),
    held=st.sampled_from([1, 500, pairwise.HELD]),
    weighed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_all_pairs_of_dnas_in_memory_are_the_plain_distance(
    size: int, neurons: list[int], bins: int, held: int, weighed: bool, seed: int
) -> None:
    taps = tuple(Tap(f"layer{n}", count, 3) for n, count in enumerate(neurons))
    spec, ranges = tiny_spec(bins, taps)
    rng = np.random.default_rng(seed)
    dnas = [random_dna(spec, ranges, int(rng.integers(1, 60)), seed + i) for i in range(size)]
    weights = rng.integers(-1, 3, sum(neurons)).astype(float)
    weights[0] = 1 + np.count_nonzero(weights < 0)
    lens = (
        Lens("some", tuple((tap.name, tap.neurons) for tap in taps), weights) if weighed else None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairwise, "HELD", held)
        found = pairwise.pairwise_emd(dnas, lens)
    expected = np.array([[emd(a, b, lens=lens) for b in dnas] for a in dnas])
    defined = np.isfinite(expected)
    # A dataset with an undefined neuron has no defined distance, not even to itself.
    assert np.array_equal(np.isfinite(found), defined)
    np.testing.assert_allclose(found[defined], expected[defined], rtol=0, atol=bins * 2.0**-26)


def test_dnas_in_memory_that_cannot_be_compared_are_refused_by_number() -> None:
    spec, ranges = tiny_spec()
    other, its = tiny_spec(7)
    dnas = [random_dna(spec, ranges, 4, seed) for seed in range(2)]
    with pytest.raises(SpecMismatch, match="DNA 3"):
        pairwise.pairwise_emd([*dnas, random_dna(other, its, 4, 1)])
    with pytest.raises(UsageError, match="layers"):
        pairwise.pairwise_emd([dnas[0], dnas[1].select(["stem"])])
    with pytest.raises(UsageError, match="no images"):
        pairwise.pairwise_emd([dnas[0], DNA.empty(spec, ranges)])
    with pytest.raises(UsageError, match="lens other"):
        pairwise.pairwise_emd(dnas, Lens("other", (("stem", 2),), np.ones(2)))
    assert pairwise.pairwise_emd([]).shape == (0, 0)
    assert pairwise.pairwise_emd(dnas[:1]).tolist() == [[0.0]]


# Rounding.


def rarely_firing_folds(seed: int, sizes: Sequence[int], rate: float) -> list[DNA]:
    """Makes folds of images of which a share makes a neuron fire."""
    spec, ranges = tiny_spec(40, (Tap("stem", 300, 4),))
    rng = np.random.default_rng(seed)
    folds = []
    for images in sizes:
        counts = np.zeros((300, 40), np.int64)
        fires = rng.binomial(images, rate, 300)
        counts[:, 0] = 4 * (images - fires)
        counts[:, 30] = 4 * fires
        folds.append(replace(DNA.empty(spec, ranges), images=images, counts=counts))
    return folds


def exact_p(a: Sequence[DNA], b: Sequence[DNA], neuron: int) -> float:
    curves = [
        np.array([fold.counts[neuron, :-1].cumsum() / fold.counts[neuron].sum() for fold in folds])
        for folds in (a, b)
    ]
    apart = curves[0] - curves[1]
    apart[abs(apart) < 1e-12] = 0
    return float(flip_test(apart @ apart.T))


def with_folds(folds: Sequence[DNA]) -> tuple[DNA, dict[int, DNA]]:
    return reduce(DNA.__add__, folds), dict(enumerate(folds))


@pytest.mark.parametrize(("sizes", "rate"), [(range(5, 21), 0.01), ([20] * 16, 0.05)])
def test_p_values_of_rarely_firing_neurons_are_exact(sizes: Sequence[int], rate: float) -> None:
    """This holds for single neurons, and for a lens of one neuron, however many signs tie."""
    a, b = rarely_firing_folds(0, sizes, rate), rarely_firing_folds(1, sizes[::-1], rate)
    p = np.array([exact_p(a, b, neuron) for neuron in range(300)])
    single = [FoldCurves.of([whole], [folds]) for whole, folds in (with_folds(a), with_folds(b))]
    np.testing.assert_allclose(neuron_estimates(*single)["p"], p, atol=1e-12)
    kept = [FoldCurves.of(*zip(*[with_folds(folds)] * 2, strict=True)) for folds in (a, b)]
    for neuron in range(0, 300, 17):
        weights = (np.arange(300) == neuron).astype(float)
        found = estimates(fold_sums(*kept, weights))["p"]
        np.testing.assert_allclose(found, p[neuron], atol=1e-12)


def test_paired_estimates_draw_noise_with_the_same_signs_on_both_sides() -> None:
    """The standard error is about that of leaving out one fold on both sides at once."""
    spec, ranges = tiny_spec(40, (Tap("stem", 30, 49),))
    sides = [[random_dna(spec, ranges, 5 + k, 10 * k + at) for k in range(7)] for at in (0, 1)]
    sums = [with_folds(side) for side in sides]
    found = paired_estimates(*(FoldCurves.of([whole], [folds]) for whole, folds in sums))
    whole = emd(sums[0][0], sums[1][0], per_neuron=True)
    np.testing.assert_allclose(found["emd"], whole, rtol=1e-5)
    for neuron in range(30):
        each = (dict(enumerate(side)) for side in sides)
        _, changes = brute_noise(*each, (np.arange(30) == neuron).astype(float))
        se = np.sqrt((changes[1::2, 0] ** 2).mean())
        assert found["se"][neuron] == pytest.approx(se, rel=1e-4)
    images = np.arange(5, 12)
    rest = [[with_folds([*side[:k], *side[k + 1 :]])[0] for k in range(7)] for side in sides]
    dropped = np.stack([emd(a, b, per_neuron=True) for a, b in zip(*rest, strict=True)], axis=1)
    h = images.sum() / images
    pseudo = h * whole[:, None] - (h - 1) * dropped
    centre = 7 * whole - ((1 - 1 / h) * dropped).sum(axis=1)
    jackknifed = np.sqrt(((pseudo - centre[:, None]) ** 2 / (h - 1)).mean(axis=1))
    assert np.median(found["se"] / jackknifed) == pytest.approx(0.85, abs=0.2)
    assert (
        found["se"] < neuron_estimates(*(FoldCurves.of([w], [f]) for w, f in sums))["se"] * 2
    ).all()


def test_a_small_change_of_the_same_images_is_seen_whichever_folds_there_are() -> None:
    """The images of different folds differ by much more than what the change moves."""
    spec, ranges = tiny_spec(40, (Tap("stem", 30, 49),))
    empty = DNA.empty(spec, ranges)
    numbers, sides = [0, *range(2, 16)], []
    for moved in (0, 1):
        folds = {}
        for number in numbers:
            chance = np.random.default_rng(number)
            at = chance.integers(5, 35, (30, 1)) + chance.integers(-3, 3, (30, 49)) + moved
            counts = np.zeros((30, 40), np.int64)
            np.add.at(counts, (np.arange(30)[:, None], at), 1)
            folds[number] = replace(empty, images=1, counts=counts)
        kept = folds if moved else dict(reversed(folds.items()))  # no matter in which order
        sides.append(FoldCurves.of([reduce(DNA.__add__, folds.values())], [kept]))
    assert paired_estimates(*sides, test=True)["p"].max() < 1e-3
    assert "p" not in paired_estimates(*sides)


@pytest.mark.parametrize("changed", [1, 3])
def test_folds_that_a_change_leaves_alone_have_no_sign(changed: int) -> None:
    """Their curves are those of the whole plus offsets, of which rounding differs."""
    spec, ranges = tiny_spec(1000, (Tap("stem", 8, 4),))
    empty, sides = DNA.empty(spec, ranges), []
    for moved in (0, 1):
        chance = np.random.default_rng(0)
        shares = [chance.dirichlet(np.ones(1000), 8) for _ in range(16)]
        counts = [np.stack([chance.multinomial(10**6, row) for row in of]) for of in shares]
        for of in counts[:changed]:
            of[:, 300] -= moved
            of[:, 700] += moved
        folds = [replace(empty, images=250_000, counts=of) for of in counts]
        whole, parts = with_folds(folds)
        sides.append(FoldCurves.of([whole], [parts]))
    least = 2.0 ** (1 - changed)
    assert estimates(fold_sums(*sides, np.ones(8)))["p"] == least
    assert (neuron_estimates(*sides)["p"] == least).all()


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3)])
def test_equal_folds_show_no_difference_in_float32(sizes: tuple[int, int]) -> None:
    spec, ranges = tiny_spec(40, (Tap("stem", 300, 49),))
    folds = [random_dna(spec, ranges, 5 + k % 3, k) for k in range(16)]
    sides = [FoldCurves.of(*zip(*[with_folds(folds)] * size, strict=True)) for size in sizes]
    assert (estimates(fold_sums(*sides, np.ones(300)))["p"] == 1).all()


def test_a_lens_that_weighs_other_layers_alone_leaves_all_distances_unknown() -> None:
    spec, ranges = tiny_spec()
    dnas = [random_dna(spec, ranges, 10, seed).select(["stem"]) for seed in (1, 2)]
    weights = np.zeros(spec.neurons)
    weights[len(dnas[0].low) :] = 1
    lens = Lens("head", spec.shape, weights)
    assert np.isnan(pairwise.pairwise_emd(dnas, lens)).all()
    assert np.isnan(float(emd(*dnas, lens=lens)))
