"""Tests the counting rule against an oracle written from its text, and the laws of counts."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.counting import OVERFLOW, UNDERFLOW, LayerCounts
from pipeline.counting.bin_vectors import NONFINITE
from pipeline.counting.histogram import MOST_RECENT, sum_of_threads
from pipeline.errors import UsageError

Floats = NDArray[np.float64]


def oracle(x: NDArray[np.float32], low: Floats, high: Floats, bins: int) -> NDArray[np.int64]:
    """Counts one value at a time, in Python's float64."""
    table = np.zeros((len(low), bins + 3), np.int64)
    for neuron, (lo, hi) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        centre, half = (lo + hi) / 2, (hi - lo) / 2
        if half == 0:
            half = 1e-8
            lo, hi = centre - half, centre + half
        for value in x[:, :, neuron].ravel().tolist():
            if not math.isfinite(value):
                column = bins + NONFINITE
            elif value < lo:
                column = bins + UNDERFLOW
            elif value > hi:
                column = bins + OVERFLOW
            else:
                v = min(max((value - centre) / half, -1.0), 1.0)
                column = min(int((v + 1) * bins * 0.5), bins - 1)
            table[neuron, column] += 1
    return table


def counted(x: NDArray[np.float32], low: Floats, high: Floats, bins: int) -> LayerCounts:
    counts = LayerCounts(low, high, bins)
    counts.add(x)
    return counts


def same(a: Any, b: Any) -> bool:
    """Compares to the last bit, including NaN and the sign of zero."""
    return bool(np.asarray(a).tobytes() == np.asarray(b).tobytes())


def activations(seed: int, images: int, positions: int, neurons: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 2, (images, positions, neurons)).astype(np.float32)
    return np.where(rng.random(x.shape) < 0.2, np.float32(0), x)


floats32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
ends = st.one_of(
    st.floats(-1e30, 1e30),
    st.floats(-4, 4, width=16),
    st.sampled_from([0.0, -0.0, 5e-324, 1e-323, -1e-310, 1e-45, 1e-8, 1.0, math.nextafter(1, 2)]),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], Floats, Floats, int]:
    """Draws ranges, and values on, near and far from the edges of their bins."""
    bins = draw(st.one_of(st.integers(2, 12), st.integers(2, 2000)))
    neurons = draw(st.integers(1, 3))
    pairs = [sorted([draw(ends), draw(ends)]) for _ in range(neurons)]
    pairs = [[lo, lo] if draw(st.integers(0, 4)) == 0 else [lo, hi] for lo, hi in pairs]
    low, high = np.array(pairs).T
    images, positions = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    x = np.empty((images, positions, neurons), np.float32)
    for at in np.ndindex(x.shape):
        lo, hi = low[at[2]], high[at[2]]
        edge = np.float32(lo + (hi - lo) * (draw(st.integers(0, bins)) / bins))
        near = [
            edge,
            np.nextafter(edge, np.float32(np.inf)),
            np.nextafter(edge, np.float32(-np.inf)),
        ]
        x[at] = draw(st.one_of(st.sampled_from(near), floats32))
    copies = draw(st.sampled_from([1, 8, 9]))  # eight neurons are counted by other code than one
    return np.tile(x, copies), np.tile(low, copies), np.tile(high, copies), bins


@settings(max_examples=200)
@given(cases())
def test_activations_are_counted_as_the_rule_says(
    case: tuple[NDArray[np.float32], Floats, Floats, int],
) -> None:
    x, low, high, bins = case
    expected = oracle(x, low, high, bins)
    counts = counted(x, low, high, bins)
    assert np.array_equal(counts.table, expected)
    assert (counts.table.sum(axis=1) == x.shape[0] * x.shape[1]).all()

    finite = np.where(np.isfinite(x), x, np.nan)
    for neuron in range(len(low)):
        values = finite[:, :, neuron][np.isfinite(finite[:, :, neuron])]
        assert counts.minimum[neuron] == (values.min() if values.size else np.inf)
        assert counts.maximum[neuron] == (values.max() if values.size else -np.inf)


def test_activations_on_edges_fall_where_a_division_puts_them() -> None:
    """Those in range are divided by multiplying, which in one of ten must be corrected."""
    shifts = np.arange(16.0)
    for half in range(3, 600):
        bins = 2 * half  # edges are whole numbers
        steps = np.arange(-half, half + 1.0)
        x = (steps[None, :, None] + shifts).astype(np.float32)
        table = counted(x, shifts - half, shifts + half, bins).table
        columns = np.minimum((steps / half + 1) * bins * 0.5, bins - 1).astype(int)
        assert np.array_equal(table, np.tile(np.bincount(columns, minlength=bins + 3), (16, 1)))


@pytest.mark.parametrize("exponent", [-1040, -1000, -300, -210, -201, -199, 0, 199, 201, 600, 1000])
def test_ranges_of_any_width_are_divided_exactly(exponent: int) -> None:
    """Every neuron counts a zero, which lies anywhere in its range."""
    for half in (3, 7, 49, 110, 463):
        steps, unit = np.arange(-half, half + 1.0), math.ldexp(1, exponent)
        low, high = (-steps - half) * unit, (-steps + half) * unit
        bins = 2 * half
        columns = np.minimum((steps / half + 1) * bins * 0.5, bins - 1).astype(int)
        table = counted(np.zeros((1, 1, len(steps)), np.float32), low, high, bins).table
        assert np.array_equal(table.argmax(axis=1), columns)
        assert (table.sum(axis=1) == 1).all()


@pytest.mark.parametrize("bins", [12, 1000, 1 << 20])
def test_ranges_that_are_narrow_beside_their_centre_are_counted(bins: int) -> None:
    """Their centre is rounded, so an end may be more than a half-width from it."""
    low, high = np.full(8, 2.0**54), 2.0**54 + np.array([4, 8, 12, 12, 20, 24, 28, 36.0])
    x = np.full((1, 2, 8), 2.0**54, np.float32)
    assert np.array_equal(counted(x, low, high, bins).table, oracle(x, low, high, bins))


def test_one_activation_outside_does_not_move_the_others() -> None:
    x = np.full((1, 100, 8), 0.25, np.float32)
    for value, column in [(2.0, 4 + OVERFLOW), (-1.0, 4 + UNDERFLOW), (np.nan, 4 + NONFINITE)]:
        for neuron in (0, 7):
            y = x.copy()
            y[0, 99, neuron] = value
            table = counted(y, np.zeros(8), np.ones(8), 4).table
            expected = np.zeros((8, 7), np.int64)
            expected[:, 1] = 100
            expected[neuron, [1, column]] = 99, 1
            assert np.array_equal(table, expected)


@pytest.mark.parametrize("bins", [2, 3, 10, 255, 256, 1000, 1999])
def test_in_range_counts_equal_those_of_histc(bins: int) -> None:
    x = activations(bins, 4, 300, 5)
    low, high = np.linspace(-3, -0.1, 5), np.linspace(0.05, 4, 5)
    table = counted(x, low, high, bins).table
    centre, half = (low + high) / 2, (high - low) / 2
    for neuron in range(5):
        values = x[:, :, neuron].ravel().astype(np.float64)
        values = values[(values >= low[neuron]) & (values <= high[neuron])]
        v = torch.from_numpy((values - centre[neuron]) / half[neuron])
        expected = torch.histc(v, bins, -1, 1).numpy()
        assert np.array_equal(table[neuron, :bins], expected)


@pytest.mark.parametrize(
    ("positions", "neurons"), [(1, 1), (1, 31), (7, 32), (129, 33), (50, 64), (3, 100), (4100, 1)]
)
def test_counts_are_right_for_any_number_of_positions_and_neurons(
    positions: int, neurons: int
) -> None:
    x = activations(positions, 2, positions, neurons)
    x[0, 0, 0] = np.nan
    low, high = np.full(neurons, -2.0), np.linspace(0.5, 3, neurons)
    assert np.array_equal(counted(x, low, high, 20).table, oracle(x, low, high, 20))


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 9), max_size=4), st.booleans())
@example(0, [], True)
def test_counts_and_means_do_not_depend_on_batches(
    seed: int, cuts: list[int], spoiled: bool
) -> None:
    x = activations(seed, 9, 200, 35)
    if spoiled:
        x[3, 17, 20], x[5, 0, 2], x[8, 199, 34] = np.nan, np.inf, -np.inf
    low, high = np.full(35, -1.5), np.full(35, 2.5)
    whole = LayerCounts(low, high, 100)
    means = whole.add(x)

    parts, threads = [], []
    for part in np.split(x, sorted(cuts)):
        mine = LayerCounts(low, high, 100)
        parts.append(mine.add(np.ascontiguousarray(part)))
        threads.append([mine])
    assert same(np.concatenate(parts), means)
    table, minimum, maximum = sum_of_threads(threads)
    assert same(table, whole.table)
    assert np.array_equal(minimum, whole.minimum)
    assert np.array_equal(maximum, whole.maximum)


@given(st.integers(0, 2**31), st.lists(st.integers(0, 70), max_size=4))
@example(0, [])
@example(1, [8, 33])
def test_the_sum_of_threads_has_the_layers_one_after_the_other(seed: int, cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), 70]
    layers = [slice(start, stop) for start, stop in pairwise(ends) if start < stop]
    x = activations(seed, 2, 90, 70)
    low, high = np.linspace(-3, -1, 70), np.linspace(0.5, 3, 70)
    threads = [[LayerCounts(low[layer], high[layer], 50) for layer in layers] for _ in range(2)]
    for image, counts in zip(x, threads, strict=True):
        for layer, of_layer in zip(layers, counts, strict=True):
            of_layer.add(np.ascontiguousarray(image[None, :, layer]))
    whole = counted(x, low, high, 50)
    table, minimum, maximum = sum_of_threads(threads)
    assert same(table, whole.table)
    assert same(minimum, whole.minimum)
    assert same(maximum, whole.maximum)


def test_means_add_positions_in_order() -> None:
    x = activations(1, 2, 500, 3)
    expected = np.add.accumulate(x.astype(np.float64), axis=1)[:, -1] / 500
    assert same(LayerCounts(np.zeros(3), np.ones(3), 4).add(x), expected)


def test_a_mean_with_a_nonfinite_value_in_it_is_not_finite() -> None:
    x = np.zeros((3, 4, 2), np.float32)
    x[0, 1, 0], x[1, 2, 1] = np.nan, np.inf
    means = LayerCounts(np.zeros(2), np.ones(2), 4).add(x)
    assert same(np.isnan(means), [[True, False], [False, False], [False, False]])
    assert means[1, 1] == np.inf
    assert means[2].tolist() == [0, 0]


def test_counts_without_images_or_finite_values() -> None:
    counts = LayerCounts(np.zeros(2), np.ones(2), 4)
    means = counts.add(np.empty((0, 5, 2), np.float32))
    assert means.shape == (0, 2)
    counts.add(np.full((1, 3, 2), np.nan, np.float32))
    assert counts.minimum.tolist() == [np.inf] * 2
    assert counts.maximum.tolist() == [-np.inf] * 2
    assert counts.table[:, 4 + NONFINITE].tolist() == [3, 3]


@pytest.mark.parametrize("neurons", [1, 8, 70])
@pytest.mark.parametrize(
    "batches",
    [
        [MOST_RECENT, 1, 1],  # as many as fit in 16 bits, and one more
        [MOST_RECENT + 1],
        [40_000] * 5,
        [3 * MOST_RECENT + 7, 5],  # several times full within one image
    ],
)
def test_no_count_wraps(neurons: int, batches: list[int]) -> None:
    counts = LayerCounts(np.zeros(neurons), np.ones(neurons), 2)
    so_far = 0
    for positions in batches:
        counts.add(np.full((1, positions, neurons), 0.75, np.float32))
        so_far += positions
        assert counts.table.tolist() == [[0, so_far, 0, 0, 0]] * neurons


def test_the_sum_of_threads_does_not_wrap_at_32_bits() -> None:
    counts = counted(np.full((1, 3, 1), 0.5, np.float32), np.zeros(1), np.ones(1), 2)
    for start in (2**31 - 1, 2**32 - 1, 2**53):
        table = np.full((1, 5), start)
        counts.add_to(table)
        assert table.tolist() == [[start, start + 3, start, start, start]]


def test_read_only_activations_are_counted_and_not_changed() -> None:
    x = activations(3, 2, 5, 4)
    before = x.copy()
    x.flags.writeable = False
    counted(x, np.zeros(4), np.ones(4), 8)
    y = before.copy()
    counted(y, np.zeros(4), np.ones(4), 8)
    assert same(x, before)
    assert y.flags.writeable


@pytest.mark.parametrize(
    ("low", "high", "bins", "names"),
    [
        ([0, 0, 2], [1, 1, 1], 10, "neuron 2 has the range"),
        ([0, np.nan], [1, 1], 10, "neuron 1 has the range"),
        ([0, 0], [np.inf, 1], 10, "neuron 0 has the range"),
        ([-1e308, 0], [1e308, 1], 10, "neuron 0 has the range"),
        ([0, 0], [1], 10, "shapes"),
        ([[0]], [[1]], 10, "shapes"),
        ([0], [1], 1, "bins is 1"),
        ([0], [1], 1 << 21, "bins is 2097152"),
    ],
)
def test_bad_ranges_are_refused(low: Any, high: Any, bins: int, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        LayerCounts(np.array(low, float), np.array(high, float), bins)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 3, 5), np.float32),
        np.zeros((2, 0, 4), np.float32),
        np.zeros((2, 3, 4), np.float64),
        np.zeros((2, 4, 3), np.float32).transpose(0, 2, 1),
    ],
)
def test_bad_activations_are_refused(x: NDArray[Any]) -> None:
    low, high = np.zeros(4), np.ones(4)
    counts = LayerCounts(low, high, 10)
    with pytest.raises(UsageError, match="activations"):
        counts.add(x)
    assert not counts.table.any()
