"""Tests where the histograms of a neuron part, and which images lie on which side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.explaining.histogram_overlay import overlaid
from pipeline.explaining.parting import PartedLayer, leaning, part

BINS = 60

counts = arrays.arrays(np.int64, BINS, elements=st.integers(0, 50)).filter(np.any)


def curve(of: np.ndarray) -> np.ndarray:
    return np.cumsum(of) / of.sum()


@given(counts, counts)
def test_no_value_tells_two_histograms_apart_better(a: np.ndarray, b: np.ndarray) -> None:
    found = part(curve(a), curve(b), -3.0, 3.0)
    ends = np.linspace(-3, 3, BINS + 1)[1:]
    at = int(np.argmin(np.abs(ends - found.value)))
    above = [of[at + 1 :].sum() / of.sum() for of in (a, b)]
    assert found.value == pytest.approx(ends[at])
    assert found.above == pytest.approx(above, abs=1e-12)
    best = max(abs(a[k:].sum() / a.sum() - b[k:].sum() / b.sum()) for k in range(1, BINS + 1))
    assert abs(found.above[0] - found.above[1]) == pytest.approx(best, abs=1e-12)


@given(counts, counts)
def test_what_one_dataset_leans_to_the_other_leans_away_from(a: np.ndarray, b: np.ndarray) -> None:
    lean = leaning(curve(a), curve(b))
    assert lean.shape == (BINS,)
    assert np.all(np.abs(lean) < 1)
    assert np.allclose(lean, -leaning(curve(b), curve(a)), atol=1e-9)
    assert np.allclose(leaning(curve(a), curve(a)), 0)


def test_the_saturated_end_that_both_have_alike_leans_to_neither() -> None:
    """A third of both lies at the upper end; they differ in the middle."""
    a, b = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    a[[10, 30, 59]], b[[10, 40, 59]] = 100, 100
    lean = leaning(curve(a), curve(b))
    assert lean[30] > 0.9
    assert lean[40] < -0.9
    assert lean[59] == pytest.approx(0, abs=1e-9)
    assert lean[10] == pytest.approx(0, abs=1e-9)


@given(counts, counts)
def test_a_shown_histogram_has_shares_in_real_units(a: np.ndarray, b: np.ndarray) -> None:
    shown = overlaid(curve(a), curve(b), -3.0, 3.0, parts=BINS)
    for heights, of in ((shown.a, a), (shown.b, b)):
        shares = np.array(heights) / 999 * shown.peak
        assert shares.sum() == pytest.approx(1, abs=0.05)
        assert shares.max() == pytest.approx((of / of.sum()).max(), abs=0.01)


@given(
    arrays.arrays(np.float32, (9, 2), elements=st.floats(-4, 4, width=32)),
    arrays.arrays(np.int64, (2, BINS), elements=st.integers(0, 50)),
    arrays.arrays(np.int64, (2, BINS), elements=st.integers(0, 50)),
)
def test_an_image_is_measured_value_by_value(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    a[:, 0] += 1
    b[:, -1] += 1
    x[0, 1] = np.nan
    low, high = np.array([-3.0, -1.0]), np.array([3.0, 2.0])
    above, lean = PartedLayer(low, high, a, b).of_image(x)
    for k in range(2):
        where = part(curve(a[k]), curve(b[k]), low[k], high[k])
        edges = np.linspace(low[k], high[k], BINS + 1)
        values = x[:, k][np.isfinite(x[:, k])].astype(float)
        # Values at an edge of a bin may fall on either side by rounding.
        near = np.abs(values[:, None] - edges).min(axis=1) < 1e-6
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
        table = leaning(curve(a[k]), curve(b[k]))
        if not near.any():
            assert lean[k] == pytest.approx(table[bins].mean(), abs=1e-9)
            cut = round((where.value - low[k]) / (high[k] - low[k]) * BINS) - 1
            assert above[k] == pytest.approx((bins > cut).mean())


def test_a_neuron_without_finite_activations_has_no_side() -> None:
    a, b = np.eye(2, BINS, dtype=np.int64), np.eye(2, BINS, k=3, dtype=np.int64)
    x = np.full((4, 2), np.nan, np.float32)
    above, lean = PartedLayer(np.zeros(2), np.ones(2), a, b).of_image(x)
    assert np.isnan(above).all()
    assert np.isnan(lean).all()
