"""Tests which neurons an explanation begins with, and which are taken for repeats of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dna import Exemplars, ExemplarSettings
from pipeline.explaining.explanation import NEURONS
from pipeline.explaining.network_stages import STAGES
from pipeline.explaining.neuron_groups import CORRELATED, choose_groups, numbered
from pipeline.spec import Tap
from tests.support.builders import tiny_spec

LAYERS = dict(zip(("edge", "weave", "form", "thing"), STAGES, strict=True))
DEEP = list(reversed(STAGES))


def table_of(layers: Sequence[str], q: Sequence[float | None]) -> pa.Table:
    rows = [
        {"layer": layer, "neuron": k, "emd": 1.0 + len(layers) - k, "q": one, "weight": 1.0}
        for k, (layer, one) in enumerate(zip(layers, q, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=NEURONS)


def apart(count: int, seed: int = 0) -> np.ndarray:
    """Makes rows that are not correlated: a row is orthogonal to all others."""
    rows = np.linalg.qr(np.random.default_rng(seed).normal(size=(32, 32)))[0]
    return rows[:count].astype(np.float32)


def groups(
    layers: Sequence[str],
    moves: np.ndarray,
    top: int = 20,
    q: Sequence[float | None] | None = None,
    kept: Sequence[np.ndarray | None] = (None, None),
) -> list[tuple[int, list[int]]]:
    table = table_of(layers, q or [0.001] * len(layers))
    return choose_groups(table, LAYERS, moves, kept, top)


@given(
    st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=30),
    st.integers(1, 12),
)
def test_groups_are_disjoint_come_deep_first_and_are_spread_over_the_stages(
    layers: list[str], top: int
) -> None:
    some = np.random.default_rng(len(layers)).integers(0, 6, len(layers))
    found = groups(layers, apart(6)[some], top)
    named = [place for first, others in found for place in (first, *others)]
    assert len(set(named)) == len(named)
    stages = [LAYERS[layers[first]] for first, _ in found]
    assert stages == sorted(stages, key=DEEP.index)
    assert len(found) <= top
    for stage in set(stages):
        firsts = [first for first, _ in found if LAYERS[layers[first]] == stage]
        assert firsts == sorted(firsts)  # the furthest apart first
    for first, others in found:
        assert all(other > first and some[other] == some[first] for other in others)
        assert {LAYERS[layers[other]] for other in others} <= {LAYERS[layers[first]]}
        same = [k for k, layer in enumerate(layers) if LAYERS[layer] == LAYERS[layers[first]]]
        assert [first, *others] == [k for k in same if some[k] == some[first]]
    every = {(LAYERS[layer], int(one)) for layer, one in zip(layers, some, strict=True)}
    assert len(found) == min(top, len(every))
    if len(every) > top:  # no stage has two more than another that has some left
        has = {stage: stages.count(stage) for stage in {stage for stage, _ in every}}
        could = {stage: sum(one == stage for one, _ in every) for stage in has}
        assert all(
            has[one] <= has[other] + 1 or has[other] == could[other] for one in has for other in has
        )


@pytest.mark.parametrize("sign", [1, -1])
def test_neurons_join_from_the_stated_correlation_on(sign: int) -> None:
    one, other = apart(2)
    for correlation in (CORRELATED - 0.02, CORRELATED + 0.02):
        second = sign * (correlation * one + np.sqrt(1 - correlation**2) * other)
        found = groups(["thing", "thing"], np.stack([one, 7 * second]))
        joined = correlation >= CORRELATED
        assert found == ([(0, [1])] if joined else [(0, []), (1, [])])


def test_neurons_without_folds_join_none() -> None:
    nothing = np.zeros((3, 32), np.float32)
    assert groups(["thing"] * 3, nothing, q=[None] * 3) == [(0, []), (1, []), (2, [])]


def test_neurons_of_too_few_folds_for_a_test_join_none_by_their_means() -> None:
    """With two folds of each dataset, every other pair of neurons correlates by chance."""
    same = apart(1)[[0, 0, 0]]
    assert groups(["thing"] * 3, same, q=[None] * 3) == [(0, []), (1, []), (2, [])]
    assert groups(["thing"] * 3, same, q=[0.01, 0.01, None]) == [(0, [1, 2])]


def test_neurons_that_are_not_told_apart_are_left_out_unless_none_differs() -> None:
    layers = ["edge", "thing", "thing", "edge"]
    assert groups(layers, apart(4), q=[0.5, 0.2, 0.01, 0.01]) == [(2, []), (3, [])]
    same = apart(1)[[0, 0, 0, 0]]
    assert groups(layers, same, q=[0.5] * 4) == [(1, []), (2, []), (0, []), (3, [])]


def test_neurons_of_the_same_exemplars_in_both_datasets_join() -> None:
    a = np.array([[1, 2, 3, 4], [1, 2, 3, 9], [1, 2, 8, 9], [-1] * 4])
    same = groups(["thing"] * 4, apart(4), kept=(a, a))
    assert same == [(0, [1]), (2, []), (3, [])]
    other = np.arange(16).reshape(4, 4)
    assert len(groups(["thing"] * 4, apart(4), kept=(a, other))) == 4
    assert len(groups(["thing"] * 4, apart(4), kept=(a, None))) == 4


def test_exemplars_are_numbered_by_image_and_ties_are_left_out() -> None:
    """At the upper end of a clipped layer reactions are equal, and the names decide."""
    spec, _ = tiny_spec(8, (Tap("stem", 3, 4), Tap("head", 2, 1)))
    rows = [
        {"neuron": neuron, "reaction": reaction, "uri": f"s3://b/{image}", "member": ""}
        for neuron, reactions, images in (
            (0, (4.0, 3.0, 2.0, 1.0), "abcd"),
            (2, (6.0, 6.0, 6.0, 6.0), "abcd"),
            (3, (9.0, 3.0, 2.0, 1.0), "dcbx"),
        )
        for reaction, image in zip(reactions, images, strict=True)
    ]
    empty = Exemplars.empty(ExemplarSettings(4), spec)
    held = Exemplars(empty.settings, spec, pa.Table.from_pylist(rows, schema=empty.rows.schema))
    found = numbered(held, [("head", 0), ("stem", 0), ("stem", 1), ("stem", 2)], 16)
    assert found is not None
    assert (found[2:] == -1).all()
    assert set(found[0]) & set(found[1]) == {found[1][3], found[1][2], found[1][1]}
    assert numbered(None, [("head", 0)], 16) is None
    few = Exemplars.empty(ExemplarSettings(2), spec)
    assert numbered(few, [("head", 0)], 16) is None
    # Of few images, all neurons have the same exemplars, whatever they react to.
    assert numbered(held, [("head", 0)], 15) is None
