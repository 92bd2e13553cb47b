"""Prints in a terminal why two datasets differ.

>>> print_explanation(explain(…), Console(), 20)             # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pipeline.comparing import FALSE_DISCOVERY_RATE
from pipeline.dna import UNIFORM
from pipeline.explaining import Explanation, Overlay
from pipeline.reporting.conclusions import (
    ALIKE_MARK,
    ALIKE_TEXT,
    FROM_ZERO_TEXT,
    SIGNED_LENS_TEXT,
    decimals_of,
    format_number,
    with_interval,
)

_BLOCKS = " ▁▂▃▄▅▆▇█"

_NARROWEST, _WIDEST = 8, 24
"""The width of a histogram in characters. If there is less room, none is drawn."""

_LAYER_COLUMNS = {
    "distance": "distance: mean over the layer's neurons, in bins",
    "corrected [95%]": "corrected: for the sizes of the samples, with its 95% interval",
    "q": "q: the false discovery rate at which it differs",
    "share": "share: of the whole distance",
}
"""What the columns are of which a line is printed above the layers, by their headings."""

_NEURON_COLUMNS = {
    "like it": "like it: how many others of its stage tell the same",
    "shift": "shift: how far the values of {b} lie above (+) or below (-) those of {a}, in bins",
}
"""The same for the neurons."""

_SPARKLINES = (
    "The last columns are histograms of the neuron's values in each dataset, the low values on "
    "the left; higher blocks are more values, on one scale for both"
)


def print_explanation(found: Explanation, console: Console, top: int) -> None:
    """Prints the layers, then the first neurons of each stage, with both histograms if they fit.

    Of neurons that tell the same, one is printed.

    A line above each table says what its columns are.

    What is not told apart is dim, and marked. On a narrow console columns are left out, the last
    ones first; and the histograms, too, where the encoding lacks their characters.

    Args:
        found: The explanation.
        console: Where to print.
        top: How many neurons to print.
    """
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    console.print(Text(f"From {a} to {b}{of}: layers", style="bold"), soft_wrap=True)
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
    _print_ranking(rows, console, _LAYER_COLUMNS)
    if any(map(_differs_from_zero_on, found.layers.to_pylist())):
        console.print(Text(FROM_ZERO_TEXT, style="dim"), soft_wrap=True)
    if found.signed:
        console.print(Text(SIGNED_LENS_TEXT, style="dim"), soft_wrap=True)
    blind = [row["layer"] for row in found.layers.to_pylist() if not row["neurons"]]
    if blind:
        console.print(Text(f"The lens gives no weight to {', '.join(blind)}"), soft_wrap=True)
    if not found.groups:
        return
    shown = found.groups[:top]
    first = "the first one" if len(shown) == 1 else f"the first {len(shown)}"
    staged = any(group.stage for group in shown)
    title = (
        "Neurons by stage of the network, the deep ones first" if staged else f"Neurons, {first}"
    )
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    merged = any(group.others for group in shown)
    rows = []
    for group in shown:
        (row,) = found.neurons.slice(group.place, 1).to_pylist()
        shift = row["shift"]
        rows.append(
            {
                "neuron": group.name,
                **({"like it": f"+{len(group.others)}" if group.others else ""} if merged else {}),
                **({"stage": group.stage} if staged else {}),
                **_measured(row),
                "shift": "" if shift is None else f"{shift:+.{decimals_of(shift)}f}",
            }
        )
    width = min((console.width - _width(_ranking(rows, {})) - 2) // 2, _WIDEST)
    inks: dict[str, str] = {}
    told = {heading: of.format(a=a, b=b) for heading, of in _NEURON_COLUMNS.items()}
    if width >= _NARROWEST and _writes_blocks(console):
        headings = _sparkline_headings(a, b, width)
        inks = dict(zip(headings, ("blue", "yellow"), strict=True))
        for row, group in zip(rows, shown, strict=True):
            row |= zip(headings, _sparklines(group.histogram, width), strict=True)
        told[headings[0]] = _SPARKLINES
    _print_ranking(rows, console, told, inks)


def _writes_blocks(console: Console) -> bool:
    """Tells whether the encoding of a console has the characters of sparklines."""
    try:
        _BLOCKS.encode(getattr(console.file, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _sparkline_headings(a: str, b: str, width: int) -> tuple[str, str]:
    """Returns the datasets' names, cut to the width of a column."""
    a, b = (name if len(name) <= width else f"…{name[1 - width :]}" for name in (a, b))
    return (a, b) if a != b else ("of a", "of b")


def _print_ranking(
    rows: list[dict[str, str]],
    console: Console,
    told: Mapping[str, str],
    inks: Mapping[str, str] | None = None,
) -> None:
    """Prints a table, as many of its first columns as fit, and above it what these are."""
    if not rows:
        return
    alike = any(row["distance"].startswith(ALIKE_MARK) for row in rows)
    while _width(table := _ranking(rows, inks or {})) > console.width and len(rows[0]) > 2:
        rows = [dict(list(row.items())[:-1]) for row in rows]
    legend = ". ".join(told[heading] for heading in rows[0] if heading in told)
    console.print(Text(legend, style="dim"), soft_wrap=True)
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


def _differs_from_zero_on(row: Mapping[str, Any]) -> bool:
    """Tells whether a row's test finds a difference, while its interval begins at 0."""
    q, low = row["q"], row["low"]
    return q is not None and q < FALSE_DISCOVERY_RATE and low is not None and low <= 0


def _measured(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the cells of a row's numbers. The distance of what is not told apart is marked."""
    if row["emd"] is None:
        return {"distance": "nan", "corrected [95%]": "", "q": ""}
    alike = row["q"] is not None and row["q"] >= FALSE_DISCOVERY_RATE
    interval = ""
    if row["emd_corrected"] is not None:
        interval = with_interval(row["emd_corrected"], row["low"], row["high"])
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
