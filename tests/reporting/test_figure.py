"""Tests the matrix as a picture: everything is in it, in cluster order, for any numbers."""

from __future__ import annotations

import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.comparing import Matrix, clusters
from pipeline.errors import UsageError
from pipeline.reporting import draw, kind_of
from pipeline.reporting.figure import _figure as figure_of
from tests.reporting.test_report import LENS, matrix_of, with_estimates, with_nan, with_single


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
    order = [matrix.names[i] for i in clusters(matrix.corrected()).order]
    assert found == order * 2
    assert order in (["e", "a", "c", "group/d"], ["group/d", "c", "a", "e"])
    assert texts(matrix).count("123.4") == 2
    assert "4 datasets, all neurons" in texts(matrix)
    assert "4 datasets, stem" in texts(matrix, "stem")
    tiny = texts(with_single(matrix_of("a", "b", "tiny"), 2))
    assert "3 datasets, all neurons; not corrected: tiny" in tiny


def test_marks_are_explained_and_missing_error_bars_are_noted() -> None:
    marked = texts(with_estimates(matrix_of("a", "b", "c"), (0, 1)))
    assert "differs (q < 0.05)" in marked
    assert "not told apart (q ≥ 0.05)" in marked
    assert "no error bars are known: no pair is tested" in texts(matrix_of("a", "b", "c"))


@pytest.mark.parametrize("count", [2, 60, 120])
def test_any_number_of_datasets_is_drawn(count: int) -> None:
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


def test_distances_below_zero_are_drawn() -> None:
    """A lens with negative weights gives such distances for a pair that it ignores."""
    matrix = matrix_of("a", "b")
    assert "-0.3" in texts(replace(matrix, emd=-0.3 * (matrix.emd > 0)))


def test_a_layer_may_have_any_name() -> None:
    matrix = replace(matrix_of("a", "b"), layers=("$\\frac{$ <script>&", "層"))
    assert "2 datasets, $\\frac{$ <script>&" in texts(matrix, "$\\frac{$ <script>&")
    draw(matrix, "png", "層")


def test_a_lens_and_a_layer_without_weight_are_named() -> None:
    matrix = replace(matrix_of("a", "b"), lens="sharp", lens_digest=LENS.digest)
    assert "2 datasets, through lens sharp" in texts(matrix)
    assert "2 datasets, head through lens sharp" in texts(matrix, "head")
    matrix.emd[0] = np.nan
    for layer, lens in (("stem", LENS), ("head", LENS), ("stem", None)):
        found = draw(matrix, "svg", layer, lens).decode()
        assert ("The lens gives this layer no weight" in found) == (
            layer == "stem" and lens is LENS
        )


def scattered(count: int, *alike: tuple[int, int]) -> Matrix:
    """Makes datasets on a line, in no order."""
    matrix = matrix_of(*[f"d{i:02d}" for i in range(count)])
    at = np.random.default_rng(count).permutation(count)
    matrix = replace(matrix, emd=matrix.emd[:, at][:, :, at])
    return with_estimates(matrix, *alike)


@pytest.mark.parametrize("layer", ["all", "stem"])
def test_cells_tree_and_marks_are_those_of_the_matrix(layer: str) -> None:
    matrix = scattered(9, (0, 1), (2, 5))
    found = clusters(matrix.corrected(layer))
    order = list(found.order)
    expected = matrix.corrected(layer)[np.ix_(order, order)].copy()
    np.fill_diagonal(expected, np.nan)
    main, tree, bar = figure_of(matrix, layer).axes[:3]
    (image,) = main.images
    assert image.get_array().filled(np.nan) == pytest.approx(expected, nan_ok=True)
    assert (image.norm.vmin, image.norm.vmax) == (0, np.nanmax(expected))
    assert image.get_cmap().name == "cividis_r"
    assert [label.get_text() for label in main.get_yticklabels()] == [
        matrix.names[i] for i in order
    ]
    assert bar.get_xlim() == (0, np.nanmax(expected))
    alike = {(order.index(i), order.index(j)) for i, j in ((0, 1), (1, 0), (2, 5), (5, 2))}
    hatched = [patch for patch in main.patches if patch.get_hatch()]
    assert {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in hatched} == alike
    assert len(hatched) == len(alike)
    offsets = main.collections[0].get_offsets()
    dots = {(int(y), int(x)) for x, y in np.floor(offsets + 0.5).tolist()}
    assert dots == {(i, j) for i in range(9) for j in range(9) if i != j} - alike
    assert len(offsets) == len(dots)
    assert main.collections[0].get_sizes()[0] > 4
    inks = main.collections[0].get_facecolors()[:, 0]
    rows, columns = np.floor(offsets[:, ::-1] + 0.5).astype(int).T
    assert (inks == (expected[rows, columns] > expected[expected == expected].max() / 2)).all()
    numbers = {(int(t.get_position()[1]), int(t.get_position()[0])): t for t in main.texts}
    assert all(numbers[at].get_text() == f"{expected[at]:.1f}" for at in dots | alike)
    lines = [line.get_xydata().tolist() for line in tree.lines]
    assert lines == [
        [[low, a], [joined, a], [joined, b], [high, b]]
        for a, b, low, high, joined in found.merges.tolist()
    ]
    assert tree.get_ylim() == main.get_ylim() == (8.5, -0.5)


def test_small_cells_are_grey_where_a_pair_is_not_told_apart() -> None:
    matrix = scattered(60, (3, 40))
    order = clusters(matrix.corrected()).order
    main = figure_of(matrix).axes[0]
    values = main.images[0].get_array().filled(np.nan)
    rows, columns = np.nonzero(np.isnan(values))
    grey = {(order[i], order[j]) for i, j in zip(rows, columns, strict=True) if i != j}
    assert grey == {(3, 40), (40, 3)}
    assert not main.collections
    assert not any(patch.get_hatch() for patch in main.patches)


def test_the_picture_has_the_colours_of_its_scale() -> None:
    """Pixels of the file are darker the farther the pair is."""
    matrix = scattered(9, (0, 1))
    order = clusters(matrix.corrected()).order
    figure = figure_of(matrix)
    with Image.open(io.BytesIO(draw(matrix, "png"))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    box = figure.axes[0].get_position()
    tall, wide = pixels.shape[:2]
    side = box.width * wide / 9
    lightness = {}
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            x = round(box.x0 * wide + (column + 0.1) * side)
            y = round((1 - box.y1) * tall + (row + 0.9) * side)
            if i != j and {i, j} != {0, 1}:
                lightness.setdefault(round(matrix.of()[i, j], 6), set()).add(pixels[y, x].sum())
    shades = [lightness[value] for value in sorted(lightness)]
    assert all(len(shade) == 1 for shade in shades)
    ordered = [shade.pop() for shade in shades]
    assert ordered == sorted(ordered, reverse=True)
    assert ordered[0] - ordered[-1] > 300


def test_other_files_are_refused() -> None:
    assert kind_of("a/b.SVG") == "svg"
    for name in ("matrix.jpg", "svg", "matrix"):
        with pytest.raises(UsageError, match=r"figure is .*must end in one of \.svg, \.png, \.pdf"):
            kind_of(name)
    with pytest.raises(UsageError, match="no layer 'x'"):
        draw(matrix_of("a", "b"), "svg", "x")
