"""The printed matrix: whole at any width, whatever the names and the numbers."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import UsageError
from pipeline.matrix import Matrix
from pipeline.report import nearest_sentences, print_matrix, save_svg, table_width
from pipeline.samples import DATASETS


def matrix_of(*names: str, scale: float = 100.0, bins: int = 1000) -> Matrix:
    """Two layers; the distance of the datasets i and j is scale * |i - j| / (the most)."""
    at = np.arange(len(names))
    plane = scale * np.abs(at[:, None] - at) / max(1, len(names) - 1)
    emd = np.stack([plane / 2, plane * 1.5, plane])
    members = {name: f"{i:032x}" for i, name in enumerate(names)}
    return Matrix(names, ("stem", "head"), emd, emd.copy(), emd * 1000, bins, members, "ab" * 16)


def with_nan(matrix: Matrix, *undefined: int) -> Matrix:
    for i in undefined:
        matrix.emd[:, i, :] = matrix.emd[:, :, i] = np.nan
    return matrix


def printed(matrix: Matrix, width: int = 80, layer: str = "all") -> list[str]:
    """Lines of the table, its header line first."""
    out = io.StringIO()
    print_matrix(matrix, Console(file=out, width=width), layer)
    title, *lines = out.getvalue().splitlines()
    assert title.startswith("Earth Mover's Distance of")
    assert "…" not in out.getvalue()
    return lines


def rows(matrix: Matrix, width: int = 80, layer: str = "all") -> list[list[str]]:
    """Cells after the row's number and name."""
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


def test_a_decimal_where_there_is_room() -> None:
    matrix = matrix_of(*DATASETS, scale=180.0)
    assert rows(matrix, width=120)[0] == ["0", *(f"{18.0 * j:.1f}" for j in range(1, 11))]
    few = matrix_of("a", "b", "c", scale=12.34)
    assert rows(few) == [["0", "6.2", "12.3"], ["6.2", "0", "6.2"], ["12.3", "6.2", "0"]]


@pytest.mark.parametrize("width", [10, 20, 80])
def test_what_does_not_fit_runs_over_uncut(width: int) -> None:
    names = [f"some/long-group/of-datasets/number-{i:02d}" for i in range(30)]
    lines = printed(matrix_of(*names, scale=999.0), width)[-31:]
    assert max(len(line) for line in lines) > 80
    for i, (name, line) in enumerate(zip(names, lines[1:], strict=True), 1):
        assert line.split()[:2] == [str(i), name]
        assert len(line.split()) == 2 + 30


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
    assert len(nearest_sentences(all_undefined)) == 2


def test_undefined_distances_are_nobodys_nearest_or_farthest() -> None:
    first, second, *_ = nearest_sentences(with_nan(matrix_of("x", "a", "b", "c"), 0))[1:]
    assert first == "a  nearest b (33.3), farthest c (66.7)"
    assert second == "b  nearest a (33.3), farthest c (33.3)"


def test_sentences_name_the_nearest_and_the_farthest() -> None:
    assert nearest_sentences(matrix_of("a", "middle", "c", "far")) == [
        "a       nearest middle (33.3), farthest far (100.0)",
        "middle  nearest a (33.3), farthest far (66.7)",
        "c       nearest middle (33.3), farthest a (66.7)",
        "far     nearest c (33.3), farthest a (100.0)",
    ]
    assert (
        nearest_sentences(matrix_of("a", "b"), "stem")[0]
        == "a  nearest b (50.0), farthest b (50.0)"
    )


def test_identical_datasets_are_at_zero() -> None:
    assert rows(matrix_of("a", "b", scale=0.0)) == [["0", "0"], ["0", "0"]]


def test_a_picture_holds_every_name_and_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = matrix_of(*DATASETS, "<script>&amp;", scale=123.4)
    save_svg(matrix, str(tmp_path / "matrix.svg"))
    assert capsys.readouterr() == ("", "")
    root = ElementTree.parse(tmp_path / "matrix.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join("".join(root.itertext()).split())
    for name in matrix.names:
        assert name in text
    assert "123.4" in text
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    assert "url(http" not in (tmp_path / "matrix.svg").read_text()
    assert table_width(matrix) > 80
