"""Tests clusters, neighbours and the map of datasets by laws that hold for any distances."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from pipeline.comparing import clusters, neighbours, plane_map
from pipeline.comparing.arrangement import defined
from pipeline.dna import Floats


def distances_of(points: Floats) -> Floats:
    return np.sqrt(((points[:, None] - points) ** 2).sum(axis=2))


def points(seed: int, count: int, dimensions: int) -> Floats:
    return np.random.default_rng(seed).normal(0, 10, (count, dimensions))


def length(distances: Floats, order: tuple[int, ...]) -> float:
    """Returns the length of the path through datasets in that order; `clusters` makes it short."""
    return float(sum(distances[a, b] for a, b in pairwise(order)))


def with_holes(distances: Floats, *undefined: int) -> Floats:
    holed = distances.copy()
    for i in undefined:
        holed[i, :] = holed[:, i] = np.nan
    return holed


seeds = st.integers(0, 2**31)


@given(seed=seeds, count=st.integers(0, 25), holes=st.sets(st.integers(0, 24)))
def test_an_order_has_every_dataset_once_and_the_undefined_last(
    seed: int, count: int, holes: set[int]
) -> None:
    lost = sorted(hole for hole in holes if hole < count)
    found = clusters(with_holes(distances_of(points(seed, count, 5)), *lost))
    assert sorted(found.order) == list(range(count))
    if count - len(lost) > 1:  # one that is alone has a distance to itself
        assert found.undefined == tuple(lost)
    assert found.order[count - len(found.undefined) :] == found.undefined


@given(seed=seeds, count=st.integers(2, 25))
def test_the_order_is_never_longer_than_the_plain_one(seed: int, count: int) -> None:
    distances = distances_of(points(seed, count, 4))
    best, plain = clusters(distances), clusters(distances, best=False)
    assert length(distances, best.order) <= length(distances, plain.order) * (1 + 1e-12)
    assert sorted(best.merges[:, 4]) == pytest.approx(sorted(plain.merges[:, 4]))


@given(seed=seeds, count=st.integers(2, 8))
def test_no_other_order_of_the_tree_is_shorter(seed: int, count: int) -> None:
    distances = distances_of(points(seed, count, 4))
    found = clusters(distances)
    branches: dict[tuple[float, float], list[tuple[int, ...]]] = {
        (float(i), 0.0): [(leaf,)] for i, leaf in enumerate(found.order)
    }
    for left, right, low, high, joined in found.merges.tolist():
        both = product(branches.pop((left, low)), branches.pop((right, high)))
        orders = [order for a, b in both for order in (a + b, b + a)]
        branches[((left + right) / 2, joined)] = orders
    (orders,) = branches.values()
    assert len(orders) == 2 ** (count - 1)
    shortest = min(length(distances, order) for order in orders)
    assert length(distances, found.order) == pytest.approx(shortest)


def test_scipy_s_own_leaf_order_is_not_the_shortest() -> None:
    """This is why `clusters` has its own order; once this fails, use SciPy's (its issue 11227)."""
    distances = distances_of(points(0, 20, 4))
    condensed = squareform(distances)
    scipy_order = leaves_list(optimal_leaf_ordering(linkage(condensed, "average"), condensed))
    ours = length(distances, clusters(distances).order)
    assert length(distances, tuple(scipy_order)) > 1.01 * ours


def test_datasets_on_a_line_are_ordered_from_end_to_end() -> None:
    at = np.array([5.0, 0.0, 9.0, 1.0, 6.5])
    found = clusters(np.abs(at[:, None] - at))
    assert sorted((found.order, found.order[::-1])) == [(1, 3, 0, 4, 2), (2, 4, 0, 3, 1)]


@given(seed=seeds, count=st.integers(2, 25))
def test_brackets_join_neighbouring_branches_upwards(seed: int, count: int) -> None:
    """They can be drawn without a crossing: each joins two adjacent stretches of the order."""
    found = clusters(distances_of(points(seed, count, 3)))
    assert found.merges.shape == (count - 1, 5)
    stretches = {(float(i), 0.0): (i, i) for i in range(count)}
    for left, right, low, high, joined in found.merges.tolist():
        a, b = stretches.pop((left, low)), stretches.pop((right, high))
        assert a[1] + 1 == b[0]
        assert joined >= max(low, high) - 1e-12
        stretches[((left + right) / 2, joined)] = (a[0], b[1])
    assert list(stretches.values()) == [(0, count - 1)]


def test_two_groups_are_two_branches() -> None:
    at = np.array([0.0, 100.0, 1.0, 101.0])
    found = clusters(np.abs(at[:, None] - at))
    assert {frozenset(found.order[:2]), frozenset(found.order[2:])} == {
        frozenset({0, 2}),
        frozenset({1, 3}),
    }
    assert found.merges[:, 4].tolist() == [1.0, 1.0, 100.0]


@given(seed=seeds, count=st.integers(1, 25), dimensions=st.integers(1, 2))
def test_a_map_of_points_in_the_plane_is_faithful(seed: int, count: int, dimensions: int) -> None:
    distances = distances_of(points(seed, count, dimensions))
    found = plane_map(distances)
    assert distances_of(found.points) == pytest.approx(distances, abs=1e-5)
    assert found.stress == pytest.approx(0, abs=1e-6)


@given(seed=seeds, count=st.integers(5, 25))
def test_stress_measures_how_badly_the_map_fits(seed: int, count: int) -> None:
    distances = distances_of(points(seed, count, 20))
    found = plane_map(distances)
    drawn = distances_of(found.points)
    off = np.sqrt(((drawn - distances) ** 2).sum() / (distances**2).sum())
    assert found.stress == pytest.approx(off)
    assert 0.01 < found.stress < 1


@given(seed=seeds, count=st.integers(2, 12), hole=st.integers(0, 11))
def test_datasets_without_distances_are_not_on_the_map(seed: int, count: int, hole: int) -> None:
    distances = distances_of(points(seed, count, 2))
    found = plane_map(with_holes(distances, hole % count))
    if count > 2:
        assert np.isnan(found.points).all(axis=1).tolist() == [
            i == hole % count for i in range(count)
        ]
    kept = [i for i in range(count) if i != hole % count]
    alone = plane_map(distances[np.ix_(kept, kept)])
    if count > 2:
        assert distances_of(found.points[kept]) == pytest.approx(distances_of(alone.points))


@given(seed=seeds, count=st.integers(2, 12))
def test_neighbours_come_nearest_first(seed: int, count: int) -> None:
    distances = distances_of(points(seed, count, 3))
    found = neighbours(distances, 0)
    assert sorted((0, *found)) == list(range(count))
    assert np.all(np.diff(distances[0, list(found)]) >= 0)
    holed = distances.copy()
    holed[0, found[0]] = np.nan
    assert neighbours(holed, 0) == found[1:]


def test_one_undefined_distance_excludes_one_dataset() -> None:
    distances = distances_of(points(1, 4, 2))
    distances[1, 3] = distances[3, 1] = np.nan
    assert defined(distances) == (0, 1, 2)
    assert clusters(distances).undefined == (3,)


def test_identical_or_very_few_datasets_are_arranged() -> None:
    for count in range(4):
        same = np.zeros((count, count))
        assert sorted(clusters(same).order) == list(range(count))
        assert plane_map(same).stress == 0
        assert plane_map(same).points == pytest.approx(np.zeros((count, 2)))
    nothing = np.full((3, 3), np.nan)
    assert clusters(nothing).undefined == (0, 1, 2)
    assert np.isnan(plane_map(nothing).points).all()
