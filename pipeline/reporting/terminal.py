"""Prints matrices and explanations in a terminal.

>>> print_matrix(matrix, Console())                          # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pipeline.comparing import ALL, FALSE_DISCOVERY_RATE, Matrix, Measure
from pipeline.dna import DEFAULT_EXEMPLARS, UNIFORM, Floats, Lens
from pipeline.explaining import Explanation, Overlay
from pipeline.reporting.conclusions import (
    ALIKE,
    ALIKE_MARK,
    ALIKE_TEXT,
    SIGNED_LENS_TEXT,
    UNTESTED,
    UNTESTED_MARK,
    WEIGHTLESS,
    any_corrected,
    correction,
    decimals_of,
    format_number,
    seen,
    through,
    verdicts,
)
from pipeline.wording import count_of, option

LISTED_PAIRS = 20
"""The most pairs that are listed if the table of all pairs is too wide."""

SHOWN_NEURONS, SHOWN_EXEMPLARS = 5, 2
"""How many neurons have their exemplars named, and how many exemplars of each dataset."""

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


# Why two datasets differ.

_BLOCKS = " ▁▂▃▄▅▆▇█"

_NARROWEST, _WIDEST = 8, 24
"""The width of a histogram in characters. If there is less room, none is drawn."""

_LAYER_COLUMNS = (
    "distance: mean over the layer's neurons, in bins. corrected: for the sizes of the samples, "
    "with its 95% interval. q: the false discovery rate at which it differs. share: of the whole "
    "distance"
)

_NEURON_COLUMNS = (
    "shift: how far the values of {b} lie above (+) or below (-) those of {a}, in bins"
)

_SPARKLINES = (
    ". The last columns are histograms of the neuron's values in each dataset, the low values on "
    "the left; higher blocks are more values, on one scale for both"
)


def print_explanation(found: Explanation, console: Console, top: int) -> None:
    """Prints the layers, then the first neurons with both histograms where there is room for them.

    A line above each table says what its columns are.

    What is not told apart is dim, and marked. On a narrow console columns are left out, the last
    ones first.

    Args:
        found: The explanation.
        console: Where to print.
        top: How many neurons to print.
    """
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    console.print(Text(f"From {a} to {b}{of}: layers", style="bold"), soft_wrap=True)
    console.print(Text(_LAYER_COLUMNS, style="dim"), soft_wrap=True)
    tested = found.neurons["q"].null_count < found.neurons.num_rows
    rows = [
        {
            "layer": row["layer"],
            **_measured(row),
            "neurons differ": f"{row['differing']:,}/{row['neurons']:,}" if tested else "",
            "share": f"{row['share']:.0%}",
        }
        for row in found.layers.to_pylist()
        if row["neurons"]
    ]
    _print_ranking(rows, console)
    if found.signed:
        console.print(Text(SIGNED_LENS_TEXT, style="dim"), soft_wrap=True)
    blind = [row["layer"] for row in found.layers.to_pylist() if not row["neurons"]]
    if blind:
        console.print(Text(f"The lens gives no weight to {', '.join(blind)}"), soft_wrap=True)
    if not found.neurons.num_rows:
        return
    neurons = found.neurons.slice(0, top).to_pylist()
    first = "the first one" if len(neurons) == 1 else f"the first {len(neurons)}"
    console.print(Text(f"\nNeurons, {first}", style="bold"), soft_wrap=True)
    rows = [
        {
            "neuron": f"{row['layer']}[{row['neuron']}]",
            **_measured(row),
            "shift": ""
            if row["shift"] is None
            else f"{row['shift']:+.{decimals_of(row['shift'])}f}",
        }
        for row in neurons
    ]
    width = min((console.width - _width(_ranking(rows, {})) - 2) // 2, _WIDEST)
    inks: dict[str, str] = {}
    legend = _NEURON_COLUMNS.format(a=a, b=b)
    if width >= _NARROWEST:
        headings = _sparkline_headings(a, b, width)
        inks = dict(zip(headings, ("blue", "yellow"), strict=True))
        for row, shown in zip(rows, found.shown, strict=False):
            row |= zip(headings, _sparklines(shown, width), strict=True)
        legend += _SPARKLINES
    console.print(Text(legend, style="dim"), soft_wrap=True)
    _print_ranking(rows, console, inks)


def _sparkline_headings(a: str, b: str, width: int) -> tuple[str, str]:
    """Returns the datasets' names, cut to the width of a column."""
    a, b = (name if len(name) <= width else f"…{name[1 - width :]}" for name in (a, b))
    return (a, b) if a != b else ("of a", "of b")


def _print_ranking(
    rows: list[dict[str, str]], console: Console, inks: Mapping[str, str] | None = None
) -> None:
    if not rows:
        return
    alike = any(row["distance"].startswith(ALIKE_MARK) for row in rows)
    while _width(table := _ranking(rows, inks or {})) > console.width and len(rows[0]) > 2:
        rows = [dict(list(row.items())[:-1]) for row in rows]
    console.print(
        Segments(console.render(table, console.options.update(width=_width(table)))),
        soft_wrap=True,
        end="",
    )
    if alike:
        console.print(Text(f"{ALIKE_MARK} {ALIKE_TEXT}", style="dim"), soft_wrap=True)


def _width(table: Table) -> int:
    return Console(width=10**6).measure(table).maximum


def _ranking(rows: Sequence[Mapping[str, str]], inks: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(rows[0]):
        left = number == 0 or heading in inks
        table.add_column(
            Text(heading),
            no_wrap=True,
            justify="left" if left else "right",
            style=inks.get(heading),
        )
    for row in rows:
        alike = row["distance"].startswith(ALIKE_MARK)
        table.add_row(*map(Text, row.values()), style="dim" if alike else "")
    return table


def _measured(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the cells of a row's numbers. The distance of what is not told apart is marked."""
    if row["emd"] is None:
        return {"distance": "nan", "corrected [95%]": "", "q": ""}
    alike = row["q"] is not None and row["q"] >= FALSE_DISCOVERY_RATE
    interval = ""
    if row["emd_corrected"] is not None:
        digits = decimals_of(row["emd_corrected"])
        interval = "{emd_corrected:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**row, d=digits)
    return {
        "distance": f"{ALIKE_MARK if alike else ''}{format_number(row['emd'])}",
        "corrected [95%]": interval,
        "q": "" if row["q"] is None else f"{row['q']:.2g}",
    }


def _sparklines(shown: Overlay, width: int) -> tuple[str, str]:
    """Draws both histograms in block characters, on one scale. Any value above zero shows."""
    means = [
        [float(part.mean()) for part in np.array_split(np.array(of), min(width, len(of)))]
        for of in (shown.a, shown.b)
    ]
    most = max(max(of) for of in means) or 1.0
    full = len(_BLOCKS) - 1
    a, b = ("".join(_BLOCKS[int(np.ceil(v / most * full))] for v in of) for of in means)
    return a, b


def lacking_exemplars(found: Explanation) -> dict[str, str]:
    """Says for each of the two datasets that names no images why it names none.

    Args:
        found: The explanation.

    Returns:
        A sentence for each dataset that names no images of the first neurons.
    """
    lacking = {}
    for side, (name, version) in enumerate(found.versions.items()):
        if found.reactions and all(sides[side] is None for sides in found.reactions):
            why = f"which keeps none: build it with {option('exemplars', DEFAULT_EXEMPLARS)}"
            if version.imported:
                why = "which was imported"
            elif "exemplars" in version.sha256:
                why = f"which keeps those of other layers (its build had {option('exemplar_taps')})"
            lacking[name] = f"No images are named for {name}, {why}."
    return lacking


def reaction_lines(found: Explanation) -> list[str]:
    """Lists the images of either dataset that the first neurons react to most."""
    names, lacking = list(found.versions), lacking_exemplars(found)
    lines = list(lacking.values())
    if len(lacking) == len(names) or not found.reactions:
        return lines
    lines.append("Images that the first neurons react to most, with the mean activation over each:")
    rows = found.neurons.slice(0, SHOWN_NEURONS).to_pylist()
    for row, sides in zip(rows, found.reactions, strict=False):
        lines.append(f"{row['layer']}[{row['neuron']}] reacts most to")
        for name, images in zip(names, sides, strict=True):
            lines += [
                f"  of {name}: {image} ({image.reaction:.3g})"
                for image in (images or ())[:SHOWN_EXEMPLARS]
            ]
    return lines
