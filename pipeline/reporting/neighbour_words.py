r"""Says which datasets are the nearest, and how they were found: as lines, and as JSON.

>>> print(*found_lines(nearest("dnas", near="photos", top=3)), sep="\n")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.comparing import FALSE_DISCOVERY_RATE, Neighbours
from pipeline.dna import Floats
from pipeline.reporting.conclusions import (
    ALIKE_MARK,
    ALIKE_TEXT,
    FROM_ZERO_TEXT,
    format_number,
    seen,
    with_interval,
)
from pipeline.wording import count_of

NAMED_DUPLICATES = 20
"""The most pairs of near duplicates that are named for people."""


def found_lines(found: Neighbours) -> list[str]:
    """Lists the neighbours by their ranks.

    Args:
        found: What was found.

    Returns:
        A heading, and a line for each neighbour of one dataset; of several, a line for each of
        these. Neighbours that are not told apart are marked.
    """
    told = [_told(found, edge) for edge in range(len(found.edges))]
    none = "no distance that is defined"
    first = f"From {found.of[0]}, the nearest" if len(found.of) == 1 else "The nearest of each"
    lines = [f"{first}, by the emd of {seen(found, found.layer)}, in bins{_correction(found)}:"]
    if len(found.of) == 1:
        lines += [f"  {each}" for each in told] or [f"  {none}"]
    else:
        width = max(map(len, found.of))
        near: dict[str, list[str]] = {name: [] for name in found.of}
        for (a, _), each in zip(found.edges, told, strict=True):
            near[found.names[a]].append(each.strip())
        lines += [f"  {name:{width}}  {'; '.join(each) or none}" for name, each in near.items()]
    if any(_is_alike(found, edge) for edge in range(len(found.edges))):
        lines.append(f"{ALIKE_MARK} {ALIKE_TEXT}")
    return lines


def _correction(found: Neighbours) -> str:
    """Says what stands behind each emd."""
    if not np.isfinite(_column(found, "emd_corrected")).any():
        return ", not corrected for the sizes of the samples"
    return ". Then the distance corrected for the sizes of the samples [95% interval]"


def _told(found: Neighbours, edge: int) -> str:
    """Says which neighbour an edge leads to, and how far away it is."""
    names = ("emd", "emd_corrected", "low", "high", "q")
    emd, corrected, low, high, q = (float(_column(found, name)[edge]) for name in names)
    mark = ALIKE_MARK if _is_alike(found, edge) else " "
    text = (
        f"{mark} {found.ranks[edge]}. {found.names[found.edges[edge][1]]}  emd {format_number(emd)}"
    )
    if np.isfinite(corrected) and np.isfinite(low) and np.isfinite(high):
        text += f", corrected {with_interval(corrected, low, high)}"
    elif np.isfinite(corrected):
        text += f", corrected {format_number(corrected)}"
    elif np.isfinite(_column(found, "emd_corrected")).any():
        text += " (not corrected)"
    return text + (f", q {q:.2g}" if np.isfinite(q) and len(found.of) == 1 else "")


def _is_alike(found: Neighbours, edge: int) -> bool:
    return bool(_column(found, "q")[edge] >= FALSE_DISCOVERY_RATE)


def _column(found: Neighbours, name: str) -> Floats:
    """Returns (edges,) values of the plane that decides; NaN if they are not known."""
    emd = found.columns["emd"][-1]
    return found.columns[name][-1] if name in found.columns else np.full_like(emd, np.nan)


def found_sentences(found: Neighbours) -> list[str]:
    """Says how the neighbours were found, and which of them are near duplicates.

    Args:
        found: What was found.

    Returns:
        The sentences.
    """
    farther = found.pairs - found.computed - found.undefined
    bounds = (
        f", and the coarse curves of {farther:,} show that they are farther" if farther > 0 else ""
    )
    lines = [
        f"{found.computed:,} of {count_of(found.pairs, 'pair')} computed exactly{bounds}. The "
        "nearest are those of the smallest emd, before the correction for sample size."
    ]
    if found.undefined:
        lines.append(
            f"{count_of(found.undefined, 'pair')} without a distance, because a neuron has no "
            "finite activation in one of the datasets."
        )
    if (_column(found, "q") < FALSE_DISCOVERY_RATE)[_column(found, "low") <= 0].any():
        lines.append(f"{FROM_ZERO_TEXT}.")
    duplicates = [
        f"{a} and {b} (at most {format_number(most)} bins apart)"
        for (a, b), most in found.near_duplicates().items()
    ]
    for pair in duplicates[:NAMED_DUPLICATES]:
        lines.append(f"Near duplicates among the pairs found: {pair}.")
    if len(duplicates) > NAMED_DUPLICATES:
        lines.append(f"{len(duplicates) - NAMED_DUPLICATES:,} more pairs of near duplicates.")
    return lines


def neighbours_json(found: Neighbours) -> dict[str, Any]:
    """Returns what was found, for JSON."""
    return {
        "pairs": found.pairs,
        "computed": found.computed,
        "undefined": found.undefined,
        "near_duplicates_among": "the pairs found",
        "near_duplicates": [
            {"a": a, "b": b, "most": most} for (a, b), most in found.near_duplicates().items()
        ],
        "neighbours": found.table_of(found.layer).to_pylist(),
    }
