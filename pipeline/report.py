"""What a matrix shows, for people: a coloured table, and sentences.

>>> print_matrix(matrix, Console())                          # doctest: +SKIP
>>> print(summary_sentence(matrix))                          # doctest: +SKIP
54 of 55 pairs differ at a false discovery rate of 5%; 1 is not told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from pipeline.arrange import neighbours
from pipeline.dna import Floats
from pipeline.exemplars import DEFAULT_KEPT
from pipeline.explain import Explanation, Overlay
from pipeline.lens import UNIFORM, Lens
from pipeline.matrix import ALL, Distance, Matrix
from pipeline.notes import some_of
from pipeline.significance import FALSE_DISCOVERY_RATE, LEAST_FOLDS

PAIRS = 20
"""Listed where the table is too wide."""
NAMED = 3
"""Datasets that a sentence names as not told apart."""
SHOWN_NEURONS, SHOWN_IMAGES = 5, 2
"""Whose exemplars are named, and how many on either side."""
DIFFERENT, ALIKE, UNTESTED = 1, 0, -1
"""Verdicts on a pair. Alike: not told apart, which is no proof that they are the same."""

# Ends and middle of matplotlib's cividis, which the colour-blind see as others do: near to far.
_SCALE = ((254, 232, 56), (124, 123, 120), (0, 34, 78))
_MARK, _UNTESTED_MARK = "~", "?"
_ALIKE_TEXT = f"not told apart at a false discovery rate of {FALSE_DISCOVERY_RATE:.0%}"
_TOO_FEW_FOLDS = (
    f"that takes {LEAST_FOLDS} folds of each dataset, which are as many images, or groups, or "
    "more; imports have none"
)
_WHY_PLAIN = "too few images, or imported"
_SIGNED = (
    "Some weights are below 0: what neurons add cancels, so that a layer's number may be negative, "
    "or not defined where its weights sum to no more than 0"
)
WEIGHTLESS = "The lens gives this layer no weight in sum: through it there are no distances."


def verdicts(
    matrix: Matrix, layer: str = ALL, rate: float = FALSE_DISCOVERY_RATE
) -> NDArray[np.int8]:
    """(D, D): `DIFFERENT` where q < rate, `ALIKE` where it is not, `UNTESTED` without a q."""
    q = matrix.of(layer, "q")
    found = np.where(np.isnan(q), UNTESTED, np.where(q < rate, DIFFERENT, ALIKE)).astype(np.int8)
    np.fill_diagonal(found, UNTESTED)
    return found


def shown(matrix: Matrix, layer: str = ALL) -> Floats:
    """(D, D) EMD: corrected for the sizes of the samples where that is known, and else plain.

    Plain distances of small samples are large by themselves: `uncorrected` says whose they are.
    """
    return np.where(_corrected(matrix, layer), matrix.of(layer, "emd_corrected"), matrix.of(layer))


def any_corrected(matrix: Matrix, layer: str = ALL) -> bool:
    return bool(_corrected(matrix, layer).any())


def correction(matrix: Matrix, layer: str = ALL) -> str:
    """What is said of the numbers of `shown`."""
    if not any_corrected(matrix, layer):
        return "not corrected for the sizes of the samples"
    plain = uncorrected(matrix, layer)
    but = f", but for {plain} ({_WHY_PLAIN})" if plain else ""
    return f"corrected for the sizes of the samples{but}"


def plain_note(matrix: Matrix, layer: str = ALL) -> str:
    """Of a page whose other distances are corrected; empty where all are, or none is."""
    plain = uncorrected(matrix, layer)
    if not plain:
        return ""
    return (
        f"Distances of {plain} are not corrected for the size of the sample, and large for that "
        f"({_WHY_PLAIN})."
    )


def uncorrected(matrix: Matrix, layer: str = ALL) -> str:
    """Whose distances are plain where others' are corrected: datasets of one fold or none."""
    corrected = _corrected(matrix, layer)
    lacking = np.isfinite(matrix.of(layer)) & ~corrected & ~np.eye(len(corrected), dtype=bool)
    never = np.logical_not(corrected.any(axis=1))
    causes = never[:, None] | ~never  # not who is compared to one that never is
    whose = np.any(lacking & causes, axis=1)
    names = [name for name, its in zip(matrix.names, whose, strict=True) if its]
    return some_of(names) if names and not never.all() else ""


def _corrected(matrix: Matrix, layer: str) -> NDArray[np.bool_]:
    known = np.isfinite(matrix.of(layer, "emd_corrected"))
    return known & ~np.eye(len(known), dtype=bool)


def no_test(matrix: Matrix) -> str:
    """Why no pair is tested, where none is."""
    if not matrix.estimates:
        if through(matrix):
            return (
                "there are no error bars, which a lens with negative weights has not (vdna lens "
                "fit --non-negative makes one that has), nor has --no-error-bars"
            )
        return "there are no error bars (--no-error-bars)"
    return _TOO_FEW_FOLDS


def through(matrix: Matrix) -> str:
    """The lens by name; empty for all neurons alike."""
    return f"through lens {matrix.lens}" if matrix.lens_digest or matrix.lens != UNIFORM else ""


def seen(matrix: Matrix, layer: str = ALL) -> str:
    """What distances are of: a layer, all neurons, or what a lens weighs of them."""
    if not through(matrix):
        return "all neurons" if layer == ALL else layer
    return through(matrix) if layer == ALL else f"{layer} {through(matrix)}"


def print_matrix(
    matrix: Matrix,
    console: Console,
    layer: str = ALL,
    distance: Distance = "emd",
    lens: Lens | None = None,
) -> None:
    """A row and a column per dataset, numbered; a cell's colour is its distance's rank.

    One decimal where that fits the console, none otherwise; where that is too wide as well, the
    nearest pairs, and how many are left out. Pairs that are not told apart are dim, and marked.
    `lens`: that of the matrix; where it gives the layer no weight, that is all there is to say.
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
    if lens is not None and distance != "fd" and not lens.weighs(layer):
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
        _MARK: _ALIKE_TEXT,
        _UNTESTED_MARK: "not tested",
    }
    legend = "; ".join(f"{mark} {text}" for mark, text in legends.items() if (marks == mark).any())
    if legend:
        console.print(Text(legend, style="dim"), soft_wrap=True)


def _marks(matrix: Matrix, layer: str, distance: Distance) -> NDArray[np.str_]:
    """(D, D), empty for what differs, and where nothing is tested: Fréchet distances are not."""
    verdict = verdicts(matrix, layer)
    tested = distance == "emd" and (verdict != UNTESTED).any()
    marks = np.where(verdict == ALIKE, _MARK, np.where(verdict == UNTESTED, _UNTESTED_MARK, ""))
    np.fill_diagonal(marks, "")
    return np.where(np.isfinite(matrix.of(layer)) & tested, marks, "")


def _values(matrix: Matrix, layer: str, distance: Distance) -> Floats:
    return shown(matrix, layer) if distance == "emd" else matrix.of(layer, distance)


def table_width(
    matrix: Matrix, layer: str = ALL, decimals: int = 1, distance: Distance = "emd"
) -> int:
    """Characters that the printed table takes."""
    return Console(width=10**6).measure(_table(matrix, layer, decimals, distance)).maximum


def _table(matrix: Matrix, layer: str, decimals: int, distance: Distance) -> Table:
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
    """(D, D) in [0, 1]: the share of distinct off-diagonal distances that are smaller."""
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


def _nearest_pairs(matrix: Matrix, layer: str, distance: Distance) -> list[Text]:
    """Lines of what a table is too wide for."""
    values, marks = _values(matrix, layer, distance), _marks(matrix, layer, distance)
    pairs = [(int(i), int(j)) for i, j in zip(*np.triu_indices(len(values), 1), strict=True)]
    known = sorted((p for p in pairs if np.isfinite(values[p])), key=lambda p: (values[p], p))
    count = min(PAIRS, len(known))
    nearest = f"the nearest {'pair' if count == 1 else f'{count} pairs'} of {len(pairs):,}"
    nearest = nearest if len(pairs) > 1 else "the only pair"
    lines = [Text(f"{len(values)} datasets make a table too wide for here; {nearest}:")]
    width = max((len(matrix.names[i]) for i, _ in known[:count]), default=0)
    for pair in known[:count]:
        a, b = (matrix.names[i] for i in pair)
        number = f"{marks[pair]}{_number(values[pair], distance)}"
        lines.append(Text(f"{number:>8}  {a:{width}}  {b}", style="dim" if marks[pair] else ""))
    if undefined := len(pairs) - len(known):
        has = "pair has" if undefined == 1 else "pairs have"
        lines.append(Text(f"{undefined:,} {has} no distance that is defined"))
    if left := len(known) - count:
        are = "pair is" if left == 1 else "pairs are"
        lines.append(Text(f"{left:,} farther {are} left out: --out and --html write them all"))
    return lines


def _number(value: float, distance: Distance = "emd") -> str:
    return f"{value:.{_decimals(value)}f}" if distance == "emd" else f"{value:.3g}"


def _decimals(value: float) -> int:
    return 1 if abs(value) >= 1 or value == 0 else 2


def sentences_heading(matrix: Matrix, layer: str = ALL, near: str | None = None) -> str:
    """What the numbers of `nearest_sentences` are, or of the `neighbour_lines` of a dataset."""
    what = "Distance" if len(matrix.names) == 2 else "Nearest and farthest"
    what = f"From {near}, the nearest first" if near else what
    barred = " [95% interval]" if any_corrected(matrix, layer) else ""
    return f"{what}, in bins, {correction(matrix, layer)}{barred}:"


def nearest_sentences(matrix: Matrix, layer: str = ALL) -> list[str]:
    """For each dataset, its nearest and its farthest, and those that it is not told apart from.

    Corrected distances with their 95% interval, where they are known. The nearest is one that is
    told apart, unless none is. Of two datasets there is one distance, and one line.
    """
    values, verdict = shown(matrix, layer), verdicts(matrix, layer)
    q, distance = matrix.of(layer, "q"), _distances_told(matrix, layer)
    width = max(len(name) for name in matrix.names)

    def told(i: int, j: int) -> str:
        return f"{matrix.names[j]} {distance(i, j)}"

    lines = []
    if len(matrix.names) == 2:
        if not neighbours(values, 0):
            return [f"{' and '.join(matrix.names)} are at no distance that is defined"]
        alike_too = f"; not told apart (q {q[0, 1]:.2f})" if verdict[0, 1] == ALIKE else ""
        return [f"{matrix.names[0]} to {told(0, 1)}{alike_too}"]
    for i, name in enumerate(matrix.names):
        others = neighbours(values, i)
        if not others:
            lines.append(f"{name:{width}}  at no distance that is defined")
            continue
        alike = [j for j in others if verdict[i, j] == ALIKE]
        apart = [j for j in others if verdict[i, j] != ALIKE] or list(others)
        near, far = told(i, apart[0]), told(i, others[-1])
        both = f"nearest and farthest {far}" if near == far else f"nearest {near}, farthest {far}"
        line = f"{name:{width}}  {both}"
        if alike:
            named = ", ".join(f"{matrix.names[j]} (q {q[i, j]:.2f})" for j in alike[:NAMED])
            more = f" and {len(alike) - NAMED} more" if len(alike) > NAMED else ""
            line += f"; not told apart from {named}{more}"
        lines.append(line)
    return lines


def neighbour_lines(matrix: Matrix, name: str, layer: str = ALL) -> list[str]:
    """All others of a dataset, the nearest first, with q; what is not told apart is marked."""
    i, values, verdict = matrix.names.index(name), shown(matrix, layer), verdicts(matrix, layer)
    q, told = matrix.of(layer, "q")[i], _distances_told(matrix, layer)
    others = neighbours(values, i)
    wide = max((len(matrix.names[j]) for j in others), default=0)
    lines = [
        f"{_MARK if verdict[i, j] == ALIKE else ' '} {matrix.names[j]:{wide}}  {told(i, j)}"
        + (f"  q {q[j]:.2g}" if np.isfinite(q[j]) else "")
        for j in others
    ]
    if lost := len(matrix.names) - 1 - len(others):
        lines.append(f"  {lost:,} at no distance that is defined")
    if ALIKE in verdict[i]:
        lines.append(f"{_MARK} {_ALIKE_TEXT}")
    return lines


def _distances_told(matrix: Matrix, layer: str) -> Callable[[int, int], str]:
    """Of a pair, corrected with its 95% interval where that is known."""
    values, corrected = shown(matrix, layer), _corrected(matrix, layer)
    low, high = (matrix.of(layer, column) for column in ("low", "high"))
    known = np.isfinite(low) & np.isfinite(high) & corrected

    def told(i: int, j: int) -> str:
        value = values[i, j]
        if not known[i, j]:
            plain = corrected.any() and not corrected[i, j]
            return _number(value) + (" (not corrected)" if plain else "")
        digits = _decimals(value)
        return f"{_number(value)} [{low[i, j]:.{digits}f}, {high[i, j]:.{digits}f}]"

    return told


def summary_sentence(matrix: Matrix, layer: str = ALL, rate: float = FALSE_DISCOVERY_RATE) -> str:
    """How many pairs differ, or that no one knows."""
    upper = verdicts(matrix, layer, rate)[np.triu_indices(len(matrix.names), 1)]
    pairs = f"{len(upper):,} {'pair' if len(upper) == 1 else 'pairs'}"
    untested = int((upper == UNTESTED).sum())
    if untested == len(upper):
        return f"None of {pairs} is tested: {no_test(matrix)}."
    alike = int((upper == ALIKE).sum())
    different = int((upper == DIFFERENT).sum())
    differ = "differs" if 1 in (different, len(upper)) else "differ"
    line = f"{different:,} of {pairs} {differ} at a false discovery rate of "
    line += f"{rate:.0%}; {alike:,} {'is' if alike == 1 else 'are'} not told apart"
    if untested:
        line += f"; {untested:,} {'is' if untested == 1 else 'are'} not tested"
    return f"{line}."


# Why two datasets differ.

_BLOCKS = " ▁▂▃▄▅▆▇█"
_NARROWEST, _WIDEST = 8, 24
"""Characters of a histogram; where there is room for fewer, none is drawn."""


def print_explanation(found: Explanation, console: Console, top: int) -> None:
    """Layers, then the first `top` neurons, with both histograms where there is room for them.

    What is not told apart is dim, and marked. On a narrow console columns are left out, the last
    ones first.
    """
    a, b = found.versions
    of = "" if found.lens == UNIFORM else f" through lens {found.lens}"
    console.print(Text(f"From {a} to {b}{of}: layers", style="bold"), soft_wrap=True)
    tested = found.neurons["q"].null_count < found.neurons.num_rows
    rows = [
        {
            "layer": row["layer"],
            **_measured(row),
            "differ": f"{row['differing']:,}/{row['neurons']:,}" if tested else "",
            "share": f"{row['share']:.0%}",
        }
        for row in found.layers.to_pylist()
        if row["neurons"]
    ]
    _print_ranking(rows, console)
    if found.signed:
        console.print(Text(_SIGNED, style="dim"), soft_wrap=True)
    blind = [row["layer"] for row in found.layers.to_pylist() if not row["neurons"]]
    if blind:
        console.print(Text(f"The lens gives no weight to {', '.join(blind)}"), soft_wrap=True)
    if not found.neurons.num_rows:
        return
    neurons = found.neurons.slice(0, top).to_pylist()
    console.print(Text(f"\nNeurons, the first {len(neurons)}", style="bold"), soft_wrap=True)
    rows = [
        {
            "neuron": f"{row['layer']}[{row['neuron']}]",
            **_measured(row),
            "shift": "" if row["shift"] is None else f"{row['shift']:+.{_decimals(row['shift'])}f}",
        }
        for row in neurons
    ]
    width = min((console.width - _width(_ranking(rows)) - 2) // 2, _WIDEST)
    if width >= _NARROWEST:
        for row, shown in zip(rows, found.shown, strict=False):
            row["of a"], row["of b"] = _sparklines(shown, width)
    _print_ranking(rows, console)


def _print_ranking(rows: list[dict[str, str]], console: Console) -> None:
    if not rows:
        return
    while _width(table := _ranking(rows)) > console.width and len(rows[0]) > 2:
        rows = [dict(list(row.items())[:-1]) for row in rows]
    console.print(
        Segments(console.render(table, console.options.update(width=_width(table)))),
        soft_wrap=True,
        end="",
    )


def _width(table: Table) -> int:
    return Console(width=10**6).measure(table).maximum


def _ranking(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    ink = {"of a": "blue", "of b": "yellow"}
    for number, heading in enumerate(rows[0]):
        left = number == 0 or heading in ink
        table.add_column(
            heading, no_wrap=True, justify="left" if left else "right", style=ink.get(heading)
        )
    for row in rows:
        alike = row["emd"].startswith(_MARK)
        table.add_row(*map(Text, row.values()), style="dim" if alike else "")
    return table


def _measured(row: Mapping[str, Any]) -> dict[str, str]:
    """Cells; the distance of what is not told apart is marked."""
    if row["emd"] is None:
        return {"emd": "nan", "q": "", "corrected [95%]": ""}
    alike = row["q"] is not None and row["q"] >= FALSE_DISCOVERY_RATE
    interval = ""
    if row["emd_corrected"] is not None:
        digits = _decimals(row["emd_corrected"])
        interval = "{emd_corrected:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(**row, d=digits)
    return {
        "emd": f"{_MARK if alike else ''}{_number(row['emd'])}",
        "q": "" if row["q"] is None else f"{row['q']:.2g}",
        "corrected [95%]": interval,
    }


def _sparklines(shown: Overlay, width: int) -> tuple[str, str]:
    """Both histograms in blocks, on one scale; where anything is, something shows."""
    means = [
        [float(part.mean()) for part in np.array_split(np.array(of), min(width, len(of)))]
        for of in (shown.a, shown.b)
    ]
    most = max(max(of) for of in means) or 1.0
    full = len(_BLOCKS) - 1
    a, b = ("".join(_BLOCKS[int(np.ceil(v / most * full))] for v in of) for of in means)
    return a, b


def lacking_exemplars(found: Explanation) -> dict[str, str]:
    """Those of the two datasets that name no images of the first neurons: a sentence on each."""
    lacking = {}
    for side, (name, version) in enumerate(found.versions.items()):
        if found.reactions and all(sides[side] is None for sides in found.reactions):
            why = f"which keeps none: build it with --exemplars {DEFAULT_KEPT}"
            if version.imported:
                why = "which was imported"
            elif "exemplars" in version.sha256:
                why = "which keeps those of other layers (vdna build --exemplar-taps)"
            lacking[name] = f"No images are named for {name}, {why}."
    return lacking


def reaction_lines(found: Explanation) -> list[str]:
    """Of the first neurons, the images of either dataset that they react to most."""
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
                for image in (images or ())[:SHOWN_IMAGES]
            ]
    return lines


def explanation_sentence(found: Explanation) -> str:
    """How many neurons differ, and how many make up half of the distance."""
    neurons = found.neurons.num_rows
    if not neurons:
        return "The lens gives these layers no weight: through it there is no distance."
    of = f"{neurons:,} {'neuron' if neurons == 1 else 'neurons'}"
    make = "makes" if 1 in (found.half, neurons) else "make"
    distance = "all that is added and taken away" if found.signed else "the distance"
    most = f"{found.half:,} of {of} {make} up half of {distance}"
    if found.neurons["q"].null_count == neurons:
        return f"No neuron is tested: {_TOO_FEW_FOLDS}. {most}."
    differ = "differs" if 1 in (found.differing, neurons) else "differ"
    return (
        f"{found.differing:,} of {of} {differ} at a false discovery rate of "
        f"{FALSE_DISCOVERY_RATE:.0%}; {most}."
    )
