"""Tests the sentences that a matrix begins with: they say no more than intervals and tests do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.compare import print_all
from pipeline.comparing import ESTIMATES, Matrix, lone_datasets, widest_split
from pipeline.reporting import bounds_note, headline, headline_sentences
from tests.reporting.test_report import matrix_of, with_estimates, with_nan, with_single


def matrix_at(points: dict[str, float], half: float = 0.5, *alike: tuple[str, str]) -> Matrix:
    """Makes datasets on a line, with intervals of +- `half`; pairs `alike` have q 0.41."""
    names = tuple(points)
    at = np.array(list(points.values()))
    away = np.abs(at[:, None] - at)
    off = ~np.eye(len(at), dtype=bool)
    estimates = {column: np.full((1, *away.shape), np.nan) for column in ESTIMATES}
    for column, values in {
        "emd_corrected": away,
        "low": np.maximum(0, away - half),
        "high": away + half,
        "q": 0.001,
    }.items():
        estimates[column][0][off] = np.broadcast_to(values, away.shape)[off]  # type: ignore[index]
    for a, b in alike:
        i, j = names.index(a), names.index(b)
        estimates["q"][0, i, j] = estimates["q"][0, j, i] = 0.41
    members = {name: f"{i:032x}" for i, name in enumerate(names)}
    emd = away[None] + 1.0 * off
    none = np.full_like(emd, np.nan)
    return Matrix(names, ("all",), emd, none, none, 1000, members, "ab" * 16, estimates=estimates)


def test_an_outlier_is_named_with_bounds_of_its_intervals() -> None:
    said = headline(matrix_at({"a": 0, "b": 2, "c": 5, "far": 40}))
    assert said.startswith(
        "far is the outlier: 34.5 bins or more from all others, which are at most 5.5 bins from "
        "each other."
    )


def test_the_example_of_the_module_has_the_words_of_the_code() -> None:
    example = " ".join((headline_sentences.__doc__ or "").partition("+SKIP\n")[2].split())
    points = {"original": 0, "other-crops": 1, "m": 9.75, "x": 18.5625, "retina": 46.8125}
    said = headline(matrix_at(points, 0.5, ("original", "other-crops")))
    assert example
    assert said.startswith(example)


def test_a_headline_that_names_one_end_of_a_distance_says_once_why() -> None:
    both = 'Here "or more" is the lower end of a 95% interval, and "at most" the upper end.'
    outlier = headline(matrix_at({"a": 0, "b": 2, "c": 5, "far": 40}))
    groups = headline(matrix_at({"a": 0, "b": 1, "x": 60, "y": 62}))
    assert bounds_note(outlier) == bounds_note(groups) == both
    points = {"a": 0.0, "b": 8, "c": 16, "d": 24, "x": 40, "y": 60, "z": 80}
    assert bounds_note(headline(matrix_at(points))) == both
    alike = headline(matrix_at({"a": 0, "b": 0.26}, 0.5, ("a", "b")))
    assert bounds_note(alike) == 'Here "at most" is the upper end of a 95% interval.'
    assert bounds_note(headline(matrix_at({"a": 0, "b": 9}))) == ""
    assert bounds_note(headline(matrix_of("a", "b", "c"))) == ""
    assert bounds_note("") == ""


def test_the_terminal_says_below_the_headline_what_its_ends_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    matrix = matrix_at({"a": 0, "b": 2, "c": 5, "far": 40})
    print_all(matrix, "all", None, fd=False)
    first, second, third, *rest = capsys.readouterr().out.splitlines()
    assert first == headline(matrix)
    assert (second, third) == (bounds_note(first), "")
    assert not any("lower end" in line for line in rest)
    print_all(matrix_at({"a": 0, "b": 9}), "all", None, fd=False)
    assert "upper end" not in capsys.readouterr().out


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=7),
    st.floats(0, 5),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=3),
)
def test_every_end_that_a_headline_names_has_its_words_in_the_note(
    places: list[float], half: float, pairs: list[tuple[int, int]]
) -> None:
    names = [f"d{k}" for k in range(len(places))]
    alike = [(names[a], names[b]) for a, b in pairs if a < len(names) > b != a]
    said = headline(matrix_at(dict(zip(names, places, strict=True)), half, *alike))
    note = bounds_note(said)
    for words in ("or more", "at most"):
        assert (words in said) == (f'"{words.strip()}"' in note), said


def test_there_is_no_outlier_where_intervals_overlap() -> None:
    points = {"a": 0.0, "b": 20, "far": 45}
    assert "far is the outlier: 23.0 bins" in headline(matrix_at(points, 2))
    assert "outlier" not in headline(matrix_at(points, 3))


def test_several_outliers_and_groups_are_named() -> None:
    several = headline(matrix_at({"a": 0, "b": 1, "c": 2, "x": 60, "y": 120}))
    assert several.startswith("x and y are outliers: 57.5 bins or more from each other and from")
    groups = headline(matrix_at({"a": 0, "b": 1, "x": 60, "y": 62}))
    assert groups.startswith(
        "There are 2 groups, 58.5 bins or more apart, and at most 2.5 bins within: a and b; x and y"
    )


def test_datasets_that_stand_alone_are_named_if_there_are_no_groups() -> None:
    """The chain from a to d is longer than its distance to those that stand alone."""
    points = {"a": 0.0, "b": 8, "c": 16, "d": 24, "x": 40, "y": 60, "z": 80}
    said = headline(matrix_at(points, 0.5))
    assert said.startswith(
        "x, y and z stand alone: each is 15.5 bins or more from every other dataset, while each "
        "other one has another that is at most 8.5 bins away."
    )
    one = headline(matrix_at({key: points[key] for key in "abcdx"}, 0.5))
    assert one.startswith("x stands alone: 15.5 bins or more from every other dataset, while each")
    assert "alone" not in headline(matrix_at(points, 4.5))


def test_what_cannot_be_told_apart_is_said_and_not_called_near() -> None:
    points = {"a": 0.0, "b": 1, "c": 10, "d": 30}
    said = headline(matrix_at(points, 0.5, ("a", "b")))
    assert "a and b cannot be told apart." in said
    assert "c is nearest to b and a (9.0 bins from b)." in said
    three = headline(matrix_at(points, 0.5, ("a", "b"), ("a", "c"), ("b", "c")))
    assert "a, b and c cannot be told from each other." in three
    many = [(f"d{k}", f"d{k + 1}") for k in range(0, 16, 2)]
    said = headline(matrix_at({f"d{k}": 3.0 * k for k in range(17)}, 2, *many, ("d1", "d9")))
    assert "9 pairs cannot be told apart, of which d1 is in 2." in said
    chain = headline(matrix_at(points, 0.5, ("a", "b"), ("b", "c")))
    assert "b cannot be told from a and c." in chain


def test_a_dataset_that_others_are_nearest_to_is_named() -> None:
    away = {("o", "p"): 3.0, ("o", "q"): 4.0, ("o", "r"): 5.0}
    matrix = matrix_at(dict.fromkeys("opqr", 0.0))
    for i, a in enumerate("opqr"):
        for j, b in enumerate("opqr"):
            value = away.get((min(a, b), max(a, b)), 9.0)
            for column, shift in {"emd_corrected": 0.0, "low": -0.5, "high": 0.5}.items():
                matrix.estimates[column][0, i, j] = np.nan if i == j else value + shift  # type: ignore[index]
    assert "p, q and r are each nearest to o (3.0 to 5.0 bins)." in headline(matrix)


def test_two_datasets_have_one_sentence() -> None:
    assert headline(matrix_at({"a": 0, "b": 9})) == (
        "a and b differ: they are 9.0 bins apart, with a 95% interval of 8.5 to 9.5."
    )
    assert headline(matrix_at({"a": 0, "b": 0.26}, 0.5, ("a", "b"))) == (
        "a and b cannot be told apart: they are at most 0.76 bins apart."
    )
    same = matrix_at({"a": 0, "b": 0}, 0.5, ("a", "b"))
    same = replace(same, emd=np.zeros_like(same.emd))
    assert headline(same) == (
        "Each neuron has the same distribution in a and b. "
        "a and b cannot be told apart: they are at most 0.50 bins apart."
    )
    assert "Each neuron that the lens weighs has" in headline(replace(same, lens="colour"))
    assert headline(matrix_of("a", "b")) == (
        "a and b are 100.0 bins apart. Whether they differ is not tested."
    )
    assert headline(with_nan(matrix_of("a", "b"), 0, 1)) == ""


def test_without_error_bars_nothing_is_said_to_differ() -> None:
    assert headline(matrix_of("a", "b", "c")) == (
        "No pair is tested, so it is not known which distances are more than chance. The smallest "
        "distance is that of a and b (50.0 bins), the largest a and c (100.0 bins)."
    )


def test_a_dataset_without_error_bars_is_in_no_statement() -> None:
    said = headline(with_single(matrix_of("a", "b", "c", "d", "lone"), 4))
    assert "lone" not in said


def test_datasets_that_all_look_the_same_are_counted() -> None:
    pairs = [(a, b) for a in "abc" for b in "abc" if a < b]
    said = headline(matrix_at(dict.fromkeys("abc", 0.0), 0.5, *pairs))
    assert said == (
        "None of the 3 datasets can be told from another. They are at most 0.50 bins apart."
    )


@pytest.mark.parametrize("count", [2, 3])
def test_what_only_single_layers_tell_apart_is_said(count: int) -> None:
    """Half as bright, small datasets differ in the first layers, and not in the mean of all."""
    names = "abc"[:count]
    pairs = [(a, b) for a in names for b in names if a < b]
    matrix = with_estimates(matrix_of(*names), *[(0, 1), (0, 2), (1, 2)][: len(pairs)])
    but = "Single layers tell"
    assert but not in headline(matrix)
    q = matrix.estimates["q"]
    q[1, 0, 1] = q[1, 1, 0] = 0.026  # above 0.05 / 2, as there are two layers
    assert but not in headline(matrix)
    q[1, 0, 1] = q[1, 1, 0] = 0.024
    which = "a and b apart, which all neurons together do not."
    assert headline(matrix).endswith(f" Single layers tell {which}")
    assert but not in headline(matrix, matrix.layers[1])
    assert but not in headline(matrix, rate=0.01)
    if count > 2:
        q[0, 0, 2] = q[0, 2, 0] = 0.001
        assert "Single layers tell 2 pairs apart" in headline(matrix)
    q[-1, 0, 1] = q[-1, 1, 0] = 0.001  # all neurons together do, too
    assert which not in headline(matrix)


def test_three_hundred_datasets_have_a_few_short_sentences() -> None:
    said = headline(with_estimates(matrix_of(*[f"d{i:03d}" for i in range(300)]), (3, 4), (8, 9)))
    assert "d003 and d004 cannot be told apart. d008 and d009 cannot be told apart." in said
    assert len(said) < 600


def test_the_rate_decides_what_is_told_apart() -> None:
    matrix = matrix_at({"a": 0, "b": 1, "c": 10}, 0.5)
    matrix.estimates["q"][0, 0, 1] = matrix.estimates["q"][0, 1, 0] = 0.03
    assert "cannot be told apart" not in headline(matrix, rate=0.05)
    assert "a and b cannot be told apart." in headline(matrix, rate=0.01)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 9), half=st.floats(0, 8))
def test_every_split_holds_for_all_pairs(seed: int, count: int, half: float) -> None:
    rng = np.random.default_rng(seed)
    where = {f"d{k}": float(at) for k, at in enumerate(rng.normal(0, 10, count))}
    matrix = matrix_at(where, half)
    low, high = matrix.of("all", "low"), matrix.of("all", "high")
    lone = lone_datasets(matrix.corrected(), low, high)
    alone = {i for (i,) in lone.groups}
    for i in range(count) if alone else ():
        others = [j for j in range(count) if j != i]
        if i in alone:
            assert low[i, others].min() >= lone.between > lone.within
        else:
            assert high[i, others].min() <= lone.within
    split = widest_split(matrix.corrected(), low, high)
    if not split.groups:
        return
    assert sorted(i for group in split.groups for i in group) == list(range(count))
    of = {i: g for g, group in enumerate(split.groups) for i in group}
    for i in range(count):
        for j in range(i):
            if of[i] == of[j]:
                assert high[i, j] <= split.within < split.between
            else:
                assert low[i, j] >= split.between > split.within


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 8))
def test_who_is_called_nearest_is_nearest_beyond_the_intervals(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    where = {f"d{k}": float(at) for k, at in enumerate(rng.normal(0, 10, count))}
    matrix = matrix_at(where, float(rng.uniform(0, 3)))
    low, high = matrix.of("all", "low"), matrix.of("all", "high")
    said = headline(matrix).split(". ")[-1]
    who, are, rest = said.partition(" nearest to ")
    if not are:
        return
    hub = matrix.names.index(rest.partition(" (")[0])
    for name in (
        who.removesuffix(" is").removesuffix(" are each").replace(" and ", ", ").split(", ")
    ):
        if name not in matrix.names:  # "4 more"
            continue
        i = matrix.names.index(name)
        others = [j for j in range(count) if j not in (i, hub)]
        assert high[i, hub] < low[i, others].min()


@pytest.mark.parametrize("layer", ["stem", "head", "all"])
def test_a_layer_has_its_own_sentences(layer: str) -> None:
    matrix = with_estimates(matrix_of("a", "b", "c"))
    for values in (matrix.emd, *matrix.estimates.values()):
        values[0] = np.nan
    assert (headline(matrix, layer) == "") == (layer == "stem")
    assert headline(replace(matrix, estimates={}), "all").startswith("No pair is tested")
