r"""Says which datasets are the nearest, and how they were found: as lines, and as JSON.

>>> print(*found_lines(nearest("dnas", near="photos", top=3)), sep="\n")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from pipeline.comparing import Neighbours
from pipeline.reporting.conclusions import (
    distances_told,
    format_number,
    neighbour_lines,
    sentences_heading,
)
from pipeline.wording import count_of

NAMED_DUPLICATES = 20
"""The most pairs of near duplicates that are named for people."""


def found_lines(found: Neighbours) -> list[str]:
    """Lists the neighbours, the nearest first.

    Args:
        found: What was found.

    Returns:
        A heading, and a line for each neighbour of one dataset; of several, a line for each of
        these.
    """
    if len(found.of) == 1:
        around = found.around(found.of[0])
        heading = sentences_heading(around, found.layer, found.of[0])
        return [heading, *neighbour_lines(around, found.of[0], found.layer)]
    lines = ["The nearest of each dataset, in bins:"]
    width = max(map(len, found.of))
    for name in found.of:
        around = found.around(name)
        told = distances_told(around, found.layer)
        near = (f"{other} {told(0, j)}" for j, other in enumerate(around.names) if j)
        lines.append(f"  {name:{width}}  {', '.join(near) or 'no distance that is defined'}")
    return lines


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
    duplicates = [
        f"{a} and {b} (at most {format_number(most)} bins apart)"
        for (a, b), most in found.near_duplicates().items()
    ]
    for pair in duplicates[:NAMED_DUPLICATES]:
        lines.append(f"Near duplicates: {pair}.")
    if len(duplicates) > NAMED_DUPLICATES:
        lines.append(f"{len(duplicates) - NAMED_DUPLICATES:,} more pairs of near duplicates.")
    return lines


def neighbours_json(found: Neighbours) -> dict[str, Any]:
    """Returns what was found, for JSON."""
    return {
        "pairs": found.pairs,
        "computed": found.computed,
        "undefined": found.undefined,
        "near_duplicates": [
            {"a": a, "b": b, "most": most} for (a, b), most in found.near_duplicates().items()
        ],
        "neighbours": found.table_of(found.layer).to_pylist(),
    }
