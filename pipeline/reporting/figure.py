"""Draws a matrix as a picture for papers, in cluster order, with its dendrogram and a colour bar.

>>> Path("matrix.pdf").write_bytes(draw(matrix, "pdf"))      # doctest: +SKIP
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from pipeline.comparing import ALL, FALSE_DISCOVERY_RATE, Matrix, clusters
from pipeline.dna import Lens
from pipeline.errors import UsageError
from pipeline.reporting.conclusions import (
    ALIKE,
    DIFFERENT,
    UNTESTED,
    WEIGHTLESS,
    any_corrected,
    seen,
    uncorrected,
    verdicts,
)
from pipeline.wording import count_of

FIGURE_KINDS = ("svg", "png", "pdf")

DPI = 200

_ALIKE: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": "0.45", "linewidth": 0}

_CELL, _MOST = 0.42, 11.0
"""The side of a cell and the longest side of the whole matrix, in inches."""

_TREE, _BAR, _GAP = 0.9, 0.14, 0.12

_WITH_NUMBERS, _WITH_MARKS, _WITH_NAMES = 16, 50, 90
"""The most datasets with numbers in cells, with marks in cells, and with names at the sides."""


def kind_of(path: str) -> str:
    """Returns the kind of picture that a file name asks for.

    Args:
        path: The file's name.

    Returns:
        One of `FIGURE_KINDS`.

    Raises:
        UsageError: The name ends in none of them.
    """
    kind = path.rpartition(".")[2].lower()
    if kind not in FIGURE_KINDS or "." not in path:
        raise UsageError(
            f"figure is {path!r}; its name must end in one of .{', .'.join(FIGURE_KINDS)}"
        )
    return kind


def draw(matrix: Matrix, kind: str, layer: str = ALL, lens: Lens | None = None) -> bytes:
    """Draws a matrix. The same matrix gives the same bytes.

    Distances are corrected for the sizes of the samples where that is known; the title names the
    datasets without a correction. A dot means that the pair differs at `FALSE_DISCOVERY_RATE`,
    hatching that it is not told apart. Where cells are too small for either, pairs that do not
    differ are grey, as are distances that are not defined.

    Args:
        matrix: The matrix.
        kind: One of `FIGURE_KINDS`.
        layer: The layer that is drawn, or `ALL`.
        lens: The matrix's lens. If it gives the layer no weight, the picture says so.

    Returns:
        The bytes of the picture's file.
    """
    import matplotlib  # a second of importing, for who draws

    settings: dict[Any, Any] = {
        "font.family": "sans-serif",
        "svg.fonttype": "none",  # text that can be searched
        "svg.hashsalt": "vdna",
        "hatch.linewidth": 0.8,
        "pdf.fonttype": 42,
    }
    out = io.BytesIO()
    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a layer's name may be in any script
        _figure(matrix, layer, lens).savefig(out, format=kind, dpi=DPI, metadata=stamp)
    return out.getvalue()


def _figure(matrix: Matrix, layer: str = ALL, lens: Lens | None = None) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    distances = matrix.corrected(layer)
    found = clusters(distances)
    size = len(found.order)
    values = distances[np.ix_(found.order, found.order)].copy()
    verdict = verdicts(matrix, layer)[np.ix_(found.order, found.order)]
    names = [matrix.names[i] for i in found.order]
    np.fill_diagonal(values, np.nan)
    cell = min(_CELL, _MOST / size)
    font = min(9.0, 0.62 * cell * 72)
    named = size <= _WITH_NAMES
    margin = max(len(name) for name in names) * font * 0.6 / 72 + 0.15 if named else 0.3
    side = max(size * cell, 1.6)  # room for the colour bar's numbers and the legend
    top, bottom = 0.45, margin + 0.95
    width, height = margin + side + _GAP + _TREE + 0.2, top + side + bottom
    figure = Figure(figsize=(max(width, 5.2), height))
    width = float(figure.get_figwidth())

    def axes(left: float, low: float, wide: float, tall: float) -> Any:
        return figure.add_axes((left / width, low / height, wide / width, tall / height))

    known = values[np.isfinite(values)]  # through weights below 0 none may be above it
    scale = Normalize(min([0.0, *known]), max([0.0, *known]) or 1.0)
    main = axes(margin, bottom, side, side)
    main.set_facecolor("0.85")
    shades = _scale()
    tested = (verdict != UNTESTED).any()
    unmarked = size > _WITH_MARKS and tested
    coloured = np.where(verdict == DIFFERENT, values, np.nan) if unmarked else values
    main.imshow(coloured, cmap=shades, norm=scale, aspect="auto", interpolation="nearest")
    for i in range(size):
        main.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, facecolor="white", edgecolor="none"))
    if size <= _WITH_MARKS:
        rows, columns = np.nonzero(verdict == DIFFERENT)
        inks = [_ink(scale(values[pair])) for pair in zip(rows, columns, strict=True)]
        area = (0.1 * cell * 72) ** 2
        main.scatter(columns + 0.36, rows - 0.36, s=area, c=inks or None, linewidths=0)
        for i, j in zip(*np.nonzero(verdict == ALIKE), strict=True):
            main.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **_ALIKE))
    if size <= _WITH_NUMBERS:
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            ink = _ink(scale(values[i, j]))
            box = {"facecolor": shades(scale(values[i, j])), "edgecolor": "none", "pad": 0.6}
            main.text(
                j,
                i,
                f"{values[i, j]:.1f}",
                ha="center",
                va="center",
                color=ink,
                size=font * 0.82,
                bbox=box if verdict[i, j] == ALIKE else None,
            )
    main.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    main.spines[:].set_visible(False)
    main.tick_params(length=0, labelsize=font)
    main.set_xticks(range(size) if named else [], names if named else [], rotation=90)
    main.set_yticks(range(size) if named else [], names if named else [])

    tree = axes(margin + side + _GAP, bottom, _TREE, side)
    for left, right, low, high, joined in found.merges.tolist():
        tree.plot([low, joined, joined, high], [left, left, right, right], color="0.25", lw=0.8)
    tree.set(ylim=(size - 0.5, -0.5), xlim=(0, None))
    tree.spines[["left", "right", "top"]].set_visible(False)
    tree.set_yticks([])
    tree.tick_params(labelsize=7)

    bar = axes(margin, 0.62, side, _BAR)
    figure.colorbar(ScalarMappable(scale, shades), cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=7, length=2)
    of = "corrected Earth Mover's" if any_corrected(matrix, layer) else "Earth Mover's"
    bar.set_xlabel(f"{of} Distance, in bins of {matrix.bins}", size=7.5, labelpad=1)
    what = f"{count_of(size, 'dataset')}, {seen(matrix, layer)}"
    if plain := uncorrected(matrix, layer):
        what += f"; not corrected: {plain}"
    title = figure.text(margin / width, 1 - 0.28 / height, what, size=10)
    title.set_parse_math(False)
    at = (margin / width, 0.02 / height)
    if lens is not None and not lens.has_positive_weight(layer):
        figure.text(*at, WEIGHTLESS, size=7, va="bottom")
        return figure
    if not tested:
        figure.text(*at, "no error bars are known: no pair is tested", size=7, va="bottom")
        return figure
    rate = f"{FALSE_DISCOVERY_RATE:g}"
    also = " or not tested" if (verdict[np.triu_indices(size, 1)] == UNTESTED).any() else ""
    keys: list[Any] = [Patch(facecolor="0.85", label=f"not told apart (q ≥ {rate}){also}")]
    if size <= _WITH_MARKS:
        dot = main.scatter([], [], s=9, c="black", label=f"differs (q < {rate})")
        keys = [dot, Patch(label=f"not told apart (q ≥ {rate})", **_ALIKE)]
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=at,
        ncols=2,
        frameon=False,
        fontsize=7,
        borderpad=0,
        borderaxespad=0,
    )
    return figure


def _ink(shade: float) -> str:
    return "white" if shade > 0.5 else "black"


def _scale() -> Any:
    """Returns a colour scale from light (near) to dark (far) that colour-blind readers see too."""
    from matplotlib import colormaps

    return colormaps["cividis_r"]
