"""Tests distances against slow and textbook implementations, and the laws of a metric."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from pipeline.comparing.distance import Distance, emd, fd, nfd
from pipeline.comparing.fold_curves import FoldCurves
from pipeline.comparing.fold_statistics import PAIR_ESTIMATES, FoldSums, estimates, fold_sums
from pipeline.comparing.gaussians import frechet_1d, variance
from pipeline.comparing.pair_estimates import PairEstimates
from pipeline.dna import DNA, HeldFolds, Lens, Pairs
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
from tests.support.builders import NUMERICS, random_dna, tiny_spec

SPEC, RANGES = tiny_spec()
SEEDS = st.integers(0, 2**32 - 1)

dnas = st.builds(lambda n, seed: random_dna(SPEC, RANGES, n, seed), st.integers(1, 40), SEEDS)
dnas_of_two = st.builds(
    lambda n, seed: random_dna(SPEC, RANGES, n, seed), st.integers(2, 40), SEEDS
)


def clamped(dna: DNA) -> list[list[int]]:
    """Returns counts by neuron as Python integers, with values outside in the end bins."""
    rows = []
    for i in range(len(dna.low)):
        row = [int(count) for count in dna.counts[i]]
        row[0] += int(dna.underflow[i])
        row[-1] += int(dna.overflow[i])
        rows.append(row)
    return rows


def transport(p: list[int], q: list[int]) -> Fraction | None:
    """Returns the exact work of moving p onto q: the leftmost count to the leftmost gap."""
    if not sum(p) or not sum(q):
        return None
    earth = [Fraction(value, sum(p)) for value in p]
    holes = [Fraction(value, sum(q)) for value in q]
    work, i, j = Fraction(0), 0, 0
    while i < len(earth) and j < len(holes):
        moved = min(earth[i], holes[j])
        work += moved * abs(i - j)
        earth[i] -= moved
        holes[j] -= moved
        if earth[i] == 0:
            i += 1
        else:
            j += 1
    return work


def all_in(place: str | int, images: int = 3) -> DNA:
    """Makes a DNA with every activation in one bin, or in `underflow`, `overflow`, `nonfinite`."""
    dna = replace(DNA.empty(SPEC, RANGES), images=images, numerics=((NUMERICS, images),))
    if isinstance(place, int):
        counts = np.zeros_like(dna.counts)
        counts[:, place] = images * dna.positions
        dna = replace(dna, counts=counts)
    else:
        dna = replace(dna, **{place: images * dna.positions})
    dna.check()
    return dna


@given(dnas, dnas)
def test_emd_equals_the_work_of_moving_counts_by_hand(a: DNA, b: DNA) -> None:
    found = emd(a, b, per_neuron=True)
    for value, p, q in zip(found, clamped(a), clamped(b), strict=True):
        expected = transport(p, q)
        if expected is None:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(float(expected), rel=1e-12, abs=1e-13)


@settings(max_examples=50)
@given(dnas, dnas)
def test_emd_equals_the_wasserstein_distance_of_scipy(a: DNA, b: DNA) -> None:
    bins = np.arange(SPEC.bins)
    for value, p, q in zip(emd(a, b, per_neuron=True), clamped(a), clamped(b), strict=True):
        if sum(p) and sum(q):
            assert value == pytest.approx(wasserstein_distance(bins, bins, p, q), abs=1e-12)


@given(dnas)
def test_the_distance_of_a_dna_from_itself_is_zero(a: DNA) -> None:
    found = emd(a, a, per_neuron=True)
    assert np.all((found == 0) | np.isnan(found))
    defined = [sum(row) > 0 for row in clamped(a)]
    assert np.array_equal(found == 0, defined)


@given(dnas, dnas)
def test_emd_is_symmetric_and_bounded(a: DNA, b: DNA) -> None:
    there, back = emd(a, b, per_neuron=True), emd(b, a, per_neuron=True)
    assert np.array_equal(there, back, equal_nan=True)
    assert np.nanmin(there, initial=0) >= 0
    assert np.nanmax(there, initial=0) <= SPEC.bins - 1 + 1e-12


@given(dnas, dnas, dnas)
def test_the_triangle_inequality_holds_for_every_neuron(a: DNA, b: DNA, c: DNA) -> None:
    detour = emd(a, b, per_neuron=True) + emd(b, c, per_neuron=True)
    direct = emd(a, c, per_neuron=True)
    known = ~np.isnan(detour)
    assert np.all(direct[known] <= detour[known] + 1e-12)


@given(dnas, st.integers(2, 9))
def test_repeating_the_same_images_gives_no_distance(a: DNA, times: int) -> None:
    many = a
    for _ in range(times - 1):
        many = many + a
    assert np.nanmax(emd(a, many, per_neuron=True), initial=0) < 1e-12


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (0, 4, 4),
        (1, 3, 2),
        ("underflow", 0, 0),
        ("overflow", 4, 0),
        ("underflow", "overflow", 4),
        ("underflow", 4, 4),
        ("overflow", 0, 4),
        ("overflow", 3, 1),
    ],
)
def test_values_outside_the_range_count_in_the_end_bins(
    one: str | int, other: str | int, expected: float
) -> None:
    assert emd(all_in(one), all_in(other, images=5)) == expected


def test_nonfinite_values_are_left_out() -> None:
    a = all_in(2)
    nonfinite = a.nonfinite.copy()
    nonfinite[:] = a.positions
    b = replace(a, images=4, nonfinite=nonfinite, numerics=((NUMERICS, 4),))
    b.check()
    assert emd(a, b) == 0
    assert np.isnan(emd(a, all_in("nonfinite"), per_neuron=True)).all()
    assert np.isnan(emd(a, all_in("nonfinite")))


@pytest.mark.parametrize("distance", [emd, nfd])
@settings(max_examples=30)
@given(a=dnas_of_two, b=dnas_of_two)
def test_means_over_neurons_of_one_layer_and_of_all(distance, a: DNA, b: DNA) -> None:
    each = distance(a, b, per_neuron=True)
    assert each.shape == (5,)
    assert distance(a, b) == pytest.approx(each.mean(), nan_ok=True)
    for layer, part in (("stem", slice(0, 3)), ("head", slice(3, 5))):
        assert np.array_equal(
            distance(a, b, layer=layer, per_neuron=True), each[part], equal_nan=True
        )
        assert distance(a, b, layer=layer) == pytest.approx(each[part].mean(), nan_ok=True)
    assert isinstance(distance(a, b), float)


@pytest.mark.parametrize("distance", [emd, nfd])
def test_unknown_and_unloaded_layers_are_refused(distance) -> None:
    a, b = (random_dna(SPEC, RANGES, 4, seed) for seed in (1, 2))
    with pytest.raises(UsageError, match="no layer 'tail' in tiny; it has stem, head"):
        distance(a, b, layer="tail")
    head = b.select(["head"])
    assert distance(a, head, layer="head") == distance(a, b, layer="head")
    with pytest.raises(UsageError, match=r"\('stem', 'head'\).*\('head',\)"):
        distance(a, head)
    with pytest.raises(CorruptFile, match="layer 'stem' was not loaded; only head"):
        distance(a, head, layer="stem")


def of_samples(means: NDArray[np.float64]) -> DNA:
    """Makes a DNA whose neurons had these spatial means, (images, 5)."""
    images = len(means)
    dna = random_dna(SPEC, RANGES, images, 0)
    mean = means.mean(axis=0)
    return replace(dna, mean=mean, m2=((means - mean) ** 2).sum(axis=0))


@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.floats(0, 100))
def test_nfd_equals_the_textbook_formula(seed: int, n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 2, (n, 5)), rng.normal(shift, 0.5, (m, 5))
    found = nfd(of_samples(x), of_samples(y), per_neuron=True)
    var_x, var_y = x.var(axis=0, ddof=1), y.var(axis=0, ddof=1)
    textbook = (x.mean(0) - y.mean(0)) ** 2 + var_x + var_y - 2 * np.sqrt(var_x * var_y)
    assert np.allclose(found, textbook, rtol=1e-9, atol=1e-9)


@given(dnas_of_two, dnas_of_two)
def test_nfd_is_symmetric_not_negative_and_zero_on_itself(a: DNA, b: DNA) -> None:
    assert nfd(a, b) == nfd(b, a) >= 0
    assert nfd(a, a) == 0
    assert (nfd(a, b, per_neuron=True) >= 0).all()


def test_nfd_is_never_negative() -> None:
    """The formula var + var - 2 sqrt(var var) would be, by rounding."""
    var = np.random.default_rng(0).random(10_000) * 1e6
    mean = np.zeros_like(var)
    assert (frechet_1d(mean, var, mean, var * (1 + 1e-15)) >= 0).all()


def test_variance_divides_by_the_images_less_one() -> None:
    x = np.random.default_rng(1).normal(3, 2, (7, 5))
    assert np.allclose(variance(of_samples(x)), x.var(axis=0, ddof=1), rtol=1e-12)


def test_an_infinite_mean_gives_no_warning() -> None:
    """A network overflowed: the distance is unknown, and warnings would be errors here."""
    a = random_dna(SPEC, RANGES, 4, 1)
    mean, m2 = a.mean.copy(), a.m2.copy()
    mean[2], m2[2] = np.inf, np.nan
    b = replace(a, mean=mean, m2=m2)
    assert np.isnan(nfd(b, b, per_neuron=True)).tolist() == [False, False, True, False, False]
    assert not np.isfinite(nfd(a, b))


@pytest.mark.parametrize("distance", [emd, nfd])
def test_dnas_made_differently_are_refused_with_both_values(distance) -> None:
    other_spec, other_ranges = tiny_spec(bins=7)
    a, b = random_dna(SPEC, RANGES, 3, 1), random_dna(other_spec, other_ranges, 3, 1)
    with pytest.raises(SpecMismatch, match="bins: 5 against 7"):
        distance(a, b)
    with pytest.raises(SpecMismatch, match="bins: 7 against 5"):
        distance(b, a)
    sharper = replace(SPEC.preprocess, resize="fast", height=9)
    two = replace(a, spec=replace(SPEC, preprocess=sharper, weights_sha256="cd" * 32))
    with pytest.raises(SpecMismatch) as caught:
        distance(a, two)
    message = str(caught.value)
    for part in (
        "preprocess.height: 8 against 9",
        "preprocess.resize: 'clean' against 'fast'",
        f"weights_sha256: '{'ab' * 32}' against '{'cd' * 32}'",
    ):
        assert part in message
    assert "bins" not in message


@pytest.mark.parametrize("distance", [emd, nfd])
def test_a_dna_of_no_images_is_refused(distance) -> None:
    a, none = random_dna(SPEC, RANGES, 3, 1), DNA.empty(SPEC, RANGES)
    for pair in ((a, none), (none, a), (none, none)):
        with pytest.raises(UsageError, match="no images"):
            distance(*pair)


@pytest.mark.parametrize("distance", [emd, nfd, fd])
def test_what_is_no_dna_is_refused_by_value_with_what_makes_one(distance) -> None:
    a: Any = random_dna(SPEC, RANGES, 3, 1)
    for pair, which in (((a, "photos"), "second"), (("photos", a), "first")):
        said = rf"the {which} DNA is 'photos', of type str; make_dna\(\.\.\.\) makes a DNA .*load"
        with pytest.raises(UsageError, match=said):
            distance(*pair)
    with pytest.raises(UsageError, match="the first DNA is None"):
        distance(None, Path("photos"))


def test_one_image_has_an_emd_and_no_gaussian() -> None:
    a, one = random_dna(SPEC, RANGES, 3, 1), random_dna(SPEC, RANGES, 1, 2)
    assert emd(a, one, layer="stem") > 0
    for pair in ((a, one), (one, a)):
        with pytest.raises(UsageError, match="at least 2 images; this DNA has 1"):
            nfd(*pair)


# The result of a distance: a number that knows its layers and neurons.


def test_a_distance_behaves_as_a_float() -> None:
    a, b = (random_dna(SPEC, RANGES, 4, seed) for seed in (1, 2))
    found = emd(a, b)
    value = float(found)
    assert type(value) is float
    assert found < value + 1
    assert sum([found, found]) == 2 * value
    assert f"{found:.3f}" == f"{value:.3f}"
    assert (str(found), f"{found}", json.dumps(found)) == (str(value), str(value), str(value))
    assert np.array([found, found]).dtype == np.float64


@pytest.mark.parametrize("measure", [emd, nfd])
def test_a_distance_has_its_layers_and_neurons(measure) -> None:
    a, b = (random_dna(SPEC, RANGES, 4, seed) for seed in (1, 2))
    found = measure(a, b)
    assert found.measure == found.name == measure.__name__
    assert found.layers == {layer: float(measure(a, b, layer=layer)) for layer in a.layers}
    assert np.array_equal(found.neurons, measure(a, b, per_neuron=True))
    assert [*measure(a, b, layer="head").layers] == ["head"]
    assert np.array_equal(measure(a, b, layer="head").neurons, found.neurons[3:])


def test_a_lens_weights_the_means_and_not_single_neurons() -> None:
    a, b = (random_dna(SPEC, RANGES, 4, seed) for seed in (1, 2))
    lens = Lens("some", (("stem", 3), ("head", 2)), np.array([1.0, 0, 3, 0, 2]))
    found, plain = emd(a, b, lens=lens), emd(a, b)
    assert found.lens == "some"
    assert found.name == "emd through some"
    assert np.array_equal(found.neurons, plain.neurons)
    assert found.layers["head"] == plain.neurons[4]
    assert found.layers["stem"] == pytest.approx((plain.neurons[0] + 3 * plain.neurons[2]) / 4)


def test_a_distance_survives_copies_and_pickles() -> None:
    a, b = (random_dna(SPEC, RANGES, 4, seed) for seed in (1, 2))
    found = emd(a, b)
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
        assert isinstance(again, Distance)
        assert (again, again.layers, again.name) == (found, found.layers, "emd")
        assert np.array_equal(again.neurons, found.neurons)


def folded(count: int, seed: int) -> DNA:
    """Returns a DNA that holds `count` folds of random images."""
    parts = [random_dna(SPEC, RANGES, 20 + fold % 3, 1000 * seed + fold) for fold in range(count)]
    whole = reduce(DNA.__add__, parts)
    names = Pairs.of({seed * 100 + k: k for k in range(count)}, count)
    return replace(whole, folds=replace(HeldFolds.of(enumerate(parts)), pairs=names))


def test_two_dnas_with_folds_have_the_error_bars_that_compare_computes() -> None:
    a, b = folded(16, 1), folded(16, 2)
    found = emd(a, b)
    sums = [
        fold_sums(
            *(FoldCurves.of([d.select([la])], [d.folds.read(la)], [d.folds.pairs]) for d in (a, b)),
            np.ones(n),
        )
        for la, n in (("stem", 3), ("head", 2))
    ]
    right = estimates(FoldSums.stack(sums, [3, 2], whole=True))
    for name in PAIR_ESTIMATES:
        assert getattr(found, name) == right[name][2, 0, 0]
        assert [of[name] for of in found.estimates.layers.values()] == right[name][
            :2, 0, 0
        ].tolist()
    assert found.low <= found.emd_corrected <= found.high
    assert repr(found).startswith(
        f"<emd = {found:.6g} bins, corrected {found.emd_corrected:.4g} "
        f"[{found.low:.4g}, {found.high:.4g}], 5 neurons"
    )
    assert found.to_pandas()["high"].tolist() == right["high"][:2, 0, 0].tolist()
    assert found.to_polars().columns == ["layer", "distance", *PAIR_ESTIMATES]
    assert f"<td>{right['high'][0, 0, 0]:.4g}</td>" in found._repr_html_()
    assert emd(a, b, layer="head").high == right["high"][1, 0, 0]
    for again in (pickle.loads(pickle.dumps(found)), copy.copy(found)):
        assert again.estimates == found.estimates


def test_a_lens_weighs_the_error_bars_too_unless_it_has_weights_below_zero() -> None:
    a, b = folded(16, 1), folded(16, 2)
    head = Lens("head", (("stem", 3), ("head", 2)), np.array([0.0, 0, 0, 1, 1]))
    assert emd(a, b, lens=head).high == pytest.approx(emd(a, b, layer="head").high)
    signed = Lens("signed", (("stem", 3), ("head", 2)), np.array([0.0, 0, -1, 1, 1]))
    assert math.isnan(emd(a, b, lens=signed).high)
    assert emd(a, b, layer="head", lens=signed).high == emd(a, b, layer="head").high


def test_without_folds_there_are_no_error_bars() -> None:
    a, plain = folded(16, 1), random_dna(SPEC, RANGES, 4, 2)
    assert emd(a, plain).estimates == PairEstimates()
    assert math.isnan(emd(a, plain).low)
    assert math.isnan(emd(a, folded(1, 3)).se)
    assert not math.isnan(emd(a, folded(2, 3)).se)
    assert math.isnan(nfd(a, folded(16, 2)).low)


def test_a_distance_has_a_readable_repr_and_table() -> None:
    found = Distance(2.5, "emd", {"stem": 2.0, "<head>": 3.0}, np.array([1.0, 3.0, 3.0]))
    assert repr(found) == "<emd = 2.5 bins, 3 neurons in 2 layers, largest in <head>: 3>"
    one = Distance(2.0, "nfd", {"stem": 2.0}, np.array([1.0, 3.0]), "blue")
    assert repr(one) == "<nfd through blue = 2 squared activation in stem, 2 neurons>"
    assert "largest" not in repr(Distance(np.nan, "emd", {"a": np.nan, "b": 1.0}, np.ones(2)))
    html = found._repr_html_()
    assert "<td>&lt;head&gt;</td><td>3</td>" in html
    assert "emd: 2.5 bins" in html
    table = found.to_pandas()
    assert table.to_dict("list") == {"layer": ["stem", "<head>"], "distance": [2.0, 3.0]}
    axes = found.plot()
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0]
    assert axes.get_xlabel() == "emd (bins)"
    assert found.plot(axes) is axes
