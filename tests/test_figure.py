"""The matrix as a picture: everything is in it, in cluster order, whatever the numbers."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.arrange import clusters
from pipeline.errors import UsageError
from pipeline.figure import draw, kind_of
from pipeline.matrix import Matrix
from tests.test_report import LENS, matrix_of, with_estimates, with_nan


def texts(matrix: Matrix, layer: str = "all") -> list[str]:
    root = ElementTree.fromstring(draw(matrix, "svg", layer))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
    return [text for node in root.iter() if (text := (node.text or "").strip())]


def test_names_stand_in_cluster_order_at_both_sides_with_their_numbers() -> None:
    matrix = matrix_of("e", "a", "c", "group/d", scale=123.4)
    shuffled = [2, 0, 3, 1]
    matrix = replace(
        matrix,
        names=tuple(matrix.names[i] for i in shuffled),
        emd=matrix.emd[:, shuffled][:, :, shuffled],
    )
    found = [text for text in texts(matrix) if text in matrix.names]
    order = [matrix.names[i] for i in clusters(matrix.of()).order]
    assert found == order * 2
    assert order in (["e", "a", "c", "group/d"], ["group/d", "c", "a", "e"])
    assert texts(matrix).count("123.4") == 2
    assert "4 datasets, all neurons" in texts(matrix)
    assert "4 datasets, stem" in texts(matrix, "stem")


def test_marks_are_explained_and_missing_error_bars_are_said() -> None:
    marked = texts(with_estimates(matrix_of("a", "b", "c"), (0, 1)))
    assert "differs (q < 0.05)" in marked
    assert "not told apart (q ≥ 0.05)" in marked
    assert "no error bars are known: no pair is tested" in texts(matrix_of("a", "b", "c"))


@pytest.mark.parametrize("count", [2, 60, 120])
def test_any_number_of_datasets(count: int) -> None:
    names = [f"group/{i:03d}" for i in range(count)]
    matrix = with_estimates(matrix_of(*names), (0, 1))
    data = draw(matrix, "png")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert max(image.size) < 4000
    assert ("group/001" in texts(matrix)) == (count < 100)


def test_the_same_matrix_is_the_same_picture() -> None:
    matrix = with_estimates(matrix_of("a", "b", "c"), (0, 1))
    for kind in ("svg", "png", "pdf"):
        assert draw(matrix, kind) == draw(matrix, kind), kind


def test_undefined_and_equal_distances_are_drawn() -> None:
    assert "nan" not in texts(with_nan(matrix_of("a", "b", "c"), 1))
    draw(with_nan(matrix_of("a", "b"), 0, 1), "png")
    draw(matrix_of("a", "b", scale=0.0), "png")


def test_a_layer_may_be_called_anything() -> None:
    matrix = replace(matrix_of("a", "b"), layers=("$\\frac{$ <script>&", "層"))
    assert "2 datasets, $\\frac{$ <script>&" in texts(matrix, "$\\frac{$ <script>&")
    draw(matrix, "png", "層")


def test_a_lens_is_named_and_a_layer_that_it_does_not_weigh_is_said_to_be_so() -> None:
    matrix = replace(matrix_of("a", "b"), lens="sharp", lens_digest=LENS.digest)
    assert "2 datasets, through lens sharp" in texts(matrix)
    assert "2 datasets, head through lens sharp" in texts(matrix, "head")
    matrix.emd[0] = np.nan
    for layer, lens in (("stem", LENS), ("head", LENS), ("stem", None)):
        found = draw(matrix, "svg", layer, lens).decode()
        assert ("The lens gives this layer no weight" in found) == (
            layer == "stem" and lens is LENS
        )


def test_other_files_are_refused() -> None:
    assert kind_of("a/b.SVG") == "svg"
    for name in ("matrix.jpg", "svg", "matrix"):
        with pytest.raises(UsageError, match=r"figure is .*name it \.svg, \.png, \.pdf"):
            kind_of(name)
    with pytest.raises(UsageError, match="no layer 'x'"):
        draw(matrix_of("a", "b"), "svg", "x")
