"""Prints matrices in a terminal.

>>> print_matrix(matrix, Console())                          # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pipeline.comparing import ALL, Matrix, Measure
from pipeline.dna import Floats, Lens
from pipeline.reporting.conclusions import (
    ALIKE,
    ALIKE_MARK,
    ALIKE_TEXT,
    UNTESTED,
    UNTESTED_MARK,
    WEIGHTLESS,
    any_corrected,
    correction,
    format_number,
    seen,
    through,
    verdicts,
)
from pipeline.wording import count_of

LISTED_PAIRS = 20
"""The most pairs that are listed if the table of all pairs is too wide."""

# Ends and middle of matplotlib's cividis, which the colour-blind see as others do: near to far.
_SCALE = ((254, 232, 56), (124, 123, 120), (0, 34, 78))


def print_matrix(
    matrix: Matrix,
    console: Console,
    layer: str = ALL,
    distance: Measure = "emd",
    lens: Lens | None = None,
) -> None:
    """Prints a matrix as a table with a row and a column per dataset.

    The colour of a cell is the rank of its distance. Numbers have one decimal if the table then
    fits the console, and none otherwise. If the table is still too wide, the nearest pairs are
    listed, and the number of those left out is said. Pairs that are not told apart are dim, and
    marked.

    Args:
        matrix: The matrix.
        console: Where to print.
        layer: The layer that is looked at, or `ALL`.
        distance: Which distance to print.
        lens: The matrix's lens. If it gives the layer no weight, only that is said.
    """
    of = seen(matrix, layer)
    of = of if layer == ALL and through(matrix) else f"of {of}"
    title = f"Earth Mover's Distance {of}, in bins ({matrix.bins} to a neuron's range)"
    if any_corrected(matrix, layer):
        title += f", {correction(matrix, layer)}"
    if distance == "nfd":
        title = f"Fréchet distance of the Gaussians {of}, in squared activations"
    elif distance == "fd":  # which no lens weighs
        title = f"Fréchet distance of {'all layers, the mean' if layer == ALL else layer}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    if lens is not None and distance != "fd" and not lens.has_positive_weight(layer):
        console.print(Text(WEIGHTLESS), soft_wrap=True)
        return
    narrowest = 2 * len(matrix.names)  # of thousands no table is made to know that it is too wide
    for decimals in (1, 0) if narrowest <= console.width else ():
        if table_width(matrix, layer, decimals, distance) <= console.width:
            table = _table(matrix, layer, decimals, distance)
            console.print(Segments(console.render(table)), soft_wrap=True, end="")
            break
    else:
        for line in _nearest_pairs(matrix, layer, distance):
            console.print(line, soft_wrap=True)
    marks = _marks(matrix, layer, distance)
    legends = {
        ALIKE_MARK: ALIKE_TEXT,
        UNTESTED_MARK: "not tested",
    }
    legend = "; ".join(f"{mark} {text}" for mark, text in legends.items() if (marks == mark).any())
    if legend:
        console.print(Text(legend, style="dim"), soft_wrap=True)


def _marks(matrix: Matrix, layer: str, distance: Measure) -> NDArray[np.str_]:
    """Returns the (D, D) marks of the cells, empty where a pair differs or nothing is tested."""
    verdict = verdicts(matrix, layer)
    tested = distance == "emd" and (verdict != UNTESTED).any()
    marks = np.where(verdict == ALIKE, ALIKE_MARK, np.where(verdict == UNTESTED, UNTESTED_MARK, ""))
    np.fill_diagonal(marks, "")
    return np.where(np.isfinite(matrix.of(layer)) & tested, marks, "")


def _values(matrix: Matrix, layer: str, distance: Measure) -> Floats:
    return matrix.corrected(layer) if distance == "emd" else matrix.of(layer, distance)


def table_width(
    matrix: Matrix, layer: str = ALL, decimals: int = 1, distance: Measure = "emd"
) -> int:
    """Returns how many characters wide the printed table is."""
    return Console(width=10**6).measure(_table(matrix, layer, decimals, distance)).maximum


def _table(matrix: Matrix, layer: str, decimals: int, distance: Measure) -> Table:
    values, marks = _values(matrix, layer, distance), _marks(matrix, layer, distance)
    # An EMD is a number of bins; a Fréchet distance has the units of its network, of any size.
    form = f".{decimals}f" if distance == "emd" else f".{decimals + 2}g"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("dataset", no_wrap=True, justify="left")
    for number in range(1, len(matrix.names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    shade = _ranks(values)
    for i, name in enumerate(matrix.names):
        cells = [
            _cell(values[i, j], shade[i, j], form, marks[i, j]) for j in range(len(matrix.names))
        ]
        table.add_row(str(i + 1), Text(name), *cells)
    return table


def _ranks(values: Floats) -> Floats:
    """Returns, for each distance, the share of distinct off-diagonal distances that are smaller."""
    off = np.unique(values[~np.eye(len(values), dtype=bool)])
    off = off[np.isfinite(off)]
    return np.searchsorted(off, values) / max(1, len(off) - 1)


def _cell(value: float, shade: float, form: str, mark: str) -> Text:
    if mark:
        return Text(f"{mark}{value:{form}}", style="dim")
    if value == 0 or not np.isfinite(value):
        return Text("0" if value == 0 else "nan", style="dim")
    at = 2 * min(1.0, float(shade))
    near, far = _SCALE[:2] if at <= 1 else _SCALE[1:]
    share = at if at <= 1 else at - 1
    red, green, blue = (round(n + (f - n) * share) for n, f in zip(near, far, strict=True))
    ink = "black" if shade < 0.6 else "white"
    return Text(f"{value:{form}}", style=f"{ink} on rgb({red},{green},{blue})")


def _nearest_pairs(matrix: Matrix, layer: str, distance: Measure) -> list[Text]:
    """Lists the nearest pairs, for a matrix that is too wide for a table."""
    values, marks = _values(matrix, layer, distance), _marks(matrix, layer, distance)
    pairs = [(int(i), int(j)) for i, j in zip(*np.triu_indices(len(values), 1), strict=True)]
    known = sorted((p for p in pairs if np.isfinite(values[p])), key=lambda p: (values[p], p))
    count = min(LISTED_PAIRS, len(known))
    nearest = f"the nearest {'pair' if count == 1 else count_of(count, 'pair')} of {len(pairs):,}"
    nearest = nearest if len(pairs) > 1 else "the only pair"
    lines = [Text(f"{count_of(len(values), 'dataset')} make a table too wide for here; {nearest}:")]
    width = max((len(matrix.names[i]) for i, _ in known[:count]), default=0)
    for pair in known[:count]:
        a, b = (matrix.names[i] for i in pair)
        number = f"{marks[pair]}{format_number(values[pair], distance)}"
        lines.append(Text(f"{number:>8}  {a:{width}}  {b}", style="dim" if marks[pair] else ""))
    if undefined := len(pairs) - len(known):
        has = "pair has" if undefined == 1 else "pairs have"
        lines.append(Text(f"{undefined:,} {has} no distance that is defined"))
    if left := len(known) - count:
        are = "pair is" if left == 1 else "pairs are"
        lines.append(Text(f"{left:,} farther {are} left out: --out and --html write them all"))
    return lines
