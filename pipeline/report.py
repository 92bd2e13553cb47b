"""What a matrix shows, for people: a coloured table, and sentences."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pipeline.dna import Floats
from pipeline.matrix import ALL, Distance, Matrix

_WEB_FONT = re.compile(r"@font-face \{.*?\}", re.DOTALL)
"""What rich would fetch from the web; the reader's own monospace does."""

# Ends of ColorBrewer's sequential YlOrRd, light to dark.
_NEAR, _FAR = (255, 255, 204), (189, 0, 38)


def print_matrix(
    matrix: Matrix, console: Console, layer: str = ALL, distance: Distance = "emd"
) -> None:
    """A row and a column per dataset, numbered; a cell's colour is its distance's rank.

    One decimal where that fits the console, none otherwise; wider ones run over, uncut.
    """
    decimals = 1 if table_width(matrix, layer, 1, distance) <= console.width else 0
    width = max(console.width, table_width(matrix, layer, decimals, distance))
    of = "all neurons" if layer == ALL else layer
    title = f"Earth Mover's Distance of {of}, in bins ({matrix.bins} to a neuron's range)"
    if distance == "nfd":
        title = f"Fréchet distance of the Gaussians of {of}, in squared activations"
    elif distance == "fd":
        title = f"Fréchet distance of {'all layers, the mean' if layer == ALL else layer}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = _table(matrix, layer, decimals, distance)
    cells = console.render(table, console.options.update(width=width))
    console.print(Segments(cells), soft_wrap=True, end="")


def table_width(
    matrix: Matrix, layer: str = ALL, decimals: int = 1, distance: Distance = "emd"
) -> int:
    """Characters that the printed table takes."""
    return Console(width=10_000).measure(_table(matrix, layer, decimals, distance)).maximum


def _table(matrix: Matrix, layer: str, decimals: int, distance: Distance) -> Table:
    values = matrix.of(layer, distance)
    # An EMD is a number of bins; a Fréchet distance has the units of its network, of any size.
    form = f".{decimals}f" if distance == "emd" else f".{decimals + 2}g"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("dataset", no_wrap=True, justify="left")
    for number in range(1, len(matrix.names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    shade = _ranks(values)
    for i, name in enumerate(matrix.names):
        cells = [_cell(values[i, j], shade[i, j], form) for j in range(len(matrix.names))]
        table.add_row(str(i + 1), Text(name), *cells)
    return table


def _ranks(values: Floats) -> Floats:
    """(D, D) in [0, 1]: the share of distinct off-diagonal distances that are smaller."""
    off = np.unique(values[~np.eye(len(values), dtype=bool)])
    off = off[np.isfinite(off)]
    return np.searchsorted(off, values) / max(1, len(off) - 1)


def _cell(value: float, shade: float, form: str) -> Text:
    if value == 0:
        return Text("0", style="dim")
    shade = min(1.0, float(shade))
    red, green, blue = (round(n + (f - n) * shade) for n, f in zip(_NEAR, _FAR, strict=True))
    ink = "black" if shade < 0.6 else "white"
    return Text(f"{value:{form}}", style=f"{ink} on rgb({red},{green},{blue})")


def nearest_sentences(matrix: Matrix, layer: str = ALL) -> list[str]:
    """For each dataset, its nearest and its farthest."""
    values = matrix.of(layer)
    width = max(len(name) for name in matrix.names)
    lines = []
    for i, name in enumerate(matrix.names):
        others = [j for j in range(len(matrix.names)) if j != i and np.isfinite(values[i, j])]
        if not others:
            lines.append(f"{name:{width}}  at no distance that is defined")
            continue
        near = min(others, key=lambda j: values[i, j])
        far = max(others, key=lambda j: (values[i, j], j))
        lines.append(
            f"{name:{width}}  nearest {matrix.names[near]} ({values[i, near]:.1f})"
            f", farthest {matrix.names[far]} ({values[i, far]:.1f})"
        )
    return lines


def save_svg(matrix: Matrix, path: str, layer: str = ALL) -> None:
    """The coloured table as a picture."""
    width = max(80, table_width(matrix, layer))
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    print_matrix(matrix, console, layer)
    svg = console.export_svg(title="vdna compare")
    Path(path).write_text(_WEB_FONT.sub("", svg), encoding="utf-8")
