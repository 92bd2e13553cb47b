"""Tests the printed matrix, which is never broken at any width, and the printed sentences."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.building import Movement
from pipeline.comparing import ESTIMATES, Matrix, Measure
from pipeline.dna import Lens
from pipeline.errors import UsageError
from pipeline.explaining import Candidate
from pipeline.reporting import (
    DIFFERENT,
    headline,
    neighbour_lines,
    print_matrix,
    sentences_heading,
    summary_sentence,
    terminal,
    verdicts,
)
from pipeline.reporting.conclusions import (
    ALIKE,
    UNTESTED,
    from_zero_note,
    matrix_sentences,
    nearest_sentences,
    plain_note,
    uncorrected,
    wide_note,
)
from pipeline.reporting.dataset_words import place_among
from pipeline.reporting.drift_words import move_told
from pipeline.reporting.explanation_tables import _measured
from pipeline.reporting.suggestion_words import _distance
from pipeline.sources import DATASETS
from pipeline.wording import options_as_flags


def matrix_of(*names: str, scale: float = 100.0, bins: int = 1000) -> Matrix:
    """Makes two layers in which datasets i and j have a distance of scale * |i - j| / (n - 1)."""
    at = np.arange(len(names))
    plane = scale * np.abs(at[:, None] - at) / max(1, len(names) - 1)
    emd = np.stack([plane / 2, plane * 1.5, plane])
    members = {name: f"{i:032x}" for i, name in enumerate(names)}
    return Matrix(names, ("stem", "head"), emd, emd.copy(), emd * 1000, bins, members, "ab" * 16)


def with_nan(matrix: Matrix, *undefined: int) -> Matrix:
    for i in undefined:
        matrix.emd[:, i, :] = matrix.emd[:, :, i] = np.nan
    return matrix


def with_estimates(matrix: Matrix, *alike: tuple[int, int]) -> Matrix:
    """Adds estimates: corrected by 1, +- 0.5; pairs `alike` have q 0.41, others 0.001."""
    estimates = {column: np.full_like(matrix.emd, np.nan) for column in ESTIMATES}
    off = ~np.eye(len(matrix.names), dtype=bool)
    estimates["emd_corrected"][:, off] = matrix.emd[:, off] - 1
    estimates["low"][:, off] = matrix.emd[:, off] - 1.5
    estimates["high"][:, off] = matrix.emd[:, off] - 0.5
    estimates["se"][:, off] = 0.25
    estimates["floor"][:, off] = 1.0
    for column in ("p", "q"):
        estimates[column][:, off] = 0.001
        for i, j in alike:
            estimates[column][:, i, j] = estimates[column][:, j, i] = 0.41
    return replace(matrix, estimates=estimates)


def with_single(matrix: Matrix, at: int) -> Matrix:
    """Adds estimates to all datasets but one, which has a single fold."""
    matrix = with_estimates(matrix)
    for column in ESTIMATES:
        matrix.estimates[column][:, at] = matrix.estimates[column][:, :, at] = np.nan
    return matrix


def printed(matrix: Matrix, width: int = 80, layer: str = "all") -> list[str]:
    """Returns the lines of the table, its header line first."""
    out = io.StringIO()
    print_matrix(matrix, Console(file=out, width=width), layer)
    title, *lines = out.getvalue().splitlines()
    assert title.startswith("Earth Mover's Distance of")
    assert "…" not in out.getvalue()
    return lines


def title_of(matrix: Matrix, layer: str = "all", distance: Measure = "emd") -> str:
    print_matrix(matrix, Console(file=(out := io.StringIO()), width=80), layer, distance)
    return out.getvalue().splitlines()[0]


def rows(matrix: Matrix, width: int = 80, layer: str = "all") -> list[list[str]]:
    """Returns the cells after the row's number and name."""
    header, *lines = printed(matrix, width, layer)
    assert header.split() == ["dataset", *(str(i + 1) for i in range(len(matrix.names)))]
    found = []
    for i, (name, line) in enumerate(zip(matrix.names, lines, strict=True), 1):
        assert line.split()[0] == str(i)
        assert name in line
        found.append(line.partition(name)[2].split())
    return found


def test_eleven_datasets_fit_eighty_columns() -> None:
    matrix = matrix_of(*DATASETS, scale=180.0)
    assert len(matrix.names) == 11
    assert max(len(line) for line in printed(matrix)) <= 80
    assert rows(matrix)[0] == ["0", *(f"{180 * j / 10:.0f}" for j in range(1, 11))]


def test_a_decimal_is_shown_if_there_is_room() -> None:
    matrix = matrix_of(*DATASETS, scale=180.0)
    assert rows(matrix, width=120)[0] == ["0", *(f"{18.0 * j:.1f}" for j in range(1, 11))]
    few = matrix_of("a", "b", "c", scale=12.34)
    assert rows(few) == [["0", "6.2", "12.3"], ["6.2", "0", "6.2"], ["12.3", "6.2", "0"]]


@pytest.mark.parametrize("width", [10, 20, 80, 250])
def test_a_table_that_does_not_fit_is_replaced_by_the_nearest_pairs(width: int) -> None:
    names = [f"some/long-group/of-datasets/number-{i:02d}" for i in range(60)]
    lines = printed(matrix_of(*names, scale=999.0), width)
    assert lines[0].endswith("too wide for here; the nearest 20 pairs of 1,770:")
    for line in lines[1:21]:
        value, a, b = line.split()
        assert (float(value), abs(names.index(a) - names.index(b))) == (16.9, 1)
    assert lines[21:] == ["1,750 farther pairs are left out: --out and --html write them all"]


def test_pairs_without_a_distance_are_counted_where_pairs_are_listed() -> None:
    lines = printed(with_nan(matrix_of("a", "b", "c", "d" * 80), 1))
    assert lines[0].endswith("the nearest 3 pairs of 6:")
    assert lines[4:] == ["3 pairs have no distance that is defined"]


def test_no_table_is_made_of_many_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_table", lambda *_: pytest.fail("it takes minutes"))
    assert printed(matrix_of(*[f"d{i}" for i in range(41)]))[0].startswith("41 datasets make a")


def test_neighbours_are_all_others_nearest_first() -> None:
    matrix = with_estimates(with_nan(matrix_of("a", "b", "c", "far", "lost"), 4), (1, 2))
    assert neighbour_lines(matrix, "b") == [
        "  a    24.0 [23.5, 24.5]  q 0.001",
        "~ c    24.0 [23.5, 24.5]  q 0.41",
        "  far  49.0 [48.5, 49.5]  q 0.001",
        "  1 at no distance that is defined",
        "~ not told apart at a false discovery rate of 5%",
    ]
    plain = matrix_of("a", "b", "c")
    assert neighbour_lines(plain, "a") == ["  b  50.0", "  c  100.0"]
    assert sentences_heading(plain, near="a") == (
        "From a, the nearest first, in bins, not corrected for the sizes of the samples:"
    )


def test_pairs_not_told_apart_are_marked_dim_and_explained() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c"), (0, 1))
    lines = printed(matrix)
    assert [line.rstrip() for line in lines[1:]] == [
        "1 a           0 ~49.0 99.0",
        "2 b       ~49.0     0 49.0",
        "3 c        99.0  49.0    0",
        "~ not told apart at a false discovery rate of 5%",
    ]
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="truecolor")
    print_matrix(matrix, console)
    assert out.getvalue().count("\x1b[2m~49.0") == 2
    assert not any("~" in line for line in printed(with_estimates(matrix_of("a", "b"))))
    print_matrix(matrix, Console(file=(other := io.StringIO()), width=80), distance="fd")
    assert "~" not in other.getvalue()  # the test was of the Earth Mover's Distance
    matrix.estimates["q"][:, 0, 2] = matrix.estimates["q"][:, 2, 0] = np.nan
    marked = printed(matrix)
    assert marked[1].split()[2:] == ["0", "~49.0", "?99.0"]
    assert marked[-1] == "~ not told apart at a false discovery rate of 5%; ? not tested"
    matrix.estimates["q"][:] = np.nan
    assert not any("?" in line for line in printed(matrix))
    far = "d" * 90
    assert "   ~49.0  a" in "\n".join(printed(with_estimates(matrix_of("a", "b", far), (0, 1))))


@pytest.mark.parametrize(
    "name",
    ["[red]x", "[/]", "[bold]", "<script>", "a[link=http://x]b", ":smile:", "a-very/long_name.1"],
)
def test_names_are_printed_as_they_are(name: str) -> None:
    matrix = matrix_of(name, "b")
    assert rows(matrix) == [["0", "100.0"], ["100.0", "0"]]
    assert any(name in line for line in nearest_sentences(matrix))


def test_a_layer_of_the_matrix() -> None:
    matrix = matrix_of("a", "b", scale=10.0)
    assert rows(matrix, layer="stem") == [["0", "5.0"], ["5.0", "0"]]
    assert rows(matrix, layer="head") == [["0", "15.0"], ["15.0", "0"]]
    with pytest.raises(UsageError, match="no layer 'tail' in this matrix; it has stem, head"):
        printed(matrix, layer="tail")


def test_the_title_names_the_layer_and_the_bins() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    print_matrix(matrix_of("a", "b", bins=123), console)
    print_matrix(matrix_of("a", "b", bins=123), console, "stem")
    assert "of all neurons, in bins (123 to a neuron's range)" in out.getvalue()
    assert "of stem, in bins" in out.getvalue()


def test_the_farther_the_darker_and_equal_distances_look_alike() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system="truecolor")
    print_matrix(matrix_of("a", "b", "c", "d"), console)
    cell = re.compile(r"48;2;(\d+);(\d+);(\d+)m *([0-9.]+)")
    found: dict[str, set[int]] = {}
    for red, green, blue, value in cell.findall(out.getvalue()):
        found.setdefault(value, set()).add(int(red) + int(green) + int(blue))
    assert list(found) == ["33.3", "66.7", "100.0"]
    near, middle, far = found.values()
    assert {len(near), len(middle), len(far)} == {1}
    assert max(far) < max(middle) < max(near)


def test_undefined_distances_are_printed_as_such() -> None:
    matrix = with_nan(matrix_of("a", "b", "c"), 1)
    assert rows(matrix) == [["0", "nan", "100.0"], ["nan"] * 3, ["100.0", "nan", "0"]]
    all_undefined = with_nan(matrix_of("a", "b"), 0, 1)
    assert rows(all_undefined) == [["nan", "nan"], ["nan", "nan"]]
    assert len(nearest_sentences(all_undefined)) == 1


def test_undefined_distances_are_never_nearest_or_farthest() -> None:
    first, second, *_ = nearest_sentences(with_nan(matrix_of("x", "a", "b", "c"), 0))[1:]
    assert first == "a  nearest b 33.3, farthest c 66.7"
    assert second == "b  nearest a 33.3, farthest c 33.3"


def test_sentences_name_the_nearest_and_the_farthest() -> None:
    assert nearest_sentences(matrix_of("a", "middle", "c", "far")) == [
        "a       nearest middle 33.3, farthest far 100.0",
        "middle  nearest a 33.3, farthest far 66.7",
        "c       nearest middle 33.3, farthest a 66.7",
        "far     nearest c 33.3, farthest a 100.0",
    ]


def test_one_distance_is_printed_once() -> None:
    pair = matrix_of("a", "b")
    assert nearest_sentences(pair, "stem") == ["a to b 50.0"]
    assert sentences_heading(pair) == (
        "Distance, in bins, not corrected for the sizes of the samples:"
    )
    assert nearest_sentences(with_estimates(matrix_of("a", "b"), (0, 1))) == [
        "a to b 99.0 [98.5, 99.5]; not told apart (q 0.41)"
    ]
    assert nearest_sentences(with_nan(matrix_of("a", "b"), 0)) == [
        "a and b are at no distance that is defined"
    ]
    matrix = with_estimates(matrix_of("a", "b", "c"), (0, 1))
    assert nearest_sentences(matrix)[0] == (
        "a  not told apart from b (q 0.41); the other one is c 99.0 [98.5, 99.5]"
    )
    assert nearest_sentences(matrix)[2].startswith("c  nearest b 49.0 [48.5, 49.5], farthest a")


def test_sentences_have_intervals_and_q() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c", "d", scale=30.0), (0, 1))
    c, d = "c 19.0 [18.5, 19.5]", "d 29.0 [28.5, 29.5]"
    assert nearest_sentences(matrix) == [
        f"a  not told apart from b (q 0.41); of the others nearest {c}, farthest {d}",
        "b  not told apart from a (q 0.41); of the others nearest c 9.0 [8.5, 9.5], farthest d "
        "19.0 [18.5, 19.5]",
        "c  nearest b 9.0 [8.5, 9.5], farthest a 19.0 [18.5, 19.5]",
        "d  nearest c 9.0 [8.5, 9.5], farthest a 29.0 [28.5, 29.5]",
    ]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((0.0, 0.0, 0.0374), "0.00 [0.00, 0.04]"),
        ((6.73, 0.0004, 9.0), "6.7300 [0.0004, 9.0000]"),
        ((0.0, 0.0, 1e-9), "0.0000 [0.0000, 0.0001]"),
        ((1.2, 0.07, 2.44), "1.20 [0.07, 2.44]"),
        ((0.0, 0.0, 0.0), "0.0 [0.0, 0.0]"),
    ],
)
def test_an_end_above_zero_is_never_printed_as_zero(
    numbers: tuple[float, float, float], told: str
) -> None:
    value, low, high = numbers
    matrix = with_estimates(matrix_of("a", "b"), (0, 1) if low == 0 else (0, 0))
    of = matrix.estimates
    for planes, number in zip((of["emd_corrected"], of["low"], of["high"]), numbers, strict=True):
        planes[:, [0, 1], [1, 0]] = number
    assert nearest_sentences(matrix)[0].startswith(f"a to b {told}")
    assert move_told(Movement(1.0, *numbers, 0.1, 0.1, 0.5, 1.0)) == told
    candidate = Candidate("b", 1, 9, 1.0, *numbers, False, 0.5, 1.0)
    assert _distance(candidate) == told
    row = {"emd": 1.0, "emd_corrected": value, "low": low, "high": high, "q": 0.5}
    assert _measured(row)["corrected [95%]"] == told
    if low > 0:
        distance, least, most = re.findall(r"[\d.]+", told)
        assert f"b ({distance} bins, 95% interval {least} to {most})" in place_among(matrix, "a")
        apart = f"{distance} bins apart, with a 95% interval of {least} to {most}."
        assert headline(matrix).endswith(f"they are {apart}")


def test_where_no_pair_is_told_apart_that_is_said_and_the_nearest_is_named() -> None:
    pairs = [(i, j) for i in range(6) for j in range(i)]
    matrix = with_estimates(matrix_of(*"abcdef", scale=2.0), *pairs)
    assert nearest_sentences(matrix)[0] == (
        "a  not told apart from any other; the nearest is b -0.60 [-1.10, -0.10], q 0.41"
    )
    one_apart = with_estimates(matrix_of(*"abcdefg"), *pairs)
    assert nearest_sentences(one_apart)[0].startswith(
        "a  not told apart from b (q 0.41), c (q 0.41), d (q 0.41) and 2 more; the other one is g "
    )


def test_the_summary_counts_verdicts_and_says_where_there_are_none() -> None:
    matrix = with_estimates(matrix_of(*"abcd"), (0, 1), (2, 3))
    assert summary_sentence(matrix) == (
        "4 of 6 pairs differ at a false discovery rate of 5%; 2 are not told apart."
    )
    assert "6 of 6 pairs differ at a false discovery rate of 50%; 0 are" in summary_sentence(
        matrix, rate=0.5
    )
    matrix.estimates["q"][:, 0, 2] = matrix.estimates["q"][:, 2, 0] = np.nan
    assert summary_sentence(matrix).endswith(
        "3 of 6 pairs differ at a false discovery rate of 5%; "
        "2 are not told apart; 1 is not tested."
    )
    plain = summary_sentence(matrix_of("a", "b"))
    assert plain == (
        "The pair is not tested: there are no error bars, as they were left out of the comparison."
    )
    lensed = replace(matrix_of("a", "b"), lens="sharp", lens_digest="5a")
    assert summary_sentence(lensed).endswith("or the lens has negative weights.")
    with options_as_flags():  # a page has the same words, whoever made it
        assert summary_sentence(matrix_of("a", "b")) == plain
    few = with_estimates(matrix_of("a", "b"))
    few.estimates["q"][:] = np.nan
    assert summary_sentence(few) == (
        "The pair is not tested: a test needs 6 folds of each dataset, so at least 6 images, or 6 "
        "groups of them, with a finite activation of every neuron in each fold. Imported DNAs have "
        "no folds."
    )
    undefined = with_estimates(with_nan(matrix_of("a", "b"), 0))
    undefined.estimates["q"][:] = np.nan
    assert summary_sentence(undefined) == (
        "The pair is not tested: no distance is defined, because one of the datasets has no "
        "histograms, or a neuron has no finite activation in one of them."
    )
    assert verdicts(matrix).tolist()[0] == [UNTESTED, ALIKE, UNTESTED, DIFFERENT]


def test_one_pair_is_described_in_the_singular() -> None:
    (heading, *_) = printed(matrix_of("a", "b" * 90))
    assert heading == "2 datasets make a table too wide for here; the only pair:"
    lines = printed(with_nan(matrix_of("a", "b", "c" * 90), 1))
    assert lines[0].endswith("; the nearest pair of 3:")
    assert lines[-1] == "2 pairs have no distance that is defined"
    one = matrix_of("a", "b", "c" * 90)
    one.emd[:, 0, 1] = one.emd[:, 1, 0] = np.nan
    assert printed(one)[-1] == "1 pair has no distance that is defined"
    seven = printed(matrix_of(*[f"{i}" * 70 for i in range(7)]))
    assert seven[-1] == "1 farther pair is left out: --out and --html write them all"
    for alike, line in (
        ((), "1 of 1 pair differs"),
        (((0, 1),), "0 of 1 pair differs"),
    ):
        assert summary_sentence(with_estimates(matrix_of("a", "b"), *alike)).startswith(line)
    three = with_estimates(matrix_of("a", "b", "c"), (0, 1), (0, 2))
    assert summary_sentence(three).startswith("1 of 3 pairs differs at")


def test_plain_and_corrected_numbers_are_labelled() -> None:
    plain, corrected = matrix_of("a", "b"), with_estimates(matrix_of("a", "b"))
    assert "not corrected" not in title_of(plain)
    assert title_of(corrected).endswith(", corrected for the sizes of the samples")
    assert "99.0" in printed(corrected)[1]
    heading = "Distance, in bins, "
    assert sentences_heading(plain) == f"{heading}not corrected for the sizes of the samples:"
    how = "corrected for the sizes of the samples [95% interval]:"
    assert sentences_heading(corrected) == heading + how
    corrected.estimates["emd_corrected"][:] = np.nan
    assert sentences_heading(corrected) == sentences_heading(plain)


def test_a_dataset_too_small_to_correct_is_named_and_the_others_are_corrected() -> None:
    matrix = with_single(matrix_of("a", "b", "tiny"), 2)
    but = ", but for tiny (too few images, or imported)"
    assert title_of(matrix).endswith(f", corrected for the sizes of the samples{but}")
    assert f"the samples{but} [95% interval]:" in sentences_heading(matrix)
    assert matrix.corrected()[0].tolist() == [0, 49, 100]
    assert nearest_sentences(matrix) == [
        "a     nearest b 49.0 [48.5, 49.5], farthest tiny 100.0 (not corrected)",
        "b     nearest a 49.0 [48.5, 49.5], farthest tiny 50.0 (not corrected)",
        "tiny  nearest b 50.0 (not corrected), farthest a 100.0 (not corrected)",
    ]
    assert "Distances of tiny are not corrected" in plain_note(matrix)
    assert plain_note(with_estimates(matrix_of("a", "b"))) == plain_note(matrix_of("a", "b")) == ""
    five = with_estimates(matrix_of(*"abcdefg"))
    five.estimates["emd_corrected"][:, 2:] = five.estimates["emd_corrected"][:, :, 2:] = np.nan
    assert uncorrected(five) == "c, d, e and 2 more"


LENS = Lens("sharp", (("stem", 2), ("head", 1)), np.array([1.0, -1.0, 2.0]))


def test_a_lens_and_a_layer_without_weight_are_named() -> None:
    matrix = replace(matrix_of("a", "b"), lens="sharp", lens_digest=LENS.digest)
    assert title_of(matrix).startswith("Earth Mover's Distance through lens sharp, in bins")
    assert title_of(matrix, "head").startswith("Earth Mover's Distance of head through lens sharp,")
    called = replace(matrix, lens="uniform")
    assert "through lens uniform" in title_of(called)
    assert "all layers, the mean" in title_of(matrix, distance="fd")
    matrix.emd[0] = np.nan
    out = io.StringIO()
    print_matrix(matrix, Console(file=out, width=80), "stem", lens=LENS)
    assert out.getvalue().splitlines()[1:] == [
        "The lens gives this layer no weight in sum: through it there are no distances."
    ]
    for layer, distance in (("head", "emd"), ("all", "emd"), ("stem", "fd")):
        print_matrix(matrix, Console(file=(out := io.StringIO())), layer, distance, LENS)  # type: ignore[arg-type]
        assert "no weight" not in out.getvalue()


def test_identical_datasets_are_at_zero() -> None:
    assert rows(matrix_of("a", "b", scale=0.0)) == [["0", "0"], ["0", "0"]]


GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()


def test_the_matrix_opens_as_the_guide_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs the code of the guide as it stands there, on a real file of that name."""
    (code,) = re.findall(r"```python\n(import duckdb, pandas.*?)```", GUIDE, re.DOTALL)
    matrix = with_nan(matrix_of("c", "a", "b", scale=2.0), 1)
    (tmp_path / "matrix.parquet").write_bytes(matrix.encode())
    monkeypatch.chdir(tmp_path)
    imports, *snippets = re.split(r"\n(?=duckdb\.|pandas\.|polars\.)", code.strip())
    names: dict[str, object] = {}
    exec(imports, names)
    found, pivoted, sorted_ = (eval(snippet, names) for snippet in snippets)
    assert found.fetchall()[0] == ("b", "c", 2.0)
    assert pivoted.loc["c", "b"] == 2.0
    assert np.isnan(pivoted.loc["a", "b"])
    assert pivoted.shape == (3, 3)
    assert sorted_.filter(sorted_["emd"] == 2.0).select("a", "b").rows() == [("c", "b"), ("b", "c")]
    assert os.listdir(tmp_path) == ["matrix.parquet"]


def test_wide_intervals_are_counted_in_words_unless_they_begin_at_zero() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c", "d"))
    assert wide_note(matrix) == from_zero_note(matrix) == ""
    for low, (i, j) in ((10.0, (0, 2)), (0.0, (0, 3))):
        for at in ((i, j), (j, i)):
            matrix.estimates["low"][(-1, *at)] = low
            matrix.estimates["high"][(-1, *at)] = low + 1.6
    assert wide_note(matrix).startswith("1 of 6 intervals is wide, because it is not clear")
    zero = from_zero_note(matrix)
    assert zero.startswith("1 pair that differs has an interval that begins at 0. An interval from")
    assert matrix_sentences(matrix)[-2] == zero
    assert neighbour_lines(matrix, "d")[-1] in zero
    assert neighbour_lines(matrix, "b")[-1] not in zero
    matrix.estimates["high"][-1, 1, 2] = matrix.emd[-1, 1, 2] + 10
    assert wide_note(matrix).startswith("2 of 6 intervals are wide")
    assert wide_note(with_single(matrix_of("a", "b"), 0)) == ""
