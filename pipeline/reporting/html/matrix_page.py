"""Renders the page of a snapshot: one HTML file that opens offline and asks for nothing.

    >>> Path("report.html").write_bytes(render_matrix_page(page))  # doctest: +SKIP

`head.html`, `page.html`, `page.css`, `draw.js` and the folder `matrix` beside this module are its
frame, and all that runs. The policy in its head allows that one style and that one script, by their
sha256, and no connection. The data are one JSON text in which no `<` stands; the script makes text
of them, never markup.

The script draws by itself instead of using plotly, whose script alone is 4.8 MB, has no keyboard
access in a heatmap, and sets styles that a strict policy forbids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.comparing import FALSE_DISCOVERY_RATE, Estimate, Matrix, Measure, clusters, plane_map
from pipeline.dna import Floats
from pipeline.errors import UsageError
from pipeline.explaining import stages_of
from pipeline.reporting.conclusions import (
    any_corrected,
    from_zero_note,
    no_test,
    plain_note,
    through,
    wide_note,
)
from pipeline.reporting.headline_sentences import headline
from pipeline.reporting.html.frame import FRAME, MOST, Packed, as_script, framed, plain
from pipeline.reporting.html.packing import BITS, BITS_OF_A_TEST, EXACT_DATASETS, pack
from pipeline.reporting.html.page_data import Page, Seen
from pipeline.wording import count_of

LEAST_NUMBERS = 1_000_000
"""The bytes that distances may take even if the page is full without them."""

PAGE_COLUMNS: tuple[Measure | Estimate, ...] = (
    *("emd", "q", "emd_corrected", "low", "high", "se", "nfd", "fd", "floor", "p"),
)
"""The columns of distances. The first ones are kept if there is not room for all."""

SCRIPT_PARTS = (
    *("state", "numbers", "words", "drawing", "pointing", "address", "guide", "pair", "map"),
    *("datasets", "tables", "begin"),
)

MATRIX_SCRIPTS = ("stages.js", *(f"matrix/{name}.js" for name in SCRIPT_PARTS))
"""The files of the page's script, in the order in which they run."""

RATES = (0.01, 0.05, 0.1)
"""The false discovery rates that a reader can choose, besides the one that was asked for."""


def render_matrix_page(
    page: Page, *, rate: float = FALSE_DISCOVERY_RATE, room: int | None = None
) -> bytes:
    """Renders a page.

    Args:
        page: What to show.
        rate: The false discovery rate that the page opens with.
        room: Bytes that distances may take; by default what the rest leaves of `MOST`.

    Returns:
        The bytes of the HTML file.

    Raises:
        UsageError: The matrices are of different datasets or bins, or panels or lenses are missing.
    """
    names = page.matrices[0].names
    for matrix in page.matrices:
        if matrix.names != names or matrix.bins != page.matrices[0].bins:
            raise UsageError("a page shows matrices of the same datasets and bins only")
    if len(page.panels) != len(names):
        raise UsageError(
            f"a page of {len(names)} datasets needs as many panels; it has {len(page.panels)}"
        )
    seen = page.seen or [Seen()] * len(page.matrices)
    if len(seen) != len(page.matrices):
        raise UsageError(
            f"a page of {len(page.matrices)} matrices has {len(seen)} lenses; it needs one for each"
        )
    datasets = [plain(panel) for panel in page.panels]
    rates = sorted({*RATES, rate})
    told = [_told(*of, rates, page.network) for of in zip(page.matrices, seen, strict=True)]
    if room is None:
        taken = len(as_script([datasets, told, page.notes]))
        room = max(LEAST_NUMBERS, MOST - FRAME - taken)
    numbers = [_columns(matrix, room // len(told), rates) for matrix in page.matrices]
    lenses = [
        of | {"columns": held, "left_out": left}
        for (of, _), (held, left, _) in zip(told, numbers, strict=True)
    ]
    said = [note for of, held in zip(told, numbers, strict=True) for note in (*held[2], *of[1])]
    notes = [*page.notes, *dict.fromkeys(said)]
    about = count_of(len(names), "dataset")
    title = page.title or f"Visual DNA of {about}{_through_all(page.matrices)}"
    data = {
        "title": title,
        "about": page.about,
        "notes": notes,
        "names": names,
        "bins": page.matrices[0].bins,
        "rate": rate,
        "rates": rates,
        "matrices": lenses,
        "shared": page.shared,
        "snapshot": page.snapshot,
        "pair_pages": page.pair_pages,
        "explained": {f"{i}-{j}": link for (i, j), link in page.explained.items()},
        "rankings": [
            {
                "dataset": names.index(of.name) if of.name in names else None,
                "text": of.text,
                "href": of.href,
            }
            for of in page.rankings
        ],
        "dataset_pages": page.dataset_pages,
        "datasets": datasets,
    }
    return framed("page", MATRIX_SCRIPTS, title, data)


def _through_all(matrices: Sequence[Matrix]) -> str:
    """Names the lens if the page has one matrix."""
    return f" {through(matrices[0])}".rstrip() if len(matrices) == 1 else ""


def _told(
    matrix: Matrix, seen: Seen, rates: Sequence[float], network: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Returns a matrix's part of the data without its numbers, and the notes about it."""
    planes = matrix.planes
    arranged = [clusters(matrix.corrected(plane)) for plane in planes]
    maps = [plane_map(matrix.corrected(plane)) for plane in planes]
    content = {
        "lens": matrix.lens,
        "through": through(matrix),
        "no_test": no_test(matrix, matrix.planes[-1]),
        "weightless": seen.weightless,
        "headlines": [
            ["" if plane in seen.weightless else headline(matrix, plane, rate) for rate in rates]
            for plane in planes
        ],
        "neurons": {
            f"{i}-{j}": [plain(n) for n in found] for (i, j), found in seen.neurons.items()
        },
        "neurons_note": seen.note,
        "planes": planes,
        "stages": (*stages_of(matrix.layers, network), *[""] * (len(planes) - len(matrix.layers))),
        "arranged": [
            {
                "order": found.order,
                "merges": _rounded(found.merges),
                "corrected": any_corrected(matrix, plane),
            }
            for plane, found in zip(planes, arranged, strict=True)
        ],
        "maps": [
            {"points": _rounded(found.points), "stress": round(found.stress, 6)} for found in maps
        ],
    }
    all_notes = (note_of(matrix, planes[-1]) for note_of in (plain_note, from_zero_note, wide_note))
    notes = [note for note in all_notes if note]
    for plane, found in zip(planes, arranged, strict=True):
        if found.undefined and plane not in seen.weightless:
            lacking = ", ".join(matrix.names[i] for i in found.undefined[:5])
            notes.append(
                f"{lacking} {'and others ' if len(found.undefined) > 5 else ''}"
                f"at no distance that is defined in {plane}; last in order."
            )
    return content, notes


def _columns(
    matrix: Matrix, room: int, rates: Sequence[float]
) -> tuple[dict[str, dict[int, str]], dict[str, list[str]], list[str]]:
    """Packs a matrix's numbers into the room there is.

    If a layer's distances do not fit, nothing else of that layer is tried.

    Returns:
        The packed columns by layer, the layers that were left out by column, and the notes about
        it.
    """
    planes = matrix.planes
    packed: dict[str, dict[int, str]] = {}
    left: dict[str, list[str]] = {}
    *others, last = range(len(planes))  # the last is what the page opens with
    wanted = [(column, last) for column in PAGE_COLUMNS]
    wanted += [(column, plane) for column in PAGE_COLUMNS for plane in others]
    for column, plane in wanted:
        values = matrix.stacked(column)[plane]
        text = pack(values, BITS_OF_A_TEST, rates) if column in "pq" else pack(values)
        if not text:
            continue
        if len(text) <= room and planes[plane] not in left.get("emd", ()):
            room -= len(text)
            packed.setdefault(column, {})[plane] = Packed(text)
        else:
            left.setdefault(column, []).append(planes[plane])
    notes = []
    if left:
        columns = ", ".join(
            f"{column} of {count_of(len(of), 'layer')}" for column, of in left.items()
        )
        notes.append(
            f"Left out of this page for its size, and in the file that vdna compare --out writes: "
            f"{columns}."
        )
    if len(matrix.names) > EXACT_DATASETS:
        notes.append(f"Distances are rounded to {BITS} significant bits, more than three digits.")
    return packed, left, notes


def _rounded(rows: Floats) -> list[Any]:
    """Rounds to five digits, which is finer than a screen. A row with a NaN becomes null."""
    return [
        [float(f"{value:.5g}") for value in row] if np.isfinite(row).all() else None
        for row in rows.tolist()
    ]
